"""The layer as functions: `bilinear(x, weight, bias)` and `bilinear_mlp(x, weight, w_p, …)`."""

from bilinear.layer.functional import bilinear as bilinear
from bilinear.layer.functional import bilinear_mlp as bilinear_mlp

__all__ = ["bilinear", "bilinear_mlp"]
