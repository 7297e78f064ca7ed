"""Which flags make a model, and for those that cannot the nearest values that do.

The checks build on each other: where a value cannot work, those after it are held against the one
that is advised in its place. So who follows all advice of a message gets a model.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..errors import InputError
from ..models.architecture import IMAGE_CHANNELS
from ..nn import NORM_GROUPS

CHANNEL_MULTS = {256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4), 32: (1, 2, 2, 2)}


class Levels(NamedTuple):
    """A UNet's levels: the multiple of ``num_channels`` that each has, and where attention sits."""

    channel_mult: tuple[int, ...]
    attention_factors: tuple[int, ...]  # how much smaller than the image


class Advice:
    """Collects what is wrong with flags, each with the nearest value that can be."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def settle(self, flag: str, value: Any, nearest: Any, rule: str) -> Any:
        """The value to go on with, ``nearest``; where that is another one, a problem is noted."""
        if value != nearest:
            self.problems.append(
                f"{flag} {rule}, got {_as_word(value)} (nearest that can be: --{flag} {nearest})"
            )
        return nearest

    def raise_problems(self) -> None:
        """:raises InputError: naming all of them."""
        if self.problems:
            raise InputError("; ".join(self.problems))


def check_model_flags(image_size: int, channel_mult: str, **shaping: Any) -> Levels:
    """The levels of an image model, once all flags that shape it are known to work.

    :param shaping: see :func:`_settle_model`.
    :raises InputError: naming everything that cannot work, with values that do.
    """
    advice = Advice()
    size, mult = _settle_size(advice, "image_size", image_size, channel_mult, (32, 64, 256))
    return _settle_model(advice, size, mult, **shaping)


def sr_check_model_flags(
    large_size: int, small_size: int, channel_mult: str, **shaping: Any
) -> Levels:
    """Do what :func:`check_model_flags` does, for a super-resolution model."""
    advice = Advice()
    size, mult = _settle_size(advice, "large_size", large_size, channel_mult, (64, 256))
    nearest = min(max(small_size, 1), size)
    advice.settle("small_size", small_size, nearest, f"must lie in 1..{size} (large_size)")
    return _settle_model(advice, size, mult, **shaping)


def parse_channel_mult(text: str) -> tuple[int, ...] | None:
    """The channel multiples ``"1,2,2,2"``; None for another form."""
    parts = [part.strip() for part in text.split(",")]
    mult = tuple(int(part) for part in parts if part.isdecimal())
    return mult if len(mult) == len(parts) and min(mult) >= 1 else None


def suggested_mult(image_size: int) -> tuple[int, ...]:
    """Channel multiples for an image size without defaults: as many levels as halve it evenly."""
    levels = 1
    while levels < 4 and image_size % 2**levels == 0 and image_size >= 4 * 2**levels:
        levels += 1
    return (1, *[2] * (levels - 1))


def _settle_size(
    advice: Advice, flag: str, size: int, text: str, default_sizes: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """An image size and channel multiples that go together."""
    mult = parse_channel_mult(text)
    factor = 2 ** (len(mult or (1,)) - 1)
    fitting = max(factor, round(size / factor) * factor)
    rule = f"must be a multiple of {factor} with channel_mult {text}"
    size = advice.settle(flag, size, fitting, rule if factor > 1 else "must be at least 1")
    if mult:
        return size, mult
    mult = CHANNEL_MULTS[size] if size in default_sizes else suggested_mult(size)
    rule = f"has a default for {flag} {_listed(default_sizes)} only"
    if text:
        rule = "must be whole numbers from 1 up"
    if text or size not in default_sizes:
        advice.settle("channel_mult", text, _listed(mult), rule)
    return size, mult


def _settle_model(
    advice: Advice,
    size: int,
    mult: tuple[int, ...],
    *,
    num_channels: int,
    num_res_blocks: int,
    num_heads: int,
    num_heads_upsample: int,
    attention_resolutions: str,
    dropout: float,
    in_channels: int,
    num_classes: int | None = None,
) -> Levels:
    """Settle all other flags, now that the size and the channel multiples are known.

    :param num_classes: None for a model without, or of as many as the data will have.
    :raises InputError: if anything was wrong.
    """
    heights = [size // 2**level for level in range(len(mult))]
    attention = _settle_attention(advice, attention_resolutions, heights)
    _settle_channels(advice, num_channels, num_heads, num_heads_upsample, mult)
    rule = "must be at least 1"
    advice.settle("num_res_blocks", num_res_blocks, max(num_res_blocks, 1), rule)
    if num_classes is not None:
        advice.settle("num_classes", num_classes, max(num_classes, 1), rule)
    nearest = dropout if 0 <= dropout < 1 else max(0.0, min(dropout, 0.9))
    advice.settle("dropout", dropout, nearest, "must lie in [0, 1)")
    rule = "must be 1 (grey), 3 (colour) or 4 (colour with alpha)"
    advice.settle("in_channels", in_channels, _nearest(in_channels, IMAGE_CHANNELS), rule)
    advice.raise_problems()
    return Levels(mult, tuple(size // height for height in attention))


def _settle_attention(advice: Advice, text: str, heights: list[int]) -> list[int]:
    """Heights at which attention sits, among those that occur."""
    parts = [part.strip() for part in text.split(",") if part]
    if all(part.isdecimal() and int(part) in heights for part in parts):
        return [int(part) for part in parts]
    wanted = [int(digits) for digits in re.findall(r"\d+", text)] or heights[-1:]
    nearest = list(dict.fromkeys(_nearest(height, heights) for height in wanted))
    rule = f"must be among the heights that occur at image size {heights[0]}: {_listed(heights)}"
    advice.settle("attention_resolutions", text, _listed(nearest), rule)
    return nearest


def _settle_channels(
    advice: Advice, num_channels: int, num_heads: int, num_heads_upsample: int, mult: Iterable[int]
) -> None:
    """Channels that the group norm takes, and heads that divide them on all levels."""
    fitting = max(NORM_GROUPS, round(num_channels / NORM_GROUPS) * NORM_GROUPS)
    rule = f"must be a multiple of {NORM_GROUPS}, the groups of the group norm"
    channels = advice.settle("num_channels", num_channels, fitting, rule)
    rule = f"must divide the channels of all levels, {channels} x ({_listed(mult)})"
    for flag, heads in (("num_heads", num_heads), ("num_heads_upsample", num_heads_upsample)):
        fits = heads >= 1 and all(channels * m % heads == 0 for m in mult)
        if not fits and (flag, heads) != ("num_heads_upsample", -1):
            divisors = [d for d in range(1, channels + 1) if channels % d == 0]
            advice.settle(flag, heads, _nearest(heads, divisors), rule)


def _nearest(wanted: int, values: Iterable[int]) -> int:
    return min(values, key=lambda value: abs(value - wanted))


def _listed(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _as_word(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)
