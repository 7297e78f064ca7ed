"""What residual blocks make of the timestep embedding, computed for all of them together."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn

from ..nn import SiLU
from .kernels import fold_modulation

Folded = tuple[th.Tensor, th.Tensor]  # weight and bias [N, C], see fold_modulation


class EmbeddingProjections:
    """What the ``emb_layers`` of residual blocks make of one embedding, computed together.

    The blocks of each width share a product. Where its result scales and shifts a norm, the norm's
    weight and bias are folded in. A block whose ``emb_layers`` were replaced, or carry a hook, is
    left out: it has to call them itself.

    :param emb: [N, emb_channels].
    :param blocks: each a ``ResBlock``.
    """

    def __init__(self, emb: th.Tensor, blocks: Iterable[Any]):
        self.emb = emb
        self._made: dict[nn.Module, th.Tensor | Folded] = {}
        by_width = defaultdict(list)
        for block in blocks:
            if _is_plain(block.emb_layers):
                by_width[block.out_channels, block.use_scale_shift_norm].append(block)
        activated = F.silu(emb)
        for (_, folds), alike in by_width.items():
            outputs = _project(activated, [block.emb_layers[1] for block in alike])
            each = _fold([block.out_layers[0] for block in alike], outputs) if folds else outputs
            self._made.update(zip(alike, each, strict=True))

    def of(self, block: nn.Module, emb: th.Tensor) -> th.Tensor | Folded | None:
        """What ``block`` makes of ``emb``; None if it was left out, or this is another embedding.

        :return: [N, channels], or where it scales and shifts a norm, the norm's weight and bias.
        """
        return self._made.get(block) if emb is self.emb else None


def _is_plain(layers: nn.Sequential) -> bool:
    return [type(layer) for layer in layers] == [SiLU, nn.Linear] and not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
        for m in (layers, *layers)
    )


def _project(x: th.Tensor, layers: Sequence[nn.Linear]) -> th.Tensor:
    """The outputs [layers, N, width] of linear layers of one width, by one product."""
    weight = th.cat([layer.weight for layer in layers])
    bias = th.cat([layer.bias for layer in layers])
    outputs = F.linear(x, weight, bias).unflatten(1, (len(layers), -1))
    return outputs.transpose(0, 1).contiguous()


def _fold(norms: Sequence[nn.GroupNorm], outputs: th.Tensor) -> Iterable[Folded]:
    """Fold scales and shifts, ``outputs`` [norms, N, 2C], into each norm."""
    weight = th.stack([norm.weight for norm in norms])[:, None]
    bias = th.stack([norm.bias for norm in norms])[:, None]
    scale, shift = outputs.to(weight.dtype).chunk(2, dim=2)
    return zip(*(v.unbind() for v in fold_modulation(weight, bias, 1 + scale, shift)), strict=True)
