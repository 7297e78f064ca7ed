"""Making samples batch by batch, on all ranks together, and writing what was made."""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch as th

from .. import dist_util, logger
from ..data.image_grid import make_grid, save_grid, save_png, to_uint8
from ..gaussian_diffusion import GaussianDiffusion
from ..logs.progress import progress_bar
from ..system.files import atomic_write
from .dpm_solver import USUAL_ETA, dpm_solver_sample_loop_progressive
from .image_noise import ImageNoise

SAMPLERS = ("ddpm", "ddim", "dpmpp")
USUAL_ETAS = {"ddim": 0.0, "dpmpp": USUAL_ETA}  # of the samplers whose noise can be chosen
GRID_IMAGES = 64  # of the picture beside the .npz
SHOWN_IMAGES, SHOWN_MOMENTS = 4, 11  # of the picture of the process
# How far the samples' colours may lie from the training data's before it is worth a warning.
FEW_IMAGES, FAR_MEAN, FAR_RATIO = 8, 40.0, 2.0

Condition = Callable[[Sequence[int], ImageNoise], dict[str, th.Tensor]]


@dataclass
class Order:
    """What to sample.

    :param num_samples: how many images in all.
    :param shape: of one image, [C, H, W].
    :param batch_size: images at a time on each rank.
    :param seed: with its number, decides an image's noise and class.
    :param sampler: one of :data:`SAMPLERS`.
    :param eta: noise of the steps of ``ddim`` and ``dpmpp``, in [0, 1].
    :param clip_denoised: clip the predicted image at each step.
    """

    num_samples: int
    shape: tuple[int, int, int]
    batch_size: int
    seed: int
    sampler: str
    eta: float
    clip_denoised: bool = True


@dataclass
class Samples:
    """What has been made so far: batches of images, their classes, and how the first came about."""

    images: list[np.ndarray] = field(default_factory=list)  # uint8 [N, H, W, C] each
    classes: list[np.ndarray] = field(default_factory=list)  # int64 [N] each
    process: list[th.Tensor] = field(default_factory=list)  # [n, 2, C, H, W]: x_t, predicted x_0

    def __len__(self) -> int:
        return sum(map(len, self.images))

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """All images, uint8 [N, H, W, C], and their classes, int64 [N], if they have any."""
        return np.concatenate(self.images), np.concatenate(self.classes) if self.classes else None


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
    with progress_bar(len(rounds) * diffusion.num_timesteps, "step") as bar:
        for number, indices in enumerate(rounds, start=1):
            noise = ImageNoise(order.seed, indices)
            kwargs = {k: v.to(dist_util.dev()) for k, v in condition(indices, noise).items()}
            for step, out in enumerate(_steps(order, noise, kwargs, model, diffusion)):
                if number == 1 and step in _moments(diffusion.num_timesteps):
                    made.process.append(_pair(out["x_t"], out["pred_xstart"]))
                bar.update()
            _add(made, order, out["sample"], kwargs.get("y"))
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


def _steps(
    order: Order,
    noise: ImageNoise,
    kwargs: dict[str, th.Tensor],
    model: Callable[..., th.Tensor],
    diffusion: GaussianDiffusion,
) -> Iterator[dict[str, th.Tensor]]:
    """What each step of the sampler makes, and with it the x_t that it began at."""
    loops = {
        "ddpm": diffusion.p_sample_loop_progressive,
        "ddim": partial(diffusion.ddim_sample_loop_progressive, eta=order.eta),
        "dpmpp": partial(dpm_solver_sample_loop_progressive, diffusion, eta=order.eta),
    }
    x = noise.randn_like(th.empty(len(noise), *order.shape, device=dist_util.dev()))
    walk = loops[order.sampler](
        model,
        tuple(x.shape),
        noise=x,
        clip_denoised=order.clip_denoised,
        model_kwargs=kwargs,
        randn_like=noise.randn_like,
    )
    for out in walk:
        yield {**out, "x_t": x}
        x = out["sample"]


def _moments(steps: int) -> set[int]:
    """Which of a sampler's steps are shown: the first, the last, and some evenly between."""
    shown = min(steps, SHOWN_MOMENTS)
    return {round(i * (steps - 1) / max(shown - 1, 1)) for i in range(shown)}


def _pair(x_t: th.Tensor, pred_xstart: th.Tensor) -> th.Tensor:
    """The first images of both, float32 [n, 2, C, H, W]."""
    return th.stack([x_t[:SHOWN_IMAGES], pred_xstart[:SHOWN_IMAGES]], dim=1).float().cpu()


def _add(made: Samples, order: Order, sample: th.Tensor, classes: th.Tensor | None) -> None:
    room = slice(order.num_samples - len(made))
    made.images.append(dist_util.all_gather_cat(to_uint8(sample)).cpu().numpy()[room])
    if classes is not None:
        made.classes.append(dist_util.all_gather_cat(classes).cpu().numpy()[room])


# -- files ---------------------------------------------------------------------------------------


def save_samples(
    folder: str,
    made: Samples,
    *,
    names: Sequence[str] | None = None,
    single: bool = False,
    process: bool = False,
) -> None:
    """Write ``samples_NxHxWxC.npz`` (``arr_0``, classes as ``arr_1``) and a PNG grid beside it.

    :param names: of the classes, for the names of single pictures.
    :param single: also write each picture, to ``images/``.
    :param process: also write how the first ones came about, to ``process.png``.
    """
    images, classes = made.arrays()
    stem = os.path.join(folder, f"samples_{'x'.join(map(str, images.shape))}")
    with atomic_write(f"{stem}.npz") as file:
        np.savez(file, *([images] if classes is None else [images, classes]))
    logger.log(f"Saved {len(images)} samples to {stem}.npz")
    save_grid(f"{stem}.png", images[:GRID_IMAGES])
    shown = "" if len(images) <= GRID_IMAGES else f" (the first {GRID_IMAGES})"
    logger.log(f"Picture of them{shown}: {stem}.png")
    if single:
        _save_each(os.path.join(folder, "images"), images, classes, names)
    if process:
        save_png(os.path.join(folder, "process.png"), process_picture(made.process))
        logger.log(f"From noise to image: {os.path.join(folder, 'process.png')}")


def _save_each(
    folder: str, images: np.ndarray, classes: np.ndarray | None, names: Sequence[str] | None
) -> None:
    os.makedirs(folder, exist_ok=True)
    for i, image in enumerate(images):
        label = "" if classes is None else f"{names[classes[i]] if names else classes[i]}_"
        save_png(os.path.join(folder, f"{label}{i:06d}.png"), image)
    logger.log(f"Single pictures: {folder}")


def process_picture(process: Sequence[th.Tensor]) -> np.ndarray:
    """Rows of x_t and of the predicted x_0 in turn, for the first images, from noise on.

    :param process: at each moment the pairs of both, [n, 2, C, H, W].
    :return: uint8 [H, W, C].
    """
    rows = th.stack(list(process), dim=2).flatten(0, 2)  # [n * 2 * moments, C, H, W]
    return make_grid(to_uint8(rows), columns=len(process))


# -- do they look like the data? -----------------------------------------------------------------


def compare_colours(images: Sequence[np.ndarray], data: Mapping[str, Any]) -> None:
    """Log each channel's mean and standard deviation beside the training data's, if known.

    :param images: batches of uint8 [N, H, W, C].
    :param data: what ``config.json`` says of the data, with ``pixel_mean`` and ``pixel_std``.
    """
    mean, std = pixel_statistics(images)
    line = f"Pixels of the samples: mean {_rounded(mean)}, standard deviation {_rounded(std)}"
    if not {"pixel_mean", "pixel_std"} <= data.keys() or len(data["pixel_mean"]) != len(mean):
        logger.log(line)
        return
    data_mean, data_std = data["pixel_mean"], data["pixel_std"]
    logger.log(f"{line}; of the training data: {_rounded(data_mean)}, {_rounded(data_std)}")
    if sum(map(len, images)) >= FEW_IMAGES and _far(mean, std, data_mean, data_std):
        logger.warn(
            "The samples' colours are far from the training data's: the model may be young, or "
            "not sampled as it was trained"
        )


def pixel_statistics(images: Sequence[np.ndarray]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of batches of uint8 [N, H, W, C], in 0..255."""
    levels = np.arange(256)
    counts = np.zeros((images[0].shape[-1], 256))  # a histogram: many images need no more memory
    for image in itertools.chain.from_iterable(images):
        for channel, count in enumerate(counts):
            count += np.bincount(image[..., channel].ravel(), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ levels
    return mean.tolist(), np.sqrt(shares @ levels**2 - mean**2).tolist()


def _far(
    mean: Sequence[float],
    std: Sequence[float],
    data_mean: Sequence[float],
    data_std: Sequence[float],
) -> bool:
    shifted = any(abs(a - b) > FAR_MEAN for a, b in zip(mean, data_mean, strict=True))
    ratios = [(a + 1) / (b + 1) for a, b in zip(std, data_std, strict=True)]
    return shifted or any(not 1 / FAR_RATIO < ratio < FAR_RATIO for ratio in ratios)


def _rounded(values: Sequence[float]) -> str:
    return " ".join(f"{value:.0f}" for value in values)
