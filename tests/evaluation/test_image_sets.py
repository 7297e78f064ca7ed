import os

import numpy as np
import pytest
from PIL import Image

from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.image_sets import ImageArray, ImageFolder, open_images
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
    assert isinstance(images, ImageFolder)
    assert (len(images), images.size, images.channels) == (5, 12, 3)
    assert images.classes == ["cat", "dog"]
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert list(images.names) == [
        f"{n}.png" for n in ("cat_000", "cat_002", "cat_004", "dog_001", "dog_003")
    ]
    some = images.read([3, 0])
    assert some.dtype == np.uint8
    for image, name in zip(some, ("dog_001", "cat_000"), strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(folder / f"{name}.png")))


def test_a_folder_is_read_as_in_training(folder):
    images = open_images(str(folder), size=6, channels=1)
    assert images.read([0]).shape == (1, 6, 6, 1)


def test_no_labels_unless_all_have_one(folder):
    (folder / "cat_000.png").rename(folder / "cat.png")
    images = open_images(str(folder))
    assert images.classes is None
    assert images.labels is None


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


def test_the_identity_is_that_of_the_images(folder):
    identity = ImageFolder(str(folder), 12).identity
    assert ImageFolder(f"{folder}/", 12).identity == identity
    assert ImageFolder(str(folder), 11).identity != identity
    assert ImageFolder(str(folder), 12, 1).identity != identity
    os.utime(folder / "cat_000.png", ns=(5, 5))
    touched = ImageFolder(str(folder), 12).identity
    assert touched != identity
    with open(folder / "cat_000.png", "ab") as file:
        file.write(b"more")
    os.utime(folder / "cat_000.png", ns=(5, 5))
    longer = ImageFolder(str(folder), 12).identity
    assert longer not in (identity, touched)
    (folder / "cat_000.png").rename(folder / "bat_000.png")
    assert ImageFolder(str(folder), 12).identity not in (identity, touched, longer)


def test_a_folder_is_named_by_itself(folder, monkeypatch):
    monkeypatch.chdir(folder)
    images = ImageFolder(".", 12)
    assert images.name == "some_12x12x3"
    assert images.parent == str(folder.parent)
    assert ImageFolder(f"{folder}/", 12).parent == str(folder.parent)


# -- samples -------------------------------------------------------------------------------------


def test_samples_are_found_in_their_folder_and_around_it(sampled, tmp_path):
    for path in (sampled / "samples_6x12x12x3.npz", sampled, tmp_path):
        images = open_images(str(path))
        assert isinstance(images, ImageArray)
        assert (len(images), images.size, images.channels) == (6, 12, 3)
        np.testing.assert_array_equal(images.read(range(6)), pixels())
        np.testing.assert_array_equal(images.read([4, 1]), pixels()[[4, 1]])
        assert images.labels.tolist() == [2, 0, 1, 2, 0, 1]
        assert images.name == "samples_6x12x12x3"


def test_single_pictures_can_be_named(sampled):
    images = open_images(str(sampled / "images"))
    assert isinstance(images, ImageFolder)
    np.testing.assert_array_equal(images.read(range(2)), pixels()[[1, 4]])  # named by class first


def test_several_samples_have_to_be_told_apart(sampled):
    save_samples(str(sampled), Samples([pixels(4)]))
    with pytest.raises(InputError, match=r"several samples in .*_4x12.*npz, .*_6x12.*npz$"):
        open_images(str(sampled))


def test_a_run_without_samples_is_no_folder_of_pictures(sampled):
    next(sampled.glob("*.npz")).unlink()
    with pytest.raises(InputError, match=r"no samples_\*\.npz in .*image_sample\.py"):
        open_images(str(sampled))


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match=r"none does not exist"):
        open_images(str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"cannot read .*none\.npz"):
        open_images(str(tmp_path / "none.npz"))
    with pytest.raises(InputError, match="no images"):
        open_images(str(tmp_path))


def test_other_sizes_and_channels_are_refused(sampled):
    with pytest.raises(InputError, match="are 12 x 12 pixels, not 16 x 16"):
        open_images(str(sampled), size=16)
    with pytest.raises(InputError, match="have 3 channels, not 1"):
        open_images(str(sampled), channels=1)
    assert len(open_images(str(sampled), size=12, channels=3)) == 6


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"images": pixels()}, "it has no arr_0"),
        ({"arr_0": pixels() / 255}, r"its arr_0 is float64 \[6, 12, 12, 3\], not uint8"),
        ({"arr_0": pixels()[0]}, r"its arr_0 is uint8 \[12, 12, 3\], not"),
        ({"arr_0": pixels()[:, :5]}, r"its arr_0 is uint8 \[6, 5, 12, 3\], not"),
        ({"arr_0": pixels(channels=2)}, r"its arr_0 is uint8 \[6, 12, 12, 2\], not"),
        ({"arr_0": pixels(), "arr_1": np.arange(5)}, r"its arr_1 is int64 \[5\], not a class"),
        ({"arr_0": pixels(), "arr_1": np.ones(6)}, r"its arr_1 is float64 \[6\], not a class"),
        ({"arr_0": np.array([{}])}, "no whole"),
    ],
)
def test_what_is_no_file_of_samples(tmp_path, arrays, complaint):
    np.savez(tmp_path / "some.npz", **arrays)
    with pytest.raises(InputError, match=rf"^[^\n]*some\.npz [^\n]*{complaint}"):
        open_images(str(tmp_path / "some.npz"))


def test_arrays_have_an_identity(sampled):
    images = open_images(str(sampled))
    assert ImageArray(pixels()).identity == images.identity
    changed = pixels()
    changed[3, 2, 1, 0] ^= 1
    assert ImageArray(changed).identity != images.identity
    assert ImageArray(pixels().reshape(24, 6, 6, 3)).identity != images.identity
