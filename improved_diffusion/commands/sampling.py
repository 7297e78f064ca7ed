"""What the sampling and evaluation scripts share: their flags, the model, batches, files."""

import argparse
import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch as th

from .. import dist_util, logger
from ..commands import runs
from ..errors import InputError
from ..gaussian_diffusion import GaussianDiffusion
from ..sampling.dpm_solver import USUAL_STEPS
from ..sampling.samples import (
    SAMPLERS,
    USUAL_ETAS,
    Condition,
    Order,
    Samples,
    compare_colours,
    make_samples,
    save_samples,
)
from ..script_util import AUTO, add_dict_to_argparser, args_to_dict
from ..system import cpu
from ..system.compiling import Compiled
from ..system.files import is_local
from ..system.precision import Precision, check_precision
from ..training import checkpoints
from .cli import Parser

# Flags that leave no trace in a model's weights: a wrong one gives noise without a word.
TRACELESS = (
    "noise_schedule poly_power diffusion_steps num_heads predict_xstart rescale_timesteps"
).split()


def sampling_defaults() -> dict[str, Any]:
    """Defaults of the flags of sampling: the reference's, and ours behind them."""
    return {
        "clip_denoised": True,
        "num_samples": 10000,
        "batch_size": 16,
        "use_ddim": False,
        "sampler": "",
        "sampling_steps": 0,
        "eta": "",
        "model_path": "",
        "seed": 0,
        "save_png": False,
        "show_process": False,
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
    ``args.trained_on`` becomes what is known of the data that it was trained on.

    :raises InputError: for flags that cannot work, or contradict the model's training.
    """
    parser = Parser(description)
    add_dict_to_argparser(parser, defaults | model_defaults)
    args, given = parser.parse_args_and_given()
    cpu.configure_cpu(args.num_threads)
    check_counts(**args_to_dict(args, {"num_samples", "batch_size"} & defaults.keys()))
    if not args.model_path:
        raise InputError("no --model_path given; name a run's folder, or a model*.pt or ema_*.pt")
    if _is_folder(args.model_path):
        args.model_path = checkpoints.choose_ema(args.model_path)
    if args.num_classes == AUTO:
        raise InputError("--num_classes auto is for training; leave it out, or give the number")
    args.trained_on = runs.adopt_config(args, given, args.model_path, model_defaults.keys())
    args.knows_its_flags = runs.find_config(args.model_path) is not None
    if "precision" in defaults:
        check_precision(args.precision, dist_util.dev())
    if "timestep_respacing" not in given:
        args.timestep_respacing = ""  # how a model was trained does not say how to sample
    return args


def _is_folder(path: str) -> bool:
    if is_local(path):
        return os.path.isdir(path)
    import blobfile as bf  # slow to import, and local runs have no use for it here

    return bf.isdir(path)


def class_numbers(args: argparse.Namespace, text: str) -> list[int]:
    """The numbers of a model's classes, from their names or numbers, comma-separated.

    :raises InputError: if the model has no such class; lists those that it has.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    names = args.trained_on.get("classes") or []
    numbers = {str(number): number for number in range(count_classes(args))}
    numbers |= {name: number for number, name in enumerate(names)}
    unknown = [word for word in words if word not in numbers]
    if unknown:
        known = known_classes(args)
        raise InputError(f"the model knows no class {unknown[0]!r}; it knows {known}")
    return [numbers[word] for word in words]


def count_classes(args: argparse.Namespace) -> int:
    """How many classes a model was trained on; it may have room for some that it never saw."""
    return len(args.trained_on.get("classes") or range(args.num_classes))


def known_classes(args: argparse.Namespace) -> str:
    """The classes that a model was trained on, for a message."""
    names = args.trained_on.get("classes")
    return listed(names) if names else f"0 to {args.num_classes - 1}"


def listed(names: Sequence[str] | None, most: int = 12) -> str:
    """Names for one line of a message: not more than so many of them."""
    names = names or ["none"]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def choose_sampler(args: argparse.Namespace) -> None:
    """Settle ``args.sampler`` and its ``args.eta``, and how many steps it makes.

    ``args.timestep_respacing`` becomes what ``args.sampling_steps`` asks for.

    :raises InputError: for an unknown sampler, or flags that contradict each other.
    """
    if args.sampler not in ("", *SAMPLERS):
        raise InputError(f"unknown --sampler {args.sampler!r}; choose from {', '.join(SAMPLERS)}")
    if args.use_ddim and args.sampler not in ("", "ddim"):
        raise InputError(f"--use_ddim True contradicts --sampler {args.sampler}; give one of them")
    args.sampler = args.sampler or ("ddim" if args.use_ddim else "ddpm")
    args.eta = chosen_eta(args.sampler, args.eta)
    if args.sampling_steps and args.timestep_respacing:
        raise InputError("--sampling_steps and --timestep_respacing both given; give one of them")
    if args.sampling_steps < 0:
        raise InputError(f"--sampling_steps must not be negative, got {args.sampling_steps}")
    if args.sampler == "dpmpp" and not args.timestep_respacing:
        args.timestep_respacing = f"logsnr{args.sampling_steps or USUAL_STEPS}"
    elif args.sampling_steps:
        args.timestep_respacing = str(args.sampling_steps)


def chosen_eta(sampler: str, text: str) -> float:
    """The noise of each step of a sampler: what ``--eta`` says, or what is usual for it.

    :raises InputError: if it is not in [0, 1], or the sampler takes none.
    """
    if text and sampler not in USUAL_ETAS:
        raise InputError(f"--eta is for --sampler {' and '.join(USUAL_ETAS)}; leave it out")
    try:
        eta = float(text or USUAL_ETAS.get(sampler, 0))
    except ValueError:
        eta = math.nan
    if not 0 <= eta <= 1:
        raise InputError(f"--eta must be a number from 0 to 1, got {text!r}")
    return eta


def check_counts(**counts: int) -> None:
    """:raises InputError: naming the flag whose value is below 1."""
    for flag, value in counts.items():
        if value < 1:
            raise InputError(f"--{flag} must be at least 1, got {value}")


def load_trained(model: th.nn.Module, model_path: str) -> th.nn.Module:
    """Load a checkpoint into ``model`` and make it ready to evaluate.

    :raises InputError: if its file is missing, unsafe or does not fit.
    """
    checkpoints.load_into(model, model_path)
    return model.to(dist_util.dev()).eval()


def about_model(args: argparse.Namespace, model: th.nn.Module) -> list[str]:
    """Lines that say which model is used, its size, and whether its flags are known."""
    parameters = sum(p.numel() for p in model.parameters())
    lines = [f"Model: {args.model_path}", f"Parameters: {parameters / 1e6:.2f} M"]
    if not args.knows_its_flags:
        flags = " ".join(f"--{name} {getattr(args, name)}" for name in TRACELESS)
        lines.append(
            f"No {runs.CONFIG_NAME} beside the model: its flags are the command line's, or "
            f"defaults. Its weights do not show whether these are right: {flags}"
        )
    return lines


def describe(args: argparse.Namespace, model: th.nn.Module) -> None:
    """Log what computes, which model, how; and warn of an EMA that is too young."""
    runs.say_what_computes(args.precision)
    for line in about_model(args, model):
        logger.log(line)
    logger.log(f"Precision: {args.precision}")
    share = checkpoints.initial_share(args.model_path)
    if share > checkpoints.SETTLED:
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


def sample(
    args: argparse.Namespace,
    folder: str,
    model: th.nn.Module,
    diffusion: GaussianDiffusion,
    size: int,
    condition: Condition,
) -> None:
    """Make the samples that the flags ask for, and write them; what is made survives Ctrl-C.

    :param size: height and width of the samples.
    :param condition: see :func:`samples.make_samples`.
    """
    order = Order(
        num_samples=args.num_samples,
        shape=(args.in_channels, size, size),
        batch_size=args.batch_size,
        seed=args.seed,
        sampler=args.sampler,
        eta=args.eta,
        clip_denoised=args.clip_denoised,
    )
    noise = f", eta {order.eta:g}" if order.sampler in USUAL_ETAS else ""
    logger.log(
        f"Sampling {order.num_samples} images in {diffusion.num_timesteps} steps "
        f"of {order.sampler}{noise}"
    )
    made = Samples()
    try:
        with evaluating(model, args.precision, args.compile) as call:
            make_samples(made, order, call, diffusion, condition)
    finally:
        if len(made) and dist_util.rank() == 0:
            names = args.trained_on.get("classes")
            save_samples(folder, made, names=names, single=args.save_png, process=args.show_process)
            compare_colours(made.images, args.trained_on)
