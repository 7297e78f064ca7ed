"""FID's Inception-v3: image features from the published weights, which one has to have.

Szegedy et al. 2015 (https://arxiv.org/abs/1512.00567) in the variant of 2015-12-05 that Heusel et
al. 2017 defined FID by, laid out as pytorch-fid's ``pt_inception-2015-12-05-6726825d.pth``. That
variant's average pools leave the padding out of the mean, and its last block has a max pool.

It is tested with made-up weights: the published ones are not ours to ship.
"""

from collections.abc import Callable
from typing import Any

import torch as th
from torch.nn import functional as F

from ..errors import InputError
from .network_weights import load_network

CLASSES = 1008  # which tell FID's weights from those of other Inceptions, with their 1,000
Pool = Callable[[th.Tensor], th.Tensor]


class InceptionV3(th.nn.Module):
    """From images float32 [N, 3, 299, 299] to features float32 [N, 2048].

    The features are what the classifier sees: the last activations, averaged over the image. The
    modules have the names that pytorch-fid's weights have.
    """

    dimension = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, padding=0)
        self.Mixed_5b = _figure_5(192, 32)
        self.Mixed_5c = _figure_5(256, 64)
        self.Mixed_5d = _figure_5(288, 64)
        self.Mixed_6a = _to_17(288)
        self.Mixed_6b = _figure_6(128)
        self.Mixed_6c = _figure_6(160)
        self.Mixed_6d = _figure_6(160)
        self.Mixed_6e = _figure_6(192)
        self.Mixed_7a = _to_8(768)
        self.Mixed_7b = _figure_7(1280, _mean_pool)
        self.Mixed_7c = _figure_7(2048, _max_pool)
        self.fc = th.nn.Linear(self.dimension, CLASSES)

    def forward(self, x: th.Tensor) -> th.Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halve(x)))
        x = _halve(x)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3))


def _mean_pool(x: th.Tensor) -> th.Tensor:
    """The mean of what lies in the image of a window of 3 x 3."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x: th.Tensor) -> th.Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _halve(x: th.Tensor) -> th.Tensor:
    return F.max_pool2d(x, 3, stride=2)


class _Conv(th.nn.Module):
    """A convolution, a batch norm and ReLU; of stride 1 and with its padding it keeps the size."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | str = "same",
    ):
        super().__init__()
        padding = padding if stride == 1 else 0
        self.conv = th.nn.Conv2d(channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = th.nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(th.nn.Module):
    """Branches of convolutions side by side, and a pool.

    :param branches: the name, the output channels, the kernel and the stride of each convolution of
        a branch. What two branches begin with is computed once; ``branch_pool`` is of the pool.
    """

    def __init__(self, channels: int, pool: Pool, *branches: list[tuple[Any, ...]]):
        super().__init__()
        self.pool = pool
        self.branches = [[name for name, *_ in branch] for branch in branches]
        for branch in branches:
            width = channels
            for name, out_channels, *how in branch:
                setattr(self, name, _Conv(width, out_channels, *how))
                width = out_channels

    def forward(self, x: th.Tensor) -> th.Tensor:
        made: dict[str, th.Tensor] = {}
        pooled = self.pool(x)
        for names in self.branches:
            h = pooled if names == ["branch_pool"] else x
            for name in names:
                h = made[name] = made[name] if name in made else getattr(self, name)(h)
        rows = [made[names[-1]] for names in self.branches]
        return th.cat(rows if "branch_pool" in made else [*rows, pooled], dim=1)


def _figure_5(channels: int, pool_channels: int) -> _Mixed:
    """Figure 5 of the paper, with a 5 x 5 convolution in one branch."""
    return _Mixed(
        channels,
        _mean_pool,
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        [("branch_pool", pool_channels, 1)],
    )


def _to_17(channels: int) -> _Mixed:
    """From 35 x 35 to 17 x 17."""
    return _Mixed(
        channels,
        _halve,
        [("branch3x3", 384, 3, 2)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
    )


def _figure_6(inner: int) -> _Mixed:
    """Figure 6 of the paper: 7 x 7 as rows and columns."""
    row, column = (1, 7), (7, 1)
    double = [("branch7x7dbl_1", inner, 1), ("branch7x7dbl_2", inner, column)]
    double += [("branch7x7dbl_3", inner, row), ("branch7x7dbl_4", inner, column)]
    return _Mixed(
        768,
        _mean_pool,
        [("branch1x1", 192, 1)],
        [("branch7x7_1", inner, 1), ("branch7x7_2", inner, row), ("branch7x7_3", 192, column)],
        [*double, ("branch7x7dbl_5", 192, row)],
        [("branch_pool", 192, 1)],
    )


def _to_8(channels: int) -> _Mixed:
    """From 17 x 17 to 8 x 8."""
    return _Mixed(
        channels,
        _halve,
        [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
        [
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, 2),
        ],
    )


def _figure_7(channels: int, pool: Pool) -> _Mixed:
    """Figure 7 of the paper: 3 x 3 as a row beside a column."""
    single = [("branch3x3_1", 384, 1)]
    double = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)]
    return _Mixed(
        channels,
        pool,
        [("branch1x1", 320, 1)],
        [*single, ("branch3x3_2a", 384, (1, 3))],
        [*single, ("branch3x3_2b", 384, (3, 1))],
        [*double, ("branch3x3dbl_3a", 384, (1, 3))],
        [*double, ("branch3x3dbl_3b", 384, (3, 1))],
        [("branch_pool", 192, 1)],
    )


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
