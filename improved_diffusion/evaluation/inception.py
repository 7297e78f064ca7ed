"""FID's Inception-v3: image features from the published weights, which one has to have.

Szegedy et al. 2015 (https://arxiv.org/abs/1512.00567) in the variant of 2015-12-05 that Heusel et
al. 2017 defined FID by, laid out as pytorch-fid's ``pt_inception-2015-12-05-6726825d.pth``. That
variant's average pools leave the padding out of the mean, and its last block has a max pool.

The weights cannot be had where this was written: the network was tested with made-up ones.
"""

from collections.abc import Callable

import torch as th
from torch.nn import functional as F

from ..errors import InputError
from .network_weights import load_network

CLASSES = 1008  # which tell FID's weights from those of other Inceptions, with their 1,000
Size = int | tuple[int, int]


class InceptionV3(th.nn.Module):
    """From images float32 [N, 3, 299, 299] to features float32 [N, 2048].

    The features are what the classifier sees: the last activations, averaged over the image. The
    modules have the names that pytorch-fid's weights have.
    """

    dimension = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _A(192, 32)
        self.Mixed_5c = _A(256, 64)
        self.Mixed_5d = _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b = _C(768, 128)
        self.Mixed_6c = _C(768, 160)
        self.Mixed_6d = _C(768, 160)
        self.Mixed_6e = _C(768, 192)
        self.Mixed_7a = _D(768)
        self.Mixed_7b = _E(1280, _mean_pool)
        self.Mixed_7c = _E(2048, _max_pool)
        self.fc = th.nn.Linear(self.dimension, CLASSES)

    def forward(self, x: th.Tensor) -> th.Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3))


def _mean_pool(x: th.Tensor) -> th.Tensor:
    """The mean of what lies in the image of a window of 3 x 3."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x: th.Tensor) -> th.Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _Conv(th.nn.Module):
    """A convolution, a batch norm and ReLU."""

    def __init__(
        self, channels: int, out_channels: int, kernel: Size, stride: int = 1, padding: Size = 0
    ):
        super().__init__()
        self.conv = th.nn.Conv2d(channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = th.nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return F.relu(self.bn(self.conv(x)))


def _row(channels: int, out_channels: int, length: int) -> _Conv:
    """A convolution of 1 x length that keeps the size."""
    return _Conv(channels, out_channels, (1, length), padding=(0, length // 2))


def _column(channels: int, out_channels: int, length: int) -> _Conv:
    """A convolution of length x 1 that keeps the size."""
    return _Conv(channels, out_channels, (length, 1), padding=(length // 2, 0))


class _A(th.nn.Module):
    """Figure 5 of the paper, with a 5 x 5 convolution in one branch."""

    def __init__(self, channels: int, pool_channels: int):
        super().__init__()
        self.branch1x1 = _Conv(channels, 64, 1)
        self.branch5x5_1 = _Conv(channels, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(channels, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(channels, pool_channels, 1)

    def forward(self, x: th.Tensor) -> th.Tensor:
        branches = (
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_mean_pool(x)),
        )
        return th.cat(branches, dim=1)


class _B(th.nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch3x3 = _Conv(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(channels, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: th.Tensor) -> th.Tensor:
        branches = (
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            F.max_pool2d(x, 3, stride=2),
        )
        return th.cat(branches, dim=1)


class _C(th.nn.Module):
    """Figure 6 of the paper: 7 x 7 as rows and columns."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.branch1x1 = _Conv(channels, 192, 1)
        self.branch7x7_1 = _Conv(channels, inner, 1)
        self.branch7x7_2 = _row(inner, inner, 7)
        self.branch7x7_3 = _column(inner, 192, 7)
        self.branch7x7dbl_1 = _Conv(channels, inner, 1)
        self.branch7x7dbl_2 = _column(inner, inner, 7)
        self.branch7x7dbl_3 = _row(inner, inner, 7)
        self.branch7x7dbl_4 = _column(inner, inner, 7)
        self.branch7x7dbl_5 = _row(inner, 192, 7)
        self.branch_pool = _Conv(channels, 192, 1)

    def forward(self, x: th.Tensor) -> th.Tensor:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = (
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_mean_pool(x)),
        )
        return th.cat(branches, dim=1)


class _D(th.nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch3x3_1 = _Conv(channels, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(channels, 192, 1)
        self.branch7x7x3_2 = _row(192, 192, 7)
        self.branch7x7x3_3 = _column(192, 192, 7)
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: th.Tensor) -> th.Tensor:
        deep = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        branches = (
            self.branch3x3_2(self.branch3x3_1(x)),
            self.branch7x7x3_4(deep),
            F.max_pool2d(x, 3, stride=2),
        )
        return th.cat(branches, dim=1)


class _E(th.nn.Module):
    """Figure 7 of the paper: 3 x 3 as a row beside a column."""

    def __init__(self, channels: int, pool: Callable[[th.Tensor], th.Tensor]):
        super().__init__()
        self.pool = pool
        self.branch1x1 = _Conv(channels, 320, 1)
        self.branch3x3_1 = _Conv(channels, 384, 1)
        self.branch3x3_2a = _row(384, 384, 3)
        self.branch3x3_2b = _column(384, 384, 3)
        self.branch3x3dbl_1 = _Conv(channels, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _row(384, 384, 3)
        self.branch3x3dbl_3b = _column(384, 384, 3)
        self.branch_pool = _Conv(channels, 192, 1)

    def forward(self, x: th.Tensor) -> th.Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = (
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        )
        return th.cat(branches, dim=1)


def open_inception(path: str = "") -> InceptionV3:
    """The network with FID's weights.

    :param path: of pytorch-fid's file.
    :raises InputError: without a path, or if the file is not such weights.
    """
    if not path:
        raise InputError(
            "the feature network inception needs FID's weights: give --weights, the path of "
            "pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
        )
    network = load_network(InceptionV3, path)
    del network.fc
    return network
