"""Image files: found in folders, read safely, scaled and cut."""

import numpy as np
import pytest
from made_files import png_claiming
from PIL import Image
from tiny_runs import noise_picture

from improved_diffusion.data import image_files
from improved_diffusion.data.image_files import open_image, squared
from improved_diffusion.errors import InputError

SIZE = 8


def read_image(path, size):
    with open_image(path) as image:
        return squared(image, size)


def test_folders_are_searched_without_hidden_or_endless_ones(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    for name in ("deep/er/b.JPG", "a.webp", "c.Bmp", "d.gif", "z.jpeg", ".hidden/e.png", ".f.png"):
        noise_picture(SIZE, SIZE).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    names = ["a.webp", "c.Bmp", "d.gif", "deep/er/b.JPG", "z.jpeg"]
    assert image_files.list_images(str(tmp_path)) == names
    assert all(read_image(f"{tmp_path}/{name}", SIZE).shape == (SIZE, SIZE, 3) for name in names)


def test_images_are_halved_scaled_and_cropped(tmp_path):
    image = noise_picture(75, 41)
    image.save(tmp_path / "a.png")
    halved = image.resize((37, 20), Image.Resampling.BOX).resize((18, 10), Image.Resampling.BOX)
    scaled = halved.resize((14, 8), Image.Resampling.BICUBIC)  # 18 * 8 / 10 = 14.4
    expected = np.asarray(scaled)[:, 3:11]
    assert np.array_equal(read_image(str(tmp_path / "a.png"), 8), expected)


def test_small_images_are_enlarged_and_right_ones_left_alone(tmp_path):
    image = noise_picture(SIZE, SIZE)
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_image(str(tmp_path / "a.png"), SIZE), np.asarray(image))
    bigger = image.resize((20, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(read_image(str(tmp_path / "a.png"), 20), np.asarray(bigger))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [100_000, 12_000])  # beyond Pillow's own limit, and below it
def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path, side):
    (tmp_path / "a.png").write_bytes(png_claiming(side, side))
    with pytest.raises(InputError, match=r"a\.png.*pixels"):
        read_image(str(tmp_path / "a.png"), 8)


def test_an_image_that_scaling_would_make_huge_is_refused(tmp_path):
    Image.new("1", (200_000, 2)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png.*100000 times as long as it is wide"):
        read_image(str(tmp_path / "a.png"), 64)


@pytest.mark.parametrize(
    ("mode", "value", "reason"),
    [("F", 0.5, "unknown range"), ("I", -1, "more than 16 bits"), ("I", 2**16, "more than 16")],
)
def test_numbers_of_which_no_one_knows_what_is_white_are_refused(mode, value, reason):
    with pytest.raises(ValueError, match=reason):
        squared(Image.new(mode, (SIZE, SIZE), value), SIZE)


def test_only_known_formats_are_decoded_whatever_the_file_is_called(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(InputError, match="not one of PNG, JPEG"):
        read_image(str(tmp_path / "a.png"), 8)


def error(image, expected):
    """Root mean square, of 255."""
    return np.sqrt(np.mean((image.astype(float) - expected) ** 2))


def test_sixteen_bits_become_eight(tmp_path):
    """White is 65535, and not everything above 255."""
    ramp = np.linspace(0, 2**16 - 1, SIZE * SIZE).reshape(SIZE, SIZE)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "a.png")
    read = read_image(str(tmp_path / "a.png"), SIZE)
    assert error(read, ramp[..., None] / 257) < 0.5


def smooth(width, height):
    rows, columns = np.mgrid[:height, :width]
    waves = [127.5 + 127 * np.sin(rows / (5 + c) + columns / (7 - c)) for c in range(3)]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_a_palette_becomes_colours_before_it_is_scaled(tmp_path, kind):
    """Between the numbers of a palette there is nothing."""
    image = smooth(64, 64)
    image.quantize(256, dither=Image.Dither.NONE).save(tmp_path / f"a.{kind}")
    image.save(tmp_path / "b.png")
    whole = read_image(str(tmp_path / "b.png"), SIZE)
    assert error(read_image(str(tmp_path / f"a.{kind}"), SIZE), whole) < 4
    nearest = image.quantize(256, dither=Image.Dither.NONE).resize((SIZE, SIZE))
    assert error(np.asarray(nearest.convert("RGB")), whole) > 20


@pytest.mark.parametrize(("orientation", "turned"), [(3, 180), (6, 90), (8, 270)])
def test_a_photograph_on_its_side_is_turned(tmp_path, orientation, turned):
    image = smooth(SIZE, SIZE)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.rotate(turned).save(tmp_path / "a.jpg", exif=exif, quality=95)
    read = read_image(str(tmp_path / "a.jpg"), SIZE)
    assert error(read, np.asarray(image)) < 15 < error(read, np.asarray(image.rotate(turned)))


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_photograph_whose_exif_data_make_no_sense_is_taken_as_it_is(tmp_path, kind):
    smooth(SIZE, SIZE).save(tmp_path / f"a.{kind}", dpi=(72, 72), exif=b"Exif\0\0no TIFF at all")
    smooth(SIZE, SIZE).save(tmp_path / f"b.{kind}", dpi=(72, 72))
    a, b = (read_image(str(tmp_path / f"{name}.{kind}"), SIZE) for name in "ab")
    np.testing.assert_array_equal(a, b)


def test_a_missing_file_is_named_once(tmp_path):
    with pytest.raises(InputError) as caught, open_image(str(tmp_path / "none.png")):
        pass
    assert str(caught.value) == f"cannot read image {tmp_path}/none.png: No such file or directory"
