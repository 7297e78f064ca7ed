import numpy as np
import pytest
import torch
from PIL import Image

from improved_diffusion.data.image_grid import (
    evenly,
    make_frame,
    make_grid,
    pictures_to_show,
    save_gif,
    save_grid,
    save_png,
    to_uint8,
)
from improved_diffusion.errors import InputError


def pictures(count=5, size=4, channels=3, seed=0):
    shape = (count, size, size, channels)
    return np.random.RandomState(seed).randint(0, 255, shape).astype(np.uint8)


def test_to_uint8_truncates_and_clips():
    x = torch.tensor([-2.0, -1.0, -0.999, 0.0, 0.5, 1.0, 3.0]).reshape(1, 1, 1, 7)
    pixels = to_uint8(x)
    assert pixels.dtype == torch.uint8
    assert pixels.flatten().tolist() == [0, 0, 0, 127, 191, 255, 255]


def test_to_uint8_moves_channels_last():
    x = torch.rand(2, 3, 4, 5) * 2 - 1
    pixels = to_uint8(x)
    assert pixels.is_contiguous()
    assert pixels.shape == (2, 4, 5, 3)
    assert pixels[1, 2, 3, 0] == int((x[1, 0, 2, 3] + 1) * 127.5)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("scale", [1, 3])
def test_every_picture_stands_in_its_place(channels, scale):
    images = pictures(channels=channels)
    grid = make_grid(images, columns=3, scale=scale)
    side = 4 * scale
    assert grid.shape == (2 * (side + 2) + 2, 3 * (side + 2) + 2, channels)
    covered = np.zeros(grid.shape, dtype=bool)
    for n, image in enumerate(images):
        top, left = 2 + (n // 3) * (side + 2), 2 + (n % 3) * (side + 2)
        tile = grid[top : top + side, left : left + side]
        covered[top : top + side, left : left + side] = True
        np.testing.assert_array_equal(tile, np.kron(image, np.ones((scale, scale, 1), np.uint8)))
    assert (grid[~covered] == 255).all()


@pytest.mark.parametrize(
    ("count", "size", "shape"),
    [
        (16, 32, (4 * 130 + 2, 4 * 130 + 2)),  # enlarged four times
        (64, 32, (8 * 98 + 2, 8 * 98 + 2)),  # three times: the grid stays below 1024
        (5, 64, (2 * 130 + 2, 3 * 130 + 2)),
        (2, 256, (258 + 2, 2 * 258 + 2)),
        (1, 32, (132, 132)),
    ],
)
def test_default_layout_is_near_square_and_pleasant(count, size, shape):
    assert make_grid(pictures(count, size)).shape == (*shape, 3)


def test_tensors_are_taken():
    images = pictures()
    np.testing.assert_array_equal(make_grid(torch.from_numpy(images)), make_grid(images))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_png_comes_back_unchanged(tmp_path, channels, mode):
    image = pictures(channels=channels)[0]
    save_png(tmp_path / "x.png", torch.from_numpy(image))
    with Image.open(tmp_path / "x.png") as back:
        assert (back.format, back.mode) == ("PNG", mode)
        np.testing.assert_array_equal(np.asarray(back).reshape(image.shape), image)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_save_grid(tmp_path):
    images = pictures()
    save_grid(tmp_path / "grid.png", images)
    with Image.open(tmp_path / "grid.png") as back:
        np.testing.assert_array_equal(np.asarray(back), make_grid(images))


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        ([], 5),
        ([4, 1, 0] * 8, 6),
        ([*range(10), *range(10), *range(4)], 10),  # the last turn is not whole
        ([7] * 24, 5),
        ([*range(24)], 5),  # no turns are to be seen
        ([*range(12)] * 2, 12),
        ([0, 1, 1] * 7 + [0, 1, 0], 5),
    ],
)
def test_a_column_of_a_grid_is_of_one_class(labels, columns, tmp_path):
    images = np.zeros((24, 8, 8, 3), np.uint8)
    save_grid(tmp_path / "grid.png", images, labels)
    with Image.open(tmp_path / "grid.png") as back:
        np.testing.assert_array_equal(np.asarray(back), make_grid(images, columns))


def ink(grid, columns):
    """How much is written above each column, and the grid without that."""
    images = make_grid(pictures(8, 32), columns)
    above, rest = grid[: len(grid) - len(images)], grid[len(grid) - len(images) :]
    np.testing.assert_array_equal(rest, images)
    tile = (grid.shape[1] - 2) // columns
    return [int((255 - above[:, i * tile : (i + 1) * tile]).sum()) for i in range(columns)]


def test_headings_stand_above_their_columns():
    one, two, none = ink(make_grid(pictures(8, 32), 3, headings=("i", "WWWWWW")), 3)
    assert 0 < one < two
    assert none == 0
    assert len(ink(make_grid(pictures(8, 32), 4, headings=["a cat"] * 4), 4)) == 4


@pytest.mark.parametrize("text", ["what no column has room for, however small", "猫", "two\nlines"])
def test_there_is_no_heading_that_cannot_be_read(text):
    grid = make_grid(pictures(8, 32), 4, headings=["cat", text])
    np.testing.assert_array_equal(grid, make_grid(pictures(8, 32), 4))


def test_a_long_heading_makes_all_letters_smaller():
    images = pictures(8, 32)
    names = ["cat", "dog"], ["cat", "a long-haired Afghan hound"]
    short, long = (make_grid(images, 4, headings=each) for each in names)
    assert len(make_grid(images, 4)) < len(long) < len(short)


def test_transparent_pictures_have_headings_too():
    grid = make_grid(pictures(4, 32, channels=4), 2, headings=("a", "b"))
    assert (grid[:10, :, 3] == 255).all()
    assert grid[:20, :, :3].min() < 128


def test_the_names_of_classes_stand_above_columns_of_one(tmp_path):
    images = np.zeros((6, 32, 32, 3), np.uint8)
    save_grid(tmp_path / "grid.png", images, torch.tensor([2, 0] * 3), ["cat", "cow", "dog"])
    with Image.open(tmp_path / "grid.png") as back:
        wanted = make_grid(images, 4, headings=["dog", "cat", "dog", "cat"])
        np.testing.assert_array_equal(np.asarray(back), wanted)
    save_grid(tmp_path / "grid.png", images, [0, 1, 2, 2, 1, 0], ["cat", "cow", "dog"])
    with Image.open(tmp_path / "grid.png") as back:
        np.testing.assert_array_equal(np.asarray(back), make_grid(images))


@pytest.mark.parametrize(
    ("labels", "most", "shown"),
    [
        ([0, 1] * 4, 6, [0, 1, 2, 3, 4, 5]),
        ([5] * 8, 6, [0, 1, 2, 3, 4, 5]),
        ([1, 1, 0, 0, 1, 1, 0, 0], 6, [2, 0, 3, 1, 6, 4]),
        ([1, 1, 0, 0, 0, 1], 64, [2, 0, 3, 1, 4, 5]),
        ([1, 1, 0, 0, 0, 0, 0, 0, 0, 0], 64, [*range(10)]),  # too few of them would be shown
        ([3, 1, 0, 2], 64, [0, 1, 2, 3]),  # one row, in whatever order
    ],
)
def test_random_classes_are_shown_in_turns(labels, most, shown):
    assert list(pictures_to_show(np.array(labels), most)) == shown


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((8, 8, 3), np.uint8), r"\[N, H, W, C\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "shape"),
        (np.zeros((2, 8, 8, 3), np.float32), "uint8, not float32"),
    ],
)
def test_what_is_no_grid_of_pictures_is_refused(images, message):
    with pytest.raises(InputError, match=message):
        make_grid(images)


def frames_of(path):
    with Image.open(path) as film:
        found = []
        for number in range(film.n_frames):
            film.seek(number)
            found.append((np.array(film.convert("RGB")), film.info["duration"]))
        return film.info.get("loop"), found


@pytest.mark.parametrize("channels", [1, 3])
def test_a_film_has_its_frames_for_ever(channels, tmp_path):
    frames = pictures(4, size=8, channels=channels)
    save_gif(tmp_path / "a.gif", frames)
    loop, found = frames_of(tmp_path / "a.gif")
    assert loop == 0
    assert len(found) == 4
    for frame, (shown, _) in zip(frames, found, strict=True):
        assert np.abs(shown.astype(int) - frame).max() <= 1  # 64 colours need no others
    durations = [duration for _, duration in found]
    assert durations[:3] == durations[:1] * 3
    assert durations[3] >= 5 * durations[0]


@pytest.mark.parametrize(("count", "milliseconds"), [(4, 400), (20, 200), (100, 80)])
def test_a_film_takes_a_few_seconds(count, milliseconds, tmp_path):
    save_gif(tmp_path / "a.gif", pictures(count))
    assert frames_of(tmp_path / "a.gif")[1][0][1] == milliseconds


def test_other_frames_can_be_held(tmp_path):
    save_gif(tmp_path / "a.gif", pictures(4), held=(0, 2))
    durations = [duration for _, duration in frames_of(tmp_path / "a.gif")[1]]
    assert durations[0] == durations[2] > durations[1] == durations[3]


def test_a_film_of_one_frame_and_of_equal_ones(tmp_path):
    for frames in (pictures(1), pictures(1).repeat(3, axis=0)):
        save_gif(tmp_path / "a.gif", frames)
        with Image.open(tmp_path / "a.gif") as film:
            assert film.n_frames == 1


def test_what_is_transparent_is_white_in_a_film(tmp_path):
    frame = np.zeros((4, 4, 4), dtype=np.uint8)
    frame[:2, :, 3] = 255
    save_gif(tmp_path / "a.gif", [frame])
    with Image.open(tmp_path / "a.gif") as film:
        shown = np.array(film.convert("RGB"))
    assert (shown[:2] == 0).all()
    assert (shown[2:] == 255).all()


@pytest.mark.parametrize(
    "frames",
    [[], [pictures()[0], pictures(size=5)[0]], [pictures()[0].astype(np.float32)], [pictures()]],
)
def test_frames_that_make_no_film(frames, tmp_path):
    with pytest.raises(InputError):
        save_gif(tmp_path / "a.gif", frames)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("count", "size", "side"), [(16, 32, 266), (1, 32, 292), (4, 256, 518)])
def test_frames_are_small(count, size, side):
    assert make_frame(pictures(count, size=size)).shape == (side, side, 3)


@pytest.mark.parametrize(("count", "most", "expected"), [(1, 9, [0]), (4, 9, [0, 1, 2, 3])])
def test_all_of_a_few(count, most, expected):
    assert evenly(count, most) == expected


def test_some_of_many():
    chosen = evenly(1000, 11)
    assert len(chosen) == 11
    assert (chosen[0], chosen[-1]) == (0, 999)
    assert set(np.diff(chosen)) <= {99, 100}
