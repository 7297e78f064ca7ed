import numpy as np
import pytest
import torch as th

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.diffusion.loss_weights import LOSS_WEIGHTS
from improved_diffusion.diffusion.predictions import PREDICTIONS, ModelMeanType
from improved_diffusion.respace import SpacedDiffusion

STEPS = 20
X = th.linspace(-1, 1, 4 * 3 * 4).view(4, 3, 2, 2)
T = th.tensor([0, 3, 10, 19])


def losses(loss_weight=None, **kinds):
    settings = {
        "betas": gd.get_named_beta_schedule("cosine", STEPS),
        "model_mean_type": gd.ModelMeanType.EPSILON,
        "model_var_type": gd.ModelVarType.LEARNED_RANGE,
        "loss_type": gd.LossType.RESCALED_MSE,
        "loss_weight": loss_weight,
    }
    diffusion = SpacedDiffusion(range(STEPS), **settings | kinds)
    model = lambda x, t: th.cat([0.5 * x, 0.1 * x], dim=1)  # noqa: E731
    return diffusion, diffusion.training_losses(model, X, T, noise=X.flip(0))


@pytest.mark.parametrize("name", LOSS_WEIGHTS)
@pytest.mark.parametrize("prediction", PREDICTIONS.values(), ids=PREDICTIONS)
def test_every_weight_is_a_positive_number_for_each_image(name, prediction):
    snr = th.tensor([1e4, 1.0, 1e-4])
    weights = LOSS_WEIGHTS[name](snr, prediction)
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


def test_the_bound_is_never_weighted():
    kinds = {"loss_type": gd.LossType.KL}
    assert th.equal(losses(lambda snr, _: snr, **kinds)[1]["loss"], losses(**kinds)[1]["loss"])
