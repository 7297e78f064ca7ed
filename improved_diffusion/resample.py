"""Which timesteps to train on: uniformly, or those where the loss is large.

A new sampler is one class here, with a name to register it under.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from . import dist_util
from .diffusion.registry import Registry
from .errors import InputError
from .gaussian_diffusion import GaussianDiffusion

TIMESTEP_SAMPLERS: Registry[Callable[[GaussianDiffusion], "ScheduleSampler"]] = Registry(
    "schedule_sampler"
)


def create_named_schedule_sampler(name: str, diffusion: GaussianDiffusion) -> "ScheduleSampler":
    """Make the timestep sampler of that name for ``diffusion``.

    :param name: one of :data:`TIMESTEP_SAMPLERS`.
    :raises NotImplementedError: for an unknown name (an :class:`InputError` for scripts).
    """
    return TIMESTEP_SAMPLERS[name](diffusion)


class ScheduleSampler(ABC):
    """A distribution over timesteps, which importance weights turn into an unbiased loss."""

    @abstractmethod
    def weights(self) -> np.ndarray:
        """Positive weights of the timesteps, float [T]; they need not sum to 1."""

    def sample(self, batch_size: int, device: th.device | str) -> tuple[th.Tensor, th.Tensor]:
        """Draw timesteps from numpy's global generator.

        :return: timesteps int64 [N], and the weights float32 [N] by which to multiply the losses.
        """
        weights = self.weights()
        p = weights / np.sum(weights)
        drawn = np.random.choice(len(p), size=(batch_size,), p=p)
        importance = 1 / (len(p) * p[drawn])
        return (
            th.from_numpy(drawn).long().to(device),
            th.from_numpy(importance).float().to(device),
        )

    def state_dict(self) -> dict[str, Any]:
        """What the sampler has learned, for :meth:`load_state_dict`."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""


@TIMESTEP_SAMPLERS.register("uniform")
class UniformSampler(ScheduleSampler):
    """All timesteps alike."""

    def __init__(self, diffusion: GaussianDiffusion):
        self.diffusion = diffusion
        self._weights = np.ones([diffusion.num_timesteps])

    def weights(self) -> np.ndarray:
        return self._weights


class LossAwareSampler(ScheduleSampler):
    """A sampler that follows the losses; every rank feeds it, and all ranks see all losses."""

    def update_with_local_losses(self, local_ts: th.Tensor, local_losses: th.Tensor) -> None:
        """Take in this rank's losses, together with those of the other ranks.

        :param local_ts: timesteps, int64 [N]; N may differ between ranks.
        :param local_losses: unweighted losses, [N].
        """
        ts, losses = dist_util.all_gather_1d(local_ts), dist_util.all_gather_1d(local_losses)
        self.update_with_all_losses(ts.tolist(), losses.tolist())

    @abstractmethod
    def update_with_all_losses(self, ts: list[int], losses: list[float]) -> None:
        """Take in losses; the same ones in the same order on each rank."""


@TIMESTEP_SAMPLERS.register("loss-second-moment")
class LossSecondMomentResampler(LossAwareSampler):
    """Weights each timestep by the root mean square of its last losses (IDDPM eq. 18).

    :param history_per_term: how many losses of each timestep to remember; until all timesteps
        have as many, sampling is uniform.
    :param uniform_prob: share of the probability that is spread evenly.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        history_per_term: int = 10,
        uniform_prob: float = 0.001,
    ):
        self.diffusion = diffusion
        self.history_per_term = history_per_term
        self.uniform_prob = uniform_prob
        self._loss_history = np.zeros([diffusion.num_timesteps, history_per_term])
        self._loss_counts = np.zeros([diffusion.num_timesteps], dtype=np.int64)

    def weights(self) -> np.ndarray:
        if not self._warmed_up():
            return np.ones([self.diffusion.num_timesteps])
        weights = np.sqrt(np.mean(self._loss_history**2, axis=-1))
        weights /= np.sum(weights)
        return weights * (1 - self.uniform_prob) + self.uniform_prob / len(weights)

    def update_with_all_losses(self, ts: list[int], losses: list[float]) -> None:
        for t, loss in zip(ts, losses, strict=True):
            history, count = self._loss_history[t], self._loss_counts[t]
            if count == self.history_per_term:
                history[:-1] = history[1:]
                history[-1] = loss
            else:
                history[count] = loss
                self._loss_counts[t] += 1

    def _warmed_up(self) -> bool:
        return bool((self._loss_counts == self.history_per_term).all())

    def state_dict(self) -> dict[str, Any]:
        return {
            "loss_history": th.from_numpy(self._loss_history.copy()),
            "loss_counts": th.from_numpy(self._loss_counts.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:raises InputError: if the state is of another number of timesteps or losses."""
        history, counts = state["loss_history"].numpy(), state["loss_counts"].numpy()
        if history.shape != self._loss_history.shape:
            raise InputError(
                f"the sampler's history is for (timesteps, losses) {history.shape}, "
                f"this run's is {self._loss_history.shape}; use the same diffusion_steps"
            )
        self._loss_history, self._loss_counts = history.copy(), counts.copy()
