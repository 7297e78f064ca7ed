import numpy as np
import pytest
import torch as th

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.errors import InputError
from improved_diffusion.resample import (
    TIMESTEP_SAMPLERS,
    LossAwareSampler,
    LossSecondMomentResampler,
    UniformSampler,
    create_named_schedule_sampler,
)

STEPS = 6


@pytest.fixture(scope="module")
def diffusion():
    return gd.GaussianDiffusion(
        betas=gd.get_named_beta_schedule("cosine", STEPS),
        model_mean_type=gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType.FIXED_LARGE,
        loss_type=gd.LossType.MSE,
    )


def warmed_up(diffusion, history=2):
    """A sampler whose losses at timestep t are t + 1 and t + 2."""
    sampler = LossSecondMomentResampler(diffusion, history_per_term=history)
    for extra in (1.0, 2.0):
        t = th.arange(STEPS)
        sampler.update_with_local_losses(t, t + extra)
    return sampler


def test_names(diffusion):
    kinds = [type(create_named_schedule_sampler(name, diffusion)) for name in TIMESTEP_SAMPLERS]
    assert kinds == [UniformSampler, LossSecondMomentResampler]


@pytest.mark.parametrize("kind", [NotImplementedError, InputError])
def test_an_unknown_name_is_said_beside_those_there_are(diffusion, kind):
    with pytest.raises(kind, match="'loss'; choose from uniform, loss-second-moment"):
        create_named_schedule_sampler("loss", diffusion)


def test_uniform_draws_all_timesteps_alike(diffusion):
    np.random.seed(0)
    t, weights = UniformSampler(diffusion).sample(6000, "cpu")
    assert t.dtype == th.int64
    assert weights.dtype == th.float32
    assert (weights == 1).all()
    assert (th.bincount(t, minlength=STEPS) - 1000).abs().max() < 150


def test_samples_come_from_numpys_global_generator(diffusion):
    draws = []
    for _ in range(2):
        np.random.seed(7)
        draws.append(UniformSampler(diffusion).sample(50, "cpu")[0])
    assert th.equal(*draws)


def test_weights_are_the_root_mean_square_of_the_losses(diffusion):
    sampler = warmed_up(diffusion)
    t = np.arange(STEPS)
    moments = np.sqrt(((t + 1.0) ** 2 + (t + 2.0) ** 2) / 2)
    wanted = 0.999 * moments / moments.sum() + 0.001 / STEPS
    np.testing.assert_allclose(sampler.weights(), wanted)


def test_uniform_until_every_timestep_has_its_history(diffusion):
    sampler = LossSecondMomentResampler(diffusion, history_per_term=2)
    for _ in range(3):
        sampler.update_with_all_losses(list(range(1, STEPS)), [9.0] * (STEPS - 1))
        np.testing.assert_array_equal(sampler.weights(), np.ones(STEPS))
    sampler.update_with_all_losses([0, 0], [1.0, 1.0])
    assert sampler.weights()[0] < sampler.weights()[1]


def test_the_oldest_loss_is_forgotten_first(diffusion):
    sampler = warmed_up(diffusion)
    sampler.update_with_all_losses([0], [50.0])
    t = np.arange(STEPS)
    squares = ((t + 1.0) ** 2 + (t + 2.0) ** 2) / 2
    squares[0] = (2.0**2 + 50.0**2) / 2
    moments = np.sqrt(squares)
    wanted = 0.999 * moments / moments.sum() + 0.001 / STEPS
    np.testing.assert_allclose(sampler.weights(), wanted)


def test_importance_weights_make_the_mean_unbiased(diffusion):
    sampler = warmed_up(diffusion)
    p = sampler.weights() / sampler.weights().sum()
    np.random.seed(0)
    t, weights = sampler.sample(40000, "cpu")
    np.testing.assert_allclose(weights, 1 / (STEPS * p[t.numpy()]), rtol=1e-6)
    assert th.bincount(t)[5] > 2 * th.bincount(t)[0]
    loss_of = th.tensor([3.0, -1.0, 4.0, 1.0, -5.0, 9.0])
    estimate = (weights * loss_of[t]).mean().item()
    assert estimate == pytest.approx(loss_of.mean().item(), abs=0.1)


def test_the_history_survives_saving(diffusion, tmp_path):
    sampler = warmed_up(diffusion)
    th.save(sampler.state_dict(), tmp_path / "state.pt")
    restored = LossSecondMomentResampler(diffusion, history_per_term=2)
    restored.load_state_dict(th.load(tmp_path / "state.pt", weights_only=True))
    for one in (sampler, restored):
        one.update_with_all_losses([3], [7.0])
    np.testing.assert_array_equal(sampler.weights(), restored.weights())


def test_a_saved_state_is_a_copy(diffusion):
    sampler = warmed_up(diffusion)
    state = sampler.state_dict()
    before = state["loss_history"].clone()
    sampler.update_with_all_losses([0], [99.0])
    assert th.equal(state["loss_history"], before)


def test_a_history_of_other_steps_does_not_fit(diffusion):
    sampler = warmed_up(diffusion)
    state = {key: value[:-1] for key, value in sampler.state_dict().items()}
    with pytest.raises(InputError, match="use the same diffusion_steps"):
        sampler.load_state_dict(state)


def test_uniform_has_nothing_to_save(diffusion):
    sampler = UniformSampler(diffusion)
    assert sampler.state_dict() == {}
    sampler.load_state_dict({})
    assert not isinstance(sampler, LossAwareSampler)
