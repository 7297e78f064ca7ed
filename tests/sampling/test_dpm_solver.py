"""DPM-Solver++(2M) for Gaussian data: against its ODE's exact solution, and as an SDE."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch as th
from toy_models import ideal_noise

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.diffusion.guidance import Guidance
from improved_diffusion.respace import LEAST_LOG_SNR, log_snr_timesteps
from improved_diffusion.sampling.samplers import draw
from improved_diffusion.script_util import create_gaussian_diffusion

MEAN, STD = 0.3, 0.2
T = 10_000  # many, so that timesteps lie where the spacing wants them
SHAPE = (4, 3, 8, 8)
MODEL = ideal_noise(create_gaussian_diffusion(steps=T, rescale_timesteps=False), MEAN, STD)


def spaced(steps, **flags):
    return create_gaussian_diffusion(steps=T, timestep_respacing=f"logsnr{steps}", **flags)


def exact(diffusion, x_T, i):
    """The ODE's solution at timestep i: each pixel keeps its number of standard deviations."""
    scale = []
    for j in (i, diffusion.num_timesteps - 1):
        alpha_bar = diffusion.alphas_cumprod[j]
        scale.append((math.sqrt(alpha_bar), math.sqrt(alpha_bar * STD**2 + 1 - alpha_bar)))
    (alpha, std), (alpha_T, std_T) = scale
    return alpha * MEAN + std / std_T * (x_T - alpha_T * MEAN)


def solve(diffusion, model, x_T, **settings):
    """The samples of the ODE, or with an ``eta`` of the SDE."""
    return draw("dpmpp", diffusion, model, tuple(x_T.shape), noise=x_T, **{"eta": 0.0} | settings)


def errors(steps, sampler):
    """Worst error at the last timestep before the clean image."""
    diffusion = spaced(steps)
    x_T = th.randn(SHAPE, generator=th.Generator().manual_seed(3), dtype=th.float64)
    path = []
    settings = {"eta": 0.0, "clip_denoised": False, "callback": path.append}
    draw(sampler, diffusion, MODEL, SHAPE, noise=x_T, **settings)
    return float((path[-1]["x_t"] - exact(diffusion, x_T, 0)).abs().max())


def test_error_falls_at_second_order_and_stays_below_ddim():
    counts = [20, 40, 80, 160]
    ours = [errors(n, "dpmpp") for n in counts]
    theirs = [errors(n, "ddim") for n in counts]
    assert all(a < b for a, b in zip(ours, theirs, strict=True))
    orders = [math.log2(a / b) for a, b in pairwise(ours)]
    assert min(orders) > 1.7, (orders, ours)
    assert math.log2(theirs[-2] / theirs[-1]) < 1.3  # the measure tells the orders apart


def test_with_all_noise_a_first_step_is_the_ancestral_one():
    """Before there is a second order, the SDE's step is DDPM's with the posterior variance."""
    diffusion = spaced(5, sigma_small=True)
    model = MODEL
    x_T, noise = th.randn(2, *SHAPE, generator=th.Generator().manual_seed(3), dtype=th.float64)
    last = th.full(SHAPE[:1], diffusion.num_timesteps - 1)
    want = diffusion.p_sample(model, x_T, last, False, randn_like=lambda _: noise)["sample"]
    path = []
    settings = {"clip_denoised": False, "eta": 1.0, "callback": path.append}
    solve(diffusion, model, x_T, randn_like=lambda _: noise, **settings)
    assert th.allclose(path[0]["sample"], want, atol=1e-6)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_noise_keeps_the_distribution(eta):
    shape = (8, 3, 64, 64)
    generator = th.Generator().manual_seed(4)

    def randn_like(x):
        return th.randn(x.shape, generator=generator, dtype=x.dtype)

    diffusion = spaced(80)
    x_T = th.randn(shape, generator=generator, dtype=th.float64)
    settings = {"clip_denoised": False, "eta": eta, "randn_like": randn_like}
    made = solve(diffusion, MODEL, x_T, **settings)
    assert abs(float(made.mean()) - MEAN) < 0.002
    assert abs(float(made.std()) / STD - 1) < 0.01


def test_noise_makes_up_for_an_error():
    """A step off the path stays for ever in the ODE's samples; in the SDE's it fades."""
    diffusion = spaced(40)
    x_T = th.randn(SHAPE, generator=th.Generator().manual_seed(3), dtype=th.float64)

    def made(eta, shift):
        generator = th.Generator().manual_seed(5)
        return solve(
            diffusion,
            MODEL,
            x_T + shift,
            clip_denoised=False,
            eta=eta,
            randn_like=lambda x: th.randn(x.shape, generator=generator, dtype=x.dtype),
        )

    ode, half, sde = (
        float((made(eta, 1.0) - made(eta, 0.0)).abs().mean()) for eta in (0.0, 0.5, 1.0)
    )
    assert ode > 10 * half
    assert half > sde


def test_no_step_leads_further_than_its_guidance():
    """Extrapolated across an end of the interval, a scale of 3 would become 4, or none at all."""
    diffusion = spaced(12, predict_xstart=True)
    worse, better, guided = 0.1, 0.2, 0.4  # guidance 3

    def model(x, t, y):
        return 0 * x + th.where(y < 0, worse, better).view(-1, 1, 1, 1)

    sigmas = diffusion.sqrt_recipm1_alphas_cumprod
    guidance = Guidance(3.0, low=sigmas[3], high=sigmas[7])
    led, path = guidance.around(model, diffusion), []
    x = th.zeros(SHAPE, dtype=th.float64)
    solve(diffusion, led, x, model_kwargs={"y": th.zeros(len(x))}, callback=path.append)
    taken = []
    for i, step in zip(reversed(range(12)), path, strict=True):
        here, there = diffusion.alphas_cumprod[i], diffusion.alphas_cumprod_prev[i]
        kept = math.sqrt((1 - there) / (1 - here))
        moved = step["sample"] - kept * step["x_t"]
        taken.append(float(moved.mean()) / (math.sqrt(there) - kept * math.sqrt(here)))
    expected = [guided if 4 <= i <= 7 else better for i in reversed(range(12))]
    assert taken == pytest.approx(expected)


@pytest.mark.parametrize(("steps", "count"), [(1000, 20), (1000, 500), (100, 20), (100, 99)])
def test_no_step_is_spent_where_nothing_is_left_while_there_are_others(steps, count):
    betas = gd.get_named_beta_schedule("cosine", steps)
    alphas_cumprod = np.cumprod(1 - betas)
    useful = int((np.log(alphas_cumprod / (1 - alphas_cumprod)) >= LEAST_LOG_SNR).sum())
    assert useful < steps
    assert max(log_snr_timesteps(betas, count)) == max(useful, count) - 1


def test_timesteps_that_all_lie_beyond_are_shared_evenly_too():
    assert log_snr_timesteps(np.array([0.99999, 0.5, 0.5, 0.5, 0.5]), 3) == {0, 2, 4}


@pytest.mark.parametrize(
    ("schedule", "steps", "last", "evenness"),
    [("linear", 1000, 999, 0.4), ("cosine", 1000, 995, 0.5), ("cosine", 4000, 3983, 0.8)],
)
def test_log_snr_timesteps_are_distinct_and_even(schedule, steps, last, evenness):
    betas = gd.get_named_beta_schedule(schedule, steps)
    for count in (1, 2, 20, 40, 500, steps - 1, steps):
        assert len(log_snr_timesteps(betas, count)) == count
    chosen = sorted(log_snr_timesteps(betas, 20))
    assert chosen[0] == 0
    assert chosen[-1] == last, "where nothing of an image is left, and not far beyond"
    alphas_cumprod = np.cumprod(1 - betas)[chosen]
    gaps = np.diff(np.log(alphas_cumprod / (1 - alphas_cumprod)))
    assert gaps.min() / gaps.max() > evenness
