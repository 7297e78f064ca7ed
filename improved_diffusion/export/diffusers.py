"""Image models as a folder that Hugging Face's diffusers loads with ``DDPMPipeline``.

The network becomes a ``UNet2DModel`` and the process a ``DDPMScheduler``. What those two cannot
express is refused, and what is written is loaded and compared before it stands under its name.
diffusers itself is imported where it is used only: the mapping needs nothing of it.
"""

import copy
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch as th

from ..errors import InputError
from ..gaussian_diffusion import ModelMeanType, ModelVarType
from ..nn import NO_LABEL, NORM_GROUPS, timestep_embedding
from ..respace import SpacedDiffusion
from ..system.files import sync_folder
from ..unet import AttentionBlock, Downsample, ResBlock, SuperResModel, UNetModel, Upsample

UNFINISHED = ".unfinished"  # how the name of a folder in the making ends
TOLERANCE = 1e-4  # the largest difference of two outputs that counts as rounding
MODEL_TIMESTEPS = 1000  # what rescaled timesteps run up to

PREDICTIONS = {
    ModelMeanType.EPSILON: "epsilon",
    ModelMeanType.START_X: "sample",
    ModelMeanType.V: "v_prediction",
}
VARIANCES = {
    ModelVarType.FIXED_LARGE: "fixed_large",
    ModelVarType.FIXED_SMALL: "fixed_small",
    ModelVarType.LEARNED_RANGE: "learned_range",
}


# -- what can be expressed -----------------------------------------------------------------------


def _reasons_of_the_model(model: UNetModel) -> list[str]:
    if isinstance(model, SuperResModel):
        return ["UNet2DModel takes no low-resolution image, which a super-resolution model needs"]
    reasons = []
    if model.channel_mult[0] != 1:
        reasons.append(
            f"channel_mult begins with {model.channel_mult[0]}, and UNet2DModel's first "
            "convolution is as wide as its first level (1)"
        )
    if model.patch_size != 1:
        reasons.append(f"UNet2DModel makes no channels of patches (patch_size {model.patch_size})")
    if next(model.input_blocks.parameters()).ndim != 4:
        reasons.append("UNet2DModel takes images of two dimensions only")
    if not all(m.use_conv for m in model.modules() if isinstance(m, (Downsample, Upsample))):
        reasons.append("UNet2DModel resamples by convolutions, and conv_resample is False")
    return reasons + _reasons_of_the_heads(model)


def _reasons_of_the_heads(model: UNetModel) -> list[str]:
    """diffusers has one width of a head for all levels, where we have one number of heads."""
    blocks = _attention_blocks(model)
    widths = sorted({block.channels // block.num_heads for block in blocks})
    if len(widths) == 1 or all(block.num_heads == 1 for block in blocks):
        return []
    return [
        "UNet2DModel has one attention_head_dim for all levels, and the heads here are "
        f"{' and '.join(map(str, widths))} channels wide (num_heads 1 everywhere would do)"
    ]


def _reasons_of_the_diffusion(diffusion: SpacedDiffusion) -> list[str]:
    reasons = []
    if diffusion.model_mean_type not in PREDICTIONS:
        reasons.append(f"DDPMScheduler has no prediction_type {diffusion.model_mean_type.name}")
    if diffusion.model_var_type not in VARIANCES:
        reasons.append(f"DDPMScheduler has no variance_type {diffusion.model_var_type.name}")
    if diffusion.num_timesteps != diffusion.original_num_steps:
        reasons.append(
            "the timesteps are respaced, which a scheduler does when it samples: leave "
            "timestep_respacing out, and give the pipeline num_inference_steps"
        )
    return reasons


def _attention_blocks(model: UNetModel) -> list[AttentionBlock]:
    return [module for module in model.modules() if isinstance(module, AttentionBlock)]


# -- the configurations --------------------------------------------------------------------------


def unet_config(model: UNetModel, diffusion: SpacedDiffusion, image_size: int) -> dict[str, Any]:
    """Arguments of the ``UNet2DModel`` that computes what ``model`` does."""
    attends = [2**level in model.attention_resolutions for level in range(len(model.channel_mult))]
    scale_shift = next(m.use_scale_shift_norm for m in model.modules() if isinstance(m, ResBlock))
    return {
        "sample_size": image_size,
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "block_out_channels": tuple(mult * model.model_channels for mult in model.channel_mult),
        "layers_per_block": model.num_res_blocks,
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        "attention_head_dim": _head_width(model),
        "dropout": model.dropout,
        "norm_num_groups": NORM_GROUPS,
        "attn_norm_num_groups": NORM_GROUPS,  # or a middle block that scales and shifts has none
        "norm_eps": model.out[0].eps,
        "downsample_padding": 1,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "num_class_embeds": model.num_classes and model.num_classes + bool(model.label_dropout),
        **_time_config(diffusion),
    }


def _head_width(model: UNetModel) -> int | None:
    """Channels of a head; None stands for all that a level has, which is one head."""
    blocks = _attention_blocks(model)
    if all(block.num_heads == 1 for block in blocks):
        return None
    return blocks[0].channels // blocks[0].num_heads


def _time_config(diffusion: SpacedDiffusion) -> dict[str, Any]:
    if tabulates_time(diffusion):
        return {
            "time_embedding_type": "learned",
            "num_train_timesteps": diffusion.original_num_steps,
        }
    return {"time_embedding_type": "positional", "flip_sin_to_cos": True, "freq_shift": 0}


def tabulates_time(diffusion: SpacedDiffusion) -> bool:
    """Whether the model sees timesteps that are not the scheduler's.

    ``UNet2DModel`` cannot scale timesteps. It can look their embedding up in a table, though, and
    that has room for the embeddings of scaled ones.
    """
    return diffusion.rescale_timesteps and diffusion.original_num_steps != MODEL_TIMESTEPS


def scheduler_config(diffusion: SpacedDiffusion) -> dict[str, Any]:
    """Arguments of the ``DDPMScheduler`` whose steps are those of ``diffusion.p_sample``.

    Its variances are ours but for t = 0, where ours stand in for a logarithm of 0 and neither
    side draws noise. It keeps the products of 1 - beta in float32, so that its last steps round
    the image's weight against that of x_t differently.
    """
    return {
        "num_train_timesteps": diffusion.num_timesteps,
        "trained_betas": diffusion.betas.tolist(),
        "prediction_type": PREDICTIONS[diffusion.model_mean_type],
        "variance_type": VARIANCES[diffusion.model_var_type],
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }


# -- the weights ---------------------------------------------------------------------------------

# Our name of a module -> theirs; for those of the whole network, then within a residual or an
# attention block.
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
IN_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
IN_ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0"}
IN_BLOCK = IN_RES_BLOCK | IN_ATTENTION
RESAMPLING = {"op": "downsamplers.0.conv", "conv": "upsamplers.0.conv"}
MIDDLE = ("resnets.0", "attentions.0", "resnets.1")


def diffusers_name(name: str, num_res_blocks: int) -> str:
    """The name in a ``UNet2DModel`` of an entry of a ``UNetModel``'s ``state_dict``.

    The three projections of attention are one ``to_qkv`` in these names, see :func:`split_qkv`.
    """
    module, _, kind = name.rpartition(".")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    match = re.fullmatch(r"(input|middle|output)_blocks?\.(\d+)\.(.+)", module)
    assert match, name
    part, number, inner = match.group(1), int(match.group(2)), match.group(3)
    if part == "middle":
        return f"mid_block.{MIDDLE[number]}.{IN_BLOCK[inner]}.{kind}"
    # On the way down, the first block is the stem, and each level ends with a Downsample of its
    # own; on the way up, a level has one residual block more, and its Upsample within the last.
    level, position = divmod(number - (part == "input"), num_res_blocks + 1)
    side = "down_blocks" if part == "input" else "up_blocks"
    inner = inner.partition(".")[2]  # the number of the layer says no more than its name does
    if inner in RESAMPLING:
        return f"{side}.{level}.{RESAMPLING[inner]}.{kind}"
    row = "attentions" if inner in IN_ATTENTION else "resnets"
    return f"{side}.{level}.{row}.{position}.{IN_BLOCK[inner]}.{kind}"


def split_qkv(qkv: th.Tensor, heads: int) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Take the projections to queries, keys and values apart.

    :param qkv: weight [3C, C] or bias [3C]; each head's q, k and v rows side by side.
    :return: three of [C, C] or [C], each with the heads one after the other.
    """
    by_head = qkv.reshape(heads, 3, -1, *qkv.shape[1:])
    q, k, v = (by_head[:, i].flatten(0, 1).contiguous() for i in range(3))
    return q, k, v


def convert_weights(model: UNetModel, diffusion: SpacedDiffusion) -> dict[str, th.Tensor]:
    """The ``state_dict`` of the ``UNet2DModel`` that :func:`unet_config` describes.

    Where labels were dropped, no label is the one after the last: it adds nothing.
    """
    found: dict[str, th.Tensor] = {}
    for name, value in model.state_dict().items():
        new = diffusers_name(name, model.num_res_blocks)
        if ".attentions." in new and value.ndim == 3:
            value = value[..., 0]  # a convolution of kernel size 1 is a linear layer there
        if ".to_qkv." in new:
            block: Any = model.get_submodule(name.rpartition(".qkv.")[0])
            for letter, part in zip("qkv", split_qkv(value, block.num_heads), strict=True):
                found[new.replace("to_qkv", f"to_{letter}")] = part
        else:
            found[new] = value
    if model.num_classes and model.label_dropout:
        known = found["class_embedding.weight"]
        found["class_embedding.weight"] = th.cat([known, th.zeros_like(known[:1])])
    if tabulates_time(diffusion):
        found["time_proj.weight"] = embedding_table(diffusion, model.model_channels)
    return found


def embedding_table(diffusion: SpacedDiffusion, width: int) -> th.Tensor:
    """The embedding of each timestep as the model sees it, [T, width]."""
    steps = diffusion.original_num_steps
    seen = th.arange(steps).float() * (MODEL_TIMESTEPS / steps)
    return timestep_embedding(seen, width)


# -- the folder ----------------------------------------------------------------------------------


def import_diffusers() -> Any:
    """The package diffusers.

    :raises InputError: if it is not installed.
    """
    try:
        import diffusers
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel  # noqa: F401  lazy there
    except (ImportError, RuntimeError) as error:  # the latter around what fails within it
        raise InputError(
            f'diffusers cannot be imported ({error}); pip install -e ".[diffusers]"'
        ) from None
    return diffusers


def check_out_dir(out_dir: str | os.PathLike) -> None:
    """:raises InputError: unless a new folder can appear as ``out_dir``."""
    out = Path(out_dir).absolute()
    if out.exists() and not out.is_dir():
        raise InputError(f"--out_dir {out_dir} is a file; give a new folder")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out_dir {out_dir} is not empty; give a new folder")
    if not out.parent.is_dir():
        raise InputError(f"the folder of --out_dir {out_dir} does not exist; make it first")


def write_pipeline(
    model: UNetModel, diffusion: SpacedDiffusion, image_size: int, out_dir: str | os.PathLike
) -> float:
    """Write the folder for ``DDPMPipeline.from_pretrained``; it appears once it has been checked.

    :param model: stays as it is, on its device and in its mode.
    :param out_dir: a folder that is not there yet, or empty.
    :return: the largest difference of the network's outputs once it was written and loaded again.
    :raises InputError: if diffusers is missing or cannot express the model, the folder is taken,
        or the outputs differ by more than :data:`TOLERANCE`; nothing is left behind then.
    """
    check_out_dir(out_dir)
    reasons = [*_reasons_of_the_model(model), *_reasons_of_the_diffusion(diffusion)]
    if reasons:
        raise InputError(f"diffusers cannot express this model: {'; '.join(reasons)}")
    diffusers = import_diffusers()
    model = copy.deepcopy(model).cpu().eval()
    out = Path(out_dir).absolute()
    with tempfile.TemporaryDirectory(UNFINISHED, f".{out.name}.", out.parent) as temporary:
        made = Path(temporary, out.name)
        build_pipeline(diffusers, model, diffusion, image_size).save_pretrained(made)
        loaded = load_pipeline(diffusers, made)
        difference = largest_difference(loaded.unet, model, diffusion, image_size)
        if not difference <= TOLERANCE:  # nor if it is not a number
            raise InputError(
                f"the exported model differs by {difference:.1e} from this one, more than "
                f"{TOLERANCE:.0e}; nothing was written (diffusers {diffusers.__version__})"
            )
        _settle_files(made)
        if out.is_dir():
            out.rmdir()  # empty; Windows renames over no folder
        os.replace(made, out)
    sync_folder(out.parent)
    return difference


def build_pipeline(
    diffusers: Any, model: UNetModel, diffusion: SpacedDiffusion, image_size: int
) -> Any:
    """The ``DDPMPipeline`` of a model and its diffusion, in memory."""
    unet = diffusers.UNet2DModel(**unet_config(model, diffusion, image_size))
    unet.load_state_dict(convert_weights(model, diffusion))
    scheduler = diffusers.DDPMScheduler(**scheduler_config(diffusion))
    return diffusers.DDPMPipeline(unet=unet.eval(), scheduler=scheduler)


def load_pipeline(diffusers: Any, folder: str | os.PathLike) -> Any:
    """``DDPMPipeline.from_pretrained`` of a local folder, without its progress bar."""
    diffusers.utils.logging.disable_progress_bar()
    settings = {"local_files_only": True, "low_cpu_mem_usage": False}  # True needs accelerate
    return diffusers.DDPMPipeline.from_pretrained(os.fspath(folder), **settings)


def _settle_files(folder: Path) -> None:
    """Flush everything in ``folder`` to the disk, so that its name never stands for less."""
    mode = (folder / "model_index.json").stat().st_mode
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
            continue
        path.chmod(mode)  # safetensors makes files that only their owner can read
        with path.open("rb+") as file:
            os.fsync(file.fileno())


# -- the comparison ------------------------------------------------------------------------------


def class_labels(y: th.Tensor | None, model: UNetModel) -> th.Tensor | None:
    """What the pipeline's network calls our labels ``y``, of which some may be ``NO_LABEL``."""
    if y is None or model.num_classes is None:
        return None
    return th.where(y == NO_LABEL, model.num_classes, y)


def largest_difference(
    unet: Any, model: UNetModel, diffusion: SpacedDiffusion, image_size: int
) -> float:
    """The largest difference of the two networks' outputs at several timesteps; NaN if one is.

    Both are on the CPU and in eval mode.
    """
    generator = th.Generator().manual_seed(0)
    x = th.randn((2, model.in_channels, image_size, image_size), generator=generator)
    labels = None
    if model.num_classes is not None:
        labels = th.randint(model.num_classes, (2,), generator=generator)
        if model.label_dropout:
            labels[0] = NO_LABEL
    last = diffusion.num_timesteps - 1
    differences = []
    with th.no_grad():
        for i in sorted({0, min(1, last), (last + 1) // 2, last}):
            t = th.full((2,), i)
            ours = diffusion.call_model(model, x, t, None if labels is None else {"y": labels})
            theirs = unet(x, t[0], class_labels=class_labels(labels, model)).sample
            differences.append((ours - theirs).abs().max())
    return float(th.stack(differences).max())
