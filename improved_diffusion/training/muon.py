"""AdamW whose updates of convolutions are orthogonal.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the mean gradient of a
matrix by the nearest orthogonal one, so that all its directions are learned alike.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch as th

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic iteration, by Jordan et al.
ITERATIONS = 5
RMS = 0.2  # of an update, as AdamW's usually are (Liu et al. 2025, arXiv 2502.16982, section 2.2)

Views = Callable[[Iterable[th.Tensor]], list[th.Tensor]]


def orthogonalised(matrix: th.Tensor) -> th.Tensor:
    """About the orthogonal matrix next to ``matrix``, [m, n].

    Most of its singular values become 0.7 to 1.2. A matrix of zeros stays one.

    Each iteration multiplies x by a polynomial of x xᵀ. Where that square matrix is much the
    smaller one, as a convolution's is, the polynomials are multiplied, and x but once.
    """
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    is_long = x.shape[1] > 1.5 * x.shape[0]
    factor = _polynomial(gram)
    y = factor if is_long else factor @ x
    for _ in range(ITERATIONS - 1):
        gram = gram @ factor @ factor if is_long else y @ y.T
        factor = _polynomial(gram)
        y = factor @ y
    x = y @ x if is_long else y
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def _polynomial(gram: th.Tensor) -> th.Tensor:
    """a + b gram + c gram^2, by which an iteration multiplies."""
    a, b, c = COEFFICIENTS
    factor = th.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor


class Muon(th.optim.AdamW):
    """AdamW that takes the direction of some parameters' updates from Muon.

    These move by ``lr`` times 0.2 √max(m, n) times the orthogonalised mean gradient, a step of
    about the size of AdamW's. The momentum is the first of the ``betas``. The state is AdamW's.

    :param tensors: the weights, of one learning rate.
    :param views: cuts such tensors, their gradients or moments into those of single parameters.
    :param chosen: the numbers of the parameters among the views, which are [m, ...] and are taken
        as matrices [m, n].
    """

    def __init__(
        self,
        tensors: Sequence[th.Tensor],
        views: Views,
        chosen: Sequence[int],
        **settings: Any,
    ):
        super().__init__(tensors, **settings)
        self._tensors, self._views, self._chosen = tensors, views, chosen

    def _matrices(self, tensors: Iterable[Any]) -> list[th.Tensor]:
        views = self._views(tensors)
        return [views[number].flatten(1) for number in self._chosen]

    @th.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make one update."""
        weights = self._matrices([tensor.detach() for tensor in self._tensors])
        before = [weight.clone() for weight in weights]
        loss = super().step(closure)
        (group,) = self.param_groups
        lr, momentum = group["lr"], group["betas"][0]
        means = self._matrices([self.state[tensor]["exp_avg"] for tensor in self._tensors])
        grads = self._matrices([tensor.grad for tensor in self._tensors])
        for weight, old, mean, grad in zip(weights, before, means, grads, strict=True):
            ahead = grad.lerp(mean, momentum)  # Nesterov's
            step = orthogonalised(ahead)
            size = RMS * math.sqrt(max(weight.shape))
            weight.copy_(old).mul_(1 - lr * group["weight_decay"]).add_(step, alpha=-lr * size)
        return loss
