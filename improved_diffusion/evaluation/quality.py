"""Figures that say how good samples are, from features of images: the maths alone.

Features are rows of arrays, [N, D], of any network (:mod:`.features`). Every figure comes with its
standard error: what another drawing of the same number of images would change, about.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch as th

from ..errors import InputError

BLOCK = 1024  # rows of a matrix of pairs that are held at a time
GROUPS = 10  # of the jackknife of what cannot be had image by image
NEIGHBOURS_PRECISION, NEIGHBOURS_DENSITY = 3, 5  # as published
ENOUGH = 3  # samples for each feature, from which on Fréchet distances can be extrapolated
RARE = 0.01  # share of new real images that pass for copies of training images


FIGURES_OF_ALL = {  # what can be said of any images, with its title
    "kid": "KID",
    "frechet": "Fréchet distance",
    "frechet_extrapolated": "Fréchet distance of infinitely many samples",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}


class Figure(NamedTuple):
    """A figure and its standard error; NaN is unknown."""

    value: float
    error: float


class Reference:
    """Features of real images, [M, D], and what is computed of them but once.

    :raises InputError: if there are fewer than 6.
    """

    def __init__(self, features: np.ndarray):
        self.features = _at_least(NEIGHBOURS_DENSITY + 1, features)

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def kernel_sums(self) -> np.ndarray:
        """The sum of the kernel of each image with all others, float64 [M]."""
        return _kernel_sums(self.features, self.features) - _own_kernel(self.features)

    @cached_property
    def gaussian(self) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Mean [D], trace of the covariance, and the covariance's root [D, D], float64."""
        mean, centred = _centred(self.features)
        covariance = centred.T @ centred / (len(centred) - 1)
        values, vectors = th.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        return mean, covariance.trace(), root

    @cached_property
    def distances(self) -> np.ndarray:
        """Distances of each image to its nearest neighbours, itself first, float32 [M, k]."""
        return nearest(self.features, self.features, NEIGHBOURS_DENSITY + 1)[0]


def _at_least(count: int, features: np.ndarray) -> np.ndarray:
    if len(features) < count:
        raise InputError(f"{len(features)} images are too few for this figure: give {count}")
    return features


class KernelDistance(NamedTuple):
    """A kernel distance, and how much each image changes it.

    ``of_samples`` [N] and ``of_reference`` [M] are what the distance moves by when an image is
    left out, about its mean; the distances of two models to one reference are compared by them.
    """

    value: float
    of_samples: np.ndarray
    of_reference: np.ndarray

    @property
    def figure(self) -> Figure:
        """The distance and its standard error, by the jackknife."""
        return Figure(self.value, jackknife_error(self.of_samples, self.of_reference))


def jackknife_error(*changes: np.ndarray) -> float:
    """The standard error of a figure from what leaving out each image of some sets changes.

    (Efron & Stein 1981.) It errs to the safe side: near a kernel distance of 0, by a factor of √2,
    and of few images by more.
    """
    return math.sqrt(
        sum((len(c) - 1) / len(c) * float(((c - c.mean()) ** 2).sum()) for c in changes)
    )


def kernel_distance(samples: np.ndarray, reference: Reference) -> KernelDistance:
    """The unbiased squared maximum mean discrepancy under the kernel (x·y / D + 1)³.

    (Bińkowski et al. 2018, arXiv 1801.01401, section 4.) Its expectation does not depend on the
    number of images; it is 0 for images of one distribution, and may be slightly negative.

    :param samples: [N, D].
    :raises InputError: if there are fewer than 3.
    """
    x, y = _at_least(3, samples), reference.features
    n, m = len(x), len(y)
    within_x, within_y = _kernel_sums(x, x) - _own_kernel(x), reference.kernel_sums
    across_x, across_y = _kernel_sums(x, y), _kernel_sums(y, x)
    a, b, c = within_x.sum(), within_y.sum(), across_x.sum()
    of_x, of_y = a / (n * (n - 1)), b / (m * (m - 1))
    value = of_x + of_y - 2 * c / (n * m)
    less_x = (a - 2 * within_x) / ((n - 1) * (n - 2)) - 2 * (c - across_x) / ((n - 1) * m)
    less_y = (b - 2 * within_y) / ((m - 1) * (m - 2)) - 2 * (c - across_y) / (n * (m - 1))
    return KernelDistance(float(value), less_x + of_y - value, less_y + of_x - value)


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The sum of each row of the kernel's matrix, float64 [N]."""
    other = th.from_numpy(y).float().T
    sums = [
        th.addmm(th.ones(()), block, other, alpha=1 / x.shape[1]).pow_(3).double().sum(1)
        for block in _blocks(x)
    ]
    return th.cat(sums).numpy()


def _own_kernel(x: np.ndarray) -> np.ndarray:
    """The kernel of each row with itself, float64 [N]."""
    return ((x.astype(np.float64) ** 2).mean(1) + 1) ** 3


def _blocks(x: np.ndarray) -> Iterator[th.Tensor]:
    return iter(th.from_numpy(x).float().split(BLOCK))


# -- the Fréchet distance ------------------------------------------------------------------------


def frechet_distance(samples: np.ndarray, reference: Reference) -> float:
    """The squared Fréchet distance of two Gaussians with the means and covariances of the features.

    |μ − μ'|² + tr(C + C' − 2 (C C')^½) (Heusel et al. 2017, arXiv 1706.08500, eq. 6). From few
    images it is too high, the more the fewer they are: see :func:`frechet_figures`.

    :param samples: [N, D], N at least 2.
    """
    mean, trace, root = reference.gaussian
    own_mean, own = _centred(samples)
    own = own / math.sqrt(len(samples) - 1)
    # tr (C C')^½ is the sum of the singular values of X C'^½, where C = Xᵀ X.
    mixed = own @ root  # [N, D]
    gram = mixed @ mixed.T if len(samples) < mixed.shape[1] else mixed.T @ mixed
    cross = th.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum()
    return float(((own_mean - mean) ** 2).sum() + trace + (own**2).sum() - 2 * cross)


def _centred(x: np.ndarray) -> tuple[th.Tensor, th.Tensor]:
    features = th.from_numpy(x).double()
    mean = features.mean(0)
    return mean, features - mean


class FrechetFigures(NamedTuple):
    """The Fréchet distance of the samples as they are, and that of infinitely many."""

    frechet: Figure
    frechet_extrapolated: Figure


def frechet_figures(samples: np.ndarray, reference: Reference) -> FrechetFigures:
    """Fréchet distances and their standard errors, by leaving out groups of samples.

    The bias is about proportional to 1 / N (Chong & Forsyth 2020, arXiv 1911.07023, section 4). So
    what leaving out a group adds to the distance says how far that of infinitely many is. It is
    NaN with fewer than :data:`ENOUGH` samples for each feature, where the line is a curve that
    would lead below the truth. The reference is taken as it is, and as large as it is.

    :param samples: [N, D], not sorted, such as by class.
    :raises InputError: if there are fewer than 4 times :data:`GROUPS`.
    """
    groups = np.arange(len(_at_least(4 * GROUPS, samples))) % GROUPS
    whole = frechet_distance(samples, reference)
    without = [frechet_distance(samples[groups != group], reference) for group in range(GROUPS)]
    error = jackknife_error(np.array(without))
    far = Figure(whole - (GROUPS - 1) * (float(np.mean(without)) - whole), error)
    if len(samples) < ENOUGH * samples.shape[1]:
        far = Figure(math.nan, math.nan)
    return FrechetFigures(Figure(whole, error), far)


# -- neighbours ----------------------------------------------------------------------------------


class Manifolds(NamedTuple):
    """How samples and reference cover each other.

    ``precision`` is the share of samples that lie among reference images, ``recall`` that of
    reference images that lie among samples (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and
    2); ``density`` says among how many, ``coverage`` how many reference images have a sample near
    (Naeem et al. 2020, arXiv 2002.09797, eq. 3 and 4).
    """

    precision: Figure
    recall: Figure
    density: Figure
    coverage: Figure


def manifolds(samples: np.ndarray, reference: Reference) -> Manifolds:
    """How samples and reference cover each other; all four depend on the numbers of images.

    An image lies among others if it is in the ball around one of them that reaches to that one's
    third nearest neighbour (precision, recall) or fifth (density, coverage). The errors of recall
    and coverage are by leaving out groups of samples, which must not be sorted.

    :param samples: [N, D].
    :raises InputError: if there are fewer than 4 times :data:`GROUPS`.
    """
    _at_least(4 * GROUPS, samples)
    third = th.from_numpy(reference.distances[:, NEIGHBOURS_PRECISION])
    fifth = th.from_numpy(reference.distances[:, NEIGHBOURS_DENSITY])
    kept = _all_and_without_each_group(len(samples))
    radii = th.stack([_radii(samples, rows) for rows in kept])  # [1 + GROUPS, N]
    precise, dense = [], []
    recalled, covered = th.zeros(2, len(kept), len(reference), dtype=th.bool)
    blocks = zip(_blocks(samples), radii.split(BLOCK, dim=1), kept.split(BLOCK, dim=1), strict=True)
    for block, radius, rows in blocks:
        distances = _distances(block, reference.features)  # [block, M]
        near = distances <= fifth
        precise.append((distances <= third).any(1))
        dense.append(near.double().sum(1) / NEIGHBOURS_DENSITY)
        for number in range(len(kept)):
            recalled[number] |= (distances <= radius[number][:, None]).any(0)
            covered[number] |= near[rows[number]].any(0)
    return Manifolds(
        precision=mean_figure(th.cat(precise)),
        recall=_of_all(recalled),
        density=mean_figure(th.cat(dense)),
        coverage=_of_all(covered),
    )


def _all_and_without_each_group(count: int) -> th.Tensor:
    """Which rows to keep: all of them, then those that are not of a group, bool [1 + GROUPS, N]."""
    groups = th.arange(count) % GROUPS
    return th.stack([groups >= 0, *(groups != group for group in range(GROUPS))])


def _radii(samples: np.ndarray, rows: th.Tensor) -> th.Tensor:
    """The distance of each kept sample to its third nearest other; -1 of those left out, [N]."""
    kept = samples[rows.numpy()]
    distances, _ = nearest(kept, kept, NEIGHBOURS_PRECISION + 1)  # the first is the image itself
    radii = th.full((len(samples),), -1.0)
    radii[rows] = th.from_numpy(distances[:, NEIGHBOURS_PRECISION])
    return radii


def _of_all(found: th.Tensor) -> Figure:
    """A share of reference images by all samples, with its error from those without each group."""
    whole, *without = found.double().mean(1).tolist()
    return Figure(whole, jackknife_error(np.array(without)))


def nearest(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest rows of ``y`` to each row of ``x``, nearest first.

    :return: Euclidean distances, float32 [N, count], and which rows of ``y`` these are, int64.
    """
    found = [_distances(block, y).topk(count, largest=False) for block in _blocks(x)]
    distances, indices = (th.cat(parts).numpy() for parts in zip(*found, strict=True))
    return distances, indices


def _distances(block: th.Tensor, y: np.ndarray) -> th.Tensor:
    return th.cdist(block, th.from_numpy(y).float())


def mean_figure(values: th.Tensor) -> Figure:
    """A mean over images and its standard error, as if each image stood for itself.

    Of one image the error is NaN, of none the mean, too.
    """
    values = values.double()
    spread = values.std() if len(values) > 1 else math.nan
    return Figure(float(values.mean()), float(spread / math.sqrt(max(len(values), 1))))


class Closeness(NamedTuple):
    """How near samples are to training images.

    ``copies`` is the share of samples that are nearer to a training image than all but
    :data:`RARE` of the new real images are. ``distances`` [N, k] and ``indices`` [N, k] are the
    nearest training images of each sample, nearest first.
    """

    copies: Figure
    distances: np.ndarray
    indices: np.ndarray


def closeness(samples: np.ndarray, train: np.ndarray, new: np.ndarray, count: int = 4) -> Closeness:
    """How near samples are to training images, beside real images that are new to the model.

    :param samples: features [N, D], of which ``train`` and ``new`` have theirs too, [M, D].
    :param count: training images to find for each sample.
    """
    real, _ = nearest(new, train, 1)
    distances, indices = nearest(samples, train, count)
    near = distances[:, 0] < np.quantile(real, RARE)
    return Closeness(mean_figure(th.from_numpy(near)), distances, indices)


# -- classes -------------------------------------------------------------------------------------


class Probe:
    """Multinomial logistic regression from features to classes.

    :param features: [N, D], of images whose classes are known.
    :param labels: int64 [N], from 0.
    :param decay: weight of half the squared weights, beside the mean loss of an image.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, decay: float = 0.02):
        self.mean = features.mean(0)
        self.scale = features.std(0) + 1e-6
        x, y = self._standardised(features), th.from_numpy(labels).long()
        weight = th.zeros(int(labels.max()) + 1, features.shape[1], requires_grad=True)
        bias = th.zeros(len(weight), requires_grad=True)
        search = th.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> th.Tensor:
            search.zero_grad()
            logits = th.nn.functional.linear(x, weight, bias)
            total = th.nn.functional.cross_entropy(logits, y) + decay / 2 * (weight**2).sum()
            total.backward()
            return total

        search.step(loss)
        self.weight, self.bias = weight.detach(), bias.detach()

    def _standardised(self, features: np.ndarray) -> th.Tensor:
        return th.from_numpy((features - self.mean) / self.scale).float()

    def recognised(self, features: np.ndarray, labels: np.ndarray) -> th.Tensor:
        """Of which rows their class is the most likely one, bool [N]."""
        logits = th.nn.functional.linear(self._standardised(features), self.weight, self.bias)
        return logits.argmax(1) == th.from_numpy(labels)
