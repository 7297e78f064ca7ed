"""A model's weights as one float32 tensor, and the copy of the model that computes with them."""

import copy
from typing import Any

import torch as th
from torch import nn
from torch._utils import _unflatten_dense_tensors  # the reference's fp16_util has it from there too

from . import dist_util
from .errors import InputError

CAST_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose weights autocast would cast

ROW = 2**14

State = dict[str, Any]


class MasterWeights:
    """The trainable weights of a model in one tensor, and a copy of the model to compute with.

    The optimizer, the EMA and the gradient's norm pass over that one tensor in half the time that
    hundreds of short ones take. In half precision the copy's weights are cast once a step, and its
    gradients are summed in float32 (master weights: Micikevicius et al. 2018, arXiv 1710.03740,
    section 3.1); the bits are those of autocast.

    :param model: its trainable parameters become views of ``flat``.
    :param dtype: what linear layers and convolutions of ``working`` hold; where it is the model's
        own, ``working`` is the model.
    :raises InputError: if the trainable parameters are of several dtypes.
    """

    def __init__(self, model: nn.Module, dtype: th.dtype):
        self.params = list(model.parameters())
        self.trained = [p for p in self.params if p.requires_grad]
        if len(dtypes := {str(p.dtype) for p in self.trained}) > 1:
            raise InputError(
                f"the model's parameters are of several types ({', '.join(sorted(dtypes))}): "
                "make all of them float32, and choose a precision"
            )
        self.flat = nn.Parameter(th.cat([p.detach().flatten() for p in self.trained]))
        for p, view in zip(self.trained, self.views(self.flat.detach()), strict=True):
            p.data = view
        self.tensors = [self.flat]  # what the optimizer and the EMA pass over
        self.working, self._cast = model, None
        self._leaves = self.trained
        if dtype != self.flat.dtype:
            self._cast = self.flat.detach().to(dtype)
            casts = dict(zip(self.trained, self.views(self._cast), strict=True))
            casts = {p: nn.Parameter(casts[p]) for p in _parameters_to_cast(model) if p in casts}
            self.working = _copy_with(model, casts)
            self._leaves = [casts.get(p, p) for p in self.trained]

    def views(self, flat: th.Tensor) -> tuple[th.Tensor, ...]:
        """A tensor as long as ``flat``, as one of the shape of each trainable parameter."""
        return _unflatten_dense_tensors(flat, self.trained)

    def copies(self) -> list[th.Tensor]:
        """Copies of ``tensors``."""
        return [tensor.detach().clone() for tensor in self.tensors]

    def by_param(self, copies: list[th.Tensor]) -> list[th.Tensor]:
        """Views of :meth:`copies` as the model's parameters, and copies of those not trained."""
        views = dict(zip(self.trained, self.views(*copies), strict=True))
        return [views[p] if p in views else p.detach().clone() for p in self.params]

    @th.no_grad()
    def refresh(self) -> None:
        """Cast the weights, as they are now, into the copy that computes."""
        if self._cast is not None:
            self._cast.copy_(self.flat)

    @th.no_grad()
    def gather(self) -> None:
        """Add the gradients of the copy that computes to ``flat.grad``, and forget them."""
        add = th._foreach_add_
        if self.flat.grad is None:
            every = all(leaf.grad is not None for leaf in self._leaves)
            self.flat.grad = (th.empty_like if every else th.zeros_like)(self.flat)
            add = th._foreach_copy_
        pairs = zip(self.views(self.flat.grad), self._leaves, strict=True)
        found = [(total, leaf) for total, leaf in pairs if leaf.grad is not None]
        add([total for total, _ in found], [leaf.grad for _, leaf in found])
        for _, leaf in found:
            leaf.grad = None

    def average_over_ranks(self) -> None:
        """Make ``flat.grad`` the mean of those of all ranks."""
        self.flat.grad = dist_util.mean_over_ranks(self.flat.grad)

    def grad_norm(self) -> float:
        """The norm of ``flat.grad``.

        Taken row by row: norms of a long tensor are summed up in float32, and 4e-4 off.
        """
        grad = self.flat.grad
        whole = len(grad) // ROW * ROW
        rows = th.linalg.vector_norm(grad[:whole].view(-1, ROW), dim=1)
        return float(th.linalg.vector_norm(th.cat([rows, grad[whole:]])))

    # -- the optimizer -------------------------------------------------------------------------

    def adamw(self, **settings: Any) -> th.optim.AdamW:
        """An AdamW of ``flat``, whose ``state_dict`` is that of one of the model's parameters."""
        opt = th.optim.AdamW([self.flat], **settings)
        opt.register_state_dict_post_hook(lambda _, state: self._by_parameter(state))
        opt.register_load_state_dict_pre_hook(lambda _, state: self._in_one(state))
        return opt

    def _numbers(self) -> list[int]:
        """The trainable parameters' numbers among all, by which an optimizer's file names them."""
        return [number for number, p in enumerate(self.params) if p.requires_grad]

    def _by_parameter(self, state: State) -> State:
        groups = [{**state["param_groups"][0], "params": list(range(len(self.params)))}]
        if not state["state"]:
            return {**state, "param_groups": groups}
        moments = dict(state["state"][0])
        step = moments.pop("step")
        views = {key: self.views(flat) for key, flat in moments.items()}
        each = {
            number: {"step": step.clone(), **{key: parts[i] for key, parts in views.items()}}
            for i, number in enumerate(self._numbers())
        }
        return {**state, "state": each, "param_groups": groups}

    def _in_one(self, state: State) -> State:
        groups = [{**state["param_groups"][0], "params": [0]}]
        each = state["state"]
        if not each:
            return {**state, "param_groups": groups}
        moments = dict(next(iter(each.values())))
        step = moments.pop("step").clone()
        flats = {
            key: self._in_a_row([each.get(n, {}).get(key) for n in self._numbers()])
            for key in moments
        }
        return {**state, "state": {0: {"step": step, **flats}}, "param_groups": groups}

    def _in_a_row(self, parts: list[th.Tensor | None]) -> th.Tensor:
        pairs = zip(parts, self.trained, strict=True)
        return th.cat([(th.zeros_like(p) if v is None else v.to(p)).flatten() for v, p in pairs])


def _parameters_to_cast(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that none but linear layers and convolutions hold."""
    cast: set[nn.Parameter] = set()
    kept: set[nn.Parameter] = set()
    for module in model.modules():
        (cast if isinstance(module, CAST_LAYERS) else kept).update(module.parameters(recurse=False))
    return cast - kept


def _copy_with(model: nn.Module, replaced: dict[nn.Parameter, nn.Parameter]) -> nn.Module:
    """A copy of ``model`` with some parameters replaced; it shares all others and the buffers."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    memo |= {id(p): other for p, other in replaced.items()}
    return copy.deepcopy(model, memo)
