"""The samplers by name, and drawing images with one of them.

A new sampler is one file with a maker of its step function, and one line of :data:`SAMPLERS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th

from ..diffusion.registry import Registry
from ..diffusion.walk import Callback, Step, descending, finish, starting_noise, walk
from ..errors import InputError
from ..gaussian_diffusion import GaussianDiffusion, Model, RandnLike
from .dpm_solver import dpm_solver


@dataclass(frozen=True)
class Sampler:
    """A way from noise to images.

    :param name: as ``--sampler`` has it.
    :param about: what it is, for ``--help``.
    :param make_step: makes the step function of one walk. It is called with the diffusion, the
        model, and by name ``randn_like``, ``eta`` if the sampler takes one, and what
        ``p_mean_variance`` takes.
    :param usual_steps: how many steps suit it; 0 for all timesteps.
    :param respacing: makes a ``timestep_respacing`` of a number of steps.
    :param usual_eta: how much noise each step usually adds, in [0, 1]; None where there is no
        choice.
    """

    name: str
    about: str
    make_step: Callable[..., Step]
    usual_steps: int = 0
    respacing: str = "{}"
    usual_eta: float | None = None


def _ddpm(diffusion: GaussianDiffusion, model: Model, **settings: Any) -> Step:
    return partial(diffusion.p_sample, model, **settings)


def _ddim(diffusion: GaussianDiffusion, model: Model, **settings: Any) -> Step:
    return partial(diffusion.ddim_sample, model, **settings)


SAMPLERS: Registry[Sampler] = Registry("sampler")
SAMPLERS.add(
    Sampler("ddpm", "ancestral steps", _ddpm),
    Sampler("ddim", "DDIM, steps that may do without noise", _ddim, usual_eta=0.0),
    # Its usual noise and steps suit a young model: about as good as a thousand ancestral steps.
    Sampler("dpmpp", "DPM-Solver++(2M), good in few steps", dpm_solver, 20, "logsnr{}", 0.5),
)


def step_maker(
    sampler: str,
    diffusion: GaussianDiffusion,
    model: Model,
    *,
    eta: float | None = None,
    **settings: Any,
) -> Callable[[], Step]:
    """What makes the step functions of a sampler: one for each walk, as some remember its steps.

    The arguments are those of :func:`draw`, which has the errors too.
    """
    chosen = SAMPLERS[sampler]
    if chosen.usual_eta is not None:
        settings["eta"] = _checked_eta(chosen.usual_eta if eta is None else eta)
    elif eta:
        raise InputError(f"the noise of the sampler {sampler} cannot be chosen: leave eta out")
    return partial(chosen.make_step, diffusion, model, **settings)


def draw(
    sampler: str,
    diffusion: GaussianDiffusion,
    model: Model,
    shape: tuple[int, ...],
    *,
    noise: th.Tensor | None = None,
    eta: float | None = None,
    device: th.device | str | None = None,
    randn_like: RandnLike = th.randn_like,
    callback: Callback | None = None,
    progress: bool = False,
    **settings: Any,
) -> th.Tensor:
    """Draw images by a walk down all timesteps of ``diffusion``.

    ``SpacedDiffusion.respaced`` gives a diffusion of fewer timesteps, such as ``"logsnr20"``, which
    suits ``dpmpp``.

    :param sampler: one of :data:`SAMPLERS`.
    :param shape: of the images, [N, C, H, W].
    :param noise: x_T of that shape; drawn if not given.
    :param eta: how much noise each step adds, in [0, 1]; by default what the sampler usually takes.
    :param device: where to draw x_T; by default where the model's parameters are.
    :param randn_like: source of all noise.
    :param callback: given each step's ``sample``, ``pred_xstart``, ``x_t`` and ``t``.
    :param progress: show a tqdm bar.
    :param settings: ``clip_denoised``, ``denoised_fn`` and ``model_kwargs``, as
        ``p_mean_variance`` takes them.
    :return: images of ``shape``, about [-1, 1].
    :raises InputError: for an unknown sampler, or an ``eta`` that it cannot have.
    """
    make_step = step_maker(sampler, diffusion, model, eta=eta, randn_like=randn_like, **settings)
    x = starting_noise(model, shape, noise, device, randn_like)
    return finish(walk(make_step(), x, descending(diffusion.num_timesteps, progress)), callback)


def _checked_eta(eta: float) -> float:
    if not 0 <= eta <= 1:
        raise InputError(f"eta must lie in [0, 1], got {eta}")
    return eta
