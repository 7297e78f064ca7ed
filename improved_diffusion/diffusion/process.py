"""The forward process q, which turns images into noise, and its posterior.

Equations are those of Ho et al. 2020 (DDPM, arXiv 2006.11239).
"""

from collections.abc import Sequence

import numpy as np
import torch as th

from ..errors import InputError
from .noise_schedules import checked_betas


class ForwardProcess:
    """q(x_t | x_start) and q(x_{t-1} | x_t, x_start), with their tables over the timesteps.

    :param betas: variance of each step, float [T], each in (0, 1]. One of 1 leaves nothing of the
        image, from where only ancestral steps can begin, of a model that predicts x_start or v.
    :raises InputError: if a beta is outside (0, 1]; names the first.
    """

    def __init__(self, betas: np.ndarray):
        self.betas = betas = checked_betas(betas)
        self.num_timesteps = len(betas)
        self.alphas_cumprod = np.cumprod(1.0 - betas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.alphas_cumprod_next = np.append(self.alphas_cumprod[1:], 0.0)

        # q(x_t | x_start), eq. 4
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1.0 - self.alphas_cumprod)
        with np.errstate(divide="ignore"):  # a beta of 1 destroys the image: 1 / 0 is meant
            self.log_one_minus_alphas_cumprod = np.log(1.0 - self.alphas_cumprod)
            self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod)
            self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod - 1)

        # q(x_{t-1} | x_t, x_start), eqs. 6 and 7
        remaining = 1.0 - self.alphas_cumprod
        self.posterior_variance = betas * (1.0 - self.alphas_cumprod_prev) / remaining
        # The first posterior variance is 0, whose logarithm is not usable: take the next one's.
        second = self.posterior_variance[1] if len(betas) > 1 else betas[0]
        self.posterior_log_variance_clipped = np.log(np.append(second, self.posterior_variance[1:]))
        self.posterior_mean_coef1 = betas * np.sqrt(self.alphas_cumprod_prev) / remaining
        self.posterior_mean_coef2 = (
            (1.0 - self.alphas_cumprod_prev) * np.sqrt(1.0 - betas) / remaining
        )
        self.fixed_large_variance = np.append(second, betas[1:])

    def q_mean_variance(
        self, x_start: th.Tensor, t: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Mean, variance and log-variance of q(x_t | x_start), each of ``x_start``'s shape."""
        return (
            at(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start,
            at(1.0 - self.alphas_cumprod, t, x_start.shape),
            at(self.log_one_minus_alphas_cumprod, t, x_start.shape),
        )

    def q_sample(
        self, x_start: th.Tensor, t: th.Tensor, noise: th.Tensor | None = None
    ) -> th.Tensor:
        """Draw x_t from q(x_t | x_start) (eq. 4).

        :param noise: standard normal noise of ``x_start``'s shape; drawn if not given.
        """
        if noise is None:
            noise = th.randn_like(x_start)
        assert noise.shape == x_start.shape
        return (
            at(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
            + at(self.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * noise
        )

    def q_posterior_mean_variance(
        self, x_start: th.Tensor, x_t: th.Tensor, t: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Mean, variance and clipped log-variance of q(x_{t-1} | x_t, x_start) (eq. 6)."""
        assert x_start.shape == x_t.shape
        mean = (
            at(self.posterior_mean_coef1, t, x_t.shape) * x_start
            + at(self.posterior_mean_coef2, t, x_t.shape) * x_t
        )
        variance = at(self.posterior_variance, t, x_t.shape)
        return mean, variance, at(self.posterior_log_variance_clipped, t, x_t.shape)

    def v_of(self, x_start: th.Tensor, noise: th.Tensor, t: th.Tensor) -> th.Tensor:
        """v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_start, of ``x_start``'s shape.

        x_t turned by a quarter (Salimans & Ho 2022, arXiv 2202.00512, appendix D).
        """
        assert noise.shape == x_start.shape
        return (
            at(self.sqrt_alphas_cumprod, t, x_start.shape) * noise
            - at(self.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * x_start
        )

    # What one of x_start, the noise, v and x_{t-1} says of another. Programs written for
    # improved-diffusion call these by their names.

    def _predict_xstart_from_eps(self, x_t: th.Tensor, t: th.Tensor, eps: th.Tensor) -> th.Tensor:
        assert x_t.shape == eps.shape
        return (
            at(self.sqrt_recip_alphas_cumprod, t, x_t.shape) * x_t
            - at(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape) * eps
        )

    def _predict_xstart_from_v(self, x_t: th.Tensor, t: th.Tensor, v: th.Tensor) -> th.Tensor:
        assert x_t.shape == v.shape
        return (
            at(self.sqrt_alphas_cumprod, t, x_t.shape) * x_t
            - at(self.sqrt_one_minus_alphas_cumprod, t, x_t.shape) * v
        )

    def _predict_xstart_from_xprev(
        self, x_t: th.Tensor, t: th.Tensor, xprev: th.Tensor
    ) -> th.Tensor:
        assert x_t.shape == xprev.shape
        coef1, coef2 = self.posterior_mean_coef1, self.posterior_mean_coef2
        return at(1.0 / coef1, t, x_t.shape) * xprev - at(coef2 / coef1, t, x_t.shape) * x_t

    def _predict_eps_from_xstart(
        self, x_t: th.Tensor, t: th.Tensor, pred_xstart: th.Tensor
    ) -> th.Tensor:
        scaled = at(self.sqrt_recip_alphas_cumprod, t, x_t.shape) * x_t - pred_xstart
        return scaled / at(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape)


def check_image_is_left(alphas_cumprod: np.ndarray, what: str, instead: str) -> None:
    """:raises InputError: if the last timestep, of a beta of 1, leaves nothing of the image.

    :param what: what needs some of it there.
    :param instead: what to do.
    """
    if not alphas_cumprod[-1]:
        raise InputError(
            f"{what} cannot have timestep {len(alphas_cumprod) - 1}, which leaves nothing of the "
            f"image (a beta of 1): {instead}, or leave that timestep out"
        )


def at(table: np.ndarray, t: th.Tensor, shape: Sequence[int]) -> th.Tensor:
    """``table[t]`` as float32, expanded to ``shape``: one value for each of the N images."""
    values = th.from_numpy(table).float().to(t.device)[t]  # MPS has no float64
    return values.view(-1, *[1] * (len(shape) - 1)).expand(*shape)
