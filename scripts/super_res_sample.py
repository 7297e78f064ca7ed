"""Enlarge a batch of images with a trained super-resolution model."""

import io
import zlib
from argparse import Namespace
from collections.abc import Sequence
from zipfile import BadZipFile

import numpy as np
import torch as th

from improved_diffusion import dist_util, logger
from improved_diffusion.commands import cli, runs
from improved_diffusion.commands.sampling import (
    choose_sampler,
    count_classes,
    describe,
    load_trained,
    parse_flags_for_model,
    sample,
    sampling_defaults,
)
from improved_diffusion.errors import InputError
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.sampling.samples import Condition
from improved_diffusion.script_util import (
    args_to_dict,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)
from improved_diffusion.system.files import read_file
from improved_diffusion.training.checkpoints import seed_everything


def main() -> None:
    model_defaults = sr_model_and_diffusion_defaults()
    args = parse_flags_for_model(
        __doc__, sampling_defaults() | {"base_samples": ""}, model_defaults
    )
    choose_sampler(args)
    small, classes = load_base_samples(args)
    dist_util.setup_dist()
    seed_everything(args.seed)
    model, diffusion = sr_create_model_and_diffusion(**args_to_dict(args, model_defaults))
    load_trained(model, args.model_path)
    with runs.open_run("super_res_sample", args.log_dir) as folder:
        describe(args, model)
        logger.log(f"Enlarging {args.num_samples} images to {args.large_size} pixels")
        sample(args, folder, model, diffusion, args.large_size, small_condition(small, classes))


def load_base_samples(args: Namespace) -> tuple[th.Tensor, th.Tensor | None]:
    """The small images as float32 [N, C, H, W] in [-1, 1], and their classes if they count."""
    path = args.base_samples
    if not path:
        raise InputError("no --base_samples given; name the .npz file that image_sample.py wrote")
    try:
        arrays = np.load(io.BytesIO(read_file(path)), allow_pickle=False)
        images = arrays["arr_0"]
        classes = arrays["arr_1"] if args.class_cond else None
    except InputError:
        raise
    except (ValueError, LookupError, OSError, EOFError, zlib.error, BadZipFile) as error:
        raise InputError(f"{path} is no .npz of samples to start from ({error})") from None
    size, channels = args.small_size, args.in_channels
    if images.shape[1:] != (size, size, channels) or images.dtype != np.uint8 or not len(images):
        raise InputError(
            f"{path} holds {images.dtype} {images.shape}; --small_size {size} needs "
            f"uint8 (N, {size}, {size}, {channels})"
        )
    count = count_classes(args)
    if classes is not None and not (
        classes.shape == images.shape[:1]
        and np.issubdtype(classes.dtype, np.integer)
        and np.isin(classes, range(count)).all()
    ):
        raise InputError(f"{path}: arr_1 must be one class of 0 to {count - 1} for each image")
    scaled = th.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return scaled, None if classes is None else th.from_numpy(classes.astype(np.int64))


def small_condition(small: th.Tensor, classes: th.Tensor | None) -> Condition:
    """The small images, over and over, and their classes if they count."""

    def condition(indices: Sequence[int], noise: ImageNoise) -> dict[str, th.Tensor]:
        rows = th.tensor(indices) % len(small)
        return {"low_res": small[rows]} | ({} if classes is None else {"y": classes[rows]})

    return condition


if __name__ == "__main__":
    cli.run(main)
