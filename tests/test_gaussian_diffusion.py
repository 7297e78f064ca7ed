import inspect
import itertools
import math

import numpy as np
import pytest
import torch as th
from toy_models import ideal_noise

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.errors import InputError
from improved_diffusion.gaussian_diffusion import (
    GaussianDiffusion,
    LossType,
    ModelMeanType,
    ModelVarType,
)
from improved_diffusion.sampling.samplers import SAMPLERS, draw
from improved_diffusion.script_util import create_gaussian_diffusion

SHAPE = (4, 3, 8, 8)
LEARNED = (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)
EVERY_KIND = list(itertools.product(ModelMeanType, ModelVarType, LossType))


def make(
    steps=50,
    mean_type=ModelMeanType.EPSILON,
    var_type=ModelVarType.FIXED_SMALL,
    loss_type=LossType.MSE,
    **settings,
):
    schedule = "linear" if steps >= 50 else "cosine"  # the linear one needs more than 20 steps
    betas = settings.pop("betas", gd.get_named_beta_schedule(schedule, steps))
    kinds = {"model_mean_type": mean_type, "model_var_type": var_type, "loss_type": loss_type}
    return GaussianDiffusion(betas=betas, **kinds, **settings)


def some_images(seed=0, shape=SHAPE):
    return th.rand(shape, generator=th.Generator().manual_seed(seed)) * 2 - 1


def some_noise(seed=1, shape=SHAPE):
    return th.randn(shape, generator=th.Generator().manual_seed(seed))


def steps_of(diffusion, count=4):
    return th.linspace(0, diffusion.num_timesteps - 1, count).long()


@pytest.mark.parametrize("name", ["p_sample_loop", "ddim_sample_loop"])
def test_a_loop_says_what_it_is(name):
    loop, progressive = getattr(GaussianDiffusion, name), f"{name}_progressive"
    assert loop.__name__ == name
    assert f"`{progressive}`" in loop.__doc__
    mine, its = inspect.signature(loop), inspect.signature(getattr(GaussianDiffusion, progressive))
    assert mine.parameters == its.parameters
    assert mine.return_annotation is th.Tensor


class ToyModel(th.nn.Module):
    """One weight that scales its input, and as a learned variance a second one."""

    def __init__(self, learns_variance=False):
        super().__init__()
        self.scale = th.nn.Parameter(th.tensor(0.5))
        self.spread = th.nn.Parameter(th.tensor(0.1)) if learns_variance else None
        self.seen = []

    def forward(self, x, t):
        self.seen.append(t)
        out = self.scale * x
        if self.spread is None:
            return out
        return th.cat([out, self.spread * x], dim=1)


# --- every kind of model, variance and loss


@pytest.mark.parametrize(("mean_type", "var_type", "loss_type"), EVERY_KIND)
def test_every_kind_of_training_loss(mean_type, var_type, loss_type):
    diffusion = make(mean_type=mean_type, var_type=var_type, loss_type=loss_type)
    model = ToyModel(var_type in LEARNED)
    terms = diffusion.training_losses(model, some_images(), steps_of(diffusion), noise=some_noise())
    wanted = {"loss"}
    if not loss_type.is_vb():
        wanted |= {"mse", "vb"} if var_type in LEARNED else {"mse"}
    assert terms.keys() == wanted
    for value in terms.values():
        assert value.shape == (4,)
        assert value.isfinite().all()
    terms["loss"].mean().backward()
    assert model.scale.grad.isfinite()
    assert model.scale.grad != 0


@pytest.mark.parametrize("mean_type", ModelMeanType)
@pytest.mark.parametrize("var_type", ModelVarType)
def test_every_kind_of_model_samples(mean_type, var_type):
    diffusion = make(steps=5, mean_type=mean_type, var_type=var_type)
    model = ToyModel(var_type in LEARNED)
    out = diffusion.p_mean_variance(model, some_noise(), th.tensor([0, 1, 3, 4]))
    assert out.keys() == {"mean", "variance", "log_variance", "pred_xstart"}
    assert all(value.shape == SHAPE for value in out.values())
    assert out["pred_xstart"].abs().max() <= 1
    for sampler in SAMPLERS:
        sample = draw(sampler, diffusion, model, SHAPE)
        assert sample.shape == SHAPE
        assert sample.isfinite().all()
        assert not sample.requires_grad
    terms = diffusion.calc_bpd_loop(model, some_images())
    assert terms["vb"].shape == (4, 5)
    assert all(value.isfinite().all() for value in terms.values())


def test_the_mean_learns_nothing_from_the_bound_of_the_hybrid_loss():
    diffusion = make(var_type=ModelVarType.LEARNED_RANGE, loss_type=LossType.RESCALED_MSE)
    model = ToyModel(learns_variance=True)
    terms = diffusion.training_losses(model, some_images(), steps_of(diffusion), noise=some_noise())
    mean_gradient = th.autograd.grad(terms["vb"].sum(), model.scale, allow_unused=True)[0]
    assert mean_gradient is None or mean_gradient == 0


@pytest.mark.parametrize(
    ("rescaled", "plain", "term", "factor"),
    [
        (LossType.RESCALED_MSE, LossType.MSE, "vb", 50 / 1000),
        (LossType.RESCALED_KL, LossType.KL, "loss", 50),
    ],
)
def test_rescaled_losses(rescaled, plain, term, factor):
    values = []
    for loss_type in (rescaled, plain):
        diffusion = make(var_type=ModelVarType.LEARNED_RANGE, loss_type=loss_type)
        arguments = (ToyModel(True), some_images(), steps_of(diffusion))
        values.append(diffusion.training_losses(*arguments, noise=some_noise())[term])
    th.testing.assert_close(values[0], values[1] * factor)


@pytest.mark.parametrize("mean_type", ModelMeanType)
def test_mse_is_zero_for_the_right_answer(mean_type):
    diffusion = make(mean_type=mean_type)
    x_start, noise, t = some_images(), some_noise(), steps_of(diffusion)
    x_t = diffusion.q_sample(x_start, t, noise=noise)
    answers = {
        ModelMeanType.EPSILON: noise,
        ModelMeanType.START_X: x_start,
        ModelMeanType.PREVIOUS_X: diffusion.q_posterior_mean_variance(x_start, x_t, t)[0],
        ModelMeanType.V: diffusion.v_of(x_start, noise, t),
    }
    model = lambda x, t: answers[mean_type]  # noqa: E731
    assert diffusion.training_losses(model, x_start, t, noise=noise)["mse"].max() < 1e-10
    pred_xstart = diffusion.p_mean_variance(model, x_t, t)["pred_xstart"]
    th.testing.assert_close(pred_xstart, x_start, atol=1e-3, rtol=0)


# --- q


def test_moments_of_q_sample():
    diffusion = make()
    x_start = th.full((20000, 1), 0.7)
    for step in (0, 7, 49):
        t = th.full((20000,), step)
        th.manual_seed(step)
        x_t = diffusion.q_sample(x_start, t)
        mean, variance, log_variance = diffusion.q_mean_variance(x_start, t)
        assert x_t.mean() == pytest.approx(mean[0].item(), abs=0.03)
        assert x_t.var() == pytest.approx(variance[0].item(), rel=0.04)
        th.testing.assert_close(log_variance.exp(), variance)
        alpha_bar = np.prod(1 - diffusion.betas[: step + 1])
        assert mean[0].item() == pytest.approx(0.7 * math.sqrt(alpha_bar), rel=1e-5)
        assert variance[0].item() == pytest.approx(1 - alpha_bar, rel=1e-5)


# --- samplers


def constant(noise):
    return lambda x, t: noise


def test_rounding_does_not_take_the_root_of_less_than_nothing():
    """With eta 1 and long steps nothing of x_t is left but noise, up to rounding."""
    diffusion = create_gaussian_diffusion(
        steps=4000, noise_schedule="cosine", timestep_respacing="20"
    )
    x = diffusion.ddim_sample_loop(lambda x, t: 0 * x, SHAPE, some_noise(), eta=1.0)
    assert th.isfinite(x).all()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_loops_are_the_walks_of_their_samplers(sampler):
    """What holds for walks is tested with the samplers."""
    diffusion, model, path = make(steps=5), ToyModel(), []
    loop = "p_sample_loop" if sampler == "ddpm" else "ddim_sample_loop"
    arguments = (model, SHAPE, some_noise(), False, lambda x: x / 2)
    progressive = getattr(diffusion, f"{loop}_progressive")(*arguments, randn_like=th.ones_like)
    settings = {"clip_denoised": False, "denoised_fn": arguments[-1], "callback": path.append}
    noise = {"noise": arguments[2], "randn_like": th.ones_like}
    sample = draw(sampler, diffusion, model, SHAPE, **settings, **noise)
    for ours, theirs in zip(progressive, path, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(th.equal(ours[key], theirs[key]) for key in ours)
    assert th.equal(getattr(diffusion, loop)(*arguments, randn_like=th.ones_like), sample)


def ddim_there_and_back(diffusion, model, x):
    """From the first timestep to the last along the reversed ODE, and back."""
    settings = {"clip_denoised": False}
    last = diffusion.num_timesteps - 1
    for step in range(last):
        t = th.full((len(x),), step)
        x = diffusion.ddim_reverse_sample(model, x, t, **settings)["sample"]
    for step in range(last, 0, -1):
        t = th.full((len(x),), step)
        x = diffusion.ddim_sample(model, x, t, **settings)["sample"]
    return x


def test_ddim_is_reversed_exactly_where_the_noise_is_known():
    diffusion = make(steps=50)
    model = constant(some_noise(seed=5).double())
    x = some_images().double()
    th.testing.assert_close(ddim_there_and_back(diffusion, model, x), x, atol=1e-4, rtol=0)


def test_only_the_deterministic_path_is_reversed():
    diffusion = make()
    with pytest.raises(ValueError, match="eta must be 0"):
        diffusion.ddim_reverse_sample(ToyModel(), some_noise(), steps_of(diffusion), eta=0.5)


@pytest.mark.parametrize("loop", ["p_sample_loop", "ddim_sample_loop"])
def test_the_right_model_of_gaussian_data_samples_it(loop):
    diffusion = make(steps=100)
    th.manual_seed(0)
    model = ideal_noise(diffusion, std=0.5)
    settings = {"clip_denoised": False, "device": "cpu"}
    samples = getattr(diffusion, loop)(model, (4000, 1, 1, 1), **settings)
    assert samples.mean().item() == pytest.approx(0.0, abs=0.05)
    assert samples.std().item() == pytest.approx(0.5, rel=0.1)


# --- bits per dimension


def test_bits_per_dimension_add_up():
    diffusion, model = make(betas=np.full(6, 0.1)), lambda x, t, y: x * y
    terms = diffusion.calc_bpd_loop(model, some_images(), model_kwargs={"y": 0.5})
    assert terms["prior_bpd"].min() > 0.01  # so few steps leave much of the image
    th.testing.assert_close(terms["total_bpd"], terms["vb"].sum(dim=1) + terms["prior_bpd"])


def test_a_model_that_knows_the_image_pays_for_the_pixels_only():
    diffusion = make(steps=6, mean_type=ModelMeanType.START_X)
    x_start = ((some_images() + 1) * 127.5).round() / 127.5 - 1
    terms = diffusion.calc_bpd_loop(lambda x, t: x_start, x_start)
    assert terms["vb"][:, :-1].abs().max() < 1e-5  # t = T - 1 ... 1, where the KL is 0
    assert (terms["vb"][:, -1] > 0).all()  # t = 0
    assert terms["xstart_mse"].max() == 0
    assert terms["mse"].max() < 1e-6


@pytest.mark.parametrize("var_type", ModelVarType)
def test_a_diffusion_of_one_step(var_type):
    diffusion = make(steps=1, var_type=var_type)
    assert diffusion.num_timesteps == 1
    sample = diffusion.p_sample_loop(ToyModel(var_type in LEARNED), SHAPE)
    assert sample.isfinite().all()


@pytest.mark.parametrize("learned", [True, False])
def test_a_model_that_learned_other_variances_is_refused(learned):
    diffusion = create_gaussian_diffusion(steps=4, noise_schedule="cosine", learn_sigma=learned)

    def model(x, t):
        return x if learned else th.cat([x, x], dim=1)

    x, t = th.zeros(2, 3, 4, 4), th.tensor([0, 3])
    for use in (diffusion.training_losses, diffusion.p_mean_variance):
        with pytest.raises(InputError, match="their learn_sigma must be the same"):
            use(model, x, t)
