"""The judge: figures of samples, beside those of real images and of noise in their place."""

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from .. import logger
from ..errors import InputError
from .features import Extractor, cached_features, features_of
from .image_sets import ImageSet, in_memory
from .quality import (
    FIGURES_OF_ALL,
    RARE,
    Closeness,
    Figure,
    KernelDistance,
    Probe,
    Reference,
    closeness,
    frechet_figures,
    kernel_distance,
    manifolds,
    mean_figure,
)

LEAST = 50  # images of a set, for figures that say anything
HELD_OUT = 5  # one reference image of so many tests the probe, where there are no training images
SHOWN = 12  # samples beside their nearest training images
MOST_CLASSES = 20  # to print the figures of
UNKNOWN = Figure(float("nan"), float("nan"))


class Line(NamedTuple):
    """One figure: its title, of the samples, of real images instead, and of noise instead."""

    title: str
    samples: Figure
    real: Figure
    noise: Figure


@dataclass(frozen=True)
class Verdict:
    """What the judge found.

    :param lines: the figures, by their name in ``evaluation.json``.
    :param about: how many images of which kinds, and what looked at them.
    :param kernel: how much each image changes the kernel distance.
    :param closest: the samples that are nearest to training images, and these; None without.
    :param classes: how many samples and real images of each class are recognised, the best first.
    """

    lines: Mapping[str, Line]
    about: Mapping[str, Any]
    kernel: KernelDistance
    closest: np.ndarray | None
    classes: Mapping[str, Line] = field(default_factory=dict)

    def __str__(self) -> str:
        """The tables in plain text."""
        parts = [self.lines]
        if 0 < len(self.classes) <= MOST_CLASSES:
            parts.append(self.classes)
        return "\n\n".join(
            pd.DataFrame(self.table(lines)).to_string(
                index=False, float_format="{:.4g}".format, na_rep=""
            )
            for lines in parts
        )

    def as_dict(self) -> dict[str, Any]:
        """``kid``, ``kid_error``, ``kid_real``, ``kid_noise`` and so on; plain, for JSON."""
        said = dict(self.about)
        for name, line in self.lines.items():
            values = *line.samples, line.real.value, line.noise.value
            endings = ("", "_error", "_real", "_noise")
            said |= {f"{name}{end}": _plain(v) for end, v in zip(endings, values, strict=True)}
        if self.classes:
            shares = {name: line.samples.value for name, line in self.classes.items()}
            said["recognised_by_class"] = shares
        return said

    @staticmethod
    def table(of: Mapping[str, Line]) -> dict[str, list[Any]]:
        """Figures in columns, for people."""
        lines = of.values()
        return {
            "figure": [line.title for line in lines],
            "samples": [line.samples.value for line in lines],
            "standard error": [line.samples.error for line in lines],
            "real images": [line.real.value for line in lines],
            "noise": [line.noise.value for line in lines],
        }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value


def judge(
    extractor: Extractor,
    samples: ImageSet,
    reference: ImageSet,
    train: ImageSet | None = None,
    *,
    labels: bool = True,
    spare: str,
    seed: int = 0,
) -> Verdict:
    """Judge samples by real images that the model was not trained on.

    Each set needs :data:`LEAST` images, for its figures to say anything.

    :param reference: real images.
    :param train: those that the model was trained on, for the figures of real images in place of
        samples, and for copies.
    :param labels: also judge whether samples show their class, where they have one.
    :param spare: folder to keep the features of real images in, where that beside them is not to
        be written to.
    :param seed: of the noise, and of the choice of training images.
    :raises InputError: if the images' classes do not fit each other.
    """
    check_apart(samples=samples, reference=reference, train=train)
    asked = class_numbers(samples, reference, train) if labels else None
    rng = np.random.default_rng(seed)
    real = Reference(kept_features(extractor, reference, spare))
    known = None if train is None else kept_features(extractor, train, spare)
    order = rng.permutation(len(samples))  # the figures' errors want samples in no order
    logger.log(f"Looking at {len(samples)} samples, and as many images of noise")
    seen = features_of(extractor, samples)
    shape = (len(samples), samples.size, samples.size, samples.channels)
    noise = in_memory(rng.integers(0, 256, shape, dtype=np.uint8))
    kernel = kernel_distance(seen, real)
    of_samples = {"kid": kernel.figure, **_others(seen[order], real)}
    of_noise = _figures(features_of(extractor, noise), real)
    others, judged_by = _real_in_their_place(real, known, len(samples), rng)
    of_real = dict.fromkeys(of_samples, UNKNOWN)
    if len(others) == len(samples):
        of_real = _figures(others, judged_by)
    elif len(others):  # the other figures depend on how many there are
        of_real["kid"] = kernel_distance(others, judged_by).figure
    lines = {
        name: Line(_title(name, extractor), figure, of_real[name], of_noise[name])
        for name, figure in of_samples.items()
    }
    classes: dict[str, Line] = {}
    if asked is not None:
        lines["recognised"], classes = _recognised(seen, asked, real, reference, known, train)
    closest = None
    if known is not None and train is not None:
        near = closeness(seen, known, real.features)
        title = f"nearer to a training image than {1 - RARE:.0%} of new ones are"
        lines["copies"] = Line(title, near.copies, Figure(RARE, 0.0), UNKNOWN)
        closest = _pairs(samples, train, near)
    about = {
        "features": extractor.title,
        "features, precision": extractor.precision.name,
        "features, sha256": extractor.fingerprint,
        "size": reference.size,
        "channels": reference.channels,
        "num_samples": len(samples),
        "num_reference": len(reference),
        "num_train": len(train) if train else 0,
        "num_real": len(others),
        "num_real_reference": len(judged_by),
        "names of reference images, sha256": reference.source.fingerprint,
    }
    return Verdict(lines, about, kernel, closest, classes)


def _real_in_their_place(
    real: Reference, known: np.ndarray | None, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, Reference]:
    """Features of ``count`` real images to judge as if they were samples, and what by.

    They are training images; without these a part of the reference, half of it at most, by the
    rest; none where that would be fewer than :data:`LEAST`.
    """
    if known is not None:
        return known[rng.permutation(len(known))[:count]], real
    order = rng.permutation(len(real))
    count = min(count, len(order) // 2)
    count = count if count >= LEAST else 0
    return real.features[order[:count]], Reference(real.features[order[count:]])


def kept_features(extractor: Extractor, images: ImageSet, spare: str) -> np.ndarray:
    """Features of real images, from a file beside their folder, or in ``spare``."""
    folders = [images.parent, spare]
    return cached_features(extractor, images, folders)


def _title(name: str, extractor: Extractor) -> str:
    """What a figure is called: FID and KID alone only where FID's own network sees the images."""
    title = FIGURES_OF_ALL[name]
    if extractor.is_fid:
        return title.replace("Fréchet distance", "FID")
    return f"{title} ({extractor.title})"


def _figures(features: np.ndarray, real: Reference) -> dict[str, Figure]:
    return {"kid": kernel_distance(features, real).figure, **_others(features, real)}


def _others(features: np.ndarray, real: Reference) -> dict[str, Figure]:
    """All figures but the kernel distance, of features in no order."""
    return frechet_figures(features, real)._asdict() | manifolds(features, real)._asdict()


def check_apart(**sets: ImageSet | None) -> None:
    """:raises InputError: if two sets, by their flags, are of one place."""
    paths = {
        flag: os.path.realpath(images.source.path)
        for flag, images in sets.items()
        if images is not None
    }
    for (flag, path), (other, same) in itertools.combinations(paths.items(), 2):
        if path == same:
            raise InputError(
                f"--{flag} and --{other} are the same, {path}: images cannot be judged by "
                "themselves; give others"
            )


def check_count(flag: str, images: ImageSet) -> None:
    """:raises InputError: if there are fewer images than :data:`LEAST`."""
    if len(images) < LEAST:
        raise InputError(
            f"--{flag} has {len(images)} images, too few to judge by: give at least {LEAST}, and "
            "better 1,000 or more"
        )


def class_numbers(
    samples: ImageSet, reference: ImageSet, train: ImageSet | None
) -> np.ndarray | None:
    """The class of each sample as the reference numbers it, int64 [N]; None where there is none.

    :raises InputError: if the real images have no classes, or others than the samples.
    """
    if samples.labels is None:
        return None
    for flag, images in (("reference", reference), ("train", train)):
        if images is not None and images.labels is None:
            raise InputError(
                f"the samples have classes and the images of --{flag} have none: "
                f"{images.source.labelling}, or give --labels none"
            )
    assert reference.labels is not None
    names = reference.labels.classes
    if train is not None and train.labels is not None and train.labels.classes != names:
        raise InputError("--train and --reference have different classes; give --labels none")
    refusal = ", which --reference has not; give --labels none"
    return samples.labels.numbers_among(names, len(names), "--samples", refusal)


def _recognised(
    seen: np.ndarray,
    asked: np.ndarray,
    real: Reference,
    reference: ImageSet,
    known: np.ndarray | None,
    train: ImageSet | None,
) -> tuple[Line, dict[str, Line]]:
    """How many samples a linear probe takes for their class, and how many real images.

    :return: of all, and of each class, the best recognised first.
    """
    assert reference.labels is not None
    features, labels = real.features, reference.labels.numbers
    if known is not None and train is not None and train.labels is not None:
        probe = Probe(known, train.labels.numbers)
    else:
        test = np.random.default_rng(0).permutation(len(labels)) % HELD_OUT == 0
        probe = Probe(features[~test], labels[~test])
        features, labels = features[test], labels[test]
    right, own = probe.recognised(seen, asked), probe.recognised(features, labels)
    names = reference.labels.classes
    chance = Figure(1 / len(names), 0.0)
    each = {}
    for number, name in enumerate(names):
        of_samples, of_real = right[asked == number], own[labels == number]
        if len(of_samples):
            title = f"recognised as {name}"
            each[name] = Line(title, mean_figure(of_samples), mean_figure(of_real), chance)
    best_first = sorted(each.items(), key=lambda item: -item[1].samples.value)
    whole = Line("recognised as their class", mean_figure(right), mean_figure(own), chance)
    return whole, dict(best_first)


def _pairs(samples: ImageSet, train: ImageSet, near: Closeness) -> np.ndarray:
    """The samples nearest to training images, each before its nearest ones, [rows, H, W, C]."""
    rows = []
    for number in np.argsort(near.distances[:, 0], kind="stable")[:SHOWN]:
        rows += [samples.read([number]), train.read(near.indices[number])]
    return np.concatenate(rows)
