"""Which timesteps to train on: uniformly, where the loss is large, or by a density of log-SNRs.

The first two do not change the objective. A density does, on purpose.

A new sampler is one class here, with a name to register it under.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch as th

from . import dist_util
from .diffusion.process import check_image_is_left
from .diffusion.registry import Registry
from .errors import InputError
from .gaussian_diffusion import GaussianDiffusion

TIMESTEP_SAMPLERS: Registry[Callable[..., "ScheduleSampler"]] = Registry("schedule_sampler")
# Karras et al. 2022 (arXiv 2206.00364, table 1): ln sigma of mean -1.2 and deviation 1.2.
LOGSNR_MEAN, LOGSNR_STD = 2.4, 2.4
LEAST_MASS = 1e-3  # of a density, to lie on the schedule


def create_named_schedule_sampler(
    name: str,
    diffusion: GaussianDiffusion,
    logsnr_mean: float = LOGSNR_MEAN,
    logsnr_std: float = LOGSNR_STD,
) -> "ScheduleSampler":
    """Make the timestep sampler of that name for ``diffusion``.

    :param name: one of :data:`TIMESTEP_SAMPLERS`.
    :param logsnr_mean: mean of a density, and ``logsnr_std`` its deviation; others take neither.
    :raises NotImplementedError: for an unknown name (an :class:`InputError` for scripts).
    :raises InputError: for a density, if it has no mass on the schedule, or the schedule ends with
        nothing of the image.
    """
    density = {"mean": logsnr_mean, "std": logsnr_std}
    return TIMESTEP_SAMPLERS.taking(name, **density)(diffusion)


def density_named(name: str) -> type["LogSnrSampler"] | None:
    """The density of that name; None where it is a sampler of another kind."""
    kind = TIMESTEP_SAMPLERS[name]
    return kind if isinstance(kind, type) and issubclass(kind, LogSnrSampler) else None


class ScheduleSampler(ABC):
    """A distribution over timesteps, with importance weights that keep the loss unbiased.

    Those of a :class:`LogSnrSampler` do not: it changes the objective.
    """

    @abstractmethod
    def weights(self) -> np.ndarray:
        """Weights of the timesteps, none negative, float [T]; they need not sum to 1."""

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
        of_ranks = dist_util.all_gather((local_ts.tolist(), local_losses.tolist()))
        ts, losses = ([*chain(*lists)] for lists in zip(*of_ranks, strict=True))
        self.update_with_all_losses(ts, losses)

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
        """:raises InputError: if the state is of other timesteps or losses, or damaged."""
        history, counts = state["loss_history"].numpy(), state["loss_counts"].numpy()
        if history.shape != self._loss_history.shape:
            raise InputError(
                f"the sampler's history is for (timesteps, losses) {history.shape}, "
                f"this run's is {self._loss_history.shape}; use the same diffusion_steps"
            )
        if not (0 <= counts.min() <= counts.max() <= self.history_per_term):
            raise InputError(
                f"the sampler's counts of losses are not within 0 to {self.history_per_term}"
            )
        if not np.isfinite(history).all():
            raise InputError("the sampler's losses are not all finite")
        self._loss_history, self._loss_counts = history.copy(), counts.copy()


class LogSnrSampler(ScheduleSampler):
    """Timesteps whose log-SNRs follow a density; all losses count alike, wherever they are.

    A log-SNR ln(alpha_bar / (1 - alpha_bar)) drawn from the density becomes the nearest timestep,
    and one beyond the schedule's ends is drawn again. With sigma^2 = 1 / SNR it is -2 ln sigma.

    :param mean: of the log-SNRs.
    :param std: their standard deviation.
    :raises InputError: if less than :data:`LEAST_MASS` of the density lies on the schedule, or the
        last timestep leaves nothing of the image and so has no log-SNR.
    """

    def __init__(
        self, diffusion: GaussianDiffusion, mean: float = LOGSNR_MEAN, std: float = LOGSNR_STD
    ):
        self._weights = self.masses(diffusion.alphas_cumprod, mean, std)

    @staticmethod
    @abstractmethod
    def cdf(z: np.ndarray) -> np.ndarray:
        """The share of the density below ``z`` standard deviations above its mean."""

    @classmethod
    def masses(cls, alphas_cumprod: np.ndarray, mean: float, std: float) -> np.ndarray:
        """What lies nearest to each timestep of a schedule, float [T].

        The outermost timesteps reach as far outwards as inwards.

        :raises InputError: see the class.
        """
        check_image_is_left(alphas_cumprod, "a density of log-SNRs", "take uniform")
        with np.errstate(divide="ignore", invalid="ignore"):  # what the check below is for
            log_snr = np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)  # falls with t
            inner = (log_snr[1:] + log_snr[:-1]) / 2
            ends = 2 * log_snr[[0, -1]] - inner[[0, -1]] if len(inner) else [np.inf, -np.inf]
            edges = np.concatenate([ends[:1], inner, ends[1:]])
            masses = -np.diff(cls.cdf((edges - mean) / std))
        if not masses.sum() >= LEAST_MASS:
            raise InputError(
                f"the density of log-SNRs with logsnr_mean {mean:g} and logsnr_std {std:g} has no "
                f"mass on the schedule, whose log-SNRs go from {log_snr[-1]:.3g} to "
                f"{log_snr[0]:.3g}; choose a mean there"
            )
        return masses

    def weights(self) -> np.ndarray:
        return self._weights

    def sample(self, batch_size: int, device: th.device | str) -> tuple[th.Tensor, th.Tensor]:
        t, importance = super().sample(batch_size, device)
        return t, th.ones_like(importance)


@TIMESTEP_SAMPLERS.register("lognormal")
class LogNormalSampler(LogSnrSampler):
    """Log-SNRs from a normal distribution, so that sigma is log-normal (Karras et al. 2022)."""

    @staticmethod
    def cdf(z: np.ndarray) -> np.ndarray:
        return th.special.ndtr(th.from_numpy(z)).numpy()


@TIMESTEP_SAMPLERS.register("laplace")
class LaplaceSampler(LogSnrSampler):
    """Log-SNRs from a Laplace distribution (Hang & Gu 2024, arXiv 2407.03297).

    The paper's scale b is the deviation divided by the square root of 2.
    """

    @staticmethod
    def cdf(z: np.ndarray) -> np.ndarray:
        return 0.5 - 0.5 * np.sign(z) * np.expm1(-math.sqrt(2) * np.abs(z))
