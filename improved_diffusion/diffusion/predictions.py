"""What a model's output stands for: the noise, the image, a mix of both, or the step before.

A new kind is one member of :class:`ModelMeanType` and one entry of :data:`PREDICTIONS`.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, ones_like

from .process import ForwardProcess


class ModelMeanType(enum.Enum):
    """What the model's output stands for."""

    PREVIOUS_X = enum.auto()  # the mean of x_{t-1}
    START_X = enum.auto()  # x_start
    EPSILON = enum.auto()  # the noise in x_t
    V = enum.auto()  # sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_start


def _posterior_mean(
    process: ForwardProcess, output: Tensor, pred_xstart: Tensor, x_t: Tensor, t: Tensor
) -> Tensor:
    return process.q_posterior_mean_variance(pred_xstart, x_t, t)[0]


@dataclass(frozen=True)
class Prediction:
    """What an output should be, and what it says of the image.

    Outputs, images and noise have one shape, [N, C, ...]; timesteps ``t`` are int64 [N].

    :param target: ``target(process, x_start, x_t, t, noise)`` is the output that training wants.
    :param x_start: ``x_start(process, output, x_t, t)`` is the image that an output predicts.
    :param mean: ``mean(process, output, pred_xstart, x_t, t)`` is that of p(x_{t-1} | x_t), where
        the predicted image may have been clipped.
    :param error: ``error(snr)`` is the squared error of an output whose image is off by 1, at
        signal-to-noise ratios [N]; None where these do not decide it.
    """

    target: Callable[[ForwardProcess, Tensor, Tensor, Tensor, Tensor], Tensor]
    x_start: Callable[[ForwardProcess, Tensor, Tensor, Tensor], Tensor]
    mean: Callable[[ForwardProcess, Tensor, Tensor, Tensor, Tensor], Tensor] = _posterior_mean
    error: Callable[[Tensor], Tensor] | None = None


PREDICTIONS = {
    ModelMeanType.PREVIOUS_X: Prediction(
        target=lambda q, x_start, x_t, t, noise: q.q_posterior_mean_variance(x_start, x_t, t)[0],
        x_start=lambda q, output, x_t, t: q._predict_xstart_from_xprev(x_t, t, output),
        mean=lambda q, output, pred_xstart, x_t, t: output,
    ),
    ModelMeanType.START_X: Prediction(
        target=lambda q, x_start, x_t, t, noise: x_start,
        x_start=lambda q, output, x_t, t: output,
        error=ones_like,
    ),
    ModelMeanType.EPSILON: Prediction(
        target=lambda q, x_start, x_t, t, noise: noise,
        x_start=lambda q, output, x_t, t: q._predict_xstart_from_eps(x_t, t, output),
        error=lambda snr: snr,
    ),
    ModelMeanType.V: Prediction(
        target=lambda q, x_start, x_t, t, noise: q.v_of(x_start, noise, t),
        x_start=lambda q, output, x_t, t: q._predict_xstart_from_v(x_t, t, output),
        error=lambda snr: snr + 1,
    ),
}
