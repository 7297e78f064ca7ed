"""Diffusion over a subset of the timesteps (IDDPM section 4)."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch as th

from .diffusion.process import check_image_is_left
from .errors import InputError
from .gaussian_diffusion import GaussianDiffusion


def space_timesteps(num_timesteps: int, section_counts: str | Sequence[int]) -> set[int]:
    """Choose timesteps of a process of ``num_timesteps`` steps.

    :param section_counts: how many steps to keep of each of several equal sections, as numbers or
        as a comma-separated string: ``[10, 15, 20]`` keeps 10 steps of the first third, and so on.
        ``"ddimN"`` keeps N steps a whole stride apart, as in the DDIM paper.
    :return: timesteps, each in [0, num_timesteps).
    :raises InputError: if that many steps cannot be had, or the string is of another form.
    """
    if isinstance(section_counts, str):
        if section_counts.startswith("ddim"):
            return _strided_timesteps(num_timesteps, _whole(section_counts[len("ddim") :]))
        section_counts = [_whole(part) for part in section_counts.split(",")]
    if not section_counts or min(section_counts) < 1:
        raise InputError(f"timestep_respacing needs counts of at least 1, got {section_counts}")
    shared, extra = divmod(num_timesteps, len(section_counts))
    chosen: set[int] = set()
    start = 0
    for i, count in enumerate(section_counts):
        size = shared + (i < extra)
        chosen |= {start + offset for offset in _spread(size, count)}
        start += size
    return chosen


def respaced_timesteps(betas: np.ndarray, respacing: str | Sequence[int]) -> set[int]:
    """Choose timesteps of the process with these ``betas`` as ``timestep_respacing`` says.

    :param respacing: empty for all timesteps, ``"logsnrN"`` for :func:`log_snr_timesteps`, or
        whatever :func:`space_timesteps` takes.
    :raises InputError: if it cannot be had.
    """
    if isinstance(respacing, str) and respacing.startswith("logsnr"):
        return log_snr_timesteps(betas, _whole(respacing[len("logsnr") :]))
    return space_timesteps(len(betas), respacing or [len(betas)])


# Where nothing of an image is left to find: at 164 times as much noise, by their deviations. The
# linear schedule ends just above; a cosine one goes on to 20,000 times as much.
LEAST_LOG_SNR = -10.2


def log_snr_timesteps(betas: np.ndarray, count: int) -> set[int]:
    """Choose ``count`` timesteps that lie evenly in log(SNR), from the first to the last.

    The spacing of Lu et al. 2022 (arXiv 2206.00927, section 3.4) for small images: an ODE solver's
    error is then shared evenly by its steps. None is spent below :data:`LEAST_LOG_SNR` while there
    are others: a walk can as well begin there.

    :raises InputError: if the process has fewer timesteps, or leaves nothing of the image at last,
        where the log(SNR) has no end.
    """
    if not 1 <= count <= len(betas):
        raise InputError(f"cannot keep {count} of {len(betas)} timesteps; keep 1 to {len(betas)}")
    alphas_cumprod = np.cumprod(1 - np.asarray(betas, dtype=np.float64))
    instead = f"give counts, such as {count}"
    check_image_is_left(alphas_cumprod, f"logsnr{count}", instead)
    log_snr = np.log(alphas_cumprod / (1 - alphas_cumprod))
    lowest = LEAST_LOG_SNR if log_snr[-1] < LEAST_LOG_SNR < log_snr[0] else log_snr[-1]
    usable = max(count, int((log_snr >= lowest).sum()))
    targets = np.linspace(lowest, log_snr[0], count)[::-1]
    nearest = np.abs(log_snr[None] - targets[:, None]).argmin(axis=1)
    # Several targets may share a nearest timestep: duplicates move up, what passed the end down.
    rank = np.arange(count)
    distinct = np.maximum.accumulate(nearest - rank) + rank
    return set(np.minimum(distinct, usable - count + rank).tolist())


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(
            "timestep_respacing takes counts such as 250 or 10,15,20, or ddimN, or, where the "
            f"betas are known, logsnrN; got {text!r}"
        ) from None


def _strided_timesteps(num_timesteps: int, count: int) -> set[int]:
    for stride in range(1, max(num_timesteps, 2)):
        steps = range(0, num_timesteps, stride)
        if len(steps) == count:
            return set(steps)
    raise InputError(
        f"no whole stride takes exactly {count} of {num_timesteps} timesteps; "
        f"give another count, or {count} without 'ddim'"
    )


def _spread(size: int, count: int) -> list[int]:
    """``count`` whole numbers from 0 to ``size - 1``, evenly apart, both ends included."""
    if count > size:
        raise InputError(f"cannot keep {count} of {size} timesteps; keep {size} at most")
    stride = (size - 1) / (count - 1) if count > 1 else 1
    position, offsets = 0.0, []
    for _ in range(count):
        offsets.append(round(position))
        position += stride  # summed, not multiplied: the reference rounds the same way
    return offsets


class SpacedDiffusion(GaussianDiffusion):
    """A diffusion process that keeps only some steps of a longer one.

    Its betas are those for which the kept steps have the same ``alphas_cumprod`` as before; models
    are shown the original timesteps.

    :param use_timesteps: the timesteps to keep, of the original process.
    :param kwargs: arguments of the original :class:`GaussianDiffusion`.
    :raises InputError: if the original process lacks one of the timesteps, or a beta is outside
        (0, 1].
    """

    def __init__(self, use_timesteps: Iterable[int], **kwargs: Any):
        self._settings = kwargs
        self._original = original = GaussianDiffusion(**kwargs)
        self.use_timesteps = set(use_timesteps)
        self.original_num_steps = original.num_timesteps
        if missing := self.use_timesteps.difference(range(original.num_timesteps)):
            raise InputError(
                f"no timestep {min(missing)} in a process of {original.num_timesteps} steps"
            )
        self.timestep_map = [i for i in range(original.num_timesteps) if i in self.use_timesteps]
        kept = original.alphas_cumprod[self.timestep_map]
        betas = 1 - kept / np.append(1.0, kept[:-1])
        super().__init__(**{**kwargs, "betas": betas})

    def respaced(self, timestep_respacing: str | Sequence[int]) -> "SpacedDiffusion":
        """The same process with fewer of its timesteps.

        :param timestep_respacing: as :func:`respaced_timesteps` takes it.
        :raises InputError: for a respacing that cannot be had.
        """
        kept = respaced_timesteps(self.betas, timestep_respacing)
        return SpacedDiffusion([self.timestep_map[i] for i in kept], **self._settings)

    def _scale_timesteps(self, t: th.Tensor) -> th.Tensor:
        table = th.tensor(self.timestep_map, device=t.device, dtype=t.dtype)
        return self._original._scale_timesteps(table[t])
