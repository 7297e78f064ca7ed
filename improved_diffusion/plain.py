"""The textbook way to run the UNet and its training step: what the benchmark compares with."""

from collections.abc import Iterable

import torch as th
import torch.nn.functional as F

from . import train_util
from .nn import GroupNorm32, SiLU
from .unet import QKVAttention, UNetModel


class PlainSiLU(th.nn.Module):
    """x sigmoid(x), as two operations."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x * th.sigmoid(x)


class PlainGroupNorm(GroupNorm32):
    """Normalise, then scale and shift."""

    def forward(
        self, x: th.Tensor, scale: th.Tensor | None = None, shift: th.Tensor | None = None
    ) -> th.Tensor:
        h = F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps)
        if scale is not None:
            shape = (*scale.shape, *[1] * (x.ndim - 2))
            h = h * (1 + scale.view(shape)) + shift.view(shape)
        return h.type(x.dtype)


class PlainAttention(QKVAttention):
    """Attention by einsum."""

    def forward(self, qkv: th.Tensor) -> th.Tensor:
        q, k, v = qkv.chunk(3, dim=1)
        scale = q.shape[1] ** -0.25
        weight = th.einsum("bct,bcs->bts", q * scale, k * scale).softmax(dim=-1)
        return th.einsum("bts,bcs->bct", weight, v)


def make_plain(model: UNetModel) -> None:
    """Replace the tuned layers of ``model``, in place; its weights and numbers stay."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, SiLU):
                setattr(module, name, PlainSiLU())
            elif isinstance(child, GroupNorm32):
                child.__class__ = PlainGroupNorm
            elif isinstance(child, QKVAttention):
                child.__class__ = PlainAttention


def make_loop_plain(loop: train_util.TrainLoop) -> None:
    """Give ``loop`` an optimizer that visits the tensors one by one, and such an EMA."""
    settings = {key: loop.opt.defaults[key] for key in ("lr", "weight_decay")}
    loop.opt = th.optim.AdamW(loop.model_params, foreach=False, fused=False, **settings)
    train_util.update_ema = _update_ema


def _update_ema(
    target_params: Iterable[th.Tensor], source_params: Iterable[th.Tensor], rate: float
) -> None:
    for target, source in zip(target_params, source_params, strict=True):
        target.detach().mul_(rate).add_(source.detach(), alpha=1 - rate)
