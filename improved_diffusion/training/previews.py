"""Samples drawn while training, always from the same noise, to see and to judge what it learns."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from .. import dist_util, logger
from ..data.image_files import open_image
from ..data.image_grid import LARGEST_FILM, evenly, save_gif, save_grid, to_uint8
from ..diffusion.guidance import Guidance
from ..errors import InputError, is_lack_of_memory
from ..evaluation.features import Extractor, features_of
from ..evaluation.image_sets import in_memory
from ..evaluation.quality import KernelDistance, Reference, kernel_distance
from ..gaussian_diffusion import Model
from ..options.training import LoopOptions
from ..respace import SpacedDiffusion
from ..sampling.image_noise import ImageNoise
from ..sampling.samplers import SAMPLERS, draw
from ..system.precision import Precision
from .averages import Average
from .checkpoints import SETTLED

FOLDER = "samples"
FILM, FILM_FRAMES = "progress.gif", 40
SAMPLER = SAMPLERS["dpmpp"]  # a fast one
NO_GUIDANCE = Guidance()

Weights = Mapping[str, th.Tensor]


class Preview:
    """Draws a grid of samples from any weights of a model.

    It has random numbers of its own, and leaves those of the training and the model as they were.

    :param diffusion: that of the training, of which the fast sampler takes the usual few steps.
    :param shape: of the grid's images, [N, C, H, W].
    :param batch_size: how many of them to sample at a time.
    :param seed: of their noise.
    :param model_kwargs: conditions of the N images.
    :param names: of the classes, if they are known.
    :param guidance: how to guide them; not at all by default.
    """

    def __init__(
        self,
        diffusion: SpacedDiffusion,
        shape: tuple[int, int, int, int],
        *,
        batch_size: int,
        seed: int = 0,
        model_kwargs: Mapping[str, th.Tensor] | None = None,
        names: Sequence[str] = (),
        guidance: Guidance = NO_GUIDANCE,
    ):
        steps = min(SAMPLER.usual_steps, diffusion.num_timesteps)
        self.diffusion = diffusion.respaced(SAMPLER.respacing.format(steps))
        self.batch_size = batch_size
        self.shape = shape
        self.seed = seed
        self.model_kwargs = dict(model_kwargs or {})
        self.names = names
        self.guidance = guidance

    def draw(self, folder: str, step: int, model: th.nn.Module, average: Average) -> None:
        """Write ``samples/NNNNNN.png`` of an EMA, and while it is young of the model itself."""
        self._draw_one(os.path.join(folder, FOLDER, f"{step:06d}.png"), model, average.weights)
        if average.share > SETTLED:
            self._draw_one(os.path.join(folder, FOLDER, f"{step:06d}_model.png"), model, {})
        logger.log(f"Drew {FOLDER}/{step:06d}.png from {average}")

    def _draw_one(self, path: str, model: th.nn.Module, weights: Weights) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        labels = self.model_kwargs.get("y", ())
        save_grid(path, self.images(model, weights), labels, self.names)

    def images(self, model: th.nn.Module, weights: Weights) -> np.ndarray:
        """Samples of the model with other weights, uint8 [N, H, W, C]."""

        def call(x: th.Tensor, t: th.Tensor, **kwargs: Any) -> th.Tensor:
            return th.func.functional_call(model, dict(weights), (x, t), kwargs)

        was_training = model.training
        model.eval()  # no dropout, which would also draw random numbers
        try:
            with th.inference_mode():
                starts = range(0, self.shape[0], self.batch_size)
                parts = [range(self.shape[0])[start : start + self.batch_size] for start in starts]
                device = next(model.parameters()).device
                guided = self.guidance.around(call, self.diffusion)
                samples = th.cat([self._sample_part(guided, part, device) for part in parts])
                return to_uint8(samples.float().cpu()).numpy()
        finally:
            model.train(was_training)

    def _sample_part(self, model: Model, part: range, device: th.device) -> th.Tensor:
        noise = ImageNoise(self.seed, part)
        rows = slice(part.start, part.stop)
        kwargs = {key: value[rows].to(device) for key, value in self.model_kwargs.items()}
        return draw(
            SAMPLER.name,
            self.diffusion,
            model,
            (len(part), *self.shape[1:]),
            model_kwargs=kwargs,
            device=device,
            randn_like=noise.randn_like,
        )


@dataclass(frozen=True)
class Examiner:
    """Judges samples that are drawn while training, by the kernel distance to real images.

    :param interval: updates between two examinations.
    :param preview: draws the samples.
    :param extractor: looks at them.
    :param reference: what it saw in real images.
    """

    interval: int
    preview: Preview
    extractor: Extractor
    reference: Reference

    def examine(
        self, model: th.nn.Module, average: Average, autocast: AbstractContextManager
    ) -> KernelDistance:
        """The kernel distance of samples of an EMA, drawn in that context."""
        with autocast:
            samples = in_memory(self.preview.images(model, average.weights))
        features = features_of(self.extractor, samples)
        found = kernel_distance(features, self.reference)
        logger.log(
            f"KID ({self.extractor.title}) of {len(features)} samples of {average}: "
            f"{found.value:.4g} ± {found.figure.error:.2g}"
        )
        return found


@dataclass
class SamplesOnTheWay:
    """Draws and judges samples of a model's averages in the course of its training, on rank 0.

    What fails is said, and the training goes on.

    :param options: of the training, with ``sample_interval`` and ``save_gif``.
    :param preview: draws samples to see, if there are to be any.
    :param examiner: judges samples, if they are to be judged.
    :param find_average: chooses what to draw from, where something is drawn.
    """

    options: LoopOptions
    model: th.nn.Module
    precision: Precision
    preview: Preview | None
    examiner: Examiner | None
    find_average: Callable[[], Average]

    def draw_if_due(self, updates: int) -> None:
        """:meth:`draw` after each ``sample_interval`` updates."""
        every = self.options.sample_interval
        if every and updates % every == 0:
            self.draw(updates)

    def draw(self, updates: int) -> None:
        """Write a grid of samples, and if the options ask for it the film of all grids."""
        folder = logger.get_dir()
        if self.preview is None or dist_util.rank() != 0 or not folder:
            return
        with survived("samples"), self.precision.autocast():
            self.preview.draw(folder, updates, self.model, self.find_average())
        if self.options.save_gif:
            with survived("film"):
                save_film(folder, updates)

    def examine_if_due(self, updates: int) -> None:
        """:meth:`examine` at the examiner's interval."""
        if self.examiner and updates % self.examiner.interval == 0:
            self.examine()

    def examine(self) -> None:
        """Judge samples; the log line in hand has what was found."""
        if self.examiner is None or dist_util.rank() != 0:
            return
        with survived("figures of samples"):
            average = self.find_average()
            kernel = self.examiner.examine(self.model, average, self.precision.autocast())
            logger.logkv("kid", kernel.value)

    def pauses(self, updates: int) -> list[tuple[int, Callable[[], None]]]:
        """What interrupts the updates: after each so many of them, what is done."""
        pauses: list[tuple[int, Callable[[], None]]] = []
        if every := self.options.sample_interval:
            pauses.append((every, partial(self.draw, updates)))
        if self.examiner:
            pauses.append((self.examiner.interval, self.examine))
        return pauses


@contextmanager
def survived(what: str) -> Iterator[None]:
    """Make what the run can do without; when that fails it is said, and the training goes on."""
    try:
        yield
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_lack_of_memory(error):
            raise
        logger.warn(f"No {what} this time: {error}")


def newest_picture(folder: str) -> str | None:
    """Path of the newest grid of samples in ``samples/`` of a run's folder, if there is one.

    While an EMA is young, the model's own picture is drawn after it, and shows more.
    """
    samples = Path(folder, FOLDER)
    grids = [p for p in samples.glob("*.png") if re.match(r"\d+(_model)?\.|samples_", p.name)]
    newest = max(grids, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)
    return None if newest is None else str(newest)


def save_film(folder: str, updates: int) -> None:
    """Write ``progress.gif`` of a run's folder: its grids of samples, up to so many updates.

    Where the model's own picture was drawn because the EMA was young, that is shown. Of many grids
    some are left out.

    :raises InputError: if a grid cannot be read, or differs in size from the others.
    """
    grids: dict[int, Path] = {}
    for path in sorted(Path(folder, FOLDER).glob("*.png")):  # 000100.png, then 000100_model.png
        match = re.fullmatch(r"(\d+)(_model)?\.png", path.name)
        if match and int(match[1]) <= updates:
            grids[int(match[1])] = path
    steps = sorted(grids)
    chosen = [grids[steps[i]] for i in evenly(len(steps), FILM_FRAMES)]
    save_gif(os.path.join(folder, FILM), [_frame(str(path)) for path in chosen])


def _frame(path: str) -> np.ndarray:
    """A grid that was saved, small enough for a film: [H, W, C]."""
    with open_image(path) as image:
        smaller = image.reduce(-(-max(image.size) // LARGEST_FILM))
        return np.array(smaller).reshape(smaller.height, smaller.width, -1)
