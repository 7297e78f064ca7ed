import contextlib
import dataclasses
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch as th
from PIL import Image

from improved_diffusion.errors import InputError
from improved_diffusion.evaluation import features
from improved_diffusion.evaluation.features import (
    BATCH_SIZE,
    NETWORKS,
    Extractor,
    FeatureNetwork,
    cached_features,
    features_of,
    resized,
)
from improved_diffusion.evaluation.image_sets import in_memory, open_images


class Tiny(th.nn.Module):
    """Six features of images of 8 x 8; counts the images that it sees."""

    def __init__(self, path):
        super().__init__()
        th.manual_seed(len(path))
        self.conv = th.nn.Conv2d(3, 6, 3)
        self.seen = 0

    def forward(self, x):
        assert x.shape[1:] == (3, 8, 8)
        self.seen += len(x)
        return self.conv(x).mean(dim=(2, 3))


TINY = FeatureNetwork(title="Tiny", is_fid=False, open=Tiny, dimension=6, size=8, grey=127)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny", TINY)


@pytest.fixture
def extractor():
    return Extractor("tiny")


@pytest.fixture
def warnings(monkeypatch):
    """What is logged as a warning."""
    lines = []
    monkeypatch.setattr(features.logger, "warn", lines.append)
    return lines


def noise(count=5, size=12, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


# -- the extractor -------------------------------------------------------------------------------


def test_an_image_has_its_features_in_any_company(extractor):
    images = noise(2 * BATCH_SIZE + 3)
    order = np.random.default_rng(1).permutation(len(images))
    wanted = extractor(images)
    assert wanted.shape == (len(images), 6)
    assert wanted.dtype == np.float32
    np.testing.assert_allclose(extractor(images[order]), wanted[order], atol=1e-6)
    np.testing.assert_allclose(extractor(images[:1]), wanted[:1], atol=1e-6)
    assert (extractor(th.from_numpy(images)) == wanted).all()


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (noise() / 255, "must be uint8, not float64"),
        (noise().transpose(0, 3, 1, 2), "with 1, 3 or 4 channels, not"),
        (noise()[0], "must have the shape"),
        (noise()[:0], "must have the shape"),
    ],
)
def test_what_is_no_picture_has_no_features(images, said, extractor):
    with pytest.raises(InputError, match=said):
        extractor(images)


def test_grey_is_a_colour_and_alpha_is_left_out(extractor):
    grey = noise(channels=1)
    np.testing.assert_array_equal(extractor(grey), extractor(grey.repeat(3, axis=3)))
    alpha = noise(channels=4)
    np.testing.assert_array_equal(extractor(alpha), extractor(alpha[..., :3]))


@pytest.mark.parametrize("size", [7, 12, 40])
def test_images_are_resized_as_by_clean_fid(size):
    images = noise(2)
    channels = images.transpose(0, 3, 1, 2).reshape(-1, 12, 12).astype(np.float32)
    by_pillow = [
        np.asarray(Image.fromarray(channel).resize((size, size), Image.Resampling.BICUBIC))
        for channel in channels
    ]
    wanted = np.stack(by_pillow).clip(0, 255).reshape(2, 3, size, size)
    np.testing.assert_allclose(resized(images, size).numpy(), wanted, atol=0.01)


def test_the_network_sees_the_values_that_it_wants(extractor):
    black_and_white = np.stack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)])
    weight, bias = extractor.module.conv.weight.sum(dim=(1, 2, 3)), extractor.module.conv.bias
    wanted = th.stack([weight * (x - 127) / 128 + bias for x in (0, 255)]).detach()
    np.testing.assert_allclose(extractor(black_and_white), wanted.numpy(), atol=1e-5)


def test_bf16_is_near_and_has_another_fingerprint(extractor):
    images, rough = noise(), Extractor("tiny", precision="bf16")
    assert not np.array_equal(rough(images), extractor(images))
    np.testing.assert_allclose(rough(images), extractor(images), atol=0.02)
    assert rough.fingerprint != extractor.fingerprint


def test_fingerprints_tell_weights_and_preprocessing_apart(extractor, monkeypatch):
    assert Extractor("tiny").fingerprint == extractor.fingerprint
    assert Extractor("tiny", "other weights").fingerprint != extractor.fingerprint
    monkeypatch.setitem(NETWORKS, "tiny", dataclasses.replace(TINY, grey=128))
    assert Extractor("tiny").fingerprint != extractor.fingerprint


def test_features_that_are_not_finite_are_refused(extractor):
    extractor.module.conv.weight.data[0, 0, 0, 0] = th.nan
    with pytest.raises(InputError, match="Tiny gives features that are not finite"):
        extractor(noise())


@pytest.mark.parametrize(
    ("name", "precision", "complaint"),
    [
        ("nothing", "fp32", r"unknown features 'nothing'; choose from lite0, inception"),
        ("tiny", "fp8", "unknown precision 'fp8'"),
        ("tiny", "fp16", "fp16 needs a GPU"),
    ],
)
def test_what_there_is_not(name, precision, complaint):
    with pytest.raises(InputError, match=complaint):
        Extractor(name, precision=precision)


# -- the file of features ------------------------------------------------------------------------


@pytest.fixture
def folder(make_images, tmp_path):
    return make_images(tmp_path / "data" / "some", count=7, size=12)


def opened(folder):
    return open_images(str(folder), 12)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_features_are_computed_once(extractor, folder):
    images = opened(folder)
    wanted = cached_features(extractor, images, [images.parent])
    np.testing.assert_array_equal(wanted, extractor(images.read(range(7))))
    assert names(folder.parent) == ["some_12x12x3.tiny-fp32.features.npz"]
    extractor.module.seen = 0
    again = cached_features(extractor, opened(folder), [str(folder.parent)])
    np.testing.assert_array_equal(again, wanted)
    assert extractor.module.seen == 0


@pytest.mark.parametrize("change", ["content", "name", "time", "one more", "one less"])
def test_a_file_of_other_images_is_never_used(extractor, folder, change, warnings, make_images):
    cached_features(extractor, opened(folder), [str(folder.parent)])
    first = folder / "cat_000.png"
    if change == "content":
        Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(first)
    elif change == "name":
        first.rename(folder / "cat_999.png")
    elif change == "time":
        os.utime(first, ns=(10**18, 10**18))
    elif change == "one more":
        make_images(folder, count=8, size=12)
    else:
        first.unlink()
    extractor.module.seen = 0
    images = opened(folder)
    found = cached_features(extractor, images, [images.parent])
    assert extractor.module.seen == len(images)
    np.testing.assert_array_equal(found, extractor(images.read(range(len(images)))))
    path = folder.parent / "some_12x12x3.tiny-fp32.features.npz"
    assert warnings == [
        f"{path} is of images or weights that have changed; computing the features anew"
    ]
    extractor.module.seen = 0
    cached_features(extractor, images, [images.parent])
    assert extractor.module.seen == 0, "the new ones took the old ones' place"


def test_a_file_of_other_weights_is_never_used(extractor, folder):
    images, other = opened(folder), Extractor("tiny", "other weights")
    cached_features(extractor, images, [images.parent])
    found = cached_features(other, images, [images.parent])
    np.testing.assert_array_equal(found, features_of(other, images))


@pytest.mark.parametrize("length", [0, 100, 500, -1])
def test_a_file_that_was_interrupted_is_said_and_replaced(extractor, folder, length, warnings):
    images = opened(folder)
    wanted = cached_features(extractor, images, [images.parent])
    path = folder.parent / "some_12x12x3.tiny-fp32.features.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    np.testing.assert_array_equal(cached_features(extractor, images, [images.parent]), wanted)
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    assert "\n" not in warnings[0]
    assert len(path.read_bytes()) == len(whole)


def test_a_flipped_bit_of_a_feature_is_noticed(extractor, folder, warnings):
    images = opened(folder)
    wanted = cached_features(extractor, images, [images.parent])
    path = folder.parent / "some_12x12x3.tiny-fp32.features.npz"
    data = bytearray(path.read_bytes())
    data[data.index(wanted.tobytes()) + 9] ^= 1
    path.write_bytes(data)
    np.testing.assert_array_equal(cached_features(extractor, images, [images.parent]), wanted)
    assert "CRC" in warnings[0]


def test_a_file_without_features_is_replaced(extractor, folder, warnings):
    images = opened(folder)
    wanted = cached_features(extractor, images, [images.parent])
    path = folder.parent / "some_12x12x3.tiny-fp32.features.npz"
    with np.load(path) as content:
        np.savez(path, key=content["key"], features=content["features"][:-1])
    np.testing.assert_array_equal(cached_features(extractor, images, [images.parent]), wanted)
    assert warnings == [f"{path} is no file of features; computing the features anew"]


def test_the_next_folder_is_taken_where_one_cannot_be_written_to(extractor, folder, warnings):
    images, there = opened(folder), str(folder.parent)
    gone = str(folder.parent / "gone")
    wanted = cached_features(extractor, images, ["nowhere://bucket/some", gone, there])
    assert [line.split(":")[0] for line in warnings] == [
        f"cannot keep the features in {gone}/some_12x12x3.tiny-fp32.features.npz"
    ]
    extractor.module.seen = 0
    np.testing.assert_array_equal(cached_features(extractor, images, [gone, there]), wanted)
    assert extractor.module.seen == 0
    np.testing.assert_array_equal(cached_features(extractor, images, []), wanted)


def test_one_file_is_enough(extractor, folder, tmp_path):
    images = opened(folder)
    cached_features(extractor, images, [images.parent, str(tmp_path)])
    assert len(names(folder.parent)) == 1
    assert names(tmp_path) == []


def test_an_image_that_cannot_be_read_is_named(extractor, folder):
    (folder / "dog_003.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"cannot read image .*dog_003\.png"):
        cached_features(extractor, opened(folder), [str(folder.parent)])
    assert names(folder.parent) == []


def test_more_images_than_a_batch_keep_their_places(extractor):
    pixels = noise(2 * BATCH_SIZE + 3)
    np.testing.assert_array_equal(features_of(extractor, in_memory(pixels)), extractor(pixels))


@pytest.mark.parametrize("fails", [False, True])
def test_threads_share_the_batches_and_leave_no_trace(extractor, monkeypatch, fails):
    before = th.get_num_threads()
    monkeypatch.setattr(features, "BATCH_SIZE", 2)
    if fails:
        extractor.module.conv.weight.data.fill_(th.nan)
    workers, forward = [], extractor.module.forward
    both = threading.Barrier(2)

    def watched(x):
        workers.append((threading.get_ident(), th.get_num_threads()))
        if len(workers) <= 2:
            both.wait(10)  # for the other one, which must come
        return forward(x)

    extractor.module.forward = watched
    try:
        th.set_num_threads(2)
        with pytest.raises(InputError) if fails else contextlib.nullcontext():
            features_of(extractor, in_memory(noise(40)))
        assert th.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(th.get_num_threads).result() == 2
    finally:
        th.set_num_threads(before)
    assert {threads for _, threads in workers} == {1}
    assert threading.get_ident() not in {worker for worker, _ in workers}
