"""DPM-Solver++(2M): good samples in about 20 steps (Lu et al. 2022, arXiv 2211.01095).

It solves the diffusion ODE, or with noise the reverse SDE, whose steps forget the errors of those
before them: a young model needs that.
"""

import math
from typing import Any

import torch as th

from ..diffusion.guidance import Guidance, Guided
from ..diffusion.process import check_image_is_left
from ..diffusion.walk import Step
from ..gaussian_diffusion import GaussianDiffusion, Model, RandnLike


def dpm_solver(
    diffusion: GaussianDiffusion,
    model: Model,
    *,
    eta: float = 0.0,
    randn_like: RandnLike = th.randn_like,
    **settings: Any,
) -> Step:
    """Make the steps of one walk down the timesteps of ``diffusion``, which remember the last one.

    The variances that a model may have learned play no part.

    :param eta: how much noise each step adds, in [0, 1]: 0 for the ODE, which is deterministic
        given x_T; 1 for the SDE, whose steps have the variance of the posterior.
    :param settings: for ``p_mean_variance``.
    :raises InputError: if the last timestep leaves nothing of the image.
    """
    check_image_is_left(diffusion.alphas_cumprod, "DPM-Solver++", "take ddpm")
    before: tuple[th.Tensor, float] | None = None  # the last step's prediction and length
    guidance = model.guidance if isinstance(model, Guided) else Guidance()
    was_led = False

    def step(x: th.Tensor, t: th.Tensor) -> dict[str, th.Tensor]:
        nonlocal before, was_led
        i = int(t[0])
        is_led = bool(guidance.covers(diffusion.sqrt_recipm1_alphas_cumprod[i]))
        if is_led != was_led:  # across an end of the interval it would lead too far, or away
            before = None
        was_led = is_led
        pred_xstart = diffusion.p_mean_variance(model, x, t, **settings)["pred_xstart"]
        here, there = diffusion.alphas_cumprod[i], diffusion.alphas_cumprod_prev[i]
        length = half_log_snr(there) - half_log_snr(here)
        prediction = extrapolate(pred_xstart, length, before)
        before = pred_xstart, length
        x = _step(diffusion, x, i, prediction, eta, randn_like)
        return {"sample": x, "pred_xstart": pred_xstart}

    return step


def half_log_snr(alpha_bar: float) -> float:
    """The paper's lambda, log(alpha / sigma), half the log-SNR; infinite without noise."""
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar)) if alpha_bar < 1 else math.inf


def extrapolate(
    pred_xstart: th.Tensor, length: float, before: tuple[th.Tensor, float] | None
) -> th.Tensor:
    """The prediction at the middle of the coming step, from this one and the last (algorithm 2).

    There is no second order where there is no earlier prediction that was guided as this one is,
    nor into the clean image.
    """
    if before is None or math.isinf(length):
        return pred_xstart
    earlier, earlier_length = before
    weight = length / (2 * earlier_length)
    return (1 + weight) * pred_xstart - weight * earlier


def _step(
    diffusion: GaussianDiffusion,
    x: th.Tensor,
    i: int,
    prediction: th.Tensor,
    eta: float,
    randn_like: RandnLike,
) -> th.Tensor:
    """x_{i-1} from x_i, exact for a constant prediction of x_start.

    Eq. 9 with k = 1 for eta = 0, the paper's SDE-DPM-Solver++ for eta = 1, and between them the
    interpolation of k-diffusion's ``sample_dpmpp_2m_sde``: less of x_i, more of the prediction, and
    noise of variance sigma'^2 (1 - e^{-2 eta h}), so that x_{i-1} is as noisy as timestep i - 1 is.
    Written with e^{-h} = (sigma' / sigma) (alpha / alpha'), which stays finite where sigma' = 0.
    """
    alpha, sigma = _alpha_sigma(diffusion.alphas_cumprod[i])
    alpha_next, sigma_next = _alpha_sigma(diffusion.alphas_cumprod_prev[i])
    ratio = sigma_next / sigma
    forgetting = (ratio * alpha / alpha_next) ** eta  # e^{-eta h}
    kept = ratio * forgetting
    mean = kept * x + (alpha_next - kept * alpha) * prediction
    std = sigma_next * math.sqrt(1 - forgetting**2)
    return mean + std * randn_like(x) if std else mean


def _alpha_sigma(alpha_bar: float) -> tuple[float, float]:
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
