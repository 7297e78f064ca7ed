import math

import numpy as np
import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.resample import (
    TIMESTEP_SAMPLERS,
    LogNormalSampler,
    LossAwareSampler,
    LossSecondMomentResampler,
    UniformSampler,
    create_named_schedule_sampler,
)
from improved_diffusion.script_util import create_gaussian_diffusion

STEPS = 6


@pytest.fixture(scope="module")
def diffusion():
    return create_gaussian_diffusion(steps=STEPS, noise_schedule="cosine")


def warmed_up(diffusion, history=2):
    """A sampler whose losses at timestep t are t + 1 and t + 2."""
    sampler = LossSecondMomentResampler(diffusion, history_per_term=history)
    for extra in (1.0, 2.0):
        t = th.arange(STEPS)
        sampler.update_with_local_losses(t, t + extra)
    return sampler


@pytest.mark.parametrize("kind", [NotImplementedError, InputError])
def test_an_unknown_name_is_said_beside_those_there_are(diffusion, kind):
    with pytest.raises(kind, match="'loss'; choose from uniform, loss-second-moment, lognormal"):
        create_named_schedule_sampler("loss", diffusion)


def test_uniform_draws_all_timesteps_alike(diffusion):
    np.random.seed(0)
    t, weights = UniformSampler(diffusion).sample(6000, "cpu")
    assert t.dtype == th.int64
    assert weights.dtype == th.float32
    assert (weights == 1).all()
    assert (th.bincount(t, minlength=STEPS) - 1000).abs().max() < 150


@pytest.mark.parametrize("name", TIMESTEP_SAMPLERS)
def test_samples_come_from_numpys_global_generator(name, diffusion):
    sampler, draws = create_named_schedule_sampler(name, diffusion), []
    for seed in (7, 7, 8):
        np.random.seed(seed)
        draws.append(sampler.sample(50, "cpu")[0])
    assert th.equal(*draws[:2])
    assert not th.equal(*draws[1:])


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


@pytest.mark.parametrize("count", [-1, 3])
def test_a_history_of_more_losses_than_it_has_room_for_is_damaged(diffusion, count):
    sampler = warmed_up(diffusion)
    state = sampler.state_dict()
    state["loss_counts"][3] = count
    with pytest.raises(InputError, match="counts of losses are not within 0 to 2"):
        sampler.load_state_dict(state)


def test_a_history_of_what_is_no_loss_is_damaged(diffusion):
    sampler = warmed_up(diffusion)
    state = sampler.state_dict()
    state["loss_history"][3, 1] = math.nan
    with pytest.raises(InputError, match="not all finite"):
        sampler.load_state_dict(state)


@pytest.mark.parametrize("name", ["uniform", "lognormal"])
def test_others_learn_nothing_and_have_nothing_to_save(name, diffusion):
    sampler = create_named_schedule_sampler(name, diffusion)
    assert sampler.state_dict() == {}
    sampler.load_state_dict({})
    assert not isinstance(sampler, LossAwareSampler)


# --- densities of log-SNRs

DRAWS = {
    "lognormal": lambda rng, mean, std, count: rng.normal(mean, std, count),
    "laplace": lambda rng, mean, std, count: rng.laplace(mean, std / np.sqrt(2), count),
}


def process(steps=50, **flags):
    return create_gaussian_diffusion(steps=steps, noise_schedule="cosine", **flags)


def log_snr_of(diffusion):
    return np.log(diffusion.alphas_cumprod / (1 - diffusion.alphas_cumprod))


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(
    ("mean", "std", "kept"), [(2.4, 2.4, ""), (2.4, 2.4, "1,4"), (7.0, 1.0, ""), (-4.0, 0.5, "")]
)
def test_a_density_is_that_of_the_nearest_timesteps(name, mean, std, kept):
    diffusion = process(timestep_respacing=kept)
    levels = log_snr_of(diffusion)
    half_steps = np.abs(np.diff(levels))[[0, -1]] / 2
    drawn = DRAWS[name](np.random.default_rng(0), mean, std, 200_000)
    drawn = drawn[(drawn < levels[0] + half_steps[0]) & (drawn > levels[-1] - half_steps[1])]
    nearest = np.abs(drawn[:, None] - levels).argmin(axis=1)
    wanted = np.bincount(nearest, minlength=len(levels)) / len(drawn)
    weights = create_named_schedule_sampler(name, diffusion, mean, std).weights()
    np.testing.assert_allclose(weights / weights.sum(), wanted, atol=0.005)


@pytest.mark.parametrize("name", DRAWS)
def test_a_density_changes_the_objective(name):
    """All losses count as they are: no importance weight undoes what the density prefers."""
    diffusion = process(steps=1000)
    np.random.seed(1)
    t, weights = create_named_schedule_sampler(name, diffusion, 1.0, 1.5).sample(20_000, "cpu")
    assert t.dtype == th.int64
    assert weights.dtype == th.float32
    assert (weights == 1).all()
    drawn = log_snr_of(diffusion)[t.numpy()]
    assert drawn.mean() == pytest.approx(1.0, abs=0.05)
    assert drawn.std() == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("mean", [-90.0, 25.0])
def test_a_density_beside_the_schedule_is_refused(name, mean):
    with pytest.raises(InputError, match="has no mass on the schedule, whose log-SNRs go from -"):
        create_named_schedule_sampler(name, process(), mean, 1.0)


def test_a_schedule_without_an_end_has_no_density():
    diffusion = process()
    diffusion.alphas_cumprod = np.array([0.9, 0.0, 0.0])
    with pytest.raises(InputError, match="log-SNRs cannot have timestep 2, which leaves nothing"):
        LogNormalSampler(diffusion)


@pytest.mark.parametrize("name", DRAWS)
def test_a_density_on_one_timestep(name):
    t, _ = create_named_schedule_sampler(name, process(steps=1)).sample(3, "cpu")
    assert t.tolist() == [0, 0, 0]
