import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from improved_diffusion import gaussian_diffusion as gd
from improved_diffusion.errors import InputError
from improved_diffusion.gaussian_diffusion import GaussianDiffusion
from improved_diffusion.respace import SpacedDiffusion, space_timesteps

STEPS = 40
quick = trials(max_examples=60, deadline=None)
SHAPE = (2, 3, 4, 4)


def settings(**changes):
    return {
        "betas": gd.get_named_beta_schedule("linear", STEPS),
        "model_mean_type": gd.ModelMeanType.EPSILON,
        "model_var_type": gd.ModelVarType.FIXED_LARGE,
        "loss_type": gd.LossType.MSE,
        "rescale_timesteps": True,
        **changes,
    }


class Recorder(th.nn.Module):
    """Half its input; remembers the timesteps that it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = th.nn.Parameter(th.tensor(0.5))
        self.shown = []

    def forward(self, x, t):
        self.shown.append(t)
        return self.weight * x


@pytest.mark.parametrize("spec", ["1", "7", "40", "3,4", "ddim8", "ddim40"])
def test_the_kept_steps_keep_their_noise(spec):
    original = GaussianDiffusion(**settings())
    kept = sorted(space_timesteps(STEPS, spec))
    spaced = SpacedDiffusion(kept, **settings())
    assert spaced.num_timesteps == len(kept)
    assert spaced.timestep_map == kept
    np.testing.assert_allclose(spaced.alphas_cumprod, original.alphas_cumprod[kept], rtol=1e-9)


def test_a_respacing_is_text_or_numbers():
    spaced = SpacedDiffusion(range(STEPS), **settings())
    assert spaced.respaced([3, 4]).use_timesteps == spaced.respaced("3,4").use_timesteps


def test_all_timesteps_kept_is_the_original_process():
    original = GaussianDiffusion(**settings())
    spaced = SpacedDiffusion(range(STEPS), **settings())
    x, t = th.randn(SHAPE), th.tensor([3, 39])
    for name in ("training_losses", "p_mean_variance"):
        extra = {"noise": th.ones(SHAPE)} if name == "training_losses" else {}
        mine, theirs = (getattr(d, name)(Recorder(), x, t, **extra) for d in (spaced, original))
        assert mine.keys() == theirs.keys()
        for key in mine:
            th.testing.assert_close(mine[key], theirs[key], rtol=1e-4, atol=1e-5)
    samples = []
    for diffusion in (spaced, original):
        th.manual_seed(0)
        samples.append(diffusion.p_sample_loop(Recorder(), SHAPE))
    th.testing.assert_close(*samples, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rescale", "factor"), [(True, 1000 / STEPS), (False, 1)])
def test_models_see_the_original_timesteps(rescale, factor):
    spaced = SpacedDiffusion([2, 10, 39], **settings(rescale_timesteps=rescale))
    model = Recorder()
    spaced.p_sample_loop(model, SHAPE)
    spaced.training_losses(model, th.zeros(SHAPE), th.tensor([0, 2]))
    spaced.calc_bpd_loop(model, th.zeros(SHAPE))
    shown = [t.tolist() for t in model.shown]
    descending = [[step * factor] * 2 for step in (39, 10, 2)]
    assert shown == [*descending, [2 * factor, 39 * factor], *descending]


def test_learned_sigmas_of_a_respaced_diffusion():
    kind = gd.ModelVarType.LEARNED_RANGE
    spaced = SpacedDiffusion([0, 20, 39], **settings(model_var_type=kind))
    model = lambda x, t: th.cat([x, x], dim=1)  # noqa: E731
    terms = spaced.training_losses(model, th.zeros(SHAPE), th.tensor([0, 2]))
    assert terms.keys() == {"loss", "mse", "vb"}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("11", "cannot keep 11 of 10"),
        ("6,5", "cannot keep 6 of 5"),
        ("0", "at least 1"),
        ("-3", "at least 1"),
        ("3,x", "got 'x'"),
        ("ddim", "got ''"),
        ("ddim7", "exactly 7 of 10"),
        ([], "at least 1"),
    ],
)
def test_what_cannot_be_had_is_said(spec, said):
    with pytest.raises(InputError, match=said):
        space_timesteps(10, spec)


@quick
@given(
    steps=st.integers(1, 2000),
    counts=st.lists(st.integers(-1, 60), min_size=1, max_size=4),
)
def test_spaced_timesteps_are_as_many_as_asked_for_or_refused(steps, counts):
    sections = [steps // len(counts) + (i < steps % len(counts)) for i in range(len(counts))]
    possible = all(1 <= n <= size for n, size in zip(counts, sections, strict=True))
    if not possible:
        with pytest.raises(InputError):
            space_timesteps(steps, counts)
        return
    chosen = space_timesteps(steps, counts)
    assert chosen <= set(range(steps))
    start = 0
    for count, size in zip(counts, sections, strict=True):
        assert len(chosen & set(range(start, start + size))) == count
        start += size
    assert space_timesteps(steps, ",".join(map(str, counts))) == chosen


@quick
@given(text=st.text(max_size=12))
def test_any_respacing_is_had_or_refused(text):
    try:
        assert space_timesteps(100, text) <= set(range(100))
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("beyond", [-1, STEPS])
def test_a_timestep_that_does_not_exist_is_refused(beyond):
    with pytest.raises(InputError, match=f"no timestep {beyond} in a process of {STEPS} steps"):
        SpacedDiffusion([0, 5, beyond], **settings())


def test_one_timestep_alone_is_a_whole_stride_only_where_it_is_all():
    """It is the least noisy one, where no image can begin."""
    assert space_timesteps(1, "ddim1") == {0}
    with pytest.raises(InputError, match="exactly 1 of 1000"):
        space_timesteps(1000, "ddim1")
