"""What the training scripts share: the way from flags and images to a trained model."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch as th

from .. import dist_util, logger
from ..data.folder_source import FolderSource
from ..errors import InputError, LostRankError
from ..evaluation.features import Extractor
from ..evaluation.image_sets import ImageSet, open_images
from ..evaluation.judge import check_apart, check_count, kept_features
from ..evaluation.quality import Reference
from ..image_datasets import BatchStream, load_data
from ..logs.columns import COLUMNS, IN_EVERY_LOG
from ..logs.tables import check_columns
from ..options.model import AUTO, NUM_CLASSES
from ..options.presets import PRESETS
from ..options.training import (
    DataOptions,
    EvalOptions,
    ImageTraining,
    LoopOptions,
    TrainingOptions,
)
from ..resample import create_named_schedule_sampler
from ..respace import SpacedDiffusion
from ..system.files import is_local, join
from ..train_util import Batch, TrainLoop, get_blob_logdir
from ..training import checkpoints
from ..training.previews import Examiner, Preview
from . import runs
from .trained import SAMPLING

AnyTraining = TypeVar("AnyTraining", bound=TrainingOptions)
PREVIEW_IMAGES = 16


def open_training_images(options: AnyTraining) -> tuple[AnyTraining, BatchStream]:
    """The stream of training batches that the flags ask for, this rank's share of it.

    :return: the options with the folder, the precision that ``use_fp16`` asks for and a number for
        ``num_classes auto``; and the stream.
    :raises InputError: if the images cannot be what the flags want of them.
    """
    with dist_util.agreeing():
        data_dir = runs.find_data_dir(options.data_dir)
        options = options.but(data_dir=data_dir, precision=options.number_format)
        images = load_data(
            **options.of(DataOptions).as_dict(),
            batch_size=options.batch_size,
            image_size=options.size,
            class_cond=options.class_cond,
            seed=options.seed,
            in_channels=options.in_channels,
            shard=dist_util.rank(),
            num_shards=dist_util.world_size(),
        )
        classes = images.summary()["classes"]
        if options.num_classes == AUTO:
            options = options.but(num_classes=len(classes or ()) or NUM_CLASSES)
        if classes and len(classes) > (options.class_count or len(classes)):
            raise InputError(
                f"{options.data_dir} has {len(classes)} classes, the model {options.class_count}; "
                f"give --num_classes {len(classes)} or more"
            )
    return options, images


def train(
    script: str,
    options: TrainingOptions,
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
    summary = images.summary()
    preview = make_preview(options, images, diffusion, PREVIEW_IMAGES, preview_kwargs or {})
    with dist_util.agreeing():
        _check_resumable(options)
        make_examiner = _open_judge(options, images, diffusion) if dist_util.rank() == 0 else None
    with dist_util.agreeing():
        _check_apart(runs.log_dir_of(script, options), images)
    images.complain = logger.warn
    with runs.open_run(script, options, trains=True) as folder:
        wanted, keep = options.resume_checkpoint, options.keep_checkpoints
        found = dist_util.by_rank_0(lambda: _checkpoint_to_resume(wanted, folder, keep))
        going = options.but(resume_checkpoint=found)
        with dist_util.agreeing():
            _check_against_checkpoint(going, images)
        _say_what_is_ahead(going, model, summary)
        density = options.logsnr_mean, options.logsnr_std
        sampler = create_named_schedule_sampler(options.schedule_sampler, diffusion, *density)
        with dist_util.agreeing():
            examiner = make_examiner(folder) if make_examiner else None
        loop = TrainLoop(
            model=model,
            diffusion=diffusion,
            data=data,
            schedule_sampler=sampler,
            preview=preview,
            examiner=examiner,
            flags=going.as_dict(),
            **going.of(LoopOptions).as_dict(),
        )
        with dist_util.agreeing():
            runs.write_config(folder, script, options, data=summary, **_how_to_sample(options))
        try:
            loop.run_loop()
        except (SystemExit, KeyboardInterrupt, LostRankError, InputError, OSError):
            _say_how_to_go_on(loop, folder)
            raise


def _how_to_sample(options: TrainingOptions) -> dict[str, Any]:
    """What ``config.json`` says of sampling, for ``image_sample.py`` to begin with."""
    preset = PRESETS.get(options.preset) if isinstance(options, ImageTraining) else None
    if not (preset and preset.sampling):
        return {}
    interval = ("guidance_low", "guidance_high")
    limits = {name: getattr(options, name) for name in interval if getattr(options, name)}
    return {SAMPLING: {**preset.sampling, "guidance": options.guidance, **limits}}


def _say_how_to_go_on(loop: TrainLoop, folder: str) -> None:
    """Say what is saved: all of it after one signal, not so after a second."""
    newest = checkpoints.newest_checkpoint(get_blob_logdir())
    saved = loop.last_saved
    if newest and saved != loop.updates:
        saved = checkpoints.parse_resume_step_from_filename(newest)
    if saved is None and loop.updates == 0:
        logger.log("Stopped before the first update; nothing is saved")
        logger.log(f"Start again with: {runs.command_to_continue(folder)}")
        return
    part = "" if saved == loop.updates else f"of which {saved or 'none'} are "
    logger.log(f"Stopped after {loop.updates} updates, {part}saved in {get_blob_logdir()}")
    checkpoint = "auto" if newest else loop.resume_checkpoint or "auto"
    logger.log(f"Go on with: {runs.command_to_continue(folder, checkpoint)}")


def make_preview(
    options: TrainingOptions,
    images: BatchStream,
    diffusion: SpacedDiffusion,
    count: int,
    model_kwargs: Mapping[str, th.Tensor],
) -> Preview:
    """What draws so many samples on the way: all classes in turn, if there are any."""
    names = images.summary()["classes"] or ()
    if options.class_cond and "y" not in model_kwargs:
        classes = len(names) or options.class_count or 0
        model_kwargs = {**model_kwargs, "y": th.arange(count) % classes}
    return Preview(
        diffusion,
        (count, options.in_channels, options.size, options.size),
        batch_size=options.microbatch if options.microbatch > 0 else options.batch_size,
        seed=options.seed,
        model_kwargs=model_kwargs,
        names=names,
        guidance=options.chosen_guidance,
    )


def _open_judge(
    options: TrainingOptions, images: BatchStream, diffusion: SpacedDiffusion
) -> Callable[[str], Examiner] | None:
    """What ``--eval_interval`` needs, checked; None where nothing is to be judged.

    :return: makes the examiner, with features of the real images, in a run's folder.
    """
    if not isinstance(options, EvalOptions) or not options.eval_interval:
        return None
    folder = runs.find_data_dir(options.eval_dir, "cifar_test", "eval_dir")
    real = open_images(folder, options.size, options.in_channels, by="none")
    check_count("eval_dir", real)
    training = ImageSet(images.source, options.size, options.in_channels)
    check_apart(eval_dir=real, data_dir=training)
    interval, extractor = options.eval_interval, Extractor("lite0")
    preview = make_preview(options, images, diffusion, options.eval_samples, {})

    def make_examiner(folder: str) -> Examiner:
        with contextlib.suppress(InputError):  # an image that cannot be read is told in its turn
            if real.has_colours != training.has_colours:
                kinds = ("in colour", "grey") if real.has_colours else ("grey", "in colour")
                logger.warn(
                    f"The images to judge by are {kinds[0]}, those to train on {kinds[1]}, so kid "
                    "says little: give an --eval_dir of their kind"
                )
        seen = Reference(kept_features(extractor, real, folder))
        return Examiner(interval, preview, extractor, seen)

    return make_examiner


def _check_apart(log_dir: str, images: BatchStream) -> None:
    """:raises InputError: if the run's pictures would come among the images."""
    source = images.source
    if not isinstance(source, FolderSource) or not is_local(source.path):
        return
    if Path(log_dir).resolve().is_relative_to(Path(source.path).resolve()):
        raise InputError(
            f"the run's folder {log_dir} would lie among the images of {source.path}, and its "
            "pictures be taken for some of them; give a --log_dir elsewhere"
        )


def _check_resumable(options: TrainingOptions) -> None:
    path = options.resume_checkpoint
    if path == "auto":
        if not (options.log_dir or os.environ.get("OPENAI_LOGDIR")):
            raise InputError("--resume_checkpoint auto looks in --log_dir; give that too")
    elif is_local(path) and os.path.isdir(path):
        raise InputError(
            f"--resume_checkpoint {path} is a folder; give --log_dir {path} and "
            "--resume_checkpoint auto"
        )
    elif re.fullmatch(r"(opt|state)\d+\.pt", os.path.basename(path)):
        raise InputError(f"cannot resume from {path} alone; give the model*.pt beside it")
    elif os.path.basename(path).startswith("ema_"):
        raise InputError(
            f"cannot resume from the EMA {path}; give the model*.pt beside it, or to begin a run "
            "with its weights a copy of another name"
        )
    elif path and is_local(path) and not os.path.isfile(path):
        raise InputError(f"no checkpoint file at {path}; check --resume_checkpoint")


def _checkpoint_to_resume(resume_checkpoint: str, log_dir: str, keep: int) -> str:
    """The checkpoint that ``--resume_checkpoint`` means: "" for none.

    Of what ``auto`` finds, broken checkpoints are set aside, and what a kill left of a first one.

    :param keep: how many checkpoints are to be kept, or 0 for all.

    :raises InputError: if the checkpoint is broken, or another run's while this folder has one.
    """
    folder = get_blob_logdir()
    if resume_checkpoint != "auto":
        checkpoints.check_continues(folder, resume_checkpoint, keep)
        if resume_checkpoint and is_local(resume_checkpoint):
            _check_whole(resume_checkpoint)
        return resume_checkpoint
    if checkpoints.newest_checkpoint(folder) is None:
        torn = checkpoints.incomplete_parts(folder)
        if torn and not (len(torn) == 1 and os.path.exists(join(log_dir, runs.CONFIG_NAME))):
            checkpoints.check_continues(folder, "")  # no run of this program's was killed there
        for names in torn.values():
            checkpoints.set_aside(folder, names)
            logger.warn(f"{', '.join(names)}: of no complete checkpoint and set aside as *.broken")
        logger.log("No complete checkpoint in the log directory: starting fresh")
        return ""
    whole, damages = checkpoints.newest_whole_checkpoint(folder)
    if whole is None:
        said = "; ".join(damages.values())
        raise InputError(
            f"no checkpoint in {folder} is whole ({said}); restore one, or give another --log_dir"
        )
    for step, damage in damages.items():
        checkpoints.set_aside(folder, checkpoints.files_of(folder, step))
        logger.warn(f"Checkpoint {step:06d} is broken and set aside as *.broken ({damage})")
    return whole


def _check_whole(path: str) -> None:
    """:raises InputError: if a file of that checkpoint is broken; names the newest whole one."""
    folder = os.path.dirname(path) or "."
    step = checkpoints.parse_resume_step_from_filename(path)
    if damage := checkpoints.damage_of(folder, step):
        whole, _ = checkpoints.newest_whole_checkpoint(folder)
        raise InputError(
            f"the checkpoint {path} is broken ({damage}); "
            + (f"the newest whole one there is {whole}" if whole else "no other there is whole")
        )


def _check_against_checkpoint(options: TrainingOptions, images: BatchStream) -> None:
    if not options.resume_checkpoint:
        return
    step = checkpoints.parse_resume_step_from_filename(options.resume_checkpoint)
    if path := checkpoints.companion(options.resume_checkpoint, "state", step):
        state = checkpoints.load_state_file(path)
        if data := state.ranks[0].data:
            images.check_folder(data)  # first: it decides what `--num_classes auto` is
        runs.check_resumed_flags(state.flags, options)
        log = os.path.join(logger.get_dir() or ".", "progress.csv")
        # Earlier states do not say which columns there were.
        wanted = state.columns or IN_EVERY_LOG
        check_columns(log, wanted=wanted, numbers=[column.name for column in COLUMNS])


def _say_what_is_ahead(
    options: TrainingOptions, model: th.nn.Module, summary: Mapping[str, Any]
) -> None:
    classes = summary["classes"]
    named = f", {len(classes)} classes by {summary['classes_by']}" if classes else ""
    if classes and len(classes) < (options.class_count or 0):
        named += f" (of the {options.class_count} that the model has room for)"
    logger.log(f"Images: {summary['images']} in {os.path.abspath(options.data_dir)}{named}")
    done = checkpoints.parse_resume_step_from_filename(options.resume_checkpoint)
    if options.last_update and options.last_update <= done:
        logger.log(f"Training: the run has {done} updates already, no fewer than it was to have")
    elif options.time_budget:
        logger.log(
            f"Training: {options.time_budget:g} minutes, of which the first tell how many updates "
            "these are"
        )
    elif options.last_update:
        seen = options.last_update * options.batch_size * dist_util.world_size()
        epochs = seen / summary["images"]
        logger.log(f"Training: {options.last_update} updates, {epochs:.2f} epochs")
    else:
        logger.log("Training: without end; Ctrl-C saves and stops (or give --max_steps)")
    parameters = sum(p.numel() for p in model.parameters())
    logger.log(f"Model: {parameters / 1e6:.2f} M parameters, {options.number_format}")
    runs.say_what_computes(options.number_format)
