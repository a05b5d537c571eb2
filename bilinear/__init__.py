"""Fused bilinear layers, and the modular-addition sweep that runs on them."""

__version__ = "0.1.0"
