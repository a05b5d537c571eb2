"""The folder that Hugging Face's `kernels` loads; `kernelize` maps the classes of `layers`."""

from bilinear.hub import layers as layers
