import math

import pytest
import torch as th
from torch.distributions import Normal, kl_divergence

from improved_diffusion.losses import (
    approx_standard_normal_cdf,
    discretized_gaussian_log_likelihood,
    normal_kl,
)

GRID = th.arange(256, dtype=th.float64) / 127.5 - 1


def test_kl_is_that_of_two_gaussians():
    mean1, mean2 = th.tensor([0.0, 1.0, -3.0]), th.tensor([0.5, 1.0, 2.0])
    logvar1, logvar2 = th.tensor([0.0, 1.0, -2.0]), th.tensor([0.3, 1.0, 0.7])
    left, right = (Normal(m, (v / 2).exp()) for m, v in ((mean1, logvar1), (mean2, logvar2)))
    th.testing.assert_close(normal_kl(mean1, logvar1, mean2, logvar2), kl_divergence(left, right))


def test_kl_broadcasts_tensors_against_numbers():
    out = normal_kl(th.zeros(2, 3), 0.0, 1.0, th.zeros(3))
    th.testing.assert_close(out, th.full((2, 3), 0.5))


def test_kl_is_as_precise_as_its_log_variances():
    out = normal_kl(th.zeros(1, dtype=th.bfloat16), th.tensor([1.2345]), 0.0, 0.0)
    th.testing.assert_close(out, normal_kl(th.zeros(1), th.tensor([1.2345]), 0.0, 0.0))
    assert out.dtype == th.float32


def test_kl_of_numbers_alone_is_refused():
    with pytest.raises(TypeError, match="at least one tensor"):
        normal_kl(0.0, 0.0, 1.0, 1.0)


def test_cdf_is_close_to_the_normal_one():
    x = th.linspace(-6, 6, 1001, dtype=th.float64)
    error = (approx_standard_normal_cdf(x) - Normal(0.0, 1.0).cdf(x)).abs().max()
    assert 0 < error < 4e-4


@pytest.mark.parametrize("mean", [-1.0, 0.1, 0.99])
@pytest.mark.parametrize("log_scale", [-5.0, -2.0, 0.0])
def test_the_256_values_of_a_pixel_share_the_probability(mean, log_scale):
    settings = {"means": th.full_like(GRID, mean), "log_scales": th.full_like(GRID, log_scale)}
    total = discretized_gaussian_log_likelihood(GRID, **settings).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-6)


def test_a_pixel_owns_a_bin_of_2_by_255():
    x, scale = GRID[100:101], 0.3
    likelihood = discretized_gaussian_log_likelihood(
        x, means=th.zeros(1).double(), log_scales=th.full((1,), math.log(scale)).double()
    )
    normal = Normal(0.0, scale)
    wanted = (normal.cdf(x + 1 / 255) - normal.cdf(x - 1 / 255)).log()
    th.testing.assert_close(likelihood, wanted, rtol=1e-2, atol=0)


def test_an_impossible_pixel_stays_finite():
    far = discretized_gaussian_log_likelihood(
        th.zeros(1), means=th.ones(1), log_scales=th.full((1,), -20.0)
    )
    assert far.item() == pytest.approx(math.log(1e-12))
