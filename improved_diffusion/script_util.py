"""Flags as dictionaries, and the factories that turn them into a model and a diffusion.

The factories take the reference's arguments by position or name, and all flags that came since by
name. Inside, only options travel: :func:`build_model` and :func:`build_diffusion` make of them what
they say.
"""

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from . import gaussian_diffusion as gd
from .diffusion.loss_weights import LOSS_WEIGHTS
from .options.command_line import add_flag, str2bool
from .options.model import (
    NUM_CLASSES,
    DiffusionOptions,
    ImageModelOptions,
    ModelOptions,
    SuperResOptions,
)
from .options.training import ImageTraining
from .respace import SpacedDiffusion, respaced_timesteps
from .unet import SuperResModel, UNetModel

__all__ = [
    "NUM_CLASSES",
    "add_dict_to_argparser",
    "args_to_dict",
    "build_diffusion",
    "build_model",
    "create_gaussian_diffusion",
    "create_model",
    "create_model_and_diffusion",
    "model_and_diffusion_defaults",
    "sr_create_model",
    "sr_create_model_and_diffusion",
    "sr_model_and_diffusion_defaults",
    "str2bool",
]


def model_and_diffusion_defaults() -> dict[str, Any]:
    """Defaults of the flags of an image model and its diffusion."""
    return ImageModelOptions.defaults()


def sr_model_and_diffusion_defaults() -> dict[str, Any]:
    """Defaults of the flags of a super-resolution model and its diffusion."""
    return SuperResOptions.defaults()


# -- from options --------------------------------------------------------------------------------


def build_model(options: ModelOptions) -> UNetModel:
    """The UNet of these options: a :class:`SuperResModel` for those of super-resolution."""
    kind = SuperResModel if isinstance(options, SuperResOptions) else UNetModel
    levels = options.levels
    return kind(
        in_channels=options.in_channels,
        model_channels=options.num_channels,
        out_channels=options.in_channels * (2 if options.learn_sigma else 1),
        num_res_blocks=options.num_res_blocks,
        attention_resolutions=levels.attention_factors,
        dropout=options.dropout,
        channel_mult=levels.channel_mult,
        num_classes=options.class_count,
        use_checkpoint=options.use_checkpoint,
        num_heads=options.num_heads,
        num_heads_upsample=options.num_heads_upsample,
        use_scale_shift_norm=options.use_scale_shift_norm,
        image_size=options.size,
        label_dropout=options.label_dropout,
        patch_size=options.patch_size,
    )


def build_diffusion(options: DiffusionOptions) -> SpacedDiffusion:
    """The diffusion of these options."""
    if options.use_kl:
        loss_type = gd.LossType.RESCALED_KL
    elif options.rescale_learned_sigmas:
        loss_type = gd.LossType.RESCALED_MSE
    else:
        loss_type = gd.LossType.MSE
    if options.learn_sigma:
        var_type = gd.ModelVarType.LEARNED_RANGE
    elif options.sigma_small:
        var_type = gd.ModelVarType.FIXED_SMALL
    else:
        var_type = gd.ModelVarType.FIXED_LARGE
    if options.predict_v:
        mean_type = gd.ModelMeanType.V
    elif options.predict_xstart:
        mean_type = gd.ModelMeanType.START_X
    else:
        mean_type = gd.ModelMeanType.EPSILON
    betas = gd.get_named_beta_schedule(
        options.noise_schedule, options.diffusion_steps, options.poly_power
    )
    return SpacedDiffusion(
        use_timesteps=respaced_timesteps(betas, options.timestep_respacing),
        betas=betas,
        model_mean_type=mean_type,
        model_var_type=var_type,
        loss_type=loss_type,
        rescale_timesteps=options.rescale_timesteps,
        loss_weight=LOSS_WEIGHTS.taking(options.loss_weight, gamma=options.min_snr_gamma),
    )


# -- from arguments ------------------------------------------------------------------------------


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
    **ours: Any,
) -> tuple[UNetModel, SpacedDiffusion]:
    """An image model and its diffusion.

    :param ours: further flags of :class:`.options.model.ImageModelOptions`.
    :raises InputError: naming everything about the flags that cannot work.
    """
    options = ImageModelOptions(**_merged(locals()))
    return build_model(options), build_diffusion(options)


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
    **ours: Any,
) -> UNetModel:
    """A UNet for images of ``image_size``.

    :param attention_resolutions: heights at which attention sits, such as "16,8"; ``UNetModel``
        itself takes downsampling factors.
    :param ours: further flags of :class:`.options.model.ImageModelOptions`.
    :raises InputError: naming everything about the flags that cannot work.
    """
    return build_model(ImageModelOptions(**_merged(locals())))


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
    **ours: Any,
) -> tuple[UNetModel, SpacedDiffusion]:
    """A super-resolution model and its diffusion.

    :param ours: further flags of :class:`.options.model.SuperResOptions`.
    :raises InputError: naming everything about the flags that cannot work.
    """
    options = SuperResOptions(**_merged(locals()))
    return build_model(options), build_diffusion(options)


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
    **ours: Any,
) -> UNetModel:
    """A UNet that makes images of ``large_size`` from those of ``small_size``.

    :param ours: further flags of :class:`.options.model.SuperResOptions`.
    :raises InputError: naming everything about the flags that cannot work.
    """
    return build_model(SuperResOptions(**_merged(locals())))


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
    **ours: Any,
) -> SpacedDiffusion:
    """A diffusion of ``steps`` timesteps.

    :param ours: further flags of :class:`.options.model.DiffusionOptions`.
    :raises InputError: for an unknown or invalid schedule, or a respacing that cannot be had.
    """
    flags = _merged(locals())
    return build_diffusion(DiffusionOptions(diffusion_steps=flags.pop("steps"), **flags))


def _merged(arguments: dict[str, Any]) -> dict[str, Any]:
    """A factory's arguments as options take them: ``ours`` among them, a respacing as text."""
    merged = {k: value for k, value in arguments.items() if k != "ours"} | arguments["ours"]
    respacing = merged.get("timestep_respacing", "")
    if not isinstance(respacing, str):  # the published code takes lists and None, too
        merged["timestep_respacing"] = ",".join(map(str, respacing or ()))
    return merged


# -- flags <-> dictionaries ----------------------------------------------------------------------


def add_dict_to_argparser(parser: argparse.ArgumentParser, default_dict: Mapping[str, Any]) -> None:
    """Add a flag for each entry, of its value's type, with the help of ours of that name."""
    known = SuperResOptions.flags() | ImageTraining.flags()
    for name, default in default_dict.items():
        kind = str if default is None else type(default)
        add_flag(parser, name, default, kind, known.get(name))


def args_to_dict(args: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """The values of the flags named ``keys``."""
    return {key: getattr(args, key) for key in keys}
