"""Kernels and their launchers: tensors in, tensors out; no autograd, no modules, no training."""
