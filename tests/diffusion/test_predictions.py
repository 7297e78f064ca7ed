"""Whatever a model predicts, the same belief about the image gives the same numbers everywhere."""

import numpy as np
import pytest
import torch as th

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.sampling.denoising import denoise
from improved_diffusion.sampling.samplers import SAMPLERS, draw

STEPS = 40
SHAPE = (2, 3, 4, 4)
KEPT = [0, 7, 20, 39]
KINDS = (gd.ModelMeanType.V, gd.ModelMeanType.START_X, gd.ModelMeanType.EPSILON)


def make(mean_type, kept=KEPT):
    return SpacedDiffusion(
        kept,
        betas=gd.get_named_beta_schedule("cosine", STEPS),
        model_mean_type=mean_type,
        model_var_type=gd.ModelVarType.FIXED_SMALL,
        loss_type=gd.LossType.MSE,
    )


def believing(mean_type):
    """A model that takes a part of its input for the image, and says so in its own way."""
    alphas_cumprod = make(mean_type, range(STEPS)).alphas_cumprod

    def model(x, t):
        alpha_bar = th.from_numpy(alphas_cumprod)[t].view(-1, 1, 1, 1)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x_start = 0.3 * alpha * x.double() + 0.1
        eps = (x.double() - alpha * x_start) / sigma
        v = alpha * eps - sigma * x_start
        said = dict(zip(KINDS, (v, x_start, eps), strict=True))
        return said[mean_type].to(x)

    return model


def noise(seed=0):
    return th.randn(SHAPE, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def all_agree(compute):
    first, *others = (compute(make(kind), believing(kind)) for kind in KINDS)
    for other in others:
        th.testing.assert_close(other, first, atol=1e-4, rtol=1e-4)
    return first


def test_v_is_x_t_turned_by_a_quarter():
    """With the angle of Salimans & Ho: x_t = cos x_start + sin eps, v its derivative."""
    diffusion = make(gd.ModelMeanType.V, range(STEPS))
    x_start, eps = noise(1), noise(2)
    for i in (0, 13, STEPS - 1):
        angle = np.arccos(np.sqrt(np.prod(1 - diffusion.betas[: i + 1])))
        t = th.full(SHAPE[:1], i)
        v = np.cos(angle) * eps - np.sin(angle) * x_start
        th.testing.assert_close(diffusion.v_of(x_start, eps, t), v, atol=1e-6, rtol=1e-6)
        x_t = diffusion.q_sample(x_start, t, eps)
        back = diffusion._predict_xstart_from_v(x_t, t, v)
        th.testing.assert_close(back, x_start, atol=1e-6, rtol=1e-6)


def test_the_loss_is_the_error_of_v():
    diffusion, model = make(gd.ModelMeanType.V), believing(gd.ModelMeanType.V)
    x_start, eps, t = noise(1), noise(2), th.tensor([1, 3])
    loss = diffusion.training_losses(model, x_start, t, noise=eps)["loss"]
    alpha_bar = th.from_numpy(diffusion.alphas_cumprod[t]).view(-1, 1, 1, 1)
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    output = model(alpha * x_start + sigma * eps, th.tensor(KEPT)[t])
    wanted = ((alpha * eps - sigma * x_start - output) ** 2).mean(dim=(1, 2, 3))
    th.testing.assert_close(loss, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples(sampler):
    settings = {"noise": noise(), "clip_denoised": False, "randn_like": lambda x: noise(3)}
    samples = all_agree(lambda q, model: draw(sampler, q, model, SHAPE, **settings))
    assert samples.std() > 0.01


def test_the_reversed_ode():
    t = th.tensor([0, 2])
    all_agree(lambda q, model: q.ddim_reverse_sample(model, noise(), t, False)["sample"])


def test_bits_per_dimension():
    def bits(diffusion, model):
        th.manual_seed(0)
        return diffusion.calc_bpd_loop(model, noise().clamp(-1, 1))

    assert all_agree(bits)["total_bpd"].isfinite().all()


def test_denoising():
    all_agree(lambda q, model: denoise(q, model, noise().clamp(-1, 1), 0.5))
