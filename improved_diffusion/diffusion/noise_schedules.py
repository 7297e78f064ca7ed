"""Noise schedules: the variance beta of each step of the forward process."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InputError

NOISE_SCHEDULES = ("linear", "cosine", "polynomial")
MAX_BETA = 0.999
MOST_STEPS = 10**6  # tables of more would fill the memory, and no model needs them


def get_named_beta_schedule(
    schedule_name: str, num_diffusion_timesteps: int, poly_power: float = 2.0
) -> np.ndarray:
    """The betas of a named schedule as float64 [T].

    ``linear`` and ``polynomial`` are scaled so that any number of steps adds about the same
    noise as 1,000 steps from 1e-4 to 0.02 (Ho et al. 2020); ``cosine`` is eq. 17 of IDDPM.

    :param poly_power: exponent of the polynomial schedule; 1 makes it the linear one.
    :raises NotImplementedError: for an unknown name (an :class:`InputError` for scripts).
    :raises InputError: if the steps are none or too many, or the power is not positive.
    """
    if not 1 <= num_diffusion_timesteps <= MOST_STEPS:
        raise InputError(
            f"diffusion_steps must be at least 1 and at most {MOST_STEPS}, "
            f"got {num_diffusion_timesteps}"
        )
    scale = 1000 / num_diffusion_timesteps
    first, last = scale * 0.0001, scale * 0.02
    if schedule_name == "linear":
        return np.linspace(first, last, num_diffusion_timesteps, dtype=np.float64)
    if schedule_name == "polynomial":
        return _polynomial_betas(num_diffusion_timesteps, first, last, poly_power)
    if schedule_name == "cosine":
        return betas_for_alpha_bar(
            num_diffusion_timesteps, lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        )
    raise UnknownScheduleError(
        f"unknown noise_schedule {schedule_name!r}; choose from {', '.join(NOISE_SCHEDULES)}"
    )


class UnknownScheduleError(InputError, NotImplementedError):
    """No schedule has that name (the reference raises ``NotImplementedError`` here)."""


def _polynomial_betas(num_steps: int, first: float, last: float, power: float) -> np.ndarray:
    """first + (last - first) (p + 1) / 2 u^p: every power p adds nearly the same total noise."""
    if not 0 < power < math.inf:
        raise InputError(f"poly_power must be a positive number, got {power}")
    u = np.arange(num_steps, dtype=np.float64) / max(num_steps - 1, 1)
    betas = first + (last - first) * (power + 1) / 2 * u**power
    return np.minimum(betas, MAX_BETA)


def betas_for_alpha_bar(
    num_diffusion_timesteps: int, alpha_bar: Callable[[float], float], max_beta: float = MAX_BETA
) -> np.ndarray:
    """Betas whose cumulative product follows ``alpha_bar(u)``, u in [0, 1]; float64 [T].

    :param max_beta: upper bound of a beta; below 1 keeps the last steps invertible.
    """
    edges = [alpha_bar(i / num_diffusion_timesteps) for i in range(num_diffusion_timesteps + 1)]
    return np.array(
        [min(1 - after / before, max_beta) for before, after in itertools.pairwise(edges)]
    )


def checked_betas(betas: Any) -> np.ndarray:
    """``betas`` as float64 [T], if each of them lies in (0, 1]."""
    betas = np.array(betas, dtype=np.float64)
    if betas.ndim != 1 or len(betas) == 0:
        raise InputError(f"betas must be a one-dimensional, non-empty array, got {betas.shape}")
    wrong = np.flatnonzero(~((betas > 0) & (betas <= 1)))
    if len(wrong):
        i = wrong[0]
        raise InputError(
            f"betas must lie in (0, 1], but beta[{i}] of {len(betas)} is {betas[i]:g} "
            f"({len(wrong)} such); choose another noise_schedule or number of diffusion_steps"
        )
    return betas
