"""Flags with their help texts, and the factories that turn them into a model and a diffusion."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from . import gaussian_diffusion as gd
from .cli import str2bool
from .errors import InputError
from .flag_help import HELP
from .respace import SpacedDiffusion, respaced_timesteps
from .unet import SuperResModel, UNetModel

__all__ = [
    "NUM_CLASSES",
    "add_dict_to_argparser",
    "args_to_dict",
    "create_gaussian_diffusion",
    "create_model",
    "create_model_and_diffusion",
    "model_and_diffusion_defaults",
    "sr_create_model",
    "sr_create_model_and_diffusion",
    "sr_model_and_diffusion_defaults",
    "str2bool",
]

NUM_CLASSES = 1000
AUTO = "auto"  # as many classes as the images have
GROUPS = 32  # of every group norm
IMAGE_CHANNELS = (1, 3, 4)
CHANNEL_MULTS = {256: (1, 1, 2, 2, 4, 4), 64: (1, 2, 3, 4), 32: (1, 2, 2, 2)}


def model_and_diffusion_defaults() -> dict[str, Any]:
    """Defaults of the flags of an image model: the reference's, and ours behind them."""
    return {"image_size": 64, **_shared_defaults(), "sigma_small": False}


def sr_model_and_diffusion_defaults() -> dict[str, Any]:
    """Defaults of the flags of a super-resolution model."""
    return {"large_size": 256, "small_size": 64, **_shared_defaults()}


def _shared_defaults() -> dict[str, Any]:
    return {
        "num_channels": 128,
        "num_res_blocks": 2,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "attention_resolutions": "16,8",
        "dropout": 0.0,
        "learn_sigma": False,
        "class_cond": False,
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "timestep_respacing": "",
        "use_kl": False,
        "predict_xstart": False,
        "rescale_timesteps": True,
        "rescale_learned_sigmas": True,
        "use_checkpoint": False,
        "use_scale_shift_norm": True,
        "poly_power": 2.0,
        "channel_mult": "",
        "num_classes": NUM_CLASSES,
        "in_channels": 3,
    }


def create_model_and_diffusion(
    image_size: int,
    class_cond: bool,
    learn_sigma: bool,
    sigma_small: bool,
    num_channels: int,
    num_res_blocks: int,
    num_heads: int,
    num_heads_upsample: int,
    attention_resolutions: str,
    dropout: float,
    diffusion_steps: int,
    noise_schedule: str,
    timestep_respacing: str,
    use_kl: bool,
    predict_xstart: bool,
    rescale_timesteps: bool,
    rescale_learned_sigmas: bool,
    use_checkpoint: bool,
    use_scale_shift_norm: bool,
    poly_power: float = 2.0,
    channel_mult: str = "",
    num_classes: int = NUM_CLASSES,
    in_channels: int = 3,
) -> tuple[UNetModel, SpacedDiffusion]:
    """An image model and its diffusion from flags; :data:`flag_help.HELP` explains each.

    :raises InputError: naming everything about the flags that cannot work.
    """
    diffusion = create_gaussian_diffusion(
        steps=diffusion_steps,
        learn_sigma=learn_sigma,
        sigma_small=sigma_small,
        noise_schedule=noise_schedule,
        use_kl=use_kl,
        predict_xstart=predict_xstart,
        rescale_timesteps=rescale_timesteps,
        rescale_learned_sigmas=rescale_learned_sigmas,
        timestep_respacing=timestep_respacing,
        poly_power=poly_power,
    )
    model = create_model(
        image_size,
        num_channels,
        num_res_blocks,
        learn_sigma=learn_sigma,
        class_cond=class_cond,
        use_checkpoint=use_checkpoint,
        attention_resolutions=attention_resolutions,
        num_heads=num_heads,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        dropout=dropout,
        channel_mult=channel_mult,
        num_classes=num_classes,
        in_channels=in_channels,
    )
    return model, diffusion


def create_model(
    image_size: int,
    num_channels: int,
    num_res_blocks: int,
    learn_sigma: bool,
    class_cond: bool,
    use_checkpoint: bool,
    attention_resolutions: str,
    num_heads: int,
    num_heads_upsample: int,
    use_scale_shift_norm: bool,
    dropout: float,
    channel_mult: str = "",
    num_classes: int = NUM_CLASSES,
    in_channels: int = 3,
) -> UNetModel:
    """A UNet for images of ``image_size``.

    :raises InputError: naming everything about the flags that cannot work.
    """
    mult = parse_channel_mult(channel_mult, image_size, (32, 64, 256))
    factors = attention_factors(attention_resolutions, image_size, mult)
    check_model_flags(
        image_size, mult, num_channels, num_res_blocks, num_heads, num_heads_upsample, dropout
    )
    check_channels_and_classes(in_channels, class_cond, num_classes)
    return UNetModel(
        in_channels=in_channels,
        model_channels=num_channels,
        out_channels=2 * in_channels if learn_sigma else in_channels,
        num_res_blocks=num_res_blocks,
        attention_resolutions=factors,
        dropout=dropout,
        channel_mult=mult,
        num_classes=num_classes if class_cond else None,
        use_checkpoint=use_checkpoint,
        num_heads=num_heads,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        image_size=image_size,
    )


def sr_create_model_and_diffusion(
    large_size: int,
    small_size: int,
    class_cond: bool,
    learn_sigma: bool,
    num_channels: int,
    num_res_blocks: int,
    num_heads: int,
    num_heads_upsample: int,
    attention_resolutions: str,
    dropout: float,
    diffusion_steps: int,
    noise_schedule: str,
    timestep_respacing: str,
    use_kl: bool,
    predict_xstart: bool,
    rescale_timesteps: bool,
    rescale_learned_sigmas: bool,
    use_checkpoint: bool,
    use_scale_shift_norm: bool,
    poly_power: float = 2.0,
    channel_mult: str = "",
    num_classes: int = NUM_CLASSES,
    in_channels: int = 3,
) -> tuple[SuperResModel, SpacedDiffusion]:
    """A super-resolution model and its diffusion from flags.

    :raises InputError: naming everything about the flags that cannot work.
    """
    diffusion = create_gaussian_diffusion(
        steps=diffusion_steps,
        learn_sigma=learn_sigma,
        noise_schedule=noise_schedule,
        use_kl=use_kl,
        predict_xstart=predict_xstart,
        rescale_timesteps=rescale_timesteps,
        rescale_learned_sigmas=rescale_learned_sigmas,
        timestep_respacing=timestep_respacing,
        poly_power=poly_power,
    )
    model = sr_create_model(
        large_size,
        small_size,
        num_channels,
        num_res_blocks,
        learn_sigma=learn_sigma,
        class_cond=class_cond,
        use_checkpoint=use_checkpoint,
        attention_resolutions=attention_resolutions,
        num_heads=num_heads,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        dropout=dropout,
        channel_mult=channel_mult,
        num_classes=num_classes,
        in_channels=in_channels,
    )
    return model, diffusion


def sr_create_model(
    large_size: int,
    small_size: int,
    num_channels: int,
    num_res_blocks: int,
    learn_sigma: bool,
    class_cond: bool,
    use_checkpoint: bool,
    attention_resolutions: str,
    num_heads: int,
    num_heads_upsample: int,
    use_scale_shift_norm: bool,
    dropout: float,
    channel_mult: str = "",
    num_classes: int = NUM_CLASSES,
    in_channels: int = 3,
) -> SuperResModel:
    """A UNet that makes images of ``large_size`` from those of ``small_size``.

    :raises InputError: naming everything about the flags that cannot work.
    """
    if not 1 <= small_size <= large_size:
        raise InputError(f"small_size must lie in 1..{large_size} (large_size), got {small_size}")
    mult = parse_channel_mult(channel_mult, large_size, (64, 256), flag="large_size")
    factors = attention_factors(attention_resolutions, large_size, mult)
    check_model_flags(
        large_size, mult, num_channels, num_res_blocks, num_heads, num_heads_upsample, dropout
    )
    check_channels_and_classes(in_channels, class_cond, num_classes)
    return SuperResModel(
        in_channels=in_channels,
        model_channels=num_channels,
        out_channels=2 * in_channels if learn_sigma else in_channels,
        num_res_blocks=num_res_blocks,
        attention_resolutions=factors,
        dropout=dropout,
        channel_mult=mult,
        num_classes=num_classes if class_cond else None,
        use_checkpoint=use_checkpoint,
        num_heads=num_heads,
        num_heads_upsample=num_heads_upsample,
        use_scale_shift_norm=use_scale_shift_norm,
        image_size=large_size,
    )


def create_gaussian_diffusion(
    *,
    steps: int = 1000,
    learn_sigma: bool = False,
    sigma_small: bool = False,
    noise_schedule: str = "linear",
    use_kl: bool = False,
    predict_xstart: bool = False,
    rescale_timesteps: bool = False,
    rescale_learned_sigmas: bool = False,
    timestep_respacing: str = "",
    poly_power: float = 2.0,
) -> SpacedDiffusion:
    """A diffusion from flags.

    :raises InputError: for an unknown or invalid schedule, or a respacing that cannot be had.
    """
    if use_kl:
        loss_type = gd.LossType.RESCALED_KL
    elif rescale_learned_sigmas:
        loss_type = gd.LossType.RESCALED_MSE
    else:
        loss_type = gd.LossType.MSE
    if learn_sigma:
        var_type = gd.ModelVarType.LEARNED_RANGE
    elif sigma_small:
        var_type = gd.ModelVarType.FIXED_SMALL
    else:
        var_type = gd.ModelVarType.FIXED_LARGE
    mean_type = gd.ModelMeanType.START_X if predict_xstart else gd.ModelMeanType.EPSILON
    betas = gd.get_named_beta_schedule(noise_schedule, steps, poly_power)
    if not np.prod(1 - betas):
        raise InputError(
            f"noise_schedule {noise_schedule} in {steps} diffusion_steps leaves nothing of the "
            "image (a beta reaches 1); give more diffusion_steps"
        )
    return SpacedDiffusion(
        use_timesteps=respaced_timesteps(betas, timestep_respacing),
        betas=betas,
        model_mean_type=mean_type,
        model_var_type=var_type,
        loss_type=loss_type,
        rescale_timesteps=rescale_timesteps,
    )


# -- what flags can work -----------------------------------------------------------------------


def parse_channel_mult(
    text: str, image_size: int, known_sizes: Iterable[int], flag: str = "image_size"
) -> tuple[int, ...]:
    """The channel multiples ``"1,2,2,2"``, or where there are none those of the image size.

    :raises InputError: for another form, or an image size that has no multiples of its own.
    """
    if not text:
        if image_size not in known_sizes:
            raise InputError(
                f"{flag} {image_size} has no default channel_mult ({list(known_sizes)} have); "
                f"give one, such as --channel_mult {suggested_mult(image_size)}"
            )
        return CHANNEL_MULTS[image_size]
    try:
        mult = tuple(int(part) for part in text.split(","))
    except ValueError:
        mult = ()
    if not mult or min(mult) < 1:
        raise InputError(f"channel_mult must be whole numbers such as 1,2,2,2, got {text!r}")
    return mult


def suggested_mult(image_size: int) -> str:
    """Channel multiples for an image size without defaults: as many levels as halve it evenly."""
    levels = 1
    while levels < 4 and image_size % 2**levels == 0 and image_size >= 4 * 2**levels:
        levels += 1
    return ",".join(["1", *["2"] * (levels - 1)])


def attention_factors(text: str, image_size: int, mult: tuple[int, ...]) -> tuple[int, ...]:
    """How much smaller than the image the resolutions of ``"16,8"`` are.

    :raises InputError: if a resolution is no number, or never occurs in the model.
    """
    occurring = {image_size // 2**level: 2**level for level in range(len(mult))}
    factors = []
    for part in filter(None, text.split(",")):
        if not part.strip().isdigit() or int(part) not in occurring:
            raise InputError(
                f"attention_resolutions {text!r}: {part.strip()!r} never occurs at image size "
                f"{image_size} with channel_mult {','.join(map(str, mult))}; "
                f"these do: {','.join(map(str, occurring))}"
            )
        factors.append(occurring[int(part)])
    return tuple(factors)


def check_model_flags(
    image_size: int,
    mult: tuple[int, ...],
    num_channels: int,
    num_res_blocks: int,
    num_heads: int,
    num_heads_upsample: int,
    dropout: float,
) -> None:
    """:raises InputError: naming all numbers that no UNet can be made of."""
    problems = []
    factor = 2 ** (len(mult) - 1)
    if image_size < 1 or image_size % factor:
        nearest = max(factor, round(image_size / factor) * factor)
        problems.append(
            f"image size {image_size} is not divisible by {factor}, the downsampling of "
            f"{len(mult)} levels (nearest that is: {nearest})"
        )
    if num_channels < 1 or any(num_channels * m % GROUPS for m in mult):
        nearest = max(GROUPS, round(num_channels / GROUPS) * GROUPS)
        problems.append(
            f"num_channels {num_channels} times channel_mult must be divisible by {GROUPS}, "
            f"the groups of the group norm (nearest that is: {nearest})"
        )
    if num_res_blocks < 1:
        problems.append(f"num_res_blocks must be at least 1, got {num_res_blocks}")
    for flag, heads in (("num_heads", num_heads), ("num_heads_upsample", num_heads_upsample)):
        if heads == -1 and flag == "num_heads_upsample":
            continue
        if heads < 1 or any(num_channels * m % heads for m in mult):
            problems.append(
                f"{flag} {heads} does not divide the channels {num_channels} x {mult} "
                f"(nearest that does: {_nearest_divisor(num_channels, heads)})"
            )
    if not 0 <= dropout < 1:
        problems.append(f"dropout must lie in [0, 1), got {dropout}")
    if problems:
        raise InputError("; ".join(problems))


def check_channels_and_classes(in_channels: int, class_cond: bool, num_classes: int) -> None:
    """:raises InputError: for images of another kind than grey, colour, or colour with alpha."""
    if in_channels not in IMAGE_CHANNELS:
        nearest = min(IMAGE_CHANNELS, key=lambda channels: abs(channels - in_channels))
        raise InputError(
            "in_channels must be 1 (grey), 3 (colour) or 4 (colour with alpha), "
            f"got {in_channels} (nearest that can be: {nearest})"
        )
    if class_cond and num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [d for d in range(1, max(number, 1) + 1) if number % d == 0]
    return min(divisors, key=lambda d: abs(d - wanted), default=1)


# -- flags <-> dictionaries ----------------------------------------------------------------------


def add_dict_to_argparser(parser: argparse.ArgumentParser, default_dict: Mapping[str, Any]) -> None:
    """Add a flag for each entry: its type and default from the value, its help from ``HELP``."""
    for name, default in default_dict.items():
        parser.add_argument(
            f"--{name}", default=default, type=_flag_type(name, default), help=HELP.get(name)
        )


def _flag_type(name: str, default: Any) -> Callable[[str], Any]:
    if name == "num_classes":
        return count_or_auto
    return str if default is None else str2bool if isinstance(default, bool) else type(default)


def count_or_auto(text: str) -> int | str:
    """A whole number, or the word ``auto``."""
    try:
        return AUTO if text == AUTO else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or {AUTO}, got {text!r}") from None


def args_to_dict(args: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """The values of the flags named ``keys``."""
    return {key: getattr(args, key) for key in keys}
