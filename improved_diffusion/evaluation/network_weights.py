"""Loading a feature network's weights, and folding its batch norms into its convolutions."""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch as th

from .. import dist_util
from ..errors import InputError
from ..models.architecture import check_fit, is_plain

Network = TypeVar("Network", bound=th.nn.Module)
COUNTER = "num_batches_tracked"  # of a batch norm: no weight, and old files lack it


def load_network(make: Callable[[], Network], path: str) -> Network:
    """Make a network with a file's weights: in eval mode, without gradients, on the CPU.

    The file's names and shapes have to be the network's, all of them. Each batch norm is then
    folded into the convolution that stands before it in the same module, which changes rounding
    only. No random numbers are drawn.

    :param path: of a ``state_dict``, read as weights only.
    :raises InputError: if the file is missing, damaged, unsafe, or does not fit the network.
    """
    weights = dist_util.load_state_dict(path, map_location="cpu")
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and is_plain(value) for name, value in weights.items()
    ):
        raise InputError(f"{path} holds no weights of a network; give a file with a state_dict")
    with th.device("meta"):  # or it would be initialised, with random numbers
        network = make()
    counters = {name: th.zeros(()) for name in network.state_dict() if name.endswith(COUNTER)}
    weights = {**counters, **weights}
    check_fit(network, weights, path)
    as_floats = {name: value.float() for name, value in weights.items()}  # no others get gradients
    network.load_state_dict(as_floats, assign=True)
    network.eval().requires_grad_(False)
    for module in list(network.modules()):
        _fold(module)
    return network


def _fold(parent: th.nn.Module) -> None:
    children = list(parent.named_children())  # which change on the way
    for (name, conv), (norm_name, norm) in pairwise(children):
        if isinstance(conv, th.nn.Conv2d) and isinstance(norm, th.nn.BatchNorm2d):
            setattr(parent, name, th.nn.utils.fuse_conv_bn_eval(conv, norm))
            setattr(parent, norm_name, th.nn.Identity())
