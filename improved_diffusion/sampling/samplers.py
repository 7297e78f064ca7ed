"""The samplers by name, and drawing images with one of them.

A new sampler is one file with a maker of its step function, and one line of :data:`SAMPLERS`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th

from ..diffusion.process import check_image_is_left
from ..diffusion.registry import Registry
from ..diffusion.walk import Callback, Step, descending, finish, starting_noise, walk
from ..errors import InputError
from ..gaussian_diffusion import GaussianDiffusion, Model, RandnLike
from .dpm_solver import dpm_solver

# From the diffusion, what makes the step function of a walk (some remember its steps), x_T and the
# source of noise to what each step makes.
Route = Callable[[GaussianDiffusion, Callable[[], Step], th.Tensor, RandnLike], Iterator[Any]]


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

    @property
    def usual(self) -> str:
        """How many steps it takes unless told otherwise, and how much noise, for ``--help``."""
        steps = f"{self.usual_steps} steps" if self.usual_steps else "all timesteps"
        return steps if self.usual_eta is None else f"{steps}, eta {self.usual_eta:g}"


def _ddpm(diffusion: GaussianDiffusion, model: Model, **settings: Any) -> Step:
    return partial(diffusion.p_sample, model, **settings)


def _ddim(diffusion: GaussianDiffusion, model: Model, **settings: Any) -> Step:
    check_image_is_left(diffusion.alphas_cumprod, "DDIM", "take ddpm")
    return partial(diffusion.ddim_sample, model, **settings)


SAMPLERS: Registry[Sampler] = Registry("sampler")
for each in (
    Sampler("ddpm", "ancestral steps", _ddpm),
    Sampler("ddim", "DDIM, steps that may do without noise", _ddim, usual_eta=0.0),
    # Its usual noise and steps suit a young model: about as good as a thousand ancestral steps.
    Sampler("dpmpp", "DPM-Solver++(2M), good in few steps", dpm_solver, 20, "logsnr{}", 0.5),
):
    SAMPLERS[each.name] = each


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
    route: Route | None = None,
    **settings: Any,
) -> th.Tensor:
    """Draw images by a walk down all timesteps of ``diffusion``.

    ``SpacedDiffusion.respaced`` gives a diffusion of fewer timesteps: ``"logsnr20"`` is what
    ``--sampler dpmpp`` takes by itself.

    :param sampler: one of :data:`SAMPLERS`.
    :param model: in eval mode: in training mode it drops labels and activations.
    :param shape: of the images, [N, C, H, W].
    :param noise: x_T of that shape; drawn if not given.
    :param eta: how much noise each step adds, in [0, 1]; by default what the sampler usually takes.
    :param device: where to draw x_T; by default where the model's parameters are.
    :param randn_like: source of all noise.
    :param callback: given each step's ``sample``, ``pred_xstart``, ``x_t`` and ``t``.
    :param progress: show a tqdm bar.
    :param route: another walk, such as :meth:`.inpainting.Inpainting.walk`.
    :param settings: ``clip_denoised``, ``denoised_fn`` and ``model_kwargs``, as
        ``p_mean_variance`` takes them.
    :return: images of ``shape``, about [-1, 1].
    :raises InputError: for an unknown sampler, an ``eta`` that it cannot have, ``noise`` of another
        shape, or a diffusion whose last timestep leaves nothing of the image, but for ``ddpm``.
    """
    chosen = SAMPLERS[sampler]
    if chosen.usual_eta is not None:
        settings["eta"] = _checked_eta(chosen.usual_eta if eta is None else eta)
    elif eta is not None:
        raise InputError(f"the noise of the sampler {sampler} cannot be chosen: leave eta out")
    make_step = partial(chosen.make_step, diffusion, model, randn_like=randn_like, **settings)
    x = starting_noise(model, shape, noise, device, randn_like)
    if route:
        return finish(route(diffusion, make_step, x, randn_like), callback)
    return finish(walk(make_step(), x, descending(diffusion.num_timesteps, progress)), callback)


def _checked_eta(eta: float) -> float:
    if not 0 <= eta <= 1:
        raise InputError(f"eta must lie in [0, 1], got {eta}")
    return eta
