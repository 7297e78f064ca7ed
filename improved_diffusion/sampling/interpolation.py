"""From one image to another through the noise that they come from (DDIM: Song et al. 2020).

Without noise in its steps, DDIM makes of each x_T one image, and can be walked backwards: to the
x_T of a given picture. Between two of these, images lie on an arc.
"""

import math
from functools import partial
from typing import Any

import torch as th

from ..diffusion.walk import Callback, finish, walk
from ..gaussian_diffusion import GaussianDiffusion, Model

USUAL_STEPS = 100


def invert(
    diffusion: GaussianDiffusion,
    model: Model,
    x_start: th.Tensor,
    callback: Callback | None = None,
    **settings: Any,
) -> th.Tensor:
    """The x_T of which DDIM makes images, up to an error that falls with more timesteps.

    :param x_start: the images, [N, C, H, W], which are taken for x_0 of the least noisy timestep.
    :param callback: given each step's ``sample``, ``pred_xstart``, ``x_t`` and ``t``.
    :param settings: for ``p_mean_variance``. Clipping adds to the error, usually little.
    :return: where the steps of ``ddim_sample`` begin, of ``x_start``'s shape.
    """
    step = partial(diffusion.ddim_reverse_sample, model, **settings)
    # A step at t leads to t + 1, and sampling begins with a step at the last timestep.
    timesteps = range(diffusion.num_timesteps - 1)
    return finish(walk(step, x_start, timesteps), callback) if timesteps else x_start


def slerp(a: th.Tensor, b: th.Tensor, share: float) -> th.Tensor:
    """The point on the arc from ``a`` to ``b`` that is so far along it, from 0 to 1.

    Spherical interpolation (Shoemake 1985, "Animating rotation with quaternion curves"; DDIM
    appendix D.5): unlike on a straight line, all points of two noises are as long as noise is.

    :param a: of any shape, which ``b`` has too.
    """
    cosine = th.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm())
    angle = math.acos(min(1.0, max(-1.0, float(cosine))))
    if math.sin(angle) < 1e-6:  # in one direction there is no arc
        return (1 - share) * a + share * b
    along_a, along_b = math.sin((1 - share) * angle), math.sin(share * angle)
    return (along_a * a + along_b * b) / math.sin(angle)


def arc(a: th.Tensor, b: th.Tensor, count: int) -> th.Tensor:
    """``count`` >= 2 points of the arc from ``a`` to ``b``, both included: [count, ...]."""
    return th.stack([slerp(a, b, i / (count - 1)) for i in range(count)])
