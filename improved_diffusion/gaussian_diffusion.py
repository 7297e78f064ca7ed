"""Gaussian diffusion: noise schedules, the processes q and p, losses, samplers, bits/dim.

Equations are those of Ho et al. 2020 (DDPM, arXiv 2006.11239), Nichol & Dhariwal 2021 (IDDPM,
arXiv 2102.09672) and Song et al. 2020 (DDIM, arXiv 2010.02502). Images ``x_start`` have values in
[-1, 1] and shape [N, C, H, W] (or any [N, C, ...]); timesteps ``t`` are int64 [N] in
[0, num_timesteps), where t = 0 is the least noisy step.
"""

import enum
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch as th

from .diffusion.noise_schedules import betas_for_alpha_bar, checked_betas, get_named_beta_schedule
from .losses import discretized_gaussian_log_likelihood, normal_kl
from .nn import mean_flat


class ModelMeanType(enum.Enum):
    """What the model's output stands for."""

    PREVIOUS_X = enum.auto()  # the mean of x_{t-1}
    START_X = enum.auto()  # x_start
    EPSILON = enum.auto()  # the noise in x_t


class ModelVarType(enum.Enum):
    """Where the variance of p(x_{t-1} | x_t) comes from.

    ``LEARNED_RANGE`` interpolates between FIXED_SMALL and FIXED_LARGE in log space (IDDPM eq. 15).
    """

    LEARNED = enum.auto()
    FIXED_SMALL = enum.auto()  # the posterior variance
    FIXED_LARGE = enum.auto()  # beta
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


__all__ = [
    "GaussianDiffusion",
    "LossType",
    "ModelMeanType",
    "ModelVarType",
    "betas_for_alpha_bar",
    "get_named_beta_schedule",
]

LEARNED_VARIANCES = (ModelVarType.LEARNED, ModelVarType.LEARNED_RANGE)

Model = Callable[..., th.Tensor]
Denoise = Callable[[th.Tensor], th.Tensor]
RandnLike = Callable[[th.Tensor], th.Tensor]


class GaussianDiffusion:
    """The forward process q, the learned reverse process p, and what is computed with them.

    :param betas: variance of each step of q, float [T], each in (0, 1].
    :param model_mean_type: what the model predicts.
    :param model_var_type: where the variance of p comes from.
    :param loss_type: what :meth:`training_losses` returns as ``loss``.
    :param rescale_timesteps: pass timesteps to the model scaled to [0, 1000), as floats.
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
    ):
        self.model_mean_type = model_mean_type
        self.model_var_type = model_var_type
        self.loss_type = loss_type
        self.rescale_timesteps = rescale_timesteps

        self.betas = betas = checked_betas(betas)
        self.num_timesteps = len(betas)
        self.alphas_cumprod = np.cumprod(1.0 - betas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.alphas_cumprod_next = np.append(self.alphas_cumprod[1:], 0.0)

        # q(x_t | x_start), DDPM eq. 4
        self.sqrt_alphas_cumprod = np.sqrt(self.alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = np.sqrt(1.0 - self.alphas_cumprod)
        with np.errstate(divide="ignore"):  # a beta of 1 destroys the image: 1 / 0 is meant
            self.log_one_minus_alphas_cumprod = np.log(1.0 - self.alphas_cumprod)
            self.sqrt_recip_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod)
            self.sqrt_recipm1_alphas_cumprod = np.sqrt(1.0 / self.alphas_cumprod - 1)

        # q(x_{t-1} | x_t, x_start), DDPM eqs. 6 and 7
        remaining = 1.0 - self.alphas_cumprod
        self.posterior_variance = betas * (1.0 - self.alphas_cumprod_prev) / remaining
        # The first posterior variance is 0, whose logarithm is not usable: take the next one's.
        second = self.posterior_variance[1] if len(betas) > 1 else betas[0]
        self.posterior_log_variance_clipped = np.log(np.append(second, self.posterior_variance[1:]))
        self.posterior_mean_coef1 = betas * np.sqrt(self.alphas_cumprod_prev) / remaining
        self.posterior_mean_coef2 = (
            (1.0 - self.alphas_cumprod_prev) * np.sqrt(1.0 - betas) / remaining
        )
        self._fixed_large_variance = np.append(second, betas[1:])

    # -- the forward process q ---------------------------------------------------------------

    def q_mean_variance(
        self, x_start: th.Tensor, t: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Mean, variance and log-variance of q(x_t | x_start), each of ``x_start``'s shape."""
        return (
            _at(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start,
            _at(1.0 - self.alphas_cumprod, t, x_start.shape),
            _at(self.log_one_minus_alphas_cumprod, t, x_start.shape),
        )

    def q_sample(
        self, x_start: th.Tensor, t: th.Tensor, noise: th.Tensor | None = None
    ) -> th.Tensor:
        """Draw x_t from q(x_t | x_start) (DDPM eq. 4).

        :param noise: standard normal noise of ``x_start``'s shape; drawn if not given.
        """
        if noise is None:
            noise = th.randn_like(x_start)
        assert noise.shape == x_start.shape
        return (
            _at(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
            + _at(self.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * noise
        )

    def q_posterior_mean_variance(
        self, x_start: th.Tensor, x_t: th.Tensor, t: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Mean, variance and clipped log-variance of q(x_{t-1} | x_t, x_start) (DDPM eq. 6)."""
        assert x_start.shape == x_t.shape
        mean = (
            _at(self.posterior_mean_coef1, t, x_t.shape) * x_start
            + _at(self.posterior_mean_coef2, t, x_t.shape) * x_t
        )
        variance = _at(self.posterior_variance, t, x_t.shape)
        return mean, variance, _at(self.posterior_log_variance_clipped, t, x_t.shape)

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
        """
        output = model(x, self._scale_timesteps(t), **(model_kwargs or {}))
        output, variance, log_variance = self._split_variance(output, x, t)
        pred_xstart = self._predict_xstart(output, x, t)
        if denoised_fn is not None:
            pred_xstart = denoised_fn(pred_xstart)
        if clip_denoised:
            pred_xstart = pred_xstart.clamp(-1, 1)
        if self.model_mean_type is ModelMeanType.PREVIOUS_X:
            mean = output
        else:
            mean, _, _ = self.q_posterior_mean_variance(pred_xstart, x, t)
        assert mean.shape == log_variance.shape == pred_xstart.shape == x.shape
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
            assert output.shape[:2] == (x.shape[0], 2 * x.shape[1])
            output, values = output.chunk(2, dim=1)
            log_variance = self._learned_log_variance(values, t)
            return output, th.exp(log_variance), log_variance
        if self.model_var_type is ModelVarType.FIXED_LARGE:
            variance, log_variance = self._fixed_large_variance, np.log(self._fixed_large_variance)
        else:
            variance, log_variance = self.posterior_variance, self.posterior_log_variance_clipped
        return output, _at(variance, t, x.shape), _at(log_variance, t, x.shape)

    def _learned_log_variance(self, values: th.Tensor, t: th.Tensor) -> th.Tensor:
        if self.model_var_type is ModelVarType.LEARNED:
            return values
        smallest = _at(self.posterior_log_variance_clipped, t, values.shape)
        largest = _at(np.log(self.betas), t, values.shape)
        fraction = (values + 1) / 2  # the model's -1 to 1 spans the range (IDDPM eq. 15)
        return fraction * largest + (1 - fraction) * smallest

    def _predict_xstart(self, output: th.Tensor, x_t: th.Tensor, t: th.Tensor) -> th.Tensor:
        if self.model_mean_type is ModelMeanType.START_X:
            return output
        if self.model_mean_type is ModelMeanType.EPSILON:
            return self._predict_xstart_from_eps(x_t, t, output)
        return self._predict_xstart_from_xprev(x_t, t, output)

    def _predict_xstart_from_eps(self, x_t: th.Tensor, t: th.Tensor, eps: th.Tensor) -> th.Tensor:
        assert x_t.shape == eps.shape
        return (
            _at(self.sqrt_recip_alphas_cumprod, t, x_t.shape) * x_t
            - _at(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape) * eps
        )

    def _predict_xstart_from_xprev(
        self, x_t: th.Tensor, t: th.Tensor, xprev: th.Tensor
    ) -> th.Tensor:
        assert x_t.shape == xprev.shape
        coef1, coef2 = self.posterior_mean_coef1, self.posterior_mean_coef2
        return _at(1.0 / coef1, t, x_t.shape) * xprev - _at(coef2 / coef1, t, x_t.shape) * x_t

    def _predict_eps_from_xstart(
        self, x_t: th.Tensor, t: th.Tensor, pred_xstart: th.Tensor
    ) -> th.Tensor:
        scaled = _at(self.sqrt_recip_alphas_cumprod, t, x_t.shape) * x_t - pred_xstart
        return scaled / _at(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape)

    def _scale_timesteps(self, t: th.Tensor) -> th.Tensor:
        if self.rescale_timesteps:
            return t.float() * (1000.0 / self.num_timesteps)
        return t

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
        """One step of DDIM (eqs. 12 and 16): deterministic for eta 0, as noisy as DDPM for 1."""
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        eps = self._predict_eps_from_xstart(x, t, out["pred_xstart"])
        alpha_bar = _at(self.alphas_cumprod, t, x.shape)
        alpha_bar_prev = _at(self.alphas_cumprod_prev, t, x.shape)
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

        :raises ValueError: if ``eta`` is not 0: only the deterministic path can be reversed.
        """
        if eta != 0.0:
            raise ValueError(f"the reverse ODE is deterministic: eta must be 0, got {eta}")
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        eps = self._predict_eps_from_xstart(x, t, out["pred_xstart"])
        alpha_bar_next = _at(self.alphas_cumprod_next, t, x.shape)
        sample = out["pred_xstart"] * th.sqrt(alpha_bar_next) + th.sqrt(1 - alpha_bar_next) * eps
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    # -- whole samplers: one loop, two step functions -----------------------------------------

    def p_sample_loop(
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
    ) -> th.Tensor:
        """Sample by all ancestral steps.

        :param shape: of the samples, [N, C, ...].
        :param noise: x_T; drawn if not given.
        :param device: where to sample; by default where the model's parameters are.
        :param progress: show a tqdm bar.
        :param randn_like: source of all noise (ours; default torch's global generator).
        :return: samples of ``shape``, about [-1, 1].
        """
        settings = (clip_denoised, denoised_fn, model_kwargs, device, progress, randn_like)
        return last(self.p_sample_loop_progressive(model, shape, noise, *settings))["sample"]

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
        """:meth:`p_sample_loop` that yields what :meth:`p_sample` returns after each step."""
        step = partial(self.p_sample, model, randn_like=randn_like)
        settings = (clip_denoised, denoised_fn, model_kwargs)
        x = starting_noise(model, shape, noise, device, randn_like)
        yield from self._walk(step, x, settings, progress)

    def ddim_sample_loop(
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
    ) -> th.Tensor:
        """:meth:`p_sample_loop` by DDIM's steps, with their ``eta``."""
        settings = (clip_denoised, denoised_fn, model_kwargs, device, progress, eta, randn_like)
        return last(self.ddim_sample_loop_progressive(model, shape, noise, *settings))["sample"]

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
        """:meth:`ddim_sample_loop` that yields what :meth:`ddim_sample` returns each step."""
        step = partial(self.ddim_sample, model, eta=eta, randn_like=randn_like)
        settings = (clip_denoised, denoised_fn, model_kwargs)
        x = starting_noise(model, shape, noise, device, randn_like)
        yield from self._walk(step, x, settings, progress)

    def _walk(
        self,
        step: Callable[..., dict[str, th.Tensor]],
        x: th.Tensor,
        settings: tuple,
        progress: bool,
    ) -> Iterator[dict[str, th.Tensor]]:
        for i in descending(self.num_timesteps, progress):
            t = th.full((x.shape[0],), i, device=x.device, dtype=th.int64)
            with th.no_grad():
                out = step(x, t, *settings)
            yield out
            x = out["sample"]

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
        """
        if noise is None:
            noise = th.randn_like(x_start)
        x_t = self.q_sample(x_start, t, noise=noise)
        if self.loss_type.is_vb():
            vb = self._vb_terms_bpd(model, x_start, x_t, t, False, model_kwargs)["output"]
            scale = self.num_timesteps if self.loss_type is LossType.RESCALED_KL else 1
            return {"loss": vb * scale}

        output = model(x_t, self._scale_timesteps(t), **(model_kwargs or {}))
        terms = {}
        if self.model_var_type in LEARNED_VARIANCES:
            terms["vb"] = self._variance_loss(output, x_start, x_t, t)
            output = output.chunk(2, dim=1)[0]
        target = self._training_target(x_start, x_t, t, noise)
        assert output.shape == target.shape == x_start.shape
        terms["mse"] = mean_flat((target - output) ** 2)
        terms["loss"] = terms["mse"] + terms["vb"] if "vb" in terms else terms["mse"]
        return terms

    def _variance_loss(
        self, output: th.Tensor, x_start: th.Tensor, x_t: th.Tensor, t: th.Tensor
    ) -> th.Tensor:
        """The bound's term, from which only the variance learns: the mean is held fixed."""
        prediction, values = output.chunk(2, dim=1)
        frozen = th.cat([prediction.detach(), values], dim=1)
        vb = self._vb_terms_bpd(lambda *_: frozen, x_start, x_t, t, clip_denoised=False)["output"]
        if self.loss_type is LossType.RESCALED_MSE:
            vb = vb * (self.num_timesteps / 1000.0)  # IDDPM's lambda = 0.001 at any T
        return vb

    def _training_target(
        self, x_start: th.Tensor, x_t: th.Tensor, t: th.Tensor, noise: th.Tensor
    ) -> th.Tensor:
        if self.model_mean_type is ModelMeanType.EPSILON:
            return noise
        if self.model_mean_type is ModelMeanType.START_X:
            return x_start
        return self.q_posterior_mean_variance(x_start, x_t, t)[0]

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
        true_mean, _, true_log_variance = self.q_posterior_mean_variance(x_start, x_t, t)
        out = self.p_mean_variance(model, x_t, t, clip_denoised, None, model_kwargs)
        kl = normal_kl(true_mean, true_log_variance, out["mean"], out["log_variance"])
        nll = -discretized_gaussian_log_likelihood(
            x_start, means=out["mean"], log_scales=0.5 * out["log_variance"]
        )
        bits = th.where(t == 0, _bits(nll), _bits(kl))
        return {"output": bits, "pred_xstart": out["pred_xstart"]}

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


def _at(table: np.ndarray, t: th.Tensor, shape: tuple[int, ...]) -> th.Tensor:
    """``table[t]`` as float32, expanded to ``shape``: one value for each of the N images."""
    values = th.from_numpy(table).to(t.device)[t].float()
    return values.view(-1, *[1] * (len(shape) - 1)).expand(shape)


def _unless_last(t: th.Tensor, x: th.Tensor) -> th.Tensor:
    """1 where a step is to be noisy, 0 where t = 0; broadcasts against x."""
    return (t != 0).float().view(-1, *[1] * (x.ndim - 1))


def _bits(nats: th.Tensor) -> th.Tensor:
    return mean_flat(nats) / math.log(2.0)


def last(items: Iterator[dict[str, th.Tensor]]) -> dict[str, th.Tensor]:
    """The final one of what a progressive sampler yields."""
    final: dict[str, th.Tensor] = {}
    for final in items:  # noqa: B007
        pass
    return final


def descending(count: int, progress: bool) -> Any:
    """Timesteps from the noisiest to the cleanest, with a tqdm bar if wanted."""
    indices = range(count)[::-1]
    if not progress:
        return indices
    from tqdm.auto import tqdm  # only where a bar is wanted

    return tqdm(indices)


def starting_noise(
    model: Model,
    shape: tuple[int, ...],
    noise: th.Tensor | None,
    device: th.device | str | None,
    randn_like: RandnLike,
) -> th.Tensor:
    """x_T: what was given, or new noise where the model's parameters are."""
    if noise is not None:
        return noise
    if device is None:
        device = next(model.parameters()).device
    return randn_like(th.empty(*shape, device=device))
