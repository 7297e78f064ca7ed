"""The number formats of a run as one object: where to cast, how to scale the loss, what to keep."""

import math
from contextlib import AbstractContextManager
from typing import Any

import torch as th

from ..errors import InputError
from . import cpu

DTYPES = {"fp32": th.float32, "bf16": th.bfloat16, "fp16": th.float16}
INITIAL_LG_LOSS_SCALE = 20.0


class Precision:
    """fp32, bf16 or fp16 arithmetic in the model, around float32 weights.

    In bf16 and fp16 the convolutions and matrix products compute in that type, by autocast. The
    weights, the optimizer, the EMA, the losses and the diffusion stay in float32. fp16 scales the
    loss by ``2**lg_loss_scale``; that exponent grows by ``scale_growth`` with each update and falls
    by one with each gradient that overflows.

    :param name: one of ``DTYPES``.
    :param device: where the model computes.
    :raises InputError: for an unknown name, or fp16 on a CPU.
    """

    def __init__(self, name: str, device: th.device | str = "cpu", scale_growth: float = 1e-3):
        check_precision(name, device)
        self.name = name
        self.dtype = DTYPES[name]
        self.device_type = th.device(device).type
        self.scale_growth = scale_growth
        self.scales_loss = name == "fp16"
        self.lg_loss_scale = INITIAL_LG_LOSS_SCALE if self.scales_loss else 0.0

    def autocast(self) -> AbstractContextManager:
        """The context to call the model in."""
        return th.autocast(self.device_type, dtype=self.dtype, enabled=self.name != "fp32")

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before the backward pass; 1 but for fp16."""
        return 2.0**self.lg_loss_scale

    def accept(self, grads: list[th.Tensor], grad_norm: float) -> bool:
        """Take in the gradients of a step, and adapt the loss scale.

        :param grads: gradients of the scaled loss; divided by the scale, in place.
        :param grad_norm: their norm, still scaled.
        :return: whether the update may be made: whether all gradients are finite.
        """
        if not math.isfinite(grad_norm):
            if self.scales_loss:
                self.lg_loss_scale -= 1
            return False
        if self.scales_loss:
            th._foreach_mul_(grads, 1.0 / self.loss_scale)
            self.lg_loss_scale += self.scale_growth
        return True

    def state_dict(self) -> dict[str, Any]:
        """The loss scale, for :meth:`load_state_dict`."""
        return {"name": self.name, "lg_loss_scale": self.lg_loss_scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the loss scale, if it was saved by a run of the same precision and is used.

        :raises ArithmeticError, TypeError, ValueError: if it is no scale.
        """
        if self.scales_loss and state["name"] == self.name:
            scale = float(state["lg_loss_scale"])
            if not math.isfinite(2.0**scale):
                raise ValueError(f"lg_loss_scale is {scale}")
            self.lg_loss_scale = scale


def fastest_precision() -> str:
    """What ``auto`` means: the precision to take on this processor."""
    return "bf16" if cpu.has_native_bfloat16() else "fp32"


def check_precision(name: str, device: th.device | str, allow_slow_bf16: bool = True) -> None:
    """:raises InputError: if ``name`` is no precision, not one for ``device``, or slow there."""
    if name not in DTYPES:
        raise InputError(f"unknown precision {name!r}; choose from {', '.join(DTYPES)}")
    if th.device(device).type != "cpu":
        return
    if name == "fp16":
        raise InputError(
            "fp16 needs a GPU, and this run computes on a CPU; use --precision bf16 or fp32"
        )
    if name == "bf16" and not (allow_slow_bf16 or cpu.has_native_bfloat16()):
        raise InputError(
            "this processor has no native bfloat16, so bf16 takes 10 to 80 times as long as fp32 "
            "on it; use --precision fp32, or give --allow_slow_bf16 True"
        )
