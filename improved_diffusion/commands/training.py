"""What the training scripts share: flags, and the way from a data stream to a trained model."""

import argparse
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch as th

from .. import dist_util, logger
from ..commands import runs
from ..errors import InputError
from ..image_datasets import BatchStream, load_data
from ..options.train_options import check_training_numbers, parse_ema_rates
from ..resample import check_sampler_name, create_named_schedule_sampler
from ..respace import SpacedDiffusion
from ..script_util import AUTO, NUM_CLASSES, add_dict_to_argparser, args_to_dict
from ..system import cpu
from ..system.files import is_local
from ..system.precision import check_precision
from ..train_util import Batch, TrainLoop, get_blob_logdir
from ..training import checkpoints
from ..training.previews import Preview
from .cli import Parser

PREVIEW_IMAGES = 16


def training_defaults() -> dict[str, Any]:
    """Defaults of the training flags: the reference's, and ours behind them."""
    return {
        "data_dir": "",
        "schedule_sampler": "uniform",
        "lr": 1e-4,
        "weight_decay": 0.0,
        "lr_anneal_steps": 0,
        "batch_size": 1,
        "microbatch": -1,
        "ema_rate": "0.9999",
        "log_interval": 10,
        "save_interval": 10000,
        "resume_checkpoint": "",
        "use_fp16": False,
        "fp16_scale_growth": 1e-3,
        "max_steps": 0,
        "seed": 0,
        "log_dir": "",
        "precision": "fp32",
        "keep_checkpoints": 0,
        "max_skipped": 20,
        "compile": False,
        "num_threads": 0,
        "num_workers": 0,
        "on_bad_image": "error",
        "random_flip": False,
        "sample_interval": 0,
    }


def parse_training_flags(description: str, model_defaults: dict[str, Any]) -> argparse.Namespace:
    """Read and check the flags of a training script.

    :raises InputError: for flags that cannot work, before anything slow begins.
    """
    parser = Parser(description)
    add_dict_to_argparser(parser, training_defaults() | model_defaults)
    args = parser.parse_args()
    cpu.configure_cpu(args.num_threads)
    names = inspect.signature(check_training_numbers).parameters
    check_training_numbers(**args_to_dict(args, names))
    check_sampler_name(args.schedule_sampler)
    parse_ema_rates(args.ema_rate)
    args.precision = chosen_precision(args)
    args.data_dir = runs.find_data_dir(args.data_dir)
    return args


def chosen_precision(args: argparse.Namespace) -> str:
    """The precision that ``--precision`` and ``--use_fp16`` ask for, if this machine has it."""
    if args.use_fp16 and args.precision == "bf16":
        raise InputError("--use_fp16 True contradicts --precision bf16; give one of them")
    precision = "fp16" if args.use_fp16 else args.precision
    check_precision(precision, dist_util.dev())
    return precision


def open_images(args: argparse.Namespace, image_size: int) -> BatchStream:
    """The stream of training batches that the flags ask for, this rank's share of it.

    ``--num_classes auto`` becomes a number here.

    :raises InputError: if the images cannot be what the flags want of them.
    """
    with dist_util.agreeing():
        images = load_data(
            data_dir=args.data_dir,
            batch_size=args.batch_size,
            image_size=image_size,
            class_cond=args.class_cond,
            seed=args.seed,
            num_workers=args.num_workers,
            random_flip=args.random_flip,
            in_channels=args.in_channels,
            on_bad_image=args.on_bad_image,
            shard=dist_util.rank(),
            num_shards=dist_util.world_size(),
        )
        classes = images.summary()["classes"]
        if args.num_classes == AUTO:
            args.num_classes = len(classes or ()) or NUM_CLASSES
        _check_classes(args, classes)
    return images


def train(
    script: str,
    args: argparse.Namespace,
    model: th.nn.Module,
    diffusion: SpacedDiffusion,
    images: BatchStream,
    data: Iterator[Batch],
    preview_kwargs: Mapping[str, th.Tensor] | None = None,
) -> None:
    """Train until the flags say stop, in the run's folder.

    :param images: the stream of images, for what the run says about them.
    :param data: what to train on: ``images``, or batches made from them.
    :param preview_kwargs: conditions of the :data:`PREVIEW_IMAGES` samples drawn on the way.
    """
    with dist_util.agreeing():
        summary = images.summary() | images.pixel_statistics()
        preview = make_preview(args, images, diffusion, preview_kwargs or {})
        _check_resumable(args)
    given = dict(vars(args))
    with runs.open_run(script, args.log_dir, table=True, checkpoints=True) as folder:
        with dist_util.agreeing():
            args.resume_checkpoint = _checkpoint_to_resume(args.resume_checkpoint)
            _check_against_checkpoint(args, images)
        _say_what_is_ahead(args, model, summary)
        model.to(dist_util.dev())
        loop = TrainLoop(
            model=model,
            diffusion=diffusion,
            data=data,
            batch_size=args.batch_size,
            microbatch=args.microbatch,
            lr=args.lr,
            ema_rate=args.ema_rate,
            log_interval=args.log_interval,
            save_interval=args.save_interval,
            resume_checkpoint=args.resume_checkpoint,
            fp16_scale_growth=args.fp16_scale_growth,
            schedule_sampler=create_named_schedule_sampler(args.schedule_sampler, diffusion),
            weight_decay=args.weight_decay,
            lr_anneal_steps=args.lr_anneal_steps,
            max_steps=args.max_steps,
            precision=args.precision,
            keep_checkpoints=args.keep_checkpoints,
            max_skipped=args.max_skipped,
            compile=args.compile,
            preview=preview,
            sample_interval=args.sample_interval,
            flags=vars(args),
        )
        with dist_util.agreeing():
            runs.write_config(folder, script, given, data=summary)
        try:
            loop.run_loop()
        except (SystemExit, KeyboardInterrupt):
            _say_how_to_go_on(loop, folder)
            raise


def _say_how_to_go_on(loop: TrainLoop, folder: str) -> None:
    """Say what is saved: all of it after one signal, not so after a second."""
    newest = checkpoints.newest_checkpoint(get_blob_logdir())
    saved = loop.last_saved
    if newest and saved != loop.updates:
        saved = checkpoints.parse_resume_step_from_filename(newest)
    part = "" if saved == loop.updates else f"of which {saved or 'none'} are "
    logger.log(f"Stopped after {loop.updates} updates, {part}saved in {get_blob_logdir()}")
    checkpoint = "auto" if newest else loop.resume_checkpoint or "auto"
    logger.log(f"Go on with: {runs.command_to_continue(folder, checkpoint)}")


def make_preview(
    args: argparse.Namespace,
    images: BatchStream,
    diffusion: SpacedDiffusion,
    model_kwargs: Mapping[str, th.Tensor],
) -> Preview:
    """What draws the samples of ``--sample_interval``: all classes in turn, if there are any."""
    size = images.dataset.resolution
    if args.class_cond and "y" not in model_kwargs:
        classes = len(images.summary()["classes"] or range(args.num_classes))
        model_kwargs = {**model_kwargs, "y": th.arange(PREVIEW_IMAGES) % classes}
    return Preview(
        diffusion,
        (PREVIEW_IMAGES, args.in_channels, size, size),
        batch_size=args.microbatch if args.microbatch > 0 else args.batch_size,
        seed=args.seed,
        model_kwargs=model_kwargs,
    )


def _check_classes(args: argparse.Namespace, classes: list[str] | None) -> None:
    if args.class_cond and classes and len(classes) > args.num_classes:
        raise InputError(
            f"{args.data_dir} has {len(classes)} classes, the model {args.num_classes}; "
            f"give --num_classes {len(classes)} or more"
        )


def _check_resumable(args: argparse.Namespace) -> None:
    path = args.resume_checkpoint
    if path == "auto":
        if not (args.log_dir or os.environ.get("OPENAI_LOGDIR")):
            raise InputError("--resume_checkpoint auto looks in --log_dir; give that too")
    elif os.path.basename(path).startswith("ema_"):
        raise InputError(f"cannot resume from the EMA {path}; give the model*.pt beside it")
    elif path and is_local(path) and not os.path.isfile(path):
        raise InputError(f"no checkpoint file at {path}; check --resume_checkpoint")


def _checkpoint_to_resume(resume_checkpoint: str) -> str:
    newest = checkpoints.newest_checkpoint(get_blob_logdir())
    if resume_checkpoint != "auto":
        # Going on from anything else would mix the checkpoints and the log of two runs.
        if newest and os.path.realpath(resume_checkpoint) != os.path.realpath(newest):
            raise InputError(
                f"{os.path.dirname(newest)} already holds a run, up to {os.path.basename(newest)}; "
                "give --resume_checkpoint auto to continue it, or another --log_dir"
            )
        return resume_checkpoint
    if newest is None:
        logger.log("No complete checkpoint in the log directory: starting fresh")
    return newest or ""


def _check_against_checkpoint(args: argparse.Namespace, images: BatchStream) -> None:
    if not args.resume_checkpoint:
        return
    step = checkpoints.parse_resume_step_from_filename(args.resume_checkpoint)
    path = checkpoints.companion(args.resume_checkpoint, "state", step)
    if path:
        state = checkpoints.load_state_file(path)
        if data := state["ranks"][0]["data"]:
            images.check_folder(data)  # first: it decides what `--num_classes auto` is
        runs.check_resumed_flags(state["flags"], vars(args))


def _say_what_is_ahead(
    args: argparse.Namespace, model: th.nn.Module, summary: dict[str, Any]
) -> None:
    classes = summary["classes"]
    named = f", {len(classes)} classes" if classes else ""
    if args.class_cond and classes and len(classes) < args.num_classes:
        named += f" (of the {args.num_classes} that the model has room for)"
    logger.log(f"Images: {summary['images']} in {os.path.abspath(args.data_dir)}{named}")
    limits = [limit for limit in (args.max_steps, args.lr_anneal_steps) if limit]
    if limits:
        seen = min(limits) * args.batch_size * dist_util.world_size()
        logger.log(f"Training: {min(limits)} updates, {seen / summary['images']:.2f} epochs")
    else:
        logger.log("Training: without end; Ctrl-C saves and stops (or give --max_steps)")
    parameters = sum(p.numel() for p in model.parameters())
    logger.log(f"Model: {parameters / 1e6:.2f} M parameters, {args.precision}")
    runs.say_what_computes(args.precision)
