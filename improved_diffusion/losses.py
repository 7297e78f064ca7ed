"""Divergences and likelihoods of Gaussians, in nats."""

import math

import torch as th


def normal_kl(
    mean1: th.Tensor | float,
    logvar1: th.Tensor | float,
    mean2: th.Tensor | float,
    logvar2: th.Tensor | float,
) -> th.Tensor:
    """KL(N(mean1, exp(logvar1)) || N(mean2, exp(logvar2))) of each element, in nats.

    The arguments broadcast against each other; at least one of them must be a tensor.

    :raises TypeError: if none of the arguments is a tensor.
    """
    example = next((a for a in (mean1, logvar1, mean2, logvar2) if isinstance(a, th.Tensor)), None)
    if example is None:
        raise TypeError("normal_kl needs at least one tensor among its four arguments")
    logvar1, logvar2 = (
        v if isinstance(v, th.Tensor) else th.as_tensor(v).to(example) for v in (logvar1, logvar2)
    )
    squared_distance = (mean1 - mean2) ** 2 * th.exp(-logvar2)
    return 0.5 * (logvar2 - logvar1 - 1.0 + th.exp(logvar1 - logvar2) + squared_distance)


def approx_standard_normal_cdf(x: th.Tensor) -> th.Tensor:
    """Approximate CDF of the standard normal: the tanh form with error below 4e-4 (Page 1977)."""
    return 0.5 * (1.0 + th.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_log_likelihood(
    x: th.Tensor, *, means: th.Tensor, log_scales: th.Tensor
) -> th.Tensor:
    """Log-probability of 8-bit pixels under a Gaussian over [-1, 1] (Ho et al. 2020, eq. 13).

    Each of the 256 values of a pixel owns a bin of width 2/255; the outermost bins reach to
    infinity.

    :param x: [N, ...] images; values on the grid ``-1 + 2 k / 255``.
    :param means: mean of each element, of ``x``'s shape.
    :param log_scales: logarithm of each element's standard deviation, of ``x``'s shape.
    :return: log-probabilities in nats, of ``x``'s shape; none is below ln 1e-12.
    """
    assert x.shape == means.shape == log_scales.shape
    centred = x - means
    inverse_scale = th.exp(-log_scales)
    below_upper_edge = approx_standard_normal_cdf(inverse_scale * (centred + 1.0 / 255.0))
    below_lower_edge = approx_standard_normal_cdf(inverse_scale * (centred - 1.0 / 255.0))
    probability = th.where(
        x < -0.999,
        below_upper_edge,
        th.where(x > 0.999, 1.0 - below_lower_edge, below_upper_edge - below_lower_edge),
    )
    return probability.clamp(min=1e-12).log()
