"""Guidance: a model's predictions, led away from those of a worse one.

The worse one is the same model without the label (classifier-free guidance: Ho & Salimans 2022,
arXiv 2207.12598), or another, smaller or less trained model (autoguidance: Karras et al. 2024,
arXiv 2406.02507).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch as th

from ..errors import InputError
from ..gaussian_diffusion import GaussianDiffusion, Model
from ..nn import NO_LABEL


@dataclass(frozen=True)
class Guidance:
    """How far to lead, and where.

    :param scale: s >= 0 in worse + s (model - worse): 1 is the model alone, 0 the worse one. The w
        of Ho & Salimans is s - 1.
    :param low: end of the interval (low, high] of noise levels to guide in (Kynkäänniemi et al.
        2024, arXiv 2404.07724), as sigma = sqrt((1 - alpha_bar) / alpha_bar); elsewhere the model
        is alone.
    :param high: its other end, above ``low``.
    :raises InputError: if one of them is out of its range.
    """

    scale: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise InputError(f"guidance takes a scale of at least 0, got {self.scale}")
        if not 0 <= self.low < self.high:
            raise InputError(
                "guidance takes a guidance_low of at least 0 and a guidance_high above it, got "
                f"{self.low:g} and {self.high:g}"
            )

    def covers(self, sigma: Any) -> Any:
        """Whether a noise level lies in the interval."""
        return (self.low < sigma) & (sigma <= self.high)

    def around(self, model: Model, process: GaussianDiffusion, guide: Model | None = None) -> Model:
        """``model`` with guidance, to be called as it; itself, where the scale is 1.

        :param process: the diffusion to sample with, or that of all its timesteps.
        :param guide: the worse model, given the same labels; by default ``model`` without them.
        """
        return model if self.scale == 1 else Guided(model, process, self, guide)


class Guided:
    """See :meth:`Guidance.around`. Without a ``guide``, both predictions come from one batch.

    Noise, image and v are linear in each other given x_t, so it does not matter which of them the
    models predict, if it is the same. Learned variances are the better model's.
    """

    def __init__(
        self,
        model: Model,
        process: GaussianDiffusion,
        guidance: Guidance,
        guide: Model | None = None,
    ):
        self.model = model
        self.guide = guide
        self.guidance = guidance
        sigmas = th.from_numpy(process.sqrt_recipm1_alphas_cumprod)
        self._inside = guidance.covers(sigmas)  # of each timestep
        self._shown = process._scale_timesteps(th.arange(process.num_timesteps))

    def parameters(self) -> Iterator[th.nn.Parameter]:
        """Those of the model, which say where it computes."""
        return self.model.parameters()  # type: ignore[attr-defined]

    def __call__(self, x: th.Tensor, t: th.Tensor, **model_kwargs: Any) -> th.Tensor:
        """The guided output for ``x`` [N, C, ...] and timesteps as models see them, [N].

        :raises InputError: if there is no guide, and no ``y`` to lead to.
        """
        inside = self._is_inside(t)
        if not inside.any():
            return self.model(x, t, **model_kwargs)
        better, worse = self._both(x, t, model_kwargs)
        prediction, variance = better[:, : x.shape[1]], better[:, x.shape[1] :]
        worse = worse[:, : x.shape[1]]
        led = worse + self.guidance.scale * (prediction - worse)
        chosen = th.where(inside.view(-1, *[1] * (x.ndim - 1)), led, prediction)
        return th.cat([chosen, variance], dim=1)

    def _is_inside(self, t: th.Tensor) -> th.Tensor:
        """Whether the noise of each timestep lies in the interval, bool [N]."""
        index = th.searchsorted(self._shown.to(t), t)
        return self._inside.to(t.device)[index.clamp(max=len(self._inside) - 1)]

    def _both(
        self, x: th.Tensor, t: th.Tensor, model_kwargs: dict[str, Any]
    ) -> tuple[th.Tensor, th.Tensor]:
        if self.guide is not None:
            return self.model(x, t, **model_kwargs), self.guide(x, t, **model_kwargs)
        twice = {k: th.cat([v, v]) for k, v in model_kwargs.items() if isinstance(v, th.Tensor)}
        y = model_kwargs.get("y")
        if y is None:
            raise InputError("guidance without a guide leads to labels: give y")
        twice["y"] = th.cat([y, th.full_like(y, NO_LABEL)])
        output = self.model(th.cat([x, x]), th.cat([t, t]), **model_kwargs | twice)
        better, worse = output.chunk(2)
        return better, worse
