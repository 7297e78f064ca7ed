"""Random numbers of each image's own: an image is the same in whatever batch it is drawn."""

from collections.abc import Sequence

import numpy as np
import torch as th


class ImageNoise:
    """One stream of random numbers for each image of a batch.

    :param seed: of all images.
    :param indices: numbers of the batch's images, which with the seed decide their streams.
    """

    def __init__(self, seed: int, indices: Sequence[int]):
        self._generators = [_generator(seed, index) for index in indices]

    def __len__(self) -> int:
        return len(self._generators)

    def randn_like(self, x: th.Tensor) -> th.Tensor:
        """Standard normal noise of the shape, dtype and device of ``x`` [N, ...], N as many."""
        assert len(x) == len(self)
        # Drawn on the CPU: a GPU's generators would give other numbers.
        rows = [th.randn(x.shape[1:], generator=g) for g in self._generators]
        return th.stack(rows).to(x.device, x.dtype)

    def rand(self, count: int) -> th.Tensor:
        """Uniform numbers in [0, 1), float64 [N, count]."""
        return th.stack([th.rand(count, generator=g, dtype=th.float64) for g in self._generators])

    def randint(self, high: int) -> th.Tensor:
        """Whole numbers below ``high``, int64 [N]."""
        rows = [th.randint(high, (), generator=g) for g in self._generators]
        return th.stack(rows)


def _generator(seed: int, index: int) -> th.Generator:
    words = np.random.SeedSequence([seed % 2**64, index]).generate_state(2, np.uint32)
    return th.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))
