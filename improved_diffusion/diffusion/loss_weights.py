"""Loss weights: how much the squared error counts at each level of noise.

A new weight is one function here, with a name to register it under.
"""

from collections.abc import Callable

import torch as th

from ..errors import InputError
from .predictions import Prediction
from .registry import Registry

MIN_SNR_GAMMA = 5.0  # the paper's

# Each is called with the signal-to-noise ratio alpha_bar / (1 - alpha_bar) of each image's
# timestep, [N], and returns the weights, [N]. It is told what the model predicts, too: an error of
# the noise weighs otherwise than the same error of the image. A registered one may also take a
# ``gamma``: that of ``--min_snr_gamma``.
LossWeight = Callable[[th.Tensor, Prediction], th.Tensor]
LOSS_WEIGHTS: Registry[Callable[..., th.Tensor]] = Registry("loss_weight")


@LOSS_WEIGHTS.register("uniform")
def uniform(snr: th.Tensor, _: Prediction) -> th.Tensor:
    """All timesteps alike (Ho et al. 2020, eq. 14)."""
    return th.ones_like(snr)


@LOSS_WEIGHTS.register("min_snr")
def min_snr(snr: th.Tensor, prediction: Prediction, gamma: float = MIN_SNR_GAMMA) -> th.Tensor:
    """An error of the image by min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556).

    That is the noise's error by min(SNR, gamma) / SNR, and v's by min(SNR, gamma) / (SNR + 1).

    :raises InputError: if the model predicts x_{t-1}, whose error the SNR says nothing of.
    """
    if prediction.error is None:
        raise InputError("min_snr is for models that predict the image, the noise or v")
    snr = snr.clamp(min=th.finfo(snr.dtype).tiny)  # of no image at all it is 0
    return snr.clamp(max=gamma) / prediction.error(snr)
