"""Filling a part of a picture so that it suits the rest (RePaint: Lugmayr et al. 2022, 2201.09865).

Any sampler walks down the timesteps, and after each step what is known is put in, as noisy as the
timestep is. What is made only knows of it from then on, so the walk jumps up again every few
timesteps, with new noise, and comes down anew: both parts grow together.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch as th

from ..diffusion.walk import Step, walk
from ..errors import InputError
from ..gaussian_diffusion import GaussianDiffusion, RandnLike
from .denoising import read_picture, to_tensor

GREY = 128  # of what is to be made, in a picture that shows it
# Added to known pixels, in steps of 8 bits: to_uint8 truncates, so that rounding errors would cost
# some of them a whole step.
ABOVE = 1e-3


@dataclass(frozen=True, eq=False)
class Inpainting:
    """What is known of an image, and how often to walk up again.

    :param picture: uint8 [H, W, C].
    :param mask: bool [H, W], true where the image is to be made.
    :param jump_length: timesteps of a jump, at least 1, the paper's j.
    :param resamplings: how often each stretch of so many timesteps is walked, the paper's r; 1 is
        a walk without jumps.
    """

    picture: np.ndarray
    mask: np.ndarray
    jump_length: int = 10
    resamplings: int = 10

    def steps(self, num_timesteps: int) -> int:
        """How many steps the walk has.

        :raises InputError: as :func:`descents` does.
        """
        return sum(map(len, descents(num_timesteps, self.jump_length, self.resamplings)))

    def walk(
        self,
        diffusion: GaussianDiffusion,
        make_step: Callable[[], Step],
        x: th.Tensor,
        randn_like: RandnLike,
    ) -> Iterator[dict[str, th.Tensor]]:
        """A route for :func:`.samplers.draw` to images that are the picture where they are known.

        :func:`..data.image_grid.to_uint8` makes what is known of them the picture's pixels again.
        """
        x_start = (to_tensor(self.picture) + ABOVE / 127.5).to(x.device).expand_as(x)
        mask = th.from_numpy(self.mask).to(x.device)

        def keeping(step: Step) -> Step:
            def keep(x: th.Tensor, t: th.Tensor) -> dict[str, th.Tensor]:
                out = step(x, t)
                last = int(t[0]) == 0
                known = x_start if last else diffusion.q_sample(x_start, t - 1, noise=randn_like(x))
                return {**out, "sample": th.where(mask, out["sample"], known)}

            return keep

        ranges = descents(diffusion.num_timesteps, self.jump_length, self.resamplings)
        for timesteps, following in zip(ranges, [*ranges[1:], None], strict=True):
            out: dict[str, th.Tensor] = {}
            for out in walk(keeping(make_step()), x, timesteps):  # some steps remember the last one
                yield out
            if following:
                x = noisier(diffusion, out["sample"], timesteps.stop, following.start, randn_like)

    def masked_picture(self) -> np.ndarray:
        """The picture, grey where it is to be made: uint8 [H, W, C]."""
        return np.where(self.mask[..., None], GREY, self.picture).astype(np.uint8)


def read_inpainting(
    picture: str, mask: str, channels: int, size: int, jump_length: int, resamplings: int
) -> Inpainting:
    """Read a picture, and a mask that is white where it is to be made (bright, to be exact).

    :raises InputError: naming the file, if it cannot be read or has not ``size`` pixels a side, or
        if the mask is transparent in places, or leaves nothing to make or nothing to keep.
    """
    pixels = read_picture(picture, channels, size, size)
    bright = read_picture(mask, 1, size, size)[..., 0] > 127
    if (read_picture(mask, 4, size, size)[..., 3] < 255).any():
        raise InputError(
            f"the mask {mask} is transparent in places, which says nothing; paint white what is to "
            "be made, black what is to be kept"
        )
    if bright.all() or not bright.any():
        said = "white everywhere: nothing of the picture would stay"
        said = said if bright.any() else "black everywhere: nothing is to be made"
        raise InputError(f"the mask {mask} is {said}; paint white what is to be made")
    return Inpainting(pixels, bright, jump_length, resamplings)


def descents(num_timesteps: int, jump_length: int, resamplings: int) -> list[range]:
    """The timesteps to take steps at: between two of these ranges, the walk jumps up.

    At every ``jump_length``-th timestep, from the least noisy one on, it jumps up by as many,
    ``resamplings - 1`` times (the paper's appendix on the schedule of its jumps).

    :raises InputError: if ``jump_length`` is below 1, or there is no room for a jump.
    """
    if jump_length < 1 or (resamplings > 1 and jump_length >= num_timesteps):
        raise InputError(
            f"jumps of {jump_length} timesteps do not fit into a walk of {num_timesteps}; give a "
            "--jump_length from 1 to below that, or --resamplings 1"
        )
    ranges, start = [], num_timesteps - 1
    for level in reversed(range(0, num_timesteps - jump_length, jump_length)):
        for _ in range(resamplings - 1):
            ranges.append(range(start, level, -1))
            start = level + jump_length
    return [*ranges, range(start, -1, -1)]


def noisier(
    diffusion: GaussianDiffusion, x: th.Tensor, t: int, later: int, randn_like: RandnLike
) -> th.Tensor:
    """x at a later timestep from x_t, by all steps of q between them at once (DDPM eq. 4)."""
    kept = diffusion.alphas_cumprod[later] / diffusion.alphas_cumprod[t]
    return math.sqrt(kept) * x + math.sqrt(1 - kept) * randn_like(x)
