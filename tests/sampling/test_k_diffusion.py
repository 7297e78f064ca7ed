"""k-diffusion's wrapper for OpenAI's models, and its samplers, on this package's objects.

The wrapper calls ``model(x, t)`` itself and reads ``alphas_cumprod`` of the diffusion, nothing
else. So it needs a diffusion of all timesteps, a model that predicts the noise (there is another
wrapper for v), and timesteps as the model was trained with: other than 1000 of them have to be
scaled around the model.
"""

import math

import pytest
import torch as th

from improved_diffusion.script_util import (
    create_gaussian_diffusion,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)

kd = pytest.importorskip("k_diffusion", reason="k-diffusion is not installed; nothing needs it")

SAMPLERS = ("sample_euler", "sample_heun", "sample_dpmpp_2m")
MEAN, STD = 0.3, 0.2
STEPS = 40


def make(tiny, **flags):
    """A tiny model that says something, and its diffusion."""
    flags = model_and_diffusion_defaults() | tiny | {"diffusion_steps": 1000} | flags
    model, diffusion = create_model_and_diffusion(**flags)
    generator = th.Generator().manual_seed(1)
    for p in model.out.parameters():
        p.data = 0.1 * th.randn(p.shape, generator=generator)
    return model.eval().requires_grad_(False), diffusion


def noise(*shape, dtype=th.float32):
    return th.randn(shape, generator=th.Generator().manual_seed(2), dtype=dtype)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_run(name, learn_sigma, tiny):
    model, diffusion = make(tiny, learn_sigma=learn_sigma)
    denoiser = kd.external.OpenAIDenoiser(model, diffusion, has_learned_sigmas=learn_sigma)
    sigmas = denoiser.get_sigmas(4)
    x = noise(2, 3, 16, 16) * sigmas[0]
    images = getattr(kd.sampling, name)(denoiser, x, sigmas, disable=True)
    assert images.shape == x.shape
    assert images.isfinite().all()
    assert not th.equal(images, x)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("steps", [1000, 250])
@pytest.mark.parametrize("t", [0, 100, 200])
def test_the_denoiser_predicts_our_xstart(t, steps, learn_sigma, tiny):
    model, diffusion = make(tiny, learn_sigma=learn_sigma, diffusion_steps=steps)

    def scaled(x, timesteps):
        return model(x, timesteps * (1000 / steps))

    denoiser = kd.external.OpenAIDenoiser(scaled, diffusion, has_learned_sigmas=learn_sigma)
    x_t = noise(2, 3, 16, 16)
    timesteps = th.full((2,), t)
    ours = diffusion.p_mean_variance(model, x_t, timesteps, clip_denoised=False)["pred_xstart"]
    theirs = denoiser(x_t / diffusion.sqrt_alphas_cumprod[t], denoiser.sigmas[timesteps])
    th.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)


def test_the_denoiser_of_v_predicts_our_xstart(tiny):
    model, diffusion = make(tiny, predict_v=True)
    alphas_cumprod = th.from_numpy(diffusion.alphas_cumprod).float()
    denoiser = kd.external.DiscreteVDDPMDenoiser(model, alphas_cumprod, quantize=False)
    x_t, timesteps = noise(2, 3, 16, 16), th.tensor([100, 900])
    ours = diffusion.p_mean_variance(model, x_t, timesteps, clip_denoised=False)["pred_xstart"]
    scaled = x_t / alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
    theirs = denoiser(scaled, denoiser.sigmas[timesteps])
    th.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)


def ideal_denoiser(diffusion):
    """The wrapper around the best model there can be for pixels that are N(MEAN, STD**2)."""
    alpha_bar = th.from_numpy(diffusion.alphas_cumprod)
    log_sigmas = 0.5 * ((1 - alpha_bar) / alpha_bar).log()

    def model(x, t):
        low = t.floor().long()
        high = t.ceil().long()
        sigma = th.lerp(log_sigmas[low], log_sigmas[high], t.double() - low).exp()
        sigma = sigma.view(-1, 1, 1, 1)
        noisy = x * (1 + sigma**2).sqrt()
        x_start = MEAN + STD**2 / (STD**2 + sigma**2) * (noisy - MEAN)
        return (noisy - x_start) / sigma

    return kd.external.OpenAIDenoiser(model, diffusion, has_learned_sigmas=False).double()


def worst_error(name, steps):
    """How far a sampler's images are from the ODE's solution: pixels keep their deviations."""
    diffusion = create_gaussian_diffusion(noise_schedule="cosine")
    denoiser = ideal_denoiser(diffusion)
    largest = 50.0  # further up, the cosine schedule's timesteps are too sparse to interpolate
    sigmas = kd.sampling.get_sigmas_karras(steps, float(denoiser.sigma_min), largest).double()
    start = MEAN + math.hypot(STD, largest) * noise(1, 3, 8, 8, dtype=th.float64)
    exact = MEAN + STD * noise(1, 3, 8, 8, dtype=th.float64)
    images = getattr(kd.sampling, name)(denoiser, start, sigmas, disable=True)
    return float((images - exact).abs().max())


def test_dpmpp_2m_solves_the_ode_of_a_known_distribution():
    error = worst_error("sample_dpmpp_2m", STEPS)
    assert error < 0.01
    assert worst_error("sample_euler", STEPS) > 0.01  # a solver of first order does not
    assert worst_error("sample_dpmpp_2m", 2 * STEPS) < error / 3  # second order
