"""What Hugging Face's `kernels` loads from this folder: `layers`, for `kernelize` to map."""

from bilinear.hub import layers as layers
