"""Noise schedules: the variance beta of each step of the forward process.

A new schedule is one function here, with a name to register it under.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InputError
from .registry import Registry

MAX_BETA = 0.999
MOST_STEPS = 10**6  # tables of more would fill the memory, and no model needs them

# Each is called with the number of steps T, and with the ``power`` if it takes one; it returns the
# betas as float64 [T].
NOISE_SCHEDULES: Registry[Callable[..., np.ndarray]] = Registry("noise_schedule")


def get_named_beta_schedule(
    schedule_name: str, num_diffusion_timesteps: int, poly_power: float = 2.0
) -> np.ndarray:
    """The betas of a named schedule as float64 [T].

    :param schedule_name: one of :data:`NOISE_SCHEDULES`.
    :param poly_power: the ``power`` of schedules that take one, such as the polynomial; 1 makes
        that the linear one, where no beta of that is above 0.999.
    :raises NotImplementedError: for an unknown name (an :class:`InputError` for scripts).
    :raises InputError: if the steps are none or too many, or the power is not positive.
    """
    if not 1 <= num_diffusion_timesteps <= MOST_STEPS:
        raise InputError(
            f"diffusion_steps must be at least 1 and at most {MOST_STEPS}, "
            f"got {num_diffusion_timesteps}"
        )
    return NOISE_SCHEDULES.taking(schedule_name, power=poly_power)(num_diffusion_timesteps)


@NOISE_SCHEDULES.register("linear")
def linear(num_steps: int) -> np.ndarray:
    """Betas evenly apart (Ho et al. 2020)."""
    return np.linspace(*_ends(num_steps), num_steps, dtype=np.float64)


@NOISE_SCHEDULES.register("cosine")
def cosine(num_steps: int) -> np.ndarray:
    """IDDPM eq. 17: alpha_bar follows a squared cosine."""
    return betas_for_alpha_bar(
        num_steps, lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    )


@NOISE_SCHEDULES.register("polynomial")
def polynomial(num_steps: int, power: float) -> np.ndarray:
    """first + (last - first) (p + 1) / 2 u^p for u from 0 to 1, at most 0.999.

    Every power p adds nearly the same total noise.

    :raises InputError: if the power is not a positive number.
    """
    if not 0 < power < math.inf:
        raise InputError(f"poly_power must be a positive number, got {power}")
    first, last = _ends(num_steps)
    u = np.arange(num_steps, dtype=np.float64) / max(num_steps - 1, 1)
    betas = first + (last - first) * (power + 1) / 2 * u**power
    return np.minimum(betas, MAX_BETA)


def _ends(num_steps: int) -> tuple[float, float]:
    """First and last beta of the linear schedule.

    Any number of steps adds about the same noise as 1,000 steps from 1e-4 to 0.02.
    """
    scale = 1000 / num_steps
    return scale * 0.0001, scale * 0.02


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
    """``betas`` as float64 [T], if each of them lies in (0, 1].

    :raises InputError: if they are not one row, or one lies outside; names the first.
    """
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
