import itertools
from functools import partial

import numpy as np
import pytest
import torch as th

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.diffusion.loss_weights import LOSS_WEIGHTS
from improved_diffusion.diffusion.predictions import PREDICTIONS, ModelMeanType
from improved_diffusion.errors import InputError
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.script_util import create_gaussian_diffusion

STEPS = 20
X = th.linspace(-1, 1, 4 * 3 * 4).view(4, 3, 2, 2)
T = th.tensor([0, 3, 10, 19])


def half_and_a_tenth(x, t):
    return th.cat([0.5 * x, 0.1 * x], dim=1)


def losses(loss_weight=None, model=half_and_a_tenth, **kinds):
    settings = {
        "betas": gd.get_named_beta_schedule("cosine", STEPS),
        "model_mean_type": gd.ModelMeanType.EPSILON,
        "model_var_type": gd.ModelVarType.LEARNED_RANGE,
        "loss_type": gd.LossType.RESCALED_MSE,
        "loss_weight": loss_weight,
    }
    diffusion = SpacedDiffusion(range(STEPS), **settings | kinds)
    return diffusion, diffusion.training_losses(model, X, T, noise=X.flip(0))


WEIGHTS = [
    (name, kind)
    for name, kind in itertools.product(LOSS_WEIGHTS, PREDICTIONS)
    if (name, kind) != ("min_snr", ModelMeanType.PREVIOUS_X)
]


@pytest.mark.parametrize(("name", "kind"), WEIGHTS)
def test_every_weight_is_a_positive_number_for_each_image(name, kind):
    snr = th.tensor([1e30, 1e4, 1.0, 1e-4, 0.0])
    weights = LOSS_WEIGHTS[name](snr, PREDICTIONS[kind])
    assert weights.shape == snr.shape
    assert weights.isfinite().all()
    assert (weights > 0).all()


def test_uniform_is_no_weight_to_the_bit():
    _, plain = losses()
    _, uniform = losses(LOSS_WEIGHTS["uniform"])
    assert plain.keys() == uniform.keys()
    assert all(th.equal(plain[key], uniform[key]) for key in plain)


def test_the_squared_error_alone_is_weighted_by_its_signal_to_noise_ratio():
    seen = []
    diffusion, terms = losses(lambda snr, prediction: seen.append(prediction) or snr)
    alpha_bar = np.cumprod(1 - diffusion.betas)[T]
    snr = th.from_numpy(alpha_bar / (1 - alpha_bar)).float()
    _, plain = losses()
    assert th.equal(terms["mse"], plain["mse"])
    assert th.equal(terms["vb"], plain["vb"])
    th.testing.assert_close(terms["loss"], snr * plain["mse"] + plain["vb"])
    assert seen == [PREDICTIONS[ModelMeanType.EPSILON]]


@pytest.mark.parametrize("gamma", [0.3, 5.0])
@pytest.mark.parametrize("kind", [ModelMeanType.START_X, ModelMeanType.EPSILON, ModelMeanType.V])
def test_min_snr_weighs_the_same_error_of_the_image_alike(kind, gamma):
    """Whatever the model predicts, the loss is min(SNR, gamma) times the image's squared error."""
    weight = partial(LOSS_WEIGHTS["min_snr"], gamma=gamma)
    fixed = {"model_var_type": gd.ModelVarType.FIXED_SMALL, "loss_type": gd.LossType.MSE}
    diffusion, _ = losses(model_mean_type=gd.ModelMeanType.START_X, **fixed, model=lambda x, t: x)
    alpha_bar = th.from_numpy(np.cumprod(1 - diffusion.betas)[T])
    alpha, sigma = (v.sqrt().view(-1, 1, 1, 1) for v in (alpha_bar, 1 - alpha_bar))
    error = 0.1 * X.flip(2)

    def model(x, t):
        x_start = X + error
        eps = (x - alpha * x_start) / sigma
        said = {ModelMeanType.START_X: x_start, ModelMeanType.EPSILON: eps}
        return said.get(kind, alpha * eps - sigma * x_start).float()

    _, terms = losses(weight, model_mean_type=kind, **fixed, model=model)
    snr = alpha_bar / (1 - alpha_bar)
    wanted = snr.clamp(max=gamma) * (error**2).mean(dim=(1, 2, 3))
    th.testing.assert_close(terms["loss"].double(), wanted, rtol=1e-3, atol=1e-7)


def test_min_snr_has_no_weight_for_the_step_before():
    with pytest.raises(InputError, match="the image, the noise or v"):
        LOSS_WEIGHTS["min_snr"](th.ones(2), PREDICTIONS[ModelMeanType.PREVIOUS_X])


def test_the_flags_reach_the_weight():
    settings = {"steps": 100, "loss_weight": "min_snr", "min_snr_gamma": 0.5}
    weight = create_gaussian_diffusion(**settings).loss_weight
    snr = th.tensor([0.25, 2.0])
    assert weight(snr, PREDICTIONS[ModelMeanType.EPSILON]).tolist() == [1.0, 0.25]


def test_a_weight_of_the_bound_is_refused():
    with pytest.raises(InputError, match="--loss_weight min_snr weighs the squared error, which"):
        create_gaussian_diffusion(loss_weight="min_snr", use_kl=True)


def test_the_bound_is_never_weighted():
    kinds = {"loss_type": gd.LossType.KL}
    assert th.equal(losses(lambda snr, _: snr, **kinds)[1]["loss"], losses(**kinds)[1]["loss"])
