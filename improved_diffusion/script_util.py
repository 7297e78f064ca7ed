"""Flags with their help texts, and the factories that turn them into a model and a diffusion."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from . import gaussian_diffusion as gd
from .commands.cli import str2bool
from .errors import InputError, together
from .options.flag_help import HELP
from .options.model_flags import check_model_flags, sr_check_model_flags
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
    make_diffusion = partial(
        create_gaussian_diffusion,
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
    make_model = partial(
        create_model,
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
    return together(make_model, make_diffusion)


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
    levels = check_model_flags(
        image_size,
        num_channels=num_channels,
        num_res_blocks=num_res_blocks,
        num_heads=num_heads,
        num_heads_upsample=num_heads_upsample,
        attention_resolutions=attention_resolutions,
        dropout=dropout,
        channel_mult=channel_mult,
        in_channels=in_channels,
        num_classes=num_classes if class_cond else None,
    )
    return UNetModel(
        in_channels=in_channels,
        model_channels=num_channels,
        out_channels=2 * in_channels if learn_sigma else in_channels,
        num_res_blocks=num_res_blocks,
        attention_resolutions=levels.attention_factors,
        dropout=dropout,
        channel_mult=levels.channel_mult,
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
    make_diffusion = partial(
        create_gaussian_diffusion,
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
    make_model = partial(
        sr_create_model,
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
    return together(make_model, make_diffusion)


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
    levels = sr_check_model_flags(
        large_size,
        small_size,
        num_channels=num_channels,
        num_res_blocks=num_res_blocks,
        num_heads=num_heads,
        num_heads_upsample=num_heads_upsample,
        attention_resolutions=attention_resolutions,
        dropout=dropout,
        channel_mult=channel_mult,
        in_channels=in_channels,
        num_classes=num_classes if class_cond else None,
    )
    return SuperResModel(
        in_channels=in_channels,
        model_channels=num_channels,
        out_channels=2 * in_channels if learn_sigma else in_channels,
        num_res_blocks=num_res_blocks,
        attention_resolutions=levels.attention_factors,
        dropout=dropout,
        channel_mult=levels.channel_mult,
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


# What shapes a model and a diffusion, under the names of their flags.
MODEL_FLAGS = (
    "num_channels num_res_blocks num_heads num_heads_upsample attention_resolutions dropout "
    "channel_mult in_channels"
).split()
DIFFUSION_FLAGS = (
    "learn_sigma sigma_small noise_schedule use_kl predict_xstart rescale_timesteps "
    "rescale_learned_sigmas timestep_respacing poly_power"
).split()


def check_flags(flags: Mapping[str, Any]) -> None:
    """Whether a model and a diffusion can be made of flags, before anything slow begins.

    The number of classes is not looked at: it may depend on the data.

    :param flags: by name; those of a super-resolution model have a ``large_size``.
    :raises InputError: naming everything that cannot work.
    """
    of_the_diffusion = {name: flags[name] for name in DIFFUSION_FLAGS if name in flags}
    of_the_model = {name: flags[name] for name in MODEL_FLAGS}
    sizes = ("large_size", "small_size") if "large_size" in flags else ("image_size",)
    check = sr_check_model_flags if "large_size" in flags else check_model_flags
    together(
        partial(check, *(flags[size] for size in sizes), **of_the_model),
        partial(create_gaussian_diffusion, steps=flags["diffusion_steps"], **of_the_diffusion),
    )


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
