"""Tensors to pictures: uint8, grids, PNG files, films."""

import io
import math
import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..system.files import atomic_write

Images = np.ndarray | torch.Tensor

PADDING = 2  # pixels around each picture of a grid
LARGEST_TILE = 128  # pixels a side that small images are enlarged to, at most
LARGEST_GRID = 1024  # pixels a side of a grid that enlarging may reach
WHITE = 255
LARGEST_LETTERS, SMALLEST_LETTERS = 16, 9  # pixels, of headings
LARGEST_FILM = 300  # pixels a side of a film that enlarging may reach: noise makes large GIFs
FILM_MS, FASTEST_MS, SLOWEST_MS = 4000, 80, 400  # of a film, and of a frame at least and at most
HELD_MS = 2000  # of a frame that is to be looked at


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Turn model output into pictures.

    As in the reference, values between two levels take the lower: an image that was read from a
    file may come back one level darker.

    :param x: [N, C, H, W], floating point; [-1, 1] is the visible range, the rest is clipped.
    :return: [N, H, W, C], uint8, contiguous.
    """
    pixels = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


def make_grid(
    images: Images,
    columns: int | None = None,
    scale: int | None = None,
    headings: Sequence[str] = (),
) -> np.ndarray:
    """Lay pictures out row by row, on white.

    :param images: [N, H, W, C], uint8, 1, 3 or 4 channels, at least one picture.
    :param columns: pictures in a row; default as many as make the grid nearly square.
    :param scale: whole factor by which pixels are enlarged; default a pleasant one.
    :param headings: what to write above the columns, from the first on. There are none where one
        is too long, or has other letters than Latin-1.
    :return: [rows * (H * scale + 2) + 2, columns * (W * scale + 2) + 2, C], higher with headings
    :raises InputError: if a shape or type is not as said.
    """
    images = checked_pictures(images)
    count, height, width, channels = images.shape
    if columns is None:
        columns = math.ceil(math.sqrt(count))
    if scale is None:
        room = LARGEST_GRID // columns - PADDING
        scale = max(1, min(LARGEST_TILE, room) // max(height, width))
    rows = math.ceil(count / columns)
    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)
    before = ((0, rows * columns - count), (PADDING, 0), (PADDING, 0), (0, 0))
    tiles = np.pad(tiles, before, constant_values=WHITE)  # [rows * columns, h, w, C]
    # [rows, h, columns, w, C]
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    grid = tiles.reshape(rows * tiles.shape[1], columns * tiles.shape[3], channels)
    grid = np.pad(grid, ((0, PADDING), (0, PADDING), (0, 0)), constant_values=WHITE)
    return np.concatenate([_line_of(headings, tiles.shape[3], grid), grid])


def _line_of(headings: Sequence[str], width: int, grid: np.ndarray) -> np.ndarray:
    """Headings of columns that are so wide, to stand on a grid: [height or 0, its width, C]."""
    from PIL import Image, ImageDraw, ImageFont

    drawable = bool(headings) and all(map(_is_latin, headings))
    for size in range(LARGEST_LETTERS, SMALLEST_LETTERS - 1, -1) if drawable else ():
        font = ImageFont.load_default(size)
        if all(font.getlength(text) < width for text in headings):
            line = Image.new("L", (grid.shape[1], 3 * size // 2), WHITE)
            for column, text in enumerate(headings):
                middle = PADDING / 2 + (column + 0.5) * width
                ImageDraw.Draw(line).text((middle, size), text, fill=0, font=font, anchor="ms")
            rows = np.asarray(line)[..., None].repeat(grid.shape[2], axis=2)
            rows[..., 3:] = WHITE  # not transparent
            return rows
    return grid[:0]


def _is_latin(text: str) -> bool:
    return text.isprintable() and all(ord(letter) < 256 for letter in text)


def save_png(path: str | os.PathLike, image: Images) -> None:
    """Write one picture, [H, W, C], uint8, 1, 3 or 4 channels, as a PNG file, atomically.

    :raises InputError: if the shape or type is not as said.
    """
    from PIL import Image

    image = checked_pictures(image, dimensions=3)
    with atomic_write(path) as file:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="PNG")


def save_grid(
    path: str | os.PathLike,
    images: Images,
    labels: Sequence[int] | Images = (),
    names: Sequence[str] = (),
) -> None:
    """Write pictures, [N, H, W, C], uint8, as one PNG file: :func:`make_grid` of them.

    :param labels: of the N pictures; where they come in turns, a row holds whole turns, so that
        each column is of one class.
    :param names: of the classes, to stand above such columns.
    """
    numbers = _as_array(labels)
    columns = _whole_turns(numbers)
    headings = [names[number] for number in numbers[:columns]] if columns and names else ()
    save_png(path, make_grid(images, columns, headings=headings))


def pictures_to_show(labels: np.ndarray, most: int) -> Sequence[int]:
    """Numbers of up to so many pictures for a grid: the first ones, or as many of each class.

    The latter where there are classes, which do not come in turns, and not much fewer fit.

    :param labels: of all pictures.
    """
    first = range(min(len(labels), most))
    if _whole_turns(labels[:most]):
        return first
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rows = min([most // len(classes), *map(len, classes)])
    chosen = [int(numbers[row]) for row in range(rows) for numbers in classes]
    return chosen if rows > 1 and 2 * len(chosen) > len(first) else first


def _whole_turns(labels: np.ndarray) -> int | None:
    """Columns that are a multiple of the turn in which ``labels`` come, if there is a short one."""
    side = math.sqrt(len(labels))
    for turn in range(1, min(len(labels) // 2, int(3 * side)) + 1):
        if np.array_equal(labels[turn:], labels[:-turn]):
            return turn * math.ceil(side / turn)
    return None


def save_gif(
    path: str | os.PathLike, frames: Sequence[np.ndarray], held: Collection[int] = (-1,)
) -> None:
    """Write pictures as a film that begins anew when it ends, a GIF file, atomically.

    :param frames: pictures of one size, [H, W, C] each, uint8, 1, 3 or 4 channels; what is
        transparent becomes white.
    :param held: numbers of the frames that are shown for longer.
    :raises InputError: if a shape or type is not as said.
    """
    from PIL import Image

    if len(shapes := {frame.shape for frame in frames}) != 1:
        raise InputError(f"the frames of a film must have one shape, not {sorted(shapes)}")
    film = checked_pictures(np.stack(frames))
    if film.shape[-1] == 4:
        alpha = film[..., 3:] / 255
        film = (film[..., :3] * alpha + WHITE * (1 - alpha)).round().astype(np.uint8)
    first, *others = (Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in film)
    durations = [min(SLOWEST_MS, max(FASTEST_MS, FILM_MS // len(film)))] * len(film)
    for number in held:
        durations[number] = HELD_MS
    whole = io.BytesIO()
    first.save(whole, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    with atomic_write(path) as file:
        file.write(whole.getvalue())


def make_frame(images: Images) -> np.ndarray:
    """:func:`make_grid` of pictures, small enough for a film: [H, W, C]."""
    columns = math.ceil(math.sqrt(len(images)))
    longest = max(images.shape[1:3])
    return make_grid(images, columns, scale=max(1, LARGEST_FILM // (columns * longest)))


def evenly(count: int, most: int) -> list[int]:
    """Numbers below ``count``, ``most`` of them or all, evenly apart, both ends included."""
    shown = min(count, most)
    return [round(i * (count - 1) / max(shown - 1, 1)) for i in range(shown)]


def checked_pictures(images: Images, dimensions: int = 4) -> np.ndarray:
    """Pictures as an array, [N, H, W, C], or [H, W, C] for 3 ``dimensions``.

    :raises InputError: if they have another shape, are not uint8, or there are none.
    """
    array = _as_array(images)
    shape = "[N, H, W, C]" if dimensions == 4 else "[H, W, C]"
    if array.ndim != dimensions or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise InputError(
            f"pictures must have the shape {shape} with 1, 3 or 4 channels, not {array.shape}; "
            "to_uint8 makes them from model output"
        )
    if array.dtype != np.uint8:
        raise InputError(
            f"pictures must be uint8, not {array.dtype}; to_uint8 makes them from model output"
        )
    return array


def _as_array(values: Any) -> np.ndarray:
    return values.numpy(force=True) if isinstance(values, torch.Tensor) else np.asarray(values)
