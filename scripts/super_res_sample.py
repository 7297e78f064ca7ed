"""Enlarge a batch of images with a trained super-resolution model."""

import io
import zlib
from argparse import Namespace
from collections.abc import Iterator
from zipfile import BadZipFile

import numpy as np
import torch as th

from improved_diffusion import cli, dist_util, logger, runs
from improved_diffusion.checkpointing import seed_everything
from improved_diffusion.errors import InputError
from improved_diffusion.files import read_file
from improved_diffusion.sampling_script import (
    Labelled,
    choose_sampler,
    collect,
    describe,
    evaluating,
    load_trained,
    parse_flags_for_model,
    sample_batch,
    sampling_defaults,
    save_samples,
)
from improved_diffusion.script_util import (
    args_to_dict,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)


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
        describe(args.model_path, args.precision)
        logger.log(f"Enlarging {args.num_samples} images to {args.large_size} pixels")
        with evaluating(model, args.precision, args.compile) as call:
            enlarged = batches(args, call, diffusion, small, classes)
            images, labels = collect(enlarged, args.num_samples)
        save_samples(folder, images, labels)


def load_base_samples(args: Namespace) -> tuple[th.Tensor, th.Tensor | None]:
    """The small images as float32 [N, 3, H, W] in [-1, 1], and their classes if they count."""
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
    size = args.small_size
    if images.shape[1:] != (size, size, 3) or images.dtype != np.uint8 or not len(images):
        raise InputError(
            f"{path} holds {images.dtype} {images.shape}; --small_size {size} needs "
            f"uint8 (N, {size}, {size}, 3)"
        )
    if classes is not None and not (
        classes.shape == images.shape[:1]
        and np.issubdtype(classes.dtype, np.integer)
        and np.isin(classes, range(args.num_classes)).all()
    ):
        raise InputError(
            f"{path}: arr_1 must be one class of 0 to {args.num_classes - 1} for each image"
        )
    scaled = th.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return scaled, None if classes is None else th.from_numpy(classes.astype(np.int64))


def batches(args: Namespace, model, diffusion, small, classes) -> Iterator[Labelled]:
    """Endless batches; the ranks take turns with the small images, over and over."""
    shape = (args.batch_size, 3, args.large_size, args.large_size)
    settings = {"sampler": args.sampler, "clip_denoised": args.clip_denoised}
    first = dist_util.rank() * args.batch_size
    while True:
        rows = th.arange(first, first + args.batch_size) % len(small)
        first += args.batch_size * dist_util.world_size()
        kwargs = {"low_res": small[rows].to(dist_util.dev())}
        labels = None
        if classes is not None:
            kwargs["y"] = classes[rows].to(dist_util.dev())
            labels = dist_util.all_gather_cat(kwargs["y"]).cpu().numpy()
        yield sample_batch(diffusion, model, shape, kwargs, **settings), labels


if __name__ == "__main__":
    cli.run(main)
