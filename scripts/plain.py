"""The textbook UNet and training step, which the benchmark compares with.

Every operation is a step of its own, and tensors are visited one by one.
"""

import torch as th
from torch import nn

from improved_diffusion import logger
from improved_diffusion.gaussian_diffusion import GaussianDiffusion
from improved_diffusion.nn import checkpoint, timestep_embedding
from improved_diffusion.resample import UniformSampler
from improved_diffusion.train_util import log_loss_dict
from improved_diffusion.unet import QKVAttention, ResBlock, TimestepBlock, UNetModel


class PlainResBlock(TimestepBlock):
    """A residual block that computes as it is written, with the layers of a tuned one."""

    def __init__(self, tuned: ResBlock):
        super().__init__()
        self.in_layers = tuned.in_layers
        self.emb_layers = tuned.emb_layers
        self.out_layers = tuned.out_layers
        self.skip_connection = tuned.skip_connection
        self.use_scale_shift_norm = tuned.use_scale_shift_norm
        self.use_checkpoint = tuned.use_checkpoint

    def forward(self, x: th.Tensor, emb: th.Tensor) -> th.Tensor:
        return checkpoint(self._forward, (x, emb), self.parameters(), self.use_checkpoint)

    def _forward(self, x: th.Tensor, emb: th.Tensor) -> th.Tensor:
        h = self.in_layers(x)
        emb_out = self.emb_layers(emb)[..., None, None]  # [N, C or 2C, 1, 1]
        norm, rest = self.out_layers[0], self.out_layers[1:]
        if self.use_scale_shift_norm:
            scale, shift = emb_out.chunk(2, dim=1)
            h = rest(norm(h) * (1 + scale) + shift)
        else:
            h = rest(norm(h + emb_out))
        return self.skip_connection(x) + h


class PlainAttention(nn.Module):
    """Dot-product attention by einsum."""

    def forward(self, qkv: th.Tensor) -> th.Tensor:
        """Map queries, keys and values [B, 3C, T] to [B, C, T]."""
        q, k, v = qkv.chunk(3, dim=1)
        scale = q.shape[1] ** -0.25
        weight = th.einsum("bct,bcs->bts", q * scale, k * scale).softmax(dim=-1)
        return th.einsum("bts,bcs->bct", weight, v)


class PlainUNet(nn.Module):
    """A UNet of such layers.

    :param unet: a model of images in two dimensions; its weights are used, its layers replaced.
    """

    def __init__(self, unet: UNetModel):
        super().__init__()
        _replace_layers(unet)
        self.unet = unet

    def forward(self, x: th.Tensor, timesteps: th.Tensor, y: th.Tensor | None = None) -> th.Tensor:
        """See :meth:`UNetModel.forward`."""
        unet = self.unet
        emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels))
        emb = emb if y is None else emb + unet.label_emb(y)
        h, skips = unet.to_patches(x), []
        for block in unet.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = unet.middle_block(h, emb)
        for block in unet.output_blocks:
            h = block(th.cat([h, skips.pop()], dim=1), emb)
        return unet.from_patches(unet.out(h))


def _replace_layers(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, ResBlock):
            setattr(module, name, PlainResBlock(child))
        elif isinstance(child, QKVAttention):
            setattr(module, name, PlainAttention())
        else:
            _replace_layers(child)


class PlainTraining:
    """Training steps with AdamW and one EMA.

    :param microbatch: images whose activations are held at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        diffusion: GaussianDiffusion,
        *,
        microbatch: int,
        lr: float,
        ema_rate: float,
    ):
        self.model = model
        self.diffusion = diffusion
        self.microbatch = microbatch
        self.ema_rate = ema_rate
        self.sampler = UniformSampler(diffusion)
        self.params = list(model.parameters())
        self.ema = [p.detach().clone() for p in self.params]
        self.opt = th.optim.AdamW(self.params, lr=lr, weight_decay=0.0, foreach=False, fused=False)

    def run_step(self, batch: th.Tensor, cond: dict[str, th.Tensor]) -> None:
        """Make one update from a batch, and log its losses and the gradient's norm."""
        self.opt.zero_grad()
        for start in range(0, len(batch), self.microbatch):
            part = slice(start, start + self.microbatch)
            self._add_gradients(batch[part], {key: value[part] for key, value in cond.items()})
        squares = [(p.grad**2).sum().item() for p in self.params if p.grad is not None]
        logger.logkv_mean("grad_norm", sum(squares) ** 0.5)
        self.opt.step()
        for average, p in zip(self.ema, self.params, strict=True):
            average.mul_(self.ema_rate).add_(p.detach(), alpha=1 - self.ema_rate)

    def _add_gradients(self, images: th.Tensor, cond: dict[str, th.Tensor]) -> None:
        t, weights = self.sampler.sample(len(images), images.device)
        losses = self.diffusion.training_losses(self.model, images, t, model_kwargs=cond)
        log_loss_dict(self.diffusion, t, {key: value * weights for key, value in losses.items()})
        (losses["loss"] * weights).mean().backward()
