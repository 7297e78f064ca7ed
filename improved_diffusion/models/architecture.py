"""Reading a UNet's flags from its ``state_dict``, to say which flag makes a checkpoint fit."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch as th

from ..errors import InputError, as_word

Weights = Mapping[str, th.Tensor]

IMAGE_CHANNELS = (1, 3, 4)  # grey, colour, colour with alpha


def is_plain(value: Any) -> bool:
    """Whether something is a tensor that holds the numbers which its shape promises."""
    return (
        isinstance(value, th.Tensor)
        and (value.layout, value.device.type, value.is_quantized) == (th.strided, "cpu", False)
        and value.untyped_storage().nbytes() >= value.nbytes
    )


def infer_flags(
    weights: Weights, image_size: int | None = None, patch_size: int = 1
) -> dict[str, object]:
    """The flags that shaped a ``UNetModel``'s weights, as far as the weights show them.

    They show at which share of the image's height attention sits, and nothing of the image's size
    or of the number of heads.

    :param image_size: makes heights of those shares, as the flag has them.
    :param patch_size: what the flag is taken for where the weights suit several: 2x2 patches of
        grey images have as many channels as pixels of four.
    :return: flags by name; empty for weights of anything but a ``UNetModel``.
    """
    try:
        return _read_flags(weights, image_size, patch_size)
    except (KeyError, IndexError, ValueError):  # an entry that every UNet has is not there
        return {}


def _read_flags(weights: Weights, image_size: int | None, patch_size: int) -> dict[str, object]:
    channels, in_channels = weights["input_blocks.0.0.weight"].shape[:2]
    patch_size = _patch_size(in_channels, patch_size)
    in_channels //= patch_size**2
    outputs = weights["out.2.weight"].shape[0] // patch_size**2
    images = _image_channels(in_channels)
    levels = _levels(weights)
    first = weights["input_blocks.1.0.in_layers.2.weight"].shape[0]
    embedding = weights["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    label_embedding = weights.get("label_emb.weight")
    return {
        "num_channels": channels,
        "in_channels": images,
        "patch_size": patch_size,
        "super_resolution": in_channels != images,
        "learn_sigma": outputs == 2 * images,
        "num_res_blocks": len(levels[0]),
        "channel_mult": ",".join(f"{_width(weights, level[0]) / channels:g}" for level in levels),
        "attention_resolutions": ",".join(
            _height(image_size, patch_size * 2**depth)
            for depth, level in enumerate(levels)
            if _has_attention(weights, level[0])
        ),
        "use_scale_shift_norm": embedding == 2 * first,
        "class_cond": label_embedding is not None,
        "num_classes": None if label_embedding is None else label_embedding.shape[0],
    }


def _patch_size(in_channels: int, likely: int) -> int:
    """The likely size of patches, or else the smallest, of which images have as many channels."""
    for size in (likely, *range(1, math.isqrt(in_channels) + 1)):
        channels, rest = divmod(in_channels, size**2)
        if not rest and _image_channels(channels) in IMAGE_CHANNELS:
            return size
    return 1


def _image_channels(in_channels: int) -> int:
    """Channels of the images: a super-resolution model takes twice as many.

    No number of channels that images have is twice another.
    """
    half, odd = divmod(in_channels, 2)
    return half if half in IMAGE_CHANNELS and not odd else in_channels


def _levels(weights: Weights) -> list[list[int]]:
    """Numbers of the residual input blocks, grouped by resolution."""
    found = (re.match(r"input_blocks\.(\d+)\.", name) for name in weights)
    numbers = sorted({int(match.group(1)) for match in found if match})
    levels: list[list[int]] = [[]]
    for number in numbers[1:]:
        if f"input_blocks.{number}.0.op.weight" in weights:
            levels.append([])
        else:
            levels[-1].append(number)
    return levels


def _width(weights: Weights, number: int) -> int:
    return weights[f"input_blocks.{number}.0.out_layers.3.weight"].shape[0]


def _has_attention(weights: Weights, number: int) -> bool:
    return f"input_blocks.{number}.1.qkv.weight" in weights


def _height(image_size: int | None, factor: int) -> str:
    return f"image_size/{factor}" if image_size is None else str(image_size // factor)


def check_fit(model: th.nn.Module, weights: Weights, source: str) -> None:
    """Have ``model.load_state_dict(weights)`` succeed.

    :param source: the file's path, for the message.
    :raises InputError: naming the flags that differ, or the first entry that does not fit.
    """
    own = model.state_dict()
    misfits = sorted(own.keys() ^ weights.keys()) + sorted(
        name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape
    )
    if misfits:
        sizes = getattr(model, "image_size", None), getattr(model, "patch_size", 1)
        difference = _difference(own, weights, misfits, *sizes)
        raise InputError(f"{source} does not fit the model: {difference}")


def _difference(
    own: Weights,
    weights: Weights,
    misfits: list[str],
    image_size: int | None,
    patch_size: int,
) -> str:
    here, there = (infer_flags(each, image_size, patch_size) for each in (own, weights))
    if here and there and here["super_resolution"] != there["super_resolution"]:
        kind, scripts = ("a", "super_res_*") if there["super_resolution"] else ("no", "image_*")
        return f"it is {kind} super-resolution model; use the {scripts}.py scripts"
    differing = [flag for flag in there if here.get(flag) != there[flag]]
    if here and differing:
        said = (
            f"{flag} is {as_word(there[flag])} there and {as_word(here[flag])} here"
            for flag in differing
        )
        return f"{'; '.join(said)}; give the flags that the checkpoint was trained with"
    name = misfits[0]
    if name not in weights:
        what = "is missing there"
    elif name not in own:
        what = "is unknown here"
    else:
        what = f"has shape {list(weights[name].shape)} there, {list(own[name].shape)} here"
    return f"{len(misfits)} entries differ, first {name}, which {what}"
