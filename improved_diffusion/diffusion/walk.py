"""The one walk of all samplers: from noise down the timesteps, one step at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch as th

from ..errors import InputError

# From x_t [N, C, ...] and t int64 [N] to ``sample`` (x_{t-1}) and ``pred_xstart``, each as x_t.
Step = Callable[[th.Tensor, th.Tensor], dict[str, th.Tensor]]
Callback = Callable[[dict[str, th.Tensor]], object]
RandnLike = Callable[[th.Tensor], th.Tensor]


def walk(step: Step, x: th.Tensor, timesteps: Iterable[int]) -> Iterator[dict[str, th.Tensor]]:
    """Take a step at each of ``timesteps``, each from where the last one led.

    :param x: where to begin, [N, C, ...].
    :return: what ``step`` made at each timestep, with the ``x_t`` and ``t`` that it began at.
    """
    for i in timesteps:
        t = th.full((x.shape[0],), i, device=x.device, dtype=th.int64)
        with th.no_grad():
            out = step(x, t)
        yield {**out, "x_t": x, "t": t}
        x = out["sample"]


def finish(steps: Iterator[dict[str, th.Tensor]], callback: Callback | None = None) -> th.Tensor:
    """The sample that the last of a walk's steps makes.

    :param callback: given what each step made, see :func:`walk`.
    """
    out: dict[str, th.Tensor] = {}
    for out in steps:
        if callback is not None:
            callback(out)
    return out["sample"]


def descending(count: int, progress: bool = False) -> Iterable[int]:
    """Timesteps from the noisiest to the cleanest, with a tqdm bar if wanted."""
    indices = range(count)[::-1]
    if not progress:
        return indices
    from tqdm.auto import tqdm  # only where a bar is wanted

    return tqdm(indices)


def starting_noise(
    model: Any,
    shape: tuple[int, ...],
    noise: th.Tensor | None,
    device: th.device | str | None,
    randn_like: RandnLike,
) -> th.Tensor:
    """x_T: what was given, or new noise, on ``device`` or where the model's parameters are.

    :raises InputError: if what was given is not of ``shape``.
    """
    if noise is not None:
        if noise.shape != tuple(shape):
            given, wanted = tuple(noise.shape), tuple(shape)
            raise InputError(f"noise {given} given for images {wanted}: give noise of that shape")
        return noise
    if device is None:
        device = next(model.parameters()).device
    return randn_like(th.empty(*shape, device=device))
