"""The textbook way to run the UNet and its training step: what the benchmark compares with."""

from collections.abc import Iterable

import torch as th

from improved_diffusion import train_util
from improved_diffusion.unet import QKVAttention, ResBlock, UNetModel


class PlainResBlock(ResBlock):
    """A residual block whose operations follow one another."""

    def _forward(self, x: th.Tensor, emb_out: th.Tensor) -> th.Tensor:
        h = self.in_layers(x)
        emb_out = emb_out.reshape(*emb_out.shape, *[1] * (h.ndim - 2))
        norm, rest = self.out_layers[0], self.out_layers[1:]
        if self.use_scale_shift_norm:
            scale, shift = emb_out.chunk(2, dim=1)
            h = rest(norm(h) * (1 + scale) + shift)
        else:
            h = rest(norm(h + emb_out))
        return self.skip_connection(x) + h


class PlainAttention(QKVAttention):
    """Attention by einsum."""

    def forward(self, qkv: th.Tensor) -> th.Tensor:
        q, k, v = qkv.chunk(3, dim=1)
        scale = q.shape[1] ** -0.25
        weight = th.einsum("bct,bcs->bts", q * scale, k * scale).softmax(dim=-1)
        return th.einsum("bts,bcs->bct", weight, v)


def make_plain(model: UNetModel) -> None:
    """Replace the tuned layers of ``model``, in place; its weights and numbers stay."""
    textbook = {ResBlock: PlainResBlock, QKVAttention: PlainAttention}
    for module in model.modules():
        module.__class__ = textbook.get(type(module), type(module))


class PlainWeights:
    """The parameters of a model, each with a gradient of its own."""

    def __init__(self, model: th.nn.Module):
        self.tensors = list(model.parameters())

    @property
    def grads(self) -> list[th.Tensor]:
        return [p.grad for p in self.tensors]

    def zero_grad(self) -> None:
        for p in self.tensors:
            p.grad = None

    def refresh(self) -> None: ...

    def gather(self) -> None: ...

    def average_over_ranks(self) -> None: ...

    def grad_norm(self) -> float:
        return sum((p.grad**2).sum().item() for p in self.tensors) ** 0.5


def make_loop_plain(loop: train_util.TrainLoop) -> None:
    """Have ``loop`` visit the tensors one by one: in the optimizer, the norm and the EMA."""
    settings = {key: loop.opt.defaults[key] for key in ("lr", "weight_decay")}
    loop.weights = PlainWeights(loop.model)
    loop.emas = loop.ema_params
    loop.opt = th.optim.AdamW(loop.model_params, foreach=False, fused=False, **settings)
    train_util.update_ema = _update_ema


def _update_ema(
    target_params: Iterable[th.Tensor], source_params: Iterable[th.Tensor], rate: float
) -> None:
    for target, source in zip(target_params, source_params, strict=True):
        target.detach().mul_(rate).add_(source.detach(), alpha=1 - rate)
