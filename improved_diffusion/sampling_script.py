"""What the sampling and evaluation scripts share: their flags, the model, batches, files."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch as th

from . import checkpointing, cpu, dist_util, logger, runs
from .cli import Parser
from .compiling import Compiled
from .dpm_solver import dpm_solver_sample_loop
from .errors import InputError
from .files import atomic_write, is_local
from .gaussian_diffusion import GaussianDiffusion
from .image_grid import save_grid, to_uint8
from .precision import Precision, check_precision
from .script_util import add_dict_to_argparser

SAMPLERS = ("ddpm", "ddim", "dpmpp")
DPMPP_STEPS = 20  # where sampling_steps does not say
GRID_IMAGES = 64  # of the picture beside the .npz


def sampling_defaults() -> dict[str, Any]:
    """Defaults of the flags of sampling: the reference's, and ours behind them."""
    return {
        "clip_denoised": True,
        "num_samples": 10000,
        "batch_size": 16,
        "use_ddim": False,
        "sampler": "",
        "sampling_steps": 0,
        "model_path": "",
        "seed": 0,
        "log_dir": "",
        "precision": "fp32",
        "compile": False,
        "num_threads": 0,
    }


def parse_flags_for_model(
    description: str, defaults: dict[str, Any], model_defaults: dict[str, Any]
) -> argparse.Namespace:
    """Read the flags of a script that uses a trained model, the model's from its ``config.json``.

    ``args.model_path`` may be a run's folder, and becomes the path of the EMA to take there;
    ``args.trained_classes`` becomes the names of the classes of its data, or None.

    :raises InputError: for flags that cannot work, or contradict the model's training.
    """
    parser = Parser(description)
    add_dict_to_argparser(parser, defaults | model_defaults)
    args, given = parser.parse_args_and_given()
    cpu.configure_cpu(args.num_threads)
    check_counts(num_samples=args.num_samples, batch_size=args.batch_size)
    if not args.model_path:
        raise InputError("no --model_path given; name a run's folder, or a model*.pt or ema_*.pt")
    if is_local(args.model_path) and os.path.isdir(args.model_path):
        args.model_path = checkpointing.choose_ema(args.model_path)
    data = runs.adopt_config(args, given, args.model_path, model_defaults.keys())
    args.trained_classes = data.get("classes") or None
    check_precision(args.precision, dist_util.dev())
    if "timestep_respacing" not in given:
        args.timestep_respacing = ""  # how a model was trained does not say how to sample
    return args


def choose_sampler(args: argparse.Namespace) -> None:
    """Settle ``args.sampler``, and ``args.timestep_respacing`` from ``args.sampling_steps``.

    :raises InputError: for an unknown sampler, or flags that contradict each other.
    """
    if args.sampler not in ("", *SAMPLERS):
        raise InputError(f"unknown --sampler {args.sampler!r}; choose from {', '.join(SAMPLERS)}")
    if args.use_ddim and args.sampler not in ("", "ddim"):
        raise InputError(f"--use_ddim True contradicts --sampler {args.sampler}; give one of them")
    args.sampler = args.sampler or ("ddim" if args.use_ddim else "ddpm")
    if args.sampling_steps and args.timestep_respacing:
        raise InputError("--sampling_steps and --timestep_respacing both given; give one of them")
    if args.sampling_steps < 0:
        raise InputError(f"--sampling_steps must not be negative, got {args.sampling_steps}")
    if args.sampler == "dpmpp" and not args.timestep_respacing:
        args.timestep_respacing = f"logsnr{args.sampling_steps or DPMPP_STEPS}"
    elif args.sampling_steps:
        args.timestep_respacing = str(args.sampling_steps)


def check_counts(**counts: int) -> None:
    """:raises InputError: naming the flag whose value is below 1."""
    for flag, value in counts.items():
        if value < 1:
            raise InputError(f"--{flag} must be at least 1, got {value}")


def load_trained(model: th.nn.Module, model_path: str) -> th.nn.Module:
    """Load a checkpoint into ``model`` and make it ready to evaluate.

    :raises InputError: if its file is missing, unsafe or does not fit.
    """
    checkpointing.load_into(model, model_path)
    return model.to(dist_util.dev()).eval()


def describe(model_path: str, precision: str) -> None:
    """Log which model is used, and warn of an EMA that is too young; log what computes."""
    runs.say_what_computes(precision)
    logger.log(f"Model: {model_path}")
    share = checkpointing.initial_share(model_path)
    if share > checkpointing.SETTLED:
        logger.warn(
            f"This EMA still holds {share:.0%} of its initial weights, so expect noise; "
            "model*.pt, a lower --ema_rate or more training is better"
        )


@contextlib.contextmanager
def evaluating(model: th.nn.Module, precision: str, compile: bool = False) -> Iterator[Any]:
    """Yield ``model`` to be called without gradients, in the precision of that name.

    One context for a whole sampling: its weights are cast once.

    :raises InputError: for an unknown precision, or one that this machine does not have.
    """
    cast = Precision(precision, dist_util.dev()).autocast()
    with th.inference_mode(), cast:
        yield Compiled(model) if compile else model


def sample_batch(
    diffusion: GaussianDiffusion,
    model: Callable[..., th.Tensor],
    shape: tuple[int, ...],
    model_kwargs: dict[str, Any],
    *,
    sampler: str,
    clip_denoised: bool,
) -> np.ndarray:
    """Sample one batch on each rank.

    :param shape: [N, C, H, W] of each rank's batch.
    :return: the ranks' images, uint8 [N x ranks, H, W, C].
    """
    loops = {
        "ddpm": diffusion.p_sample_loop,
        "ddim": diffusion.ddim_sample_loop,
        "dpmpp": partial(dpm_solver_sample_loop, diffusion),
    }
    sample = loops[sampler](
        model,
        shape,
        clip_denoised=clip_denoised,
        model_kwargs=model_kwargs,
        device=dist_util.dev(),
        progress=dist_util.rank() == 0 and sys.stderr.isatty(),
    )
    return dist_util.all_gather_cat(to_uint8(sample)).cpu().numpy()


Labelled = tuple[np.ndarray, np.ndarray | None]


def collect(batches: Iterator[Labelled], num_samples: int) -> Labelled:
    """Gather batches of images (and labels) until there are ``num_samples``."""
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    count = 0
    while count < num_samples:
        batch, batch_labels = next(batches)
        images.append(batch)
        if batch_labels is not None:
            labels.append(batch_labels)
        count += len(batch)
        logger.log(f"created {min(count, num_samples)} of {num_samples} samples")
    cut = slice(num_samples)
    return np.concatenate(images)[cut], np.concatenate(labels)[cut] if labels else None


def save_samples(folder: str, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Write ``samples_NxHxWxC.npz`` (``arr_0``, labels as ``arr_1``) and a PNG grid beside it.

    :param images: uint8 [N, H, W, C].
    :param labels: int64 [N], or None.
    """
    if dist_util.rank() > 0:
        return
    stem = os.path.join(folder, f"samples_{'x'.join(map(str, images.shape))}")
    arrays = [images] if labels is None else [images, labels]
    with atomic_write(f"{stem}.npz") as file:
        np.savez(file, *arrays)
    save_grid(f"{stem}.png", images[:GRID_IMAGES])
    logger.log(f"Saved {len(images)} samples to {stem}.npz")
    shown = "" if len(images) <= GRID_IMAGES else f" (the first {GRID_IMAGES})"
    logger.log(f"Picture of them{shown}: {stem}.png")
