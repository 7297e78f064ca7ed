"""Gaussian diffusion: the reverse process p, its losses, its samplers, and bits/dim.

Equations are those of Ho et al. 2020 (DDPM, arXiv 2006.11239), Nichol & Dhariwal 2021 (IDDPM,
arXiv 2102.09672) and Song et al. 2020 (DDIM, arXiv 2010.02502). Images ``x_start`` have values in
[-1, 1] and shape [N, C, H, W] (or any [N, C, ...]); timesteps ``t`` are int64 [N] in
[0, num_timesteps), where t = 0 is the least noisy step.
"""

import enum
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec

import numpy as np
import torch as th

from .diffusion.loss_weights import LossWeight
from .diffusion.noise_schedules import betas_for_alpha_bar, get_named_beta_schedule
from .diffusion.predictions import PREDICTIONS, ModelMeanType, Prediction
from .diffusion.process import ForwardProcess, at, check_image_is_left
from .diffusion.walk import RandnLike, descending, finish, starting_noise, walk
from .errors import InputError
from .losses import discretized_gaussian_log_likelihood, normal_kl
from .nn import mean_flat

__all__ = [
    "GaussianDiffusion",
    "LossType",
    "ModelMeanType",
    "ModelVarType",
    "betas_for_alpha_bar",
    "get_named_beta_schedule",
]


class ModelVarType(enum.Enum):
    """Where the variance of p(x_{t-1} | x_t) comes from.

    ``LEARNED_RANGE`` interpolates between the posterior variance and beta in log space (IDDPM eq.
    15).
    """

    LEARNED = enum.auto()
    FIXED_SMALL = enum.auto()  # the posterior variance
    FIXED_LARGE = enum.auto()  # beta, at t = 0 the second posterior variance
    LEARNED_RANGE = enum.auto()


class LossType(enum.Enum):
    """What training minimises."""

    MSE = enum.auto()  # error of the prediction (and KL where the variance is learned)
    RESCALED_MSE = enum.auto()  # the same, with the KL's share scaled by T / 1000
    KL = enum.auto()  # one term of the variational bound
    RESCALED_KL = enum.auto()  # an estimate of the whole bound

    def is_vb(self) -> bool:
        """Whether the loss is the variational bound itself."""
        return self in (LossType.KL, LossType.RESCALED_KL)


LEARNED_VARIANCES = (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)

Model = Callable[..., th.Tensor]  # called as model(x, t, **model_kwargs)
Denoise = Callable[[th.Tensor], th.Tensor]
P = ParamSpec("P")


def _to_the_end(progressive: Callable[P, Iterator[dict[str, th.Tensor]]]) -> Callable[P, th.Tensor]:
    """Make the method that returns the last sample of a progressive one, with its arguments."""
    name = progressive.__name__

    def loop(*args: P.args, **kwargs: P.kwargs) -> th.Tensor:
        diffusion, *others = args  # whose class may have another progressive method
        return finish(getattr(diffusion, name)(*others, **kwargs))

    signature = inspect.signature(progressive).replace(return_annotation=th.Tensor)
    loop.__signature__ = signature  # type: ignore[attr-defined]
    loop.__name__ = loop.__qualname__ = name.removesuffix("_progressive")
    loop.__doc__ = f"The last sample of :meth:`{name}`, of the ``shape`` that it is given."
    return loop


class GaussianDiffusion(ForwardProcess):
    """The forward process q, the learned reverse process p, and what is computed with them.

    :param betas: variance of each step of q, float [T], each in (0, 1].
    :param model_mean_type: what the model predicts.
    :param model_var_type: where the variance of p comes from.
    :param loss_type: what :meth:`training_losses` returns as ``loss``.
    :param rescale_timesteps: pass timesteps to the model scaled to [0, 1000), as floats.
    :param loss_weight: weighs the squared error by the level of noise, see
        :data:`~improved_diffusion.diffusion.loss_weights.LOSS_WEIGHTS` (ours; default no weight).
        The variational bound is never weighted.
    :raises InputError: if a beta is outside (0, 1]; names the first.
    """

    def __init__(
        self,
        *,
        betas: np.ndarray,
        model_mean_type: ModelMeanType,
        model_var_type: ModelVarType,
        loss_type: LossType,
        rescale_timesteps: bool = False,
        loss_weight: LossWeight | None = None,
    ):
        super().__init__(betas)
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.loss_type = loss_type
        self.rescale_timesteps = rescale_timesteps
        self.loss_weight = loss_weight

    @property
    def prediction(self) -> Prediction:
        """What the model's output stands for."""
        return PREDICTIONS[self.model_mean_type]

    # -- the reverse process p ---------------------------------------------------------------

    def p_mean_variance(
        self,
        model: Model,
        x: th.Tensor,
        t: th.Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, th.Tensor]:
        """The model's p(x_{t-1} | x_t), and its prediction of x_start.

        :param model: called as ``model(x, t, **model_kwargs)``; returns [N, C, ...], or
            [N, 2C, ...] where the variance is learned.
        :param x: x_t, [N, C, ...].
        :param clip_denoised: clip the predicted x_start to [-1, 1].
        :param denoised_fn: applied to the predicted x_start before it is clipped.
        :return: ``mean``, ``variance``, ``log_variance`` and ``pred_xstart``, each of x's shape.
        :raises InputError: if the model's output has another shape.
        """
        output = self.call_model(model, x, t, model_kwargs)
        return self._p_of_output(output, x, t, clip_denoised, denoised_fn)

    def call_model(
        self, model: Model, x: th.Tensor, t: th.Tensor, model_kwargs: dict[str, Any] | None
    ) -> th.Tensor:
        """The model's output for x_t. Models are called here and nowhere else.

        :raises InputError: if it has another shape than the process takes.
        """
        output = model(x, self._scale_timesteps(t), **(model_kwargs or {}))
        count, channels, *size = x.shape
        parts = 2 if self.model_var_type in LEARNED_VARIANCES else 1
        if output.shape != (wanted := (count, parts * channels, *size)):
            raise InputError(
                f"the model made {tuple(output.shape)} of images {tuple(x.shape)}, where this "
                f"diffusion takes {wanted}: their learn_sigma must be the same"
            )
        return output

    def _scale_timesteps(self, t: th.Tensor) -> th.Tensor:
        """The timesteps as the model is shown them."""
        if self.rescale_timesteps:
            return t.float() * (1000.0 / self.num_timesteps)
        return t

    def _p_of_output(
        self,
        output: th.Tensor,
        x: th.Tensor,
        t: th.Tensor,
        clip_denoised: bool,
        denoised_fn: Denoise | None = None,
    ) -> dict[str, th.Tensor]:
        output, variance, log_variance = self._split_variance(output, x, t)
        pred_xstart = self.prediction.x_start(self, output, x, t)
        if denoised_fn is not None:
            pred_xstart = denoised_fn(pred_xstart)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1, 1)
        mean = self.prediction.mean(self, output, pred_xstart, x, t)
        return {
            "mean": mean,
            "variance": variance,
            "log_variance": log_variance,
            "pred_xstart": pred_xstart,
        }

    def _split_variance(
        self, output: th.Tensor, x: th.Tensor, t: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Separate the model's output into its prediction, the variance and the log-variance."""
        if self.model_var_type in LEARNED_VARIANCES:
            output, values = output.chunk(2, dim=1)
            log_variance = self._learned_log_variance(values, t)
            return output, th.exp(log_variance), log_variance
        if self.model_var_type is ModelVarType.FIXED_LARGE:
            variance, log_variance = self.fixed_large_variance, np.log(self.fixed_large_variance)
        else:
            variance, log_variance = self.posterior_variance, self.posterior_log_variance_clipped
        return output, at(variance, t, x.shape), at(log_variance, t, x.shape)

    def _learned_log_variance(self, values: th.Tensor, t: th.Tensor) -> th.Tensor:
        if self.model_var_type is ModelVarType.LEARNED:
            return values
        smallest = at(self.posterior_log_variance_clipped, t, values.shape)
        largest = at(np.log(self.betas), t, values.shape)
        fraction = (values + 1) / 2  # the model's -1 to 1 spans the range (IDDPM eq. 15)
        return fraction * largest + (1 - fraction) * smallest

    # -- one step of a sampler ---------------------------------------------------------------

    def p_sample(
        self,
        model: Model,
        x: th.Tensor,
        t: th.Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: dict[str, Any] | None = None,
        randn_like: RandnLike = th.randn_like,
    ) -> dict[str, th.Tensor]:
        """Draw x_{t-1} from p(x_{t-1} | x_t): one ancestral step (DDPM algorithm 2).

        :param randn_like: source of the noise (ours; default torch's global generator).
        :return: ``sample`` and ``pred_xstart``, each of ``x``'s shape.
        """
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        noise = randn_like(x)
        std = th.exp(0.5 * out["log_variance"])
        sample = out["mean"] + _unless_last(t, x) * std * noise
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    def ddim_sample(
        self,
        model: Model,
        x: th.Tensor,
        t: th.Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
        randn_like: RandnLike = th.randn_like,
    ) -> dict[str, th.Tensor]:
        """One step of DDIM (eqs. 12 and 16), from x_t to x_{t-1}.

        :param eta: how much noise it adds, in [0, 1]: 0 makes it deterministic, 1 gives the
            variance of the posterior, as ancestral steps with ``FIXED_SMALL`` have it.
        :return: ``sample``, which is x_{t-1}, and ``pred_xstart``, each of ``x``'s shape.
        """
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        eps = self._predict_eps_from_xstart(x, t, out["pred_xstart"])
        alpha_bar = at(self.alphas_cumprod, t, x.shape)
        alpha_bar_prev = at(self.alphas_cumprod_prev, t, x.shape)
        sigma = (
            eta
            * th.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar))
            * th.sqrt(1 - alpha_bar / alpha_bar_prev)
        )
        noise = randn_like(x)
        # Rounding may take what is left to below 0, where all of it is noise.
        remaining = (1 - alpha_bar_prev - sigma**2).clamp(min=0)
        mean = out["pred_xstart"] * th.sqrt(alpha_bar_prev) + th.sqrt(remaining) * eps
        sample = mean + _unless_last(t, x) * sigma * noise
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    def ddim_reverse_sample(
        self,
        model: Model,
        x: th.Tensor,
        t: th.Tensor,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
    ) -> dict[str, th.Tensor]:
        """One step of DDIM's ODE towards noise: x_{t+1} from x_t (DDIM section 4.3).

        :return: ``sample``, which is x_{t+1}, and ``pred_xstart``, each of ``x``'s shape.
        :raises ValueError: if ``eta`` is not 0: only the deterministic path can be reversed.
        """
        if eta != 0.0:
            raise ValueError(f"the reverse ODE is deterministic: eta must be 0, got {eta}")
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        eps = self._predict_eps_from_xstart(x, t, out["pred_xstart"])
        alpha_bar_next = at(self.alphas_cumprod_next, t, x.shape)
        sample = out["pred_xstart"] * th.sqrt(alpha_bar_next) + th.sqrt(1 - alpha_bar_next) * eps
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    # -- whole samplers: step functions, and one walk for all of them --------------------------

    def p_sample_loop_progressive(
        self,
        model: Model,
        shape: tuple[int, ...],
        noise: th.Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: th.device | str | None = None,
        progress: bool = False,
        randn_like: RandnLike = th.randn_like,
    ) -> Iterator[dict[str, th.Tensor]]:
        """Sample by all ancestral steps.

        :param shape: of the samples, [N, C, ...].
        :param noise: x_T; drawn if not given.
        :param device: where to sample; by default where the model's parameters are.
        :param progress: show a tqdm bar.
        :param randn_like: source of all noise (ours; default torch's global generator).
        :return: after each step its ``sample``, about [-1, 1] at last, its ``pred_xstart``, and the
            ``x_t`` and ``t`` that it began at.
        :raises InputError: if ``noise`` is not of ``shape``, or the model's output has a shape that
            the diffusion does not take.
        """
        x = starting_noise(model, shape, noise, device, randn_like)
        settings = (clip_denoised, denoised_fn, model_kwargs, randn_like)
        timesteps = descending(self.num_timesteps, progress)
        yield from walk(lambda x, t: self.p_sample(model, x, t, *settings), x, timesteps)

    p_sample_loop = _to_the_end(p_sample_loop_progressive)

    def ddim_sample_loop_progressive(
        self,
        model: Model,
        shape: tuple[int, ...],
        noise: th.Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Denoise | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: th.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
        randn_like: RandnLike = th.randn_like,
    ) -> Iterator[dict[str, th.Tensor]]:
        """:meth:`p_sample_loop_progressive` by DDIM's steps, with their ``eta``.

        :raises InputError: if the last timestep leaves nothing of the image, too.
        """
        check_image_is_left(self.alphas_cumprod, "DDIM", "take p_sample_loop")
        x = starting_noise(model, shape, noise, device, randn_like)
        settings = (clip_denoised, denoised_fn, model_kwargs, eta, randn_like)
        timesteps = descending(self.num_timesteps, progress)
        yield from walk(lambda x, t: self.ddim_sample(model, x, t, *settings), x, timesteps)

    ddim_sample_loop = _to_the_end(ddim_sample_loop_progressive)

    # -- losses and bits per dimension ---------------------------------------------------------

    def training_losses(
        self,
        model: Model,
        x_start: th.Tensor,
        t: th.Tensor,
        model_kwargs: dict[str, Any] | None = None,
        noise: th.Tensor | None = None,
    ) -> dict[str, th.Tensor]:
        """The losses of one timestep for each image, each [N].

        :return: ``loss``; and for the MSE losses ``mse``, and ``vb`` where the variance is learned.
        :raises InputError: if the model's output has another shape than the diffusion takes.
        """
        if noise is None:
            noise = th.randn_like(x_start)
        x_t = self.q_sample(x_start, t, noise=noise)
        if self.loss_type.is_vb():
            vb = self._vb_terms_bpd(model, x_start, x_t, t, False, model_kwargs)["output"]
            scale = self.num_timesteps if self.loss_type is LossType.RESCALED_KL else 1
            return {"loss": vb * scale}

        output = self.call_model(model, x_t, t, model_kwargs)
        terms = {}
        if self.model_var_type in LEARNED_VARIANCES:
            terms["vb"] = self._variance_loss(output, x_start, x_t, t)
            output = output.chunk(2, dim=1)[0]
        target = self.prediction.target(self, x_start, x_t, t, noise)
        terms["mse"] = mean_flat((target - output) ** 2)
        weighted = self._weighted(terms["mse"], t)
        terms["loss"] = weighted + terms["vb"] if "vb" in terms else weighted
        return terms

    def _weighted(self, mse: th.Tensor, t: th.Tensor) -> th.Tensor:
        if self.loss_weight is None:
            return mse
        snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
        return self.loss_weight(at(snr, t, t.shape), self.prediction) * mse

    def _variance_loss(
        self, output: th.Tensor, x_start: th.Tensor, x_t: th.Tensor, t: th.Tensor
    ) -> th.Tensor:
        """The bound's term, from which only the variance learns: the mean is held fixed."""
        prediction, values = output.chunk(2, dim=1)
        frozen = th.cat([prediction.detach(), values], dim=1)
        vb = self._vb_of(self._p_of_output(frozen, x_t, t, False), x_start, x_t, t)
        if self.loss_type is LossType.RESCALED_MSE:
            vb = vb * (self.num_timesteps / 1000.0)  # IDDPM's lambda = 0.001 at any T
        return vb

    def _vb_terms_bpd(
        self,
        model: Model,
        x_start: th.Tensor,
        x_t: th.Tensor,
        t: th.Tensor,
        clip_denoised: bool = True,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, th.Tensor]:
        """One term of the variational bound in bits/dim: a KL, or for t = 0 a likelihood.

        :return: ``output`` [N] and ``pred_xstart`` of ``x_start``'s shape.
        """
        out = self.p_mean_variance(model, x_t, t, clip_denoised, None, model_kwargs)
        return {
            "output": self._vb_of(out, x_start, x_t, t),
            "pred_xstart": out["pred_xstart"],
        }

    def _vb_of(
        self, p: dict[str, th.Tensor], x_start: th.Tensor, x_t: th.Tensor, t: th.Tensor
    ) -> th.Tensor:
        """The bound's term of a ``p`` that :meth:`p_mean_variance` returned, [N]."""
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start, x_t, t)
        kl = normal_kl(true_mean, true_log_variance, p["mean"], p["log_variance"])
        nll = -discretized_gaussian_log_likelihood(
            x_start, means=p["mean"], log_scales=0.5 * p["log_variance"]
        )
        return th.where(t == 0, _bits(nll), _bits(kl))

    def prior_bpd(self, x_start: th.Tensor) -> th.Tensor:
        """KL(q(x_T | x_start) || N(0, 1)) in bits/dim, [N]: what the schedule leaves over."""
        t = th.full((x_start.shape[0],), self.num_timesteps - 1, device=x_start.device)
        mean, _, log_variance = self.q_mean_variance(x_start, t)
        return _bits(normal_kl(mean, log_variance, 0.0, 0.0))

    def calc_bpd_loop(
        self,
        model: Model,
        x_start: th.Tensor,
        clip_denoised: bool = True,
        model_kwargs: dict[str, Any] | None = None,
        progress: bool = False,
    ) -> dict[str, th.Tensor]:
        """The whole variational bound in bits/dim, with fresh noise at each of the T timesteps.

        :return: ``total_bpd`` and ``prior_bpd`` [N]; ``vb`` (bits/dim), ``xstart_mse`` and ``mse``
            (of the noise) [N, T], whose columns run from t = T - 1 down to 0.
        """
        columns = []
        for i in descending(self.num_timesteps, progress):
            t = th.full((x_start.shape[0],), i, device=x_start.device, dtype=th.int64)
            columns.append(self.bpd_terms(model, x_start, t, clip_denoised, model_kwargs))
        terms = {key: th.stack([c[key] for c in columns], dim=1) for key in columns[0]}
        prior = self.prior_bpd(x_start)
        return {"total_bpd": terms["vb"].sum(dim=1) + prior, "prior_bpd": prior, **terms}

    @th.no_grad()
    def bpd_terms(
        self,
        model: Model,
        x_start: th.Tensor,
        t: th.Tensor,
        clip_denoised: bool,
        model_kwargs: dict[str, Any] | None,
        randn_like: RandnLike = th.randn_like,
    ) -> dict[str, th.Tensor]:
        """One timestep of :meth:`calc_bpd_loop` for each image, with fresh noise, each [N]."""
        noise = randn_like(x_start)
        x_t = self.q_sample(x_start, t, noise=noise)
        out = self._vb_terms_bpd(model, x_start, x_t, t, clip_denoised, model_kwargs)
        eps = self._predict_eps_from_xstart(x_t, t, out["pred_xstart"])
        return {
            "vb": out["output"],
            "xstart_mse": mean_flat((out["pred_xstart"] - x_start) ** 2),
            "mse": mean_flat((eps - noise) ** 2),
        }


def _unless_last(t: th.Tensor, x: th.Tensor) -> th.Tensor:
    """1 where a step is to be noisy, 0 where t = 0; broadcasts against x."""
    return (t != 0).float().view(-1, *[1] * (x.ndim - 1))


def _bits(nats: th.Tensor) -> th.Tensor:
    return mean_flat(nats) / math.log(2.0)
