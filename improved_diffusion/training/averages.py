"""Averages of a model's weights (EMAs): following them, saving them, taking one to draw from."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch as th

from .. import dist_util
from ..models.architecture import check_fit
from ..nn import update_ema
from . import checkpoints
from .checkpoints import Part
from .master_weights import MasterWeights
from .state import TrainState

Weights = dict[str, th.Tensor]


class Average(NamedTuple):
    """An average of weights to draw samples from.

    :ivar rate: of the EMA, in [0, 1).
    :ivar weights: by the names of the model's parameters.
    :ivar share: how much of the initial weights it holds.
    :ivar corrected: whether they were taken out.
    """

    rate: float
    weights: Weights
    share: float
    corrected: bool

    def __str__(self) -> str:
        young = f", which holds {self.share:.0%} of its initial weights"
        said = ", its initial weights taken out" if self.corrected else ""
        return f"the EMA of rate {self.rate:g}{young if self.share > checkpoints.SETTLED else said}"


class Averages:
    """One EMA of a model's weights for each rate.

    :param correct: whether to keep the initial weights, and to take them out of what is drawn from.
    :ivar params: of each EMA, in the order of the model's parameters.
    :ivar loaded: rates of those that a checkpoint had.
    """

    def __init__(self, weights: MasterWeights, rates: Sequence[float], correct: bool):
        self.weights = weights
        self.rates = rates
        self.correct = correct
        self._tensors = [weights.copies() for _ in rates]
        self.params = [weights.by_param(tensors) for tensors in self._tensors]
        self.loaded: set[str] = set()

    def update(self) -> None:
        """Take in the weights after an update."""
        for rate, tensors in zip(self.rates, self._tensors, strict=True):
            update_ema(tensors, self.weights.tensors, rate=rate)

    def best(self, state: TrainState, folder: str) -> Average:
        """The highest settled one, without its initial weights where ``folder`` has kept them."""
        rate = checkpoints.best_ema_rate(self.rates, state.updates)
        average = self._named(self.params[self.rates.index(rate)])
        beside = checkpoints.model_path(folder, state.updates)
        kept = checkpoints.companion(beside, "model", 0) if self.correct else None
        count = state.averaged.get(str(rate), 0)
        if not (kept and count):
            return Average(rate, average, rate**state.updates, corrected=False)
        initial = checkpoints.load_model_file(kept)
        without = checkpoints.without_initial(average, initial, rate**count)
        return Average(rate, without, 0.0, corrected=True)

    def keep_initial_weights(self, state: TrainState, folder: str, begun: str) -> None:
        """Write ``model000000.pt``: what a new run begins with, or what the continued one did.

        One that a run without checkpoints has left is removed: it would be taken for this run's.

        :param begun: path of the model's file that the run goes on from, or "".
        """
        with dist_util.agreeing():
            if dist_util.rank() != 0 or (begun and checkpoints.lies_in(begun, folder)):
                return
            initial: Weights | None = None
            if self.correct and state.averaged and any(self.rates):
                if not begun:
                    initial = self.weights.model.state_dict()
                elif path := checkpoints.companion(begun, "model", 0):
                    initial = checkpoints.load_model_file(path)
            checkpoints.remove_initial_weights(folder)
            if initial:
                checkpoints.save_checkpoint(folder, 0, {"model": initial})

    # -- files of a checkpoint -----------------------------------------------------------------

    def parts(self) -> list[Part]:
        """One file for each EMA."""
        return [
            Part(
                f"ema_{rate}_",
                partial(self._content, params),
                partial(self._load, params, str(rate)),
                "starts as a copy of the model",
            )
            for rate, params in zip(self.rates, self.params, strict=True)
        ]

    @th.no_grad()
    def start_from_model(self) -> None:
        """Begin with the model's weights; :meth:`parts` replace those that have a file."""
        for params in self.params:
            for average, p in zip(params, self.weights.params, strict=True):
                average.copy_(p)

    def _content(self, params: Iterable[th.Tensor]) -> dict[str, Any]:
        """The model's ``state_dict`` with an EMA's values for its parameters."""
        return {**self.weights.model.state_dict(), **self._named(params)}

    @th.no_grad()  # published averages are parameters
    def _load(self, params: Iterable[th.Tensor], rate: str, path: str) -> None:
        state = checkpoints.load_model_file(path)
        check_fit(self.weights.model, state, path)
        for name, average in self._named(params).items():
            average.copy_(state[name])
        self.loaded.add(rate)

    def _named(self, params: Iterable[th.Tensor]) -> Weights:
        names = (name for name, _ in self.weights.model.named_parameters())
        return dict(zip(names, params, strict=True))
