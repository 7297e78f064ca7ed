import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.network_weights import COUNTER, load_network


class Net(th.nn.Module):
    """Two convolutions, of which one has a batch norm and the other none."""

    def __init__(self, width=4):
        super().__init__()
        self.conv = th.nn.Conv2d(3, width, 3, bias=False)
        self.norm = th.nn.BatchNorm2d(width, eps=1e-3)
        self.last = th.nn.Conv2d(width, 2, 1)

    def forward(self, x):
        return self.last(self.norm(self.conv(x)).relu())


@pytest.fixture
def net():
    th.manual_seed(0)
    net = Net().eval()
    for values in (net.norm.running_mean, net.norm.weight, net.norm.bias):
        values.data.normal_()
    net.norm.running_var.uniform_(0.5, 2)
    return net


def test_folding_changes_rounding_only(net, tmp_path):
    th.save(net.state_dict(), tmp_path / "net.pt")
    loaded = load_network(Net, str(tmp_path / "net.pt"))
    images = th.randn(2, 3, 5, 5)
    assert not isinstance(loaded.norm, th.nn.BatchNorm2d)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    th.testing.assert_close(loaded(images), net(images))


def test_files_from_before_batch_norms_counted(net, tmp_path):
    old = {name: value for name, value in net.state_dict().items() if COUNTER not in name}
    path = tmp_path / "net.pth"
    th.save(old, path, _use_new_zipfile_serialization=False)
    images = th.randn(2, 3, 5, 5)
    th.testing.assert_close(load_network(Net, str(path))(images), net(images))


def test_weights_of_other_types_are_read_as_floats(net, tmp_path):
    weights = net.state_dict()
    weights["last.bias"] = th.tensor([1, 2])
    th.save(weights, tmp_path / "net.pt")
    loaded = load_network(Net, str(tmp_path / "net.pt"))
    assert loaded.last.bias.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            Net(width=5).state_dict(),
            r"does not fit the model: .*first conv\.weight, which has shape",
        ),
        (th.nn.Linear(2, 2).state_dict(), "does not fit the model"),
        ([th.ones(2)], "holds no weights"),
        ({"conv.weight": "none"}, "holds no weights"),
        ({3: th.ones(2)}, "holds no weights"),
        ({**Net().state_dict(), "last.bias": th.ones(2).to_sparse()}, "holds no weights"),
        ({"conv.weight": th.ones(1).expand(2**50)}, "holds no weights"),
        ({"print": print}, "loaded safely"),
    ],
)
def test_what_is_not_the_networks_is_refused_in_one_line(tmp_path, content, complaint):
    path = tmp_path / "net.pt"
    th.save(content, path)
    with pytest.raises(InputError, match=rf"^[^\n]*net\.pt [^\n]*{complaint}[^\n]*$"):
        load_network(Net, str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.pt"):
        load_network(Net, str(tmp_path / "none.pt"))
