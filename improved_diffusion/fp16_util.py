"""Casting the convolutions of a model to half precision and back."""

import torch as th
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convert_module_to_f16(layer: nn.Module) -> None:
    """Cast ``layer`` to float16 if it is a convolution; made for ``module.apply``."""
    _cast_convolution(layer, th.float16)


def convert_module_to_f32(layer: nn.Module) -> None:
    """Cast ``layer`` to float32 if it is a convolution; undoes :func:`convert_module_to_f16`."""
    _cast_convolution(layer, th.float32)


def _cast_convolution(layer: nn.Module, dtype: th.dtype) -> None:
    if isinstance(layer, CONVOLUTIONS):
        layer.to(dtype)
