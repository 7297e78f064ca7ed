"""FID's network with made-up weights: its shape, its names, its pools."""

import numpy as np
import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.inception import (
    InceptionV3,
    _max_pool,
    _mean_pool,
    open_inception,
)

# Output channels of the blocks, from the paper's table 1 and torchvision's model.
CHANNELS = {
    "Mixed_5b": 256,
    "Mixed_5c": 288,
    "Mixed_5d": 288,
    "Mixed_6a": 768,
    "Mixed_6b": 768,
    "Mixed_6c": 768,
    "Mixed_6d": 768,
    "Mixed_6e": 768,
    "Mixed_7a": 1280,
    "Mixed_7b": 2048,
    "Mixed_7c": 2048,
}
PARAMETERS = 23_834_568 + 8 * 2049  # of torchvision's without its auxiliary head; 8 classes more


def fill(tensor, numbers):
    tensor.data.copy_(th.from_numpy(numbers))


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A network whose signal neither dies nor explodes, and the file of its weights."""
    rng = np.random.RandomState(0)  # whose numbers never change
    network = InceptionV3().eval()
    for module in network.modules():
        if isinstance(module, th.nn.Conv2d):
            fill(
                module.weight,
                rng.normal(0, (2 / module.weight[0].numel()) ** 0.5, module.weight.shape),
            )
        elif isinstance(module, th.nn.BatchNorm2d):
            count = module.num_features
            fill(module.running_mean, rng.normal(0, 0.1, count))
            fill(module.running_var, rng.uniform(0.5, 2, count))
            fill(module.weight, rng.uniform(0.8, 1.2, count))
            fill(module.bias, rng.normal(0, 0.1, count))
    path = tmp_path_factory.mktemp("weights") / "made_up.pth"
    th.save(network.state_dict(), path)
    return network, str(path)


def test_names_and_shapes():
    weights = InceptionV3().state_dict()
    norms = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    layers = {name.rpartition(".conv.")[0] for name in weights if name.endswith(".conv.weight")}
    assert len(layers) == 94
    wanted = {f"{layer}.conv.weight" for layer in layers} | {"fc.weight", "fc.bias"}
    assert set(weights) == wanted | {f"{layer}.bn.{norm}" for layer in layers for norm in norms}
    assert {layer.partition(".")[0] for layer in layers if "." in layer} == CHANNELS.keys()
    assert {layer for layer in layers if "." not in layer} == {
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    }
    for layer in layers:
        kernel = weights[f"{layer}.conv.weight"].shape[2:]
        if layer.endswith(("_1x1", "1x1", "_pool", "_1")):
            assert kernel == (1, 1), layer
    row, column = (weights[f"Mixed_6b.branch7x7_{i}.conv.weight"].shape for i in (2, 3))
    assert (row, column) == ((128, 128, 1, 7), (192, 128, 7, 1))
    assert weights["fc.weight"].shape == (1008, 2048)
    assert sum(parameter.numel() for parameter in InceptionV3().parameters()) == PARAMETERS


def test_blocks_and_features_have_their_shapes(made_up):
    network = made_up[0]
    shapes, hooks = {}, []
    for name in CHANNELS:
        hooks.append(
            getattr(network, name).register_forward_hook(
                lambda module, inputs, output, name=name: shapes.update({name: output.shape[1:]})
            )
        )
    with th.no_grad():
        features = network(th.rand(1, 3, 299, 299) * 2 - 1)
    for hook in hooks:
        hook.remove()
    sides = {"5": 35, "6": 17, "7": 8}
    assert shapes == {
        name: (channels, sides[name[6]], sides[name[6]]) for name, channels in CHANNELS.items()
    }
    assert features.shape == (1, 2048)


def test_mean_pools_leave_the_padding_out():
    th.testing.assert_close(_mean_pool(th.ones(1, 1, 4, 4)), th.ones(1, 1, 4, 4))
    assert _mean_pool(th.arange(4.0).view(1, 1, 2, 2)).flatten().tolist() == [1.5] * 4


def test_pools_of_the_last_blocks_differ():
    network = InceptionV3()
    assert network.Mixed_7b.pool is _mean_pool
    assert network.Mixed_7c.pool is _max_pool
    assert _max_pool(th.arange(4.0).view(1, 1, 2, 2)).flatten().tolist() == [3] * 4


def test_features_are_those_of_torchvisions_network(made_up):
    """Of torchvision 0.28's inception_v3 with FID's pools they differed by nothing."""
    pixels = np.random.RandomState(1).uniform(-20, 20, (1, 3, 75, 75))  # beyond any limit within
    with th.no_grad():
        features = made_up[0](th.from_numpy(pixels).float())[0]
    found = features[[3, 282, 594, 911, 1254]].tolist()
    wanted = [2.24833, 2.18278, 1.55688, 0.69498, 0.9431]
    assert [*found, float(features.mean()), float(features.std())] == pytest.approx(
        [*wanted, 0.72906, 1.373724], rel=1e-3
    )


def test_the_file_gives_the_same_features(made_up):
    network, path = made_up
    images = th.rand(1, 3, 75, 75) * 2 - 1
    with th.no_grad():
        wanted, features = network(images), open_inception(path)(images)
    assert wanted.std() > 0
    th.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-4 * float(wanted.max()))


def test_weights_of_another_inception_are_refused(made_up, tmp_path):
    weights = dict(made_up[0].state_dict())
    weights["fc.weight"], weights["fc.bias"] = th.zeros(1000, 2048), th.zeros(1000)
    th.save(weights, tmp_path / "imagenet.pth")
    with pytest.raises(
        InputError, match=r"imagenet\.pth does not fit .* 2 entries differ, first fc"
    ):
        open_inception(str(tmp_path / "imagenet.pth"))


def test_weights_have_to_be_given():
    with pytest.raises(InputError, match=r"needs FID's weights: give --weights"):
        open_inception()
