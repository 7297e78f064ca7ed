import numpy as np
import pytest

from improved_diffusion.diffusion.noise_schedules import (
    NOISE_SCHEDULES,
    betas_for_alpha_bar,
    checked_betas,
    get_named_beta_schedule,
)
from improved_diffusion.errors import InputError


def log_alpha_bar(betas):
    return np.log1p(-betas).sum()


@pytest.mark.parametrize("steps", [1, 2, 50, 1000, 4000])
def test_power_1_is_the_linear_schedule(steps):
    linear = get_named_beta_schedule("linear", steps)
    polynomial = get_named_beta_schedule("polynomial", steps, poly_power=1.0)
    np.testing.assert_allclose(polynomial, np.minimum(linear, 0.999), rtol=1e-12)


def test_polynomial_follows_its_formula():
    steps, power = 200, 2.5
    first, last = 1e-4 * 1000 / steps, 0.02 * 1000 / steps
    betas = get_named_beta_schedule("polynomial", steps, poly_power=power)
    for i in (0, 1, 77, steps - 1):
        share = (power + 1) / 2 * (i / (steps - 1)) ** power
        assert betas[i] == pytest.approx(first + (last - first) * share, rel=1e-12)


def test_polynomial_is_quadratic_by_default():
    default = get_named_beta_schedule("polynomial", 100)
    np.testing.assert_array_equal(default, get_named_beta_schedule("polynomial", 100, 2.0))


@pytest.mark.parametrize("power", [0.5, 2.0, 3.0])
def test_every_power_adds_nearly_the_same_noise(power):
    linear = log_alpha_bar(get_named_beta_schedule("linear", 1000))
    total = log_alpha_bar(get_named_beta_schedule("polynomial", 1000, power))
    assert total == pytest.approx(linear, rel=0.01)


def test_a_larger_power_holds_the_noise_back():
    gentle, steady, eager = (
        np.cumprod(1 - get_named_beta_schedule("polynomial", 1000, power)) for power in (3, 1, 0.5)
    )
    assert gentle[500] > steady[500] > eager[500]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 7.0])
@pytest.mark.parametrize("steps", [1, 2, 20, 30, 1000])
def test_polynomial_betas_are_usable_and_never_fall(steps, power):
    betas = get_named_beta_schedule("polynomial", steps, power)
    assert betas.dtype == np.float64
    assert betas.shape == (steps,)
    assert betas[0] == pytest.approx(min(0.1 / steps, 0.999))
    assert (betas > 0).all()
    assert (betas <= 0.999).all()
    assert (np.diff(betas) >= 0).all()


def test_large_betas_are_clipped():
    assert get_named_beta_schedule("polynomial", 20, 3.0)[-1] == 0.999


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan"), float("inf")])
def test_a_power_that_is_not_positive_is_refused(power):
    with pytest.raises(InputError, match="poly_power"):
        get_named_beta_schedule("polynomial", 10, power)


@pytest.mark.parametrize("schedule", NOISE_SCHEDULES)
@pytest.mark.parametrize("steps", [0, -5])
def test_at_least_one_step(schedule, steps):
    with pytest.raises(InputError, match="diffusion_steps must be at least 1"):
        get_named_beta_schedule(schedule, steps)


@pytest.mark.parametrize("kind", [NotImplementedError, InputError])
def test_an_unknown_schedule_is_named_beside_those_there_are(kind):
    with pytest.raises(kind, match="'sigmoid'; choose from linear, cosine, polynomial"):
        get_named_beta_schedule("sigmoid", 10)


def test_cosine_follows_equation_17():
    steps = 100
    u = np.arange(steps + 1) / steps
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    alphas_cumprod = np.cumprod(1 - get_named_beta_schedule("cosine", steps))
    np.testing.assert_allclose(alphas_cumprod[:-1], (f / f[0])[1:-1], rtol=1e-9)


def test_betas_follow_an_alpha_bar_up_to_a_largest():
    betas = betas_for_alpha_bar(4, lambda u: 1 - u, max_beta=0.6)
    np.testing.assert_allclose(betas, [1 / 4, 1 / 3, 1 / 2, 0.6])


@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, float("nan")])
def test_the_first_beta_that_cannot_be_is_named(value):
    betas = [0.1, 0.2, value, 0.3, value]
    with pytest.raises(InputError, match=r"beta\[2\] of 5 is .*\(2 such\)"):
        checked_betas(betas)


def test_a_beta_of_1_is_the_largest():
    np.testing.assert_array_equal(checked_betas([0.5, 1]), [0.5, 1.0])


@pytest.mark.parametrize("betas", [[], [[0.1, 0.2]], 0.1])
def test_betas_are_one_row(betas):
    with pytest.raises(InputError, match="one-dimensional"):
        checked_betas(betas)
