"""Loss weights: how much the squared error counts at each level of noise.

A new weight is one function here, with a name to register it under.
"""

from collections.abc import Callable

import torch as th

from .predictions import Prediction
from .registry import Registry

# Each is called with the signal-to-noise ratio alpha_bar / (1 - alpha_bar) of each image's
# timestep, [N], and returns the weights, [N]. It is told what the model predicts, too: an error of
# the noise weighs otherwise than the same error of the image.
LossWeight = Callable[[th.Tensor, Prediction], th.Tensor]
LOSS_WEIGHTS: Registry[LossWeight] = Registry("loss_weight")


@LOSS_WEIGHTS.register("uniform")
def uniform(snr: th.Tensor, _: Prediction) -> th.Tensor:
    """All timesteps alike (Ho et al. 2020, eq. 14)."""
    return th.ones_like(snr)
