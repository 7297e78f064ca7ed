"""Bits/dim from all timesteps or from a sample of them, and the terms over t."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch as th

from .. import dist_util
from ..errors import InputError
from ..gaussian_diffusion import GaussianDiffusion
from ..sampling.image_noise import ImageNoise

TERMS = ("vb", "mse", "xstart_mse")


def strata_bounds(num_timesteps: int, count: int) -> np.ndarray:
    """Cut the timesteps into ``count`` ranges, each about as large a part of the bound.

    The terms fall about as 1 / t, so the ranges' ends are a geometric sequence; t = 0, which holds
    the likelihood of the pixels, has a range of its own.

    :return: int64 [count + 1], rising from 0 to ``num_timesteps``.
    :raises InputError: unless 1 <= count <= num_timesteps.
    """
    if not 1 <= count <= num_timesteps:
        raise InputError(f"num_timesteps must lie in 1..{num_timesteps}, got {count}")
    k = np.arange(count + 1)
    ends = np.geomspace(1, num_timesteps, count) if count > 1 else [num_timesteps]
    bounds = np.round(np.append(0, ends)).astype(np.int64)
    # Every range holds a timestep at least, and leaves as many to the ranges behind it.
    bounds[1:] = np.maximum.accumulate(bounds[1:] - k[1:]) + k[1:]
    return np.maximum.accumulate(np.clip(bounds, k, num_timesteps - count + k))


def draw_timesteps(bounds: np.ndarray, noise: ImageNoise) -> tuple[th.Tensor, th.Tensor]:
    """One uniform timestep of each range for each image of ``noise``.

    :return: timesteps int64 [N, ranges], and the ranges' lengths float32 [ranges].
    """
    first = th.from_numpy(bounds[:-1])
    lengths = th.from_numpy(np.diff(bounds))
    uniform = noise.rand(len(lengths))
    return first + (uniform * lengths).long().clamp(max=lengths - 1), lengths.float()


def estimate_bpd(
    diffusion: GaussianDiffusion,
    model: Callable[..., th.Tensor],
    x_start: th.Tensor,
    num_timesteps: int,
    *,
    noise: ImageNoise,
    clip_denoised: bool = True,
    model_kwargs: dict[str, Any] | None = None,
    on_step: Callable[[], object] = lambda: None,
) -> dict[str, th.Tensor]:
    """An unbiased estimate of ``calc_bpd_loop`` from one timestep of each of some ranges.

    The bound is a sum over all timesteps (DDPM eq. 5); a term drawn from a range, times the
    range's length, has the range's sum as its expectation.

    :param model: in eval mode: in training mode it drops labels and activations.
    :param x_start: [N, C, ...] in [-1, 1].
    :param num_timesteps: ranges; with as many as the diffusion has timesteps it is the bound.
    :param noise: of the N images.
    :param on_step: called after each evaluation of the model.
    :return: ``total_bpd`` and ``prior_bpd`` [N]; ``t`` int64, ``vb``, ``mse`` and ``xstart_mse``
        [N, num_timesteps].
    :raises InputError: if there are not as many timesteps.
    """
    bounds = strata_bounds(diffusion.num_timesteps, num_timesteps)
    t, lengths = (v.to(x_start.device) for v in draw_timesteps(bounds, noise))
    settings = (clip_denoised, model_kwargs, noise.randn_like)
    columns = []
    for column in t.T:
        columns.append(diffusion.bpd_terms(model, x_start, column, *settings))
        on_step()
    terms = {key: th.stack([c[key] for c in columns], dim=1) for key in TERMS}
    prior = diffusion.prior_bpd(x_start)
    total = (terms["vb"] * lengths).sum(dim=1) + prior
    return {"total_bpd": total, "prior_bpd": prior, "t": t, **terms}


class BpdTable:
    """Bits/dim of each image, and the mean of each term at each timestep."""

    def __init__(self, diffusion: GaussianDiffusion):
        self.alphas_cumprod = diffusion.alphas_cumprod
        self.counts = np.zeros(diffusion.num_timesteps, dtype=np.int64)
        self.sums = {name: np.zeros(diffusion.num_timesteps) for name in TERMS}
        self.totals: list[float] = []
        self.priors: list[float] = []
        self.of_each = 0

    def add(self, metrics: Mapping[str, th.Tensor], at_most: int | None = None) -> None:
        """Take in what :func:`estimate_bpd` returned, on this rank and all others.

        :param at_most: leave out what is more than so many images; the ranks' images take turns.
        """
        gathered = {key: _in_turn(value)[:at_most] for key, value in metrics.items()}
        self.of_each = metrics["t"].shape[1]
        self.totals += gathered["total_bpd"].tolist()
        self.priors += gathered["prior_bpd"].tolist()
        t = gathered["t"].numpy().ravel()
        np.add.at(self.counts, t, 1)
        for name in TERMS:
            np.add.at(self.sums[name], t, gathered[name].double().numpy().ravel())

    @property
    def mean(self) -> float:
        """Bits/dim, the mean over the images so far."""
        return float(np.mean(self.totals))

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`mean`; NaN for one image."""
        if len(self.totals) < 2:
            return math.nan
        return float(np.std(self.totals, ddof=1) / math.sqrt(len(self.totals)))

    def means(self, name: str) -> np.ndarray:
        """The mean of a term at each timestep, float [T]; NaN where there is none."""
        with np.errstate(invalid="ignore"):
            return self.sums[name] / np.where(self.counts, self.counts, np.nan)

    def frame(self) -> pd.DataFrame:
        """The terms of each timestep that was evaluated, ascending."""
        log_snr = np.log(self.alphas_cumprod) - np.log1p(-self.alphas_cumprod)
        columns = {"alpha_bar": self.alphas_cumprod, "log_snr": log_snr, "images": self.counts}
        frame = pd.DataFrame(columns | {name: self.means(name) for name in TERMS})
        return frame[self.counts > 0].rename_axis("t").reset_index()

    def summary(self) -> dict[str, Any]:
        """What the whole comes to."""
        return {
            "bits/dim": self.mean,
            "standard error": self.standard_error if len(self.totals) > 1 else None,
            "of which prior": float(np.mean(self.priors)),
            "images": len(self.totals),
            "timesteps of each": self.of_each,
        }


def _in_turn(values: th.Tensor) -> th.Tensor:
    """The ranks' [N, ...] as [N x ranks, ...] on the CPU: the first of each, then the second."""
    return th.stack(dist_util.all_gather(values.cpu()), dim=1).flatten(0, 1)
