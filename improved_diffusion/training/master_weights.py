"""A model's weights in a few float32 tensors, and the copy of it that computes with them."""

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import torch as th
from torch import nn
from torch._utils import _unflatten_dense_tensors  # the reference's fp16_util has it from there too

from .. import dist_util
from ..errors import InputError
from .muon import Muon

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
CAST_LAYERS = (nn.Linear, *CONVOLUTIONS)  # whose weights autocast would cast
LENGTH = 2**20  # of a tensor of weights, at least: longer ones are no faster, and fit in fewer gaps
ROW = 2**14  # of a gradient, whose norm is taken exactly enough in float32
NARROW = 32  # rows or columns; matrices with fewer, as of the first and last layer, are AdamW's

State = dict[str, Any]


class MasterWeights:
    """The trainable weights of a model in a few tensors, and a copy of the model to compute with.

    The optimizer, the EMA and the gradient's norm pass over few long tensors in half the time that
    hundreds of short ones take. In half precision the copy's weights are cast once a step, and its
    gradients are summed in float32 (master weights: Micikevicius et al. 2018, arXiv 1710.03740,
    section 3.1); the bits are those of autocast.

    :param model: its trainable parameters become views of ``tensors``.
    :param dtype: what linear layers and convolutions of ``working`` hold; where it is the model's
        own, ``working`` is the model.
    :raises InputError: if there are no trainable parameters, or they are of several dtypes.
    """

    def __init__(self, model: nn.Module, dtype: th.dtype):
        self.model, self.dtype = model, dtype
        self.params = list(model.parameters())
        self.trained = [p for p in self.params if p.requires_grad]
        if not self.trained:
            raise InputError("the model has no parameter to train: all have requires_grad=False")
        if len(dtypes := {str(p.dtype) for p in self.trained}) > 1:
            raise InputError(
                f"the model's parameters are of several types ({', '.join(sorted(dtypes))}): "
                "make all of them float32, and choose a precision"
            )
        self._groups = _in_groups(self.trained)
        self.tensors = [nn.Parameter(_in_a_row(group)) for group in self._groups]
        for p, view in zip(self.trained, self.views(self.tensors), strict=True):
            p.data = view.detach()
        self.working = model
        self._casts: list[th.Tensor] = []
        leaves = self.trained
        if dtype != self.trained[0].dtype:
            self._casts = [tensor.detach().to(dtype) for tensor in self.tensors]
            views = dict(zip(self.trained, self.views(self._casts), strict=True))
            casts = {
                p: nn.Parameter(views[p]) for p in _parameters_of(CAST_LAYERS, model) if p in views
            }
            self.working = _copy_with(model, casts)
            leaves = [casts.get(p, p) for p in self.trained]
        rest = iter(leaves)
        self._leaves = [[next(rest) for _ in group] for group in self._groups]

    def views(self, tensors: Iterable[th.Tensor]) -> list[th.Tensor]:
        """``tensors``, or others as long, cut into one of the shape of each trainable parameter."""
        pairs = zip(tensors, self._groups, strict=True)
        return [view for pair in pairs for view in _unflatten_dense_tensors(*pair)]

    def copies(self) -> list[th.Tensor]:
        """Copies of ``tensors``."""
        return [tensor.detach().clone() for tensor in self.tensors]

    def by_param(self, copies: Iterable[th.Tensor]) -> list[th.Tensor]:
        """Views of :meth:`copies` as the model's parameters, and copies of those not trained."""
        views = dict(zip(self.trained, self.views(copies), strict=True))
        return [views[p] if p in views else p.detach().clone() for p in self.params]

    @property
    def grads(self) -> list[th.Tensor]:
        """The gradient of each of ``tensors``, after :meth:`gather`."""
        return [tensor.grad for tensor in self.tensors if tensor.grad is not None]

    def zero_grad(self) -> None:
        """Forget all gradients, those that something else left behind too."""
        for tensor in (*self.tensors, *itertools.chain(*self._leaves)):
            tensor.grad = None

    @th.no_grad()
    def refresh(self) -> None:
        """Have the copy that computes follow the weights and the mode of the model."""
        if self._casts:
            th._foreach_copy_(self._casts, list(self.tensors))
        if self.working.training != self.model.training:
            self.working.train(self.model.training)

    @th.no_grad()
    def gather(self) -> None:
        """Add the gradients of the copy that computes to those of ``tensors``, and forget them."""
        for tensor, group, leaves in zip(self.tensors, self._groups, self._leaves, strict=True):
            grads = [leaf.grad for leaf in leaves]
            is_first = tensor.grad is None
            if tensor.grad is None:
                every = all(grad is not None for grad in grads)
                tensor.grad = (th.empty_like if every else th.zeros_like)(tensor)
            pairs = zip(_unflatten_dense_tensors(tensor.grad, group), grads, strict=True)
            found = [(total, grad) for total, grad in pairs if grad is not None]
            if found:
                totals, new = (list(each) for each in zip(*found, strict=True))
                (th._foreach_copy_ if is_first else th._foreach_add_)(totals, new)
            for leaf in leaves:
                leaf.grad = None

    def average_over_ranks(self) -> None:
        """Make the gradients the means of those of all ranks."""
        for tensor, grad in zip(self.tensors, self.grads, strict=True):
            tensor.grad = dist_util.mean_over_ranks(grad)

    def grad_norm(self) -> float:
        """The norm of the whole gradient.

        Taken row by row: norms of long tensors are summed up in float32, and up to 4e-4 off.
        """
        norms = []
        for grad in self.grads:
            whole = len(grad) // ROW * ROW
            norms += [th.linalg.vector_norm(grad[:whole].view(-1, ROW), dim=1), grad[whole:]]
        return float(th.linalg.vector_norm(th.cat(norms)))

    def clip(self, grad_norm: float, longest: float) -> None:
        """Shorten the gradient to ``longest`` (Pascanu et al. 2013, arXiv 1211.5063, alg. 1).

        :param grad_norm: its norm.
        :param longest: 0 for any.
        """
        if 0 < longest < grad_norm:
            th._foreach_mul_(self.grads, longest / grad_norm)

    # -- the optimizer -------------------------------------------------------------------------

    def optimizer(self, name: str, **settings: Any) -> th.optim.AdamW:
        """An optimizer of ``tensors``, whose ``state_dict`` is that of one of the parameters.

        :param name: "adamw"; or "muon" for the weights of convolutions, but for narrow ones.
        :param settings: AdamW's arguments.
        """
        opt = th.optim.AdamW(self.tensors, **settings)
        if name == "muon":
            opt = Muon(self.tensors, self.views, self._wide(), **settings)
        opt.register_state_dict_post_hook(lambda _, state: self._by_parameter(state))
        opt.register_load_state_dict_pre_hook(lambda _, state: self._by_tensor(state))
        return opt

    def _wide(self) -> list[int]:
        """The numbers, among the trainable parameters, of convolutions that are not narrow."""
        layers = _parameters_of(CONVOLUTIONS, self.model)
        matrices = ((i, p) for i, p in enumerate(self.trained) if p in layers and p.ndim > 1)
        return [number for number, p in matrices if min(p.flatten(1).shape) >= NARROW]

    def _numbers(self) -> list[int]:
        """The trainable parameters' numbers among all, by which an optimizer's file names them."""
        return [number for number, p in enumerate(self.params) if p.requires_grad]

    def _by_parameter(self, state: State) -> State:
        groups = [{**state["param_groups"][0], "params": list(range(len(self.params)))}]
        if not state["state"]:
            return {**state, "param_groups": groups}
        moments = [state["state"][i] for i in range(len(self.tensors))]
        step = moments[0]["step"]
        keys = [key for key in moments[0] if key != "step"]
        views = zip(*(self.views(m[key] for m in moments) for key in keys), strict=True)
        each = {
            number: {"step": step.clone(), **dict(zip(keys, own, strict=True))}
            for number, own in zip(self._numbers(), views, strict=True)
        }
        return {**state, "state": each, "param_groups": groups}

    def _by_tensor(self, state: State) -> State:
        groups = [{**state["param_groups"][0], "params": list(range(len(self.tensors)))}]
        each = state["state"]
        if not each:
            return {**state, "param_groups": groups}
        moments = dict(next(iter(each.values())))
        step = th.as_tensor(moments.pop("step"), dtype=th.float32)  # a number in old files
        theirs = state["param_groups"][0]["params"]
        numbers = (theirs[number] for number in self._numbers())
        joined = {}
        for i, group in enumerate(self._groups):
            own = [(p, each.get(next(numbers), {})) for p in group]
            joined[i] = {"step": step.clone()} | {
                key: _in_a_row([m[key].to(p) if key in m else th.zeros_like(p) for p, m in own])
                for key in moments
            }
        return {**state, "state": joined, "param_groups": groups}


def _in_groups(params: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Neighbours together, until a group has :data:`LENGTH` elements."""
    groups: list[list[nn.Parameter]] = []
    room = 0
    for p in params:
        if room <= 0:
            groups.append([])
            room = LENGTH
        groups[-1].append(p)
        room -= p.numel()
    return groups


def _in_a_row(tensors: Iterable[th.Tensor]) -> th.Tensor:
    return th.cat([tensor.detach().flatten() for tensor in tensors])


def _parameters_of(kinds: tuple[type[nn.Module], ...], model: nn.Module) -> set[nn.Parameter]:
    """The parameters that none but layers of such kinds hold."""
    theirs: set[nn.Parameter] = set()
    others: set[nn.Parameter] = set()
    for module in model.modules():
        (theirs if isinstance(module, kinds) else others).update(module.parameters(recurse=False))
    return theirs - others


def _copy_with(model: nn.Module, replaced: dict[nn.Parameter, nn.Parameter]) -> nn.Module:
    """A copy of ``model`` with some parameters replaced; it shares all others and the buffers."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    memo |= {id(p): other for p, other in replaced.items()}
    return copy.deepcopy(model, memo)
