"""What the sampling and evaluation scripts share: calling the model, and making samples."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch as th

from .. import dist_util, logger
from ..errors import InputError, as_word
from ..gaussian_diffusion import GaussianDiffusion
from ..nn import NO_LABEL
from ..options.model import DiffusionOptions
from ..options.using import (
    GuideOptions,
    InterpolationOptions,
    LabelOptions,
    SamplingOptions,
)
from ..respace import SpacedDiffusion
from ..sampling.inpainting import Inpainting
from ..sampling.samples import RESULTS, Condition, Order, Samples, make_samples, save_samples
from ..script_util import build_diffusion, build_model
from ..system.compiling import Compiled
from ..system.precision import Precision
from .runs import CONFIG_NAME, open_run, prepare
from .trained import Trained, describe, load_trained, options_of_guide


@contextlib.contextmanager
def evaluating(model: th.nn.Module, precision: str, compile: bool = False) -> Iterator[Any]:
    """Yield ``model`` to be called without gradients, in the precision of that name.

    One context for a whole sampling: its weights are cast once.

    :raises InputError: for an unknown precision, or one that this machine does not have.
    """
    cast = Precision(precision, dist_util.dev()).autocast()
    with th.inference_mode(), cast:
        yield Compiled(model, logger.log) if compile else model


@contextlib.contextmanager
def guided(
    options: SamplingOptions | InterpolationOptions,
    trained: Trained,
    model: th.nn.Module,
    diffusion: GaussianDiffusion,
    guide: th.nn.Module | None,
) -> Iterator[Any]:
    """Say how ``model`` is guided, and yield it to be called so; see :func:`evaluating`.

    :param guide: the model that ``--guide_model`` names.
    """
    _say_guidance(options, trained)
    with contextlib.ExitStack() as stack:
        how = options.precision, options.compile
        call = stack.enter_context(evaluating(model, *how))
        worse = guide and stack.enter_context(evaluating(guide, *how))
        yield options.chosen_guidance.around(call, diffusion, worse)


def spaced_diffusion(options: SamplingOptions | InterpolationOptions) -> SpacedDiffusion:
    """The model's diffusion with the timesteps that the flags ask to sample in.

    :raises InputError: if it has not as many.
    """
    return build_diffusion(options.of(DiffusionOptions).but(timestep_respacing=options.spacing))


def sample(
    script: str,
    options: SamplingOptions,
    trained: Trained,
    condition: Condition,
    inpainting: Inpainting | None = None,
) -> None:
    """Make the samples that the flags ask for, and write them; what is made survives Ctrl-C.

    :param script: its name, without ``.py``.
    :param condition: see :func:`improved_diffusion.sampling.samples.make_samples`.
    :param inpainting: a picture of which all samples keep the known part.
    """
    diffusion = spaced_diffusion(options)
    order = Order(
        num_samples=options.num_samples,
        shape=(options.in_channels, options.size, options.size),
        batch_size=options.batch_size,
        seed=options.seed,
        sampler=options.chosen_sampler.name,
        eta=options.chosen_eta,
        clip_denoised=options.clip_denoised,
        film=options.save_gif,
        inpainting=inpainting,
    )
    steps = order.steps(diffusion)  # jumps of inpainting that are too long are refused here
    prepare(options)
    guide = load_guide(options, trained)
    model = load_trained(build_model(options), options.model_path, options.ema_correction)
    with open_run(script, options, results=RESULTS) as folder:
        describe(options, trained, model)
        noise = "" if options.chosen_sampler.usual_eta is None else f", eta {order.eta:g}"
        logger.log(
            f"Sampling {order.num_samples} images in {steps} steps of {order.sampler}{noise}"
        )
        if trained.recommended:
            flags = (f"--{name} {as_word(value)}" for name, value in trained.recommended.items())
            logger.log(f"As {CONFIG_NAME} recommends: {' '.join(flags)}; give others to differ")
        made = Samples()
        try:
            with guided(options, trained, model, diffusion, guide) as call:
                make_samples(made, order, call, diffusion, condition)
        finally:
            if len(made) and dist_util.rank() == 0:
                save_samples(
                    folder,
                    made,
                    names=trained.names,
                    single=options.save_png,
                    process=options.show_process,
                    before=inpainting.masked_picture() if inpainting else None,
                )


def choose_label(options: LabelOptions, trained: Trained) -> dict[str, th.Tensor]:
    """What a class-conditional model is told of the class of given pictures: ``y``, [1].

    A model that was trained with ``label_dropout`` may be told that there is none.

    :raises InputError: if ``--label`` is missing, unknown or not wanted.
    """
    if options.label and not options.class_cond:
        raise InputError("the model was trained without classes; leave --label out")
    if not options.class_cond:
        return {}
    if options.label_dropout and not options.label:
        return {"y": th.tensor([NO_LABEL])}
    chosen = trained.class_numbers(options.label)
    if len(chosen) != 1:
        got = f", got {options.label!r}" if options.label else ""
        known = trained.known_classes()
        raise InputError(f"the model needs one --label{got}; choose from {known}")
    return {"y": th.tensor(chosen)}


def _say_guidance(options: GuideOptions, trained: Trained) -> None:
    if options.guidance == 1:
        return
    away = options.guide_model or "its samples without a class"
    chosen = options.chosen_guidance
    levels = f", for sigma in ({chosen.low:g}, {chosen.high:g}]"
    limited = options.guidance_low or options.guidance_high
    logger.log(f"Guidance {options.guidance:g} away from {away}{levels if limited else ''}")
    if not (options.guide_model or options.label_dropout):
        logger.warn(
            f"No {CONFIG_NAME} says that the model was trained with --label_dropout; if it was "
            "not, it does not know samples without a class, and guidance spoils them"
        )


def load_guide(options: GuideOptions, trained: Trained) -> th.nn.Module | None:
    """The model of ``--guide_model``, ready to evaluate; None where none is given.

    :raises InputError: if it makes other images than the model, or by another process; or if the
        model is to be guided by itself, and was trained with all its labels.
    """
    if options.guide_model:
        theirs, path = options_of_guide(options, trained)
        return load_trained(build_model(theirs), path, options.ema_correction)
    if options.guidance != 1 and trained.has_config and not options.label_dropout:
        raise InputError(
            "--guidance needs a model that was trained without labels, too, and this one was "
            "not (--label_dropout 0); leave it out, or give a --guide_model"
        )
    return None
