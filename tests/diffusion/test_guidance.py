"""Guidance by hand: two calls of a toy model that says what it was told."""

import math

import numpy as np
import pytest
import torch as th

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.diffusion.guidance import Guidance
from improved_diffusion.errors import InputError
from improved_diffusion.nn import NO_LABEL
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.sampling.samplers import SAMPLERS, draw

STEPS = 40
SHAPE = (3, 2, 4, 4)
LABELS = th.tensor([0, 2, 1])


class Toy(th.nn.Module):
    """Its output depends on the image, the timestep, the label and what else it is told."""

    def __init__(self, weight=0.5, learns_variance=False):
        super().__init__()
        self.weight = th.nn.Parameter(th.tensor(weight))
        self.learns_variance = learns_variance
        self.batches = []

    def forward(self, x, t, y, low_res=None):
        self.batches.append(len(x))
        shift = 0.1 * y + 1e-4 * t
        out = self.weight * x + shift.view(-1, 1, 1, 1)
        out = out if low_res is None else out + low_res
        return th.cat([out, 0.3 * out], dim=1) if self.learns_variance else out


def make(kept=range(STEPS), rescale=True, **kinds):
    settings = {
        "model_mean_type": gd.ModelMeanType.EPSILON,
        "model_var_type": gd.ModelVarType.FIXED_SMALL,
        "loss_type": gd.LossType.MSE,
        "rescale_timesteps": rescale,
    }
    betas = gd.get_named_beta_schedule("cosine", STEPS)
    return SpacedDiffusion(kept, betas=betas, **settings | kinds)


def noise(seed=0):
    return th.randn(SHAPE, generator=th.Generator().manual_seed(seed))


def by_hand(better, worse, scale):
    return worse + scale * (better - worse)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("rescale", [True, False])
@th.no_grad()
def test_predictions_are_led_away_from_those_without_labels(scale, rescale):
    model, diffusion = Toy(), make(rescale=rescale)
    guided = Guidance(scale).around(model, diffusion)
    x, t, low_res = noise(), th.tensor([0, 9, 39]), noise(1)
    output = diffusion.call_model(guided, x, t, {"y": LABELS, "low_res": low_res})
    assert model.batches == [6]  # both in one batch
    without = th.full_like(LABELS, NO_LABEL)
    both = (
        diffusion.call_model(model, x, t, {"y": y, "low_res": low_res}) for y in (LABELS, without)
    )
    th.testing.assert_close(output, by_hand(*both, scale))


@th.no_grad()
def test_another_model_is_told_the_same():
    model, guide, diffusion = Toy(), Toy(0.2), make()
    guided = Guidance(2.0).around(model, diffusion, guide)
    settings = (noise(), th.tensor([3, 4, 5]), {"y": LABELS})
    both = (diffusion.call_model(m, *settings) for m in (model, guide))
    th.testing.assert_close(diffusion.call_model(guided, *settings), by_hand(*both, 2.0))


@th.no_grad()
def test_the_learned_variance_is_the_better_models():
    model, guide = Toy(learns_variance=True), Toy(0.2)
    diffusion = make(model_var_type=gd.ModelVarType.LEARNED_RANGE)
    guided = Guidance(2.0).around(model, diffusion, guide)
    settings = (noise(), th.tensor([3, 4, 5]), {"y": LABELS})
    output, better = (diffusion.call_model(m, *settings) for m in (guided, model))
    assert th.equal(output[:, 2:], better[:, 2:])
    worse = make().call_model(guide, *settings)
    th.testing.assert_close(output[:, :2], by_hand(better[:, :2], worse, 2.0))


def test_no_guidance_is_the_model():
    model = Toy()
    assert Guidance().around(model, make()) is model


@pytest.mark.parametrize("kept", [range(STEPS), (2, 11, 25, 39)])
@pytest.mark.parametrize("rescale", [True, False])
@th.no_grad()
def test_levels_of_noise_are_guided_in_an_interval_only(kept, rescale):
    model, diffusion = Toy(), make(kept, rescale)
    sigmas = np.sqrt(1 / np.cumprod(1 - make().betas) - 1)[list(kept)]
    low, high = sigmas[1], sigmas[2]  # without and with the end
    # Whether the walk's diffusion or that of all timesteps makes the table, is the same.
    for process in (diffusion, make(range(STEPS), rescale)):
        guided = Guidance(3.0, low, high).around(model, process)
        plain = Guidance(3.0).around(model, process)
        for i, sigma in enumerate(sigmas):
            settings = (noise(), th.full((3,), i), {"y": LABELS})
            model.batches.clear()
            output = diffusion.call_model(guided, *settings)
            inside = low < sigma <= high
            assert model.batches == [6 if inside else 3]
            wanted = diffusion.call_model(plain if inside else model, *settings)
            assert th.equal(output, wanted)
        mixed = diffusion.call_model(guided, noise(), th.tensor([1, 2, 3]), {"y": LABELS})
        for row, i in enumerate((1, 2, 3)):
            settings = (noise(), th.full((3,), i), {"y": LABELS})
            alone = diffusion.call_model(guided, *settings)
            th.testing.assert_close(mixed[row], alone[row])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("mean_type", [gd.ModelMeanType.EPSILON, gd.ModelMeanType.V])
def test_every_sampler_is_guided(sampler, mean_type):
    model, diffusion = Toy(), make((0, 9, 20, 39), model_mean_type=mean_type)
    settings = {"noise": noise(), "randn_like": lambda x: noise(2), "model_kwargs": {"y": LABELS}}

    def pair(x, t, y):
        return by_hand(model(x, t, y), model(x, t, th.full_like(y, NO_LABEL)), 2.0)

    made = draw(sampler, diffusion, Guidance(2.0).around(model, diffusion), SHAPE, **settings)
    th.testing.assert_close(made, draw(sampler, diffusion, pair, SHAPE, **settings))
    assert not th.allclose(made, draw(sampler, diffusion, model, SHAPE, **settings), atol=0.01)


def test_it_stands_where_a_model_does():
    """Without noise or a device given, samples are drawn where the model's parameters are."""
    model, diffusion = Toy(), make((0, 39))
    guided = Guidance(2.0, high=math.inf).around(model, diffusion)
    sample = diffusion.p_sample_loop(guided, SHAPE, model_kwargs={"y": LABELS})
    assert sample.isfinite().all()


def test_there_must_be_something_to_lead_to():
    guided = Guidance(2.0).around(Toy(), make())
    with pytest.raises(InputError, match="give y"):
        guided(noise(), th.zeros(3))


@pytest.mark.parametrize(
    "wrong", [(-2.0,), (math.nan,), (math.inf,), (3.0, 2.0, 1.0), (3.0, -1.0), (3.0, 0.0, 0.0)]
)
def test_guidance_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError, match="guidance takes"):
        Guidance(*wrong)
