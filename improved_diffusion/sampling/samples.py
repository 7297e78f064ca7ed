"""Making samples batch by batch, on all ranks together, and writing what was made."""

import itertools
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch as th

from .. import dist_util, logger
from ..data.array_source import CLASS_NAMES
from ..data.image_grid import (
    evenly,
    make_frame,
    make_grid,
    pictures_to_show,
    save_gif,
    save_grid,
    save_png,
    to_uint8,
)
from ..gaussian_diffusion import GaussianDiffusion
from ..logs.progress import progress_bar
from ..nn import NO_LABEL
from ..system.files import atomic_write, legible
from .image_noise import ImageNoise
from .inpainting import Inpainting
from .samplers import draw

GRID_IMAGES = 64  # of the picture beside the .npz
RESULTS = (
    "samples_*.npz",
    "samples_*.png",
    f"images/*{'[0-9]' * 6}.png",
    "process.png",
    "process.gif",
)
SHOWN_IMAGES, SHOWN_MOMENTS = 4, 11  # of the picture of the process
FILM_IMAGES, FILM_MOMENTS = 16, 30  # of the film of it
NOT_IN_FILE_NAMES = re.compile(r'[\x00-\x1f\\/:*?"<>|]')  # of one system or another
LONGEST_LABEL = 150  # bytes of a class in a file's name, which may have 255 in all

Condition = Callable[[Sequence[int], ImageNoise], dict[str, th.Tensor]]


@dataclass(frozen=True)
class Order:
    """What to sample.

    :param num_samples: how many images in all.
    :param shape: of one image, [C, H, W].
    :param batch_size: images at a time on each rank.
    :param seed: with its number, decides an image's noise and class.
    :param sampler: one of :data:`.samplers.SAMPLERS`.
    :param eta: noise of its steps, in [0, 1]; None for what is usual.
    :param clip_denoised: clip the predicted image at each step.
    :param film: keep how the first samples come about, for a film.
    :param inpainting: a picture of which all images keep the known part.
    """

    num_samples: int
    shape: tuple[int, int, int]
    batch_size: int
    seed: int
    sampler: str
    eta: float | None = None
    clip_denoised: bool = True
    film: bool = False
    inpainting: Inpainting | None = None

    def steps(self, diffusion: GaussianDiffusion) -> int:
        """How many steps of the sampler make an image."""
        count = diffusion.num_timesteps
        return self.inpainting.steps(count) if self.inpainting else count


@dataclass
class Samples:
    """What has been made so far: batches of images, their classes, and how the first came about."""

    images: list[np.ndarray] = field(default_factory=list)  # uint8 [N, H, W, C] each
    classes: list[np.ndarray] = field(default_factory=list)  # int64 [N] each
    process: list[th.Tensor] = field(default_factory=list)  # [n, 2, C, H, W]: x_t, predicted x_0
    film: list[np.ndarray] = field(default_factory=list)  # uint8 [n, H, W, C] each: x_t

    def __len__(self) -> int:
        return sum(map(len, self.images))

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """All images, uint8 [N, H, W, C], and their classes, int64 [N], if all have one."""
        classes = np.concatenate(self.classes) if self.classes else None
        if classes is not None and NO_LABEL in classes:
            classes = None
        return np.concatenate(self.images), classes


def make_samples(
    made: Samples,
    order: Order,
    model: Callable[..., th.Tensor],
    diffusion: GaussianDiffusion,
    condition: Condition,
) -> None:
    """Fill ``made`` batch by batch, so that an interruption leaves the finished ones in it.

    The images do not depend on the batch size or on the number of ranks (but for rounding).

    :param condition: makes the model's keyword arguments for images of those numbers.
    """
    rounds = _rounds(order)
    started = time.monotonic()
    steps = order.steps(diffusion)
    shown = evenly(steps, SHOWN_MOMENTS)
    filmed = evenly(steps, FILM_MOMENTS) if order.film else []
    moments = itertools.count()
    with progress_bar(len(rounds) * steps, "step") as bar:

        def on_step(out: dict[str, th.Tensor]) -> None:
            moment = next(moments)  # those of the first batch alone are among the shown
            if moment in shown:
                made.process.append(_pair(out["x_t"], out["pred_xstart"]))
            if moment in filmed:
                made.film.append(_frame(out["x_t"]))
            bar.update()

        draw_some = partial(
            draw,
            order.sampler,
            diffusion,
            model,
            eta=order.eta,
            clip_denoised=order.clip_denoised,
            device=dist_util.dev(),
            callback=on_step,
            route=order.inpainting.walk if order.inpainting else None,
        )
        for number, indices in enumerate(rounds, start=1):
            noise = ImageNoise(order.seed, indices)
            kwargs = {k: v.to(dist_util.dev()) for k, v in condition(indices, noise).items()}
            shape = (len(noise), *order.shape)
            sample = draw_some(shape, model_kwargs=kwargs, randn_like=noise.randn_like)
            if order.film and number == 1:
                made.film.append(_frame(sample))
            _add(made, order, sample, kwargs.get("y"))
            seconds = (time.monotonic() - started) / number * (len(rounds) - number)
            logger.log(f"created {len(made)} of {order.num_samples} samples, {seconds:.0f} s left")


def _rounds(order: Order) -> list[list[int]]:
    """The numbers of this rank's images in each round; all ranks have as many in a round.

    A last round that does not divide among the ranks makes a few images more than it takes.
    """
    ranks, rank = dist_util.world_size(), dist_util.rank()
    rounds, first = [], 0
    while first < order.num_samples:
        share = min(order.batch_size, math.ceil((order.num_samples - first) / ranks))
        rounds.append(list(range(first + rank * share, first + (rank + 1) * share)))
        first += share * ranks
    return rounds


def _pair(x_t: th.Tensor, pred_xstart: th.Tensor) -> th.Tensor:
    """The first images of both, float32 [n, 2, C, H, W]."""
    return th.stack([x_t[:SHOWN_IMAGES], pred_xstart[:SHOWN_IMAGES]], dim=1).float().cpu()


def _frame(x_t: th.Tensor) -> np.ndarray:
    """The first images, uint8 [n, H, W, C]."""
    return to_uint8(x_t[:FILM_IMAGES].float()).cpu().numpy()


def _add(made: Samples, order: Order, sample: th.Tensor, classes: th.Tensor | None) -> None:
    room = slice(order.num_samples - len(made))
    made.images.append(np.concatenate(dist_util.all_gather(to_uint8(sample).cpu().numpy()))[room])
    if classes is not None:
        made.classes.append(np.concatenate(dist_util.all_gather(classes.cpu().numpy()))[room])


# -- files ---------------------------------------------------------------------------------------


def save_samples(
    folder: str,
    made: Samples,
    *,
    names: Sequence[str] = (),
    single: bool = False,
    process: bool = False,
    before: np.ndarray | None = None,
) -> None:
    """Write ``samples_NxHxWxC.npz`` (``arr_0``, classes as ``arr_1``) and a PNG grid beside it.

    What was kept for a film becomes ``process.gif``.

    :param names: of the classes, for the grid, single pictures and the .npz (``classes``).
    :param single: also write each picture, to ``images/``.
    :param process: also write how the first ones came about, to ``process.png``.
    :param before: a picture, [H, W, C], that the grid begins with.
    """
    images, classes = made.arrays()
    stem = os.path.join(folder, f"samples_{'x'.join(map(str, images.shape))}")
    arrays: dict[str, Any] = {"arr_0": images}
    if classes is not None:
        arrays |= {"arr_1": classes} | ({CLASS_NAMES: np.array(names)} if names else {})
    with atomic_write(f"{stem}.npz") as file:
        np.savez(file, **arrays)
    logger.log(f"Saved {len(images)} samples to {stem}.npz")
    shown = (
        range(len(images))[:GRID_IMAGES]
        if classes is None
        else pictures_to_show(classes, GRID_IMAGES)
    )
    grid, labels = images[shown], () if classes is None else classes[shown]
    if before is not None:
        grid, labels = np.stack([before, *grid]), ()
    save_grid(f"{stem}.png", grid, labels, names)
    logger.log(f"Picture of {len(shown)} of them: {stem}.png")
    if single:
        _save_each(os.path.join(folder, "images"), images, classes, names)
    if process:
        save_png(os.path.join(folder, "process.png"), process_picture(made.process))
        logger.log(f"From noise to image: {os.path.join(folder, 'process.png')}")
    if made.film:
        path = os.path.join(folder, "process.gif")
        save_gif(path, [make_frame(images) for images in made.film])
        logger.log(f"Film of it: {path}")


def _save_each(
    folder: str, images: np.ndarray, classes: np.ndarray | None, names: Sequence[str]
) -> None:
    os.makedirs(folder, exist_ok=True)
    for i, image in enumerate(images):
        label = "" if classes is None else str(names[classes[i]] if names else classes[i])
        label = NOT_IN_FILE_NAMES.sub("-", legible(label))  # of nested folders it is cat/tabby
        label = label.encode()[:LONGEST_LABEL].decode(errors="ignore")
        save_png(os.path.join(folder, f"{label}{'_' if label else ''}{i:06d}.png"), image)
    logger.log(f"Single pictures: {folder}")


def process_picture(process: Sequence[th.Tensor]) -> np.ndarray:
    """Rows of x_t and of the predicted x_0 in turn, for the first images, from noise on.

    :param process: at each moment the pairs of both, [n, 2, C, H, W].
    :return: uint8 [H, W, C].
    """
    rows = th.stack(list(process), dim=2).flatten(0, 2)  # [n * 2 * moments, C, H, W]
    return make_grid(to_uint8(rows), columns=len(process))
