"""The registry of samplers, and drawing with each of them."""

import itertools

import numpy as np
import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.gaussian_diffusion import (
    LossType,
    ModelMeanType,
    ModelVarType,
    get_named_beta_schedule,
)
from improved_diffusion.respace import SpacedDiffusion, respaced_timesteps
from improved_diffusion.sampling.samplers import SAMPLERS, draw
from improved_diffusion.script_util import create_gaussian_diffusion

SHAPE = (2, 3, 4, 4)
STEPS = 6


@pytest.fixture
def diffusion():
    return create_gaussian_diffusion(steps=STEPS, noise_schedule="cosine")


class Half(th.nn.Module):
    """A model that takes half of its input for noise."""

    def __init__(self):
        super().__init__()
        self.share = th.nn.Parameter(th.tensor(0.5))

    def forward(self, x, t, y=0.0):
        return self.share * x + y


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    return request.param


def test_their_usual_steps_can_be_had(sampler, diffusion):
    chosen = SAMPLERS[sampler]
    assert chosen.name == sampler
    betas = create_gaussian_diffusion().betas
    for steps in (1, 7, chosen.usual_steps or 1000):
        assert len(respaced_timesteps(betas, chosen.respacing.format(steps))) == steps


def test_samples_are_drawn_from_the_noise_given(sampler, diffusion):
    th.manual_seed(0)
    first = draw(sampler, diffusion, Half(), SHAPE)
    assert first.shape == SHAPE
    assert first.abs().max() <= 1
    assert not first.requires_grad
    th.manual_seed(0)
    noise = th.randn(SHAPE)
    assert th.equal(draw(sampler, diffusion, Half(), SHAPE, noise=noise), first)


def test_all_noise_comes_from_the_source_given(sampler, diffusion):
    before, shapes = th.get_rng_state(), set()

    def source(x):
        shapes.add(tuple(x.shape))
        return th.zeros_like(x)

    draw(sampler, diffusion, Half(), SHAPE, randn_like=source)
    assert shapes == {SHAPE}
    assert th.equal(before, th.get_rng_state())


def test_the_callback_sees_each_step(sampler, diffusion):
    seen = []
    made = draw(sampler, diffusion, Half(), SHAPE, callback=seen.append)
    assert [out["t"].tolist() for out in seen] == [[i, i] for i in range(STEPS)][::-1]
    assert all(b["x_t"] is a["sample"] for a, b in itertools.pairwise(seen))
    assert seen[-1]["sample"] is made
    assert th.equal(seen[-1]["pred_xstart"], made)  # no sampler adds noise to the last image


def test_settings_reach_the_model_and_the_prediction(sampler, diffusion):
    noise = th.randn(SHAPE)

    def made(**settings):
        return draw(sampler, diffusion, Half(), SHAPE, noise=noise, **settings)

    zeros = {"randn_like": th.zeros_like}
    assert not th.equal(made(**zeros), made(**zeros, model_kwargs={"y": 0.1}))
    assert (made(denoised_fn=lambda x: 0 * x + 5) == 1).all()
    th.testing.assert_close(
        made(denoised_fn=lambda x: 0 * x + 5, clip_denoised=False), th.full(SHAPE, 5.0)
    )


def test_noise_of_the_steps_can_be_chosen_where_there_is_a_choice(sampler, diffusion):
    chosen, drawn = SAMPLERS[sampler], []
    noise = th.randn(SHAPE)
    for eta in (None, chosen.usual_eta, 0.0, 0.7):
        th.manual_seed(0)
        if chosen.usual_eta is None and eta is not None:
            with pytest.raises(InputError, match=f"{sampler} cannot be chosen"):
                draw(sampler, diffusion, Half(), SHAPE, eta=eta)
            continue
        drawn.append(draw(sampler, diffusion, Half(), SHAPE, noise=noise, eta=eta))
    assert all(th.equal(drawn[0], images) for images in drawn[:2])
    assert chosen.usual_eta is None or not th.equal(drawn[0], drawn[-1])


def test_what_cannot_be_drawn(diffusion):
    with pytest.raises(InputError, match="unknown sampler 'heun'; choose from ddpm, ddim, dpmpp"):
        draw("heun", diffusion, Half(), SHAPE)
    with pytest.raises(InputError, match=r"eta must lie in \[0, 1\], got 1.5"):
        draw("ddim", diffusion, Half(), SHAPE, eta=1.5)
    with pytest.raises(InputError, match=r"noise \(1, 3, 4, 4\) given for images \(2, 3, 4, 4\)"):
        draw("ddpm", diffusion, Half(), SHAPE, noise=th.randn(1, *SHAPE[1:]))


def test_where_nothing_of_the_image_is_left_only_ancestral_steps_begin(sampler):
    """A last beta of 1 has the model predict from noise alone, which v allows."""
    betas = np.append(get_named_beta_schedule("cosine", STEPS)[:-1], 1.0)
    kinds = ModelMeanType.V, ModelVarType.FIXED_SMALL, LossType.MSE
    names = "model_mean_type", "model_var_type", "loss_type"
    settings = {"betas": betas, **dict(zip(names, kinds, strict=True))}
    diffusion = SpacedDiffusion(range(STEPS), **settings)
    with pytest.raises(InputError, match="logsnr3 cannot have timestep 5, which leaves nothing"):
        diffusion.respaced("logsnr3")
    if sampler == "ddpm":
        assert draw(sampler, diffusion, Half(), SHAPE).isfinite().all()
    else:
        with pytest.raises(InputError, match="cannot have timestep 5, which leaves nothing"):
            draw(sampler, diffusion, Half(), SHAPE)
    without = SpacedDiffusion(range(STEPS - 1), **settings)
    assert draw(sampler, without, Half(), SHAPE).isfinite().all()
