import gzip
import os

import numpy as np
import pytest
from made_files import cifar_members, tar_of
from PIL import Image

from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.image_sets import find_samples, in_memory, open_images
from improved_diffusion.sampling.samples import Samples, save_samples


def pixels(count=6, size=12, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.fixture
def folder(make_images, tmp_path):
    return make_images(tmp_path / "some", count=5, size=12)


@pytest.fixture
def sampled(tmp_path):
    """What image_sample.py leaves: the .npz, a picture, single pictures, its flags."""
    made = Samples([pixels()], [np.array([2, 0, 1, 2, 0, 1])])
    folder = tmp_path / "sampled"
    folder.mkdir()
    save_samples(str(folder), made, single=True)
    (folder / "config.json").write_text("{}")
    return folder


# -- folders -------------------------------------------------------------------------------------


def test_a_folder_is_read_piece_by_piece(folder):
    images = open_images(str(folder))
    assert (len(images), images.size, images.channels) == (5, 12, 3)
    assert images.labels.classes == ["cat", "dog"]
    assert images.labels.numbers.tolist() == [0, 0, 0, 1, 1]
    assert list(images.source.names) == [
        f"{n}.png" for n in ("cat_000", "cat_002", "cat_004", "dog_001", "dog_003")
    ]
    some = images.read([3, 0])
    assert some.dtype == np.uint8
    for image, name in zip(some, ("dog_001", "cat_000"), strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(folder / f"{name}.png")))


def test_a_grey_file_among_colours_makes_no_set_grey(folder):
    first = folder / "cat_000.png"
    Image.open(first).convert("L").save(first)
    images = open_images(str(folder))
    assert images.channels == 3
    assert not images.is_grey
    for path in folder.iterdir():
        Image.open(path).convert("L").save(path)
    assert open_images(str(folder)).channels == 1
    assert open_images(str(folder), channels=3).is_grey


def test_a_folder_is_read_as_in_training(folder):
    images = open_images(str(folder), size=6, channels=1)
    assert images.read([0]).shape == (1, 6, 6, 1)


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("I;16", 1), ("P", 3), ("RGB", 3), ("RGBA", 4)]
)
def test_channels_are_those_of_the_first_picture(tmp_path, mode, channels):
    Image.new(mode, (9, 7)).save(tmp_path / "a.png")
    images = open_images(str(tmp_path))
    assert (images.size, images.channels) == (7, channels)


def test_pictures_are_not_made_larger(folder):
    with pytest.raises(InputError, match="are 12 pixels wide or high, fewer than 16"):
        open_images(str(folder), size=16)
    Image.new("RGB", (11, 30)).save(folder / "dog_003.png")
    images = open_images(str(folder))
    images.read([0, 3])
    with pytest.raises(InputError, match=r"dog_003\.png: it is 11 pixels wide .* fewer than 12"):
        images.read([0, 4])


def test_the_identity_is_that_of_the_images(folder):
    identity = open_images(str(folder), 12).identity
    assert open_images(f"{folder}/", 12).identity == identity
    assert open_images(str(folder), 11).identity != identity
    assert open_images(str(folder), 12, 1).identity != identity
    os.utime(folder / "cat_000.png", ns=(5, 5))
    touched = open_images(str(folder), 12).identity
    assert touched != identity
    with open(folder / "cat_000.png", "ab") as file:
        file.write(b"more")
    os.utime(folder / "cat_000.png", ns=(5, 5))
    longer = open_images(str(folder), 12).identity
    assert longer not in (identity, touched)
    (folder / "cat_000.png").rename(folder / "bat_000.png")
    assert open_images(str(folder), 12).identity not in (identity, touched, longer)


def test_a_folder_is_named_by_itself(folder, monkeypatch):
    monkeypatch.chdir(folder)
    images = open_images(".", 12)
    assert images.name == "some_12x12x3"
    assert images.parent == str(folder.parent)
    assert open_images(f"{folder}/", 12).parent == str(folder.parent)


def test_a_part_of_an_archive_lies_where_the_archive_does(tmp_path):
    cifar = tmp_path / "cifar-10-binary.tar.gz"
    cifar.write_bytes(gzip.compress(tar_of(cifar_members("bin"))))
    assert open_images(f"{cifar}/test", 32).parent == str(tmp_path)


# -- samples -------------------------------------------------------------------------------------


def test_samples_are_found_in_their_folder_and_around_it(sampled, tmp_path):
    for path in (sampled / "samples_6x12x12x3.npz", sampled, tmp_path):
        images = open_images(find_samples(str(path)))
        assert (len(images), images.size, images.channels) == (6, 12, 3)
        np.testing.assert_array_equal(images.read(range(6)), pixels())
        np.testing.assert_array_equal(images.read([4, 1]), pixels()[[4, 1]])
        assert images.labels.numbers.tolist() == [2, 0, 1, 2, 0, 1]
        assert not images.labels.named


def test_single_pictures_can_be_named(sampled):
    images = open_images(find_samples(str(sampled / "images")))
    np.testing.assert_array_equal(images.read(range(2)), pixels()[[1, 4]])  # named by class first


def test_several_samples_have_to_be_told_apart(sampled):
    save_samples(str(sampled), Samples([pixels(4)]))
    with pytest.raises(InputError, match=r"several samples in .*_4x12.*npz, .*_6x12.*npz$"):
        find_samples(str(sampled))


def test_features_of_samples_are_no_samples(sampled):
    (sampled / "samples_6x12x12x3.npz_12x12x3.lite0-fp32.features.npz").touch()
    assert find_samples(str(sampled)) == str(sampled / "samples_6x12x12x3.npz")


def test_a_run_without_samples_is_no_folder_of_pictures(sampled):
    next(sampled.glob("*.npz")).unlink()
    with pytest.raises(InputError, match=r"no samples_\*\.npz in .*image_sample\.py"):
        find_samples(str(sampled))


def test_arrays_have_an_identity(sampled):
    images = open_images(find_samples(str(sampled)))
    assert in_memory(pixels()).identity == images.identity
    changed = pixels()
    changed[3, 2, 1, 0] ^= 1
    assert in_memory(changed).identity != images.identity
    assert in_memory(pixels().reshape(24, 6, 6, 3)).identity != images.identity
