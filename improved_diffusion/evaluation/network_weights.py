"""Loading a feature network's weights, and folding its batch norms into its convolutions."""

from itertools import pairwise
from typing import TypeVar

import torch as th

from .. import dist_util
from ..errors import InputError
from ..models.architecture import load_weights

Network = TypeVar("Network", bound=th.nn.Module)
COUNTER = "num_batches_tracked"  # of a batch norm: no weight, and old files lack it


def load_network(network: Network, path: str) -> Network:
    """Fill ``network`` from a file, and make it ready to evaluate: in eval mode, without gradients.

    The file's names and shapes have to be the network's, all of them. Each batch norm is then
    folded into the convolution before it, which changes rounding only: both must stand beside
    each other in the same module, in this order.

    :param path: of a ``state_dict``, read as weights only.
    :raises InputError: if the file is missing, damaged, unsafe, or does not fit the network.
    """
    weights = dist_util.load_state_dict(path, map_location="cpu")
    if not isinstance(weights, dict) or not all(map(th.is_tensor, weights.values())):
        raise InputError(f"{path} holds no weights of a network; give a file with a state_dict")
    counters = {k: v for k, v in network.state_dict().items() if k.endswith(COUNTER)}
    load_weights(network, {**counters, **weights}, path)
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
