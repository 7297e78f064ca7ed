"""What the sampling and evaluation scripts share: calling the model, and making samples."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch as th

from .. import dist_util, logger
from ..gaussian_diffusion import GaussianDiffusion
from ..options.model import DiffusionOptions
from ..options.using import SamplingOptions
from ..respace import SpacedDiffusion
from ..sampling.samples import Condition, Order, Samples, make_samples, save_samples
from ..script_util import build_diffusion
from ..system.compiling import Compiled
from ..system.precision import Precision
from .trained import Trained


@contextlib.contextmanager
def evaluating(model: th.nn.Module, precision: str, compile: bool = False) -> Iterator[Any]:
    """Yield ``model`` to be called without gradients, in the precision of that name.

    One context for a whole sampling: its weights are cast once.

    :raises InputError: for an unknown precision, or one that this machine does not have.
    """
    cast = Precision(precision, dist_util.dev()).autocast()
    with th.inference_mode(), cast:
        yield Compiled(model, logger.log) if compile else model


def spaced_diffusion(options: SamplingOptions) -> SpacedDiffusion:
    """The model's diffusion with the timesteps that the flags ask to sample in.

    :raises InputError: if it has not as many.
    """
    return build_diffusion(options.of(DiffusionOptions).but(timestep_respacing=options.spacing))


def sample(
    options: SamplingOptions,
    trained: Trained,
    folder: str,
    model: th.nn.Module,
    diffusion: GaussianDiffusion,
    condition: Condition,
) -> None:
    """Make the samples that the flags ask for, and write them; what is made survives Ctrl-C.

    :param condition: see :func:`improved_diffusion.sampling.samples.make_samples`.
    """
    order = Order(
        num_samples=options.num_samples,
        shape=(options.in_channels, options.size, options.size),
        batch_size=options.batch_size,
        seed=options.seed,
        sampler=options.chosen_sampler.name,
        eta=options.chosen_eta,
        clip_denoised=options.clip_denoised,
    )
    noise = "" if options.chosen_sampler.usual_eta is None else f", eta {order.eta:g}"
    logger.log(
        f"Sampling {order.num_samples} images in {diffusion.num_timesteps} steps "
        f"of {order.sampler}{noise}"
    )
    made = Samples()
    try:
        with evaluating(model, options.precision, options.compile) as call:
            make_samples(made, order, call, diffusion, condition)
    finally:
        if len(made) and dist_util.rank() == 0:
            save_samples(
                folder,
                made,
                names=trained.names,
                single=options.save_png,
                process=options.show_process,
            )
