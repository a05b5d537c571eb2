"""Measurements on a GPU, in parts; `bench.gpu` runs the parts one after another."""
