"""Samples drawn while training, always from the same noise, to see the model learn."""

import os
import re
from collections.abc import Container, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch as th

from .. import logger
from ..data.image_grid import save_grid, to_uint8
from ..diffusion.guidance import Guidance
from ..gaussian_diffusion import Model
from ..respace import SpacedDiffusion
from ..sampling.image_noise import ImageNoise
from ..sampling.samplers import SAMPLERS, draw
from .checkpoints import SETTLED, best_ema_rate

FOLDER = "samples"
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
        guidance: Guidance = NO_GUIDANCE,
    ):
        steps = min(SAMPLER.usual_steps, diffusion.num_timesteps)
        self.diffusion = diffusion.respaced(SAMPLER.respacing.format(steps))
        self.batch_size = batch_size
        self.shape = shape
        self.seed = seed
        self.model_kwargs = dict(model_kwargs or {})
        self.guidance = guidance

    def draw(
        self,
        folder: str,
        step: int,
        model: th.nn.Module,
        emas: Mapping[float, Weights],
        autocast: AbstractContextManager,
        corrected: Container[float] = (),
    ) -> None:
        """Write ``samples/NNNNNN.png`` of an EMA, and while all are young of the model itself.

        :param emas: weights by rate; of several rates the highest settled one is drawn.
        :param autocast: the context to call the model in.
        :param corrected: the rates whose weights are without the initial ones.
        """
        rate = best_ema_rate(emas, step)
        share = 0.0 if rate in corrected else rate**step
        with autocast:
            self._draw_one(os.path.join(folder, FOLDER, f"{step:06d}.png"), model, emas[rate])
            if share > SETTLED:
                path = os.path.join(folder, FOLDER, f"{step:06d}_model.png")
                self._draw_one(path, model, {})
        young = f", which holds {share:.0%} of its initial weights" if share > SETTLED else ""
        young = ", its initial weights taken out" if rate in corrected else young
        logger.log(f"Drew {FOLDER}/{step:06d}.png from the EMA of rate {rate:g}{young}")

    def _draw_one(self, path: str, model: th.nn.Module, weights: Weights) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        save_grid(path, to_uint8(self._sample(model, weights).float().cpu()))

    def _sample(self, model: th.nn.Module, weights: Weights) -> th.Tensor:
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
                return th.cat([self._sample_part(guided, part, device) for part in parts])
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


def newest_picture(folder: str) -> str | None:
    """Path of the newest grid of samples in ``samples/`` of a run's folder, if there is one.

    While an EMA is young, the model's own picture is drawn after it, and shows more.
    """
    samples = Path(folder, FOLDER)
    grids = [p for p in samples.glob("*.png") if re.match(r"\d+(_model)?\.|samples_", p.name)]
    newest = max(grids, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)
    return None if newest is None else str(newest)
