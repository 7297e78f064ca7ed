"""Image files: finding them in a folder, and reading them without trusting them."""

import contextlib
import glob
import os
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import InputError
from ..system.files import exists, is_folder, join, list_folder, open_to_read

EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")
# What Pillow may decode, whatever a file is called: some formats that it knows start programs.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MAX_PIXELS = 2**27
ORIENTATION = 0x0112  # of EXIF data
TURNS: dict[object, Image.Transpose] = {  # what undoes each
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def list_images(folder: str) -> list[str]:
    """List the images below ``folder``: paths relative to it, parts joined by ``/``.

    Those of a folder stand together, in the order of the names in it. Hidden files and folders,
    whose name starts with a dot, are left out.

    :raises InputError: if ``folder`` is no folder or holds no images.
    """
    if not is_folder(folder):
        reason = "is not a folder" if exists(folder) else "does not exist"
        raise InputError(f"image folder {folder} {reason}")
    names = list(_walk(folder))
    if not names:
        raise InputError(f"no images ({' '.join(EXTENSIONS)}) in {folder}")
    return names


def files_below(folder: str, pattern: str) -> list[str]:
    """The files of a pattern in a folder of this machine; if none, those in folders of it."""
    found = (glob.glob(os.path.join(glob.escape(folder), at, pattern)) for at in ("", "*"))
    return sorted(next(filter(None, found), []))


def _walk(folder: str, prefix: str = "", parents: tuple[str, ...] = ()) -> Iterator[str]:
    parents = (*parents, os.path.realpath(folder))
    for name in list_folder(folder):
        path = join(folder, name)
        if name.startswith("."):
            continue
        if name.lower().endswith(EXTENSIONS):
            yield prefix + name
        elif is_folder(path) and os.path.realpath(path) not in parents:  # no link to one around it
            yield from _walk(path, f"{prefix}{name}/", parents)


@contextlib.contextmanager
def explaining(name: str) -> Iterator[None]:
    """Have whatever a decoder stumbles over in a broken image name that image.

    :raises InputError: in the place of any other error of the block.
    """
    try:
        yield
    except (MemoryError, InputError):
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"cannot read image {name}: empty, or not one of {', '.join(FORMATS)}"
        ) from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"cannot read image {name}: {' '.join(reason.split())}") from error


def decoding(file: IO[bytes]) -> Image.Image:
    """Open an image of a known format; its pixels are decoded when they are asked for."""
    return Image.open(file, formats=FORMATS)


@contextlib.contextmanager
def open_image(path: str) -> Iterator[Image.Image]:
    """Open one image file of a known format; its pixels are decoded when they are asked for.

    :raises InputError: naming the file, if it is missing, or breaks here or within the block.
    """
    with explaining(path), open_to_read(path) as file, decoding(file) as image:
        yield image


def squared(image: Image.Image, resolution: int, channels: int = 3) -> np.ndarray:
    """Scale and crop an image: uint8 [resolution, resolution, channels].

    :raises ValueError: if it claims more than ``MAX_PIXELS`` pixels, or is so long that it would
        have as many on the way.
    """
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"it claims {width} x {height} pixels, more than {MAX_PIXELS}")
    longer, shorter = max(image.size), min(image.size)
    if resolution**2 * longer > MAX_PIXELS * shorter:
        raise ValueError(f"it is {longer // shorter} times as long as it is wide")
    pixels = fit(upright_8_bit(image, channels), resolution).convert(MODES[channels])
    return np.asarray(pixels).reshape(resolution, resolution, channels)


def upright_8_bit(image: Image.Image, channels: int) -> Image.Image:
    """The picture as a viewer shows it, in 8 bits for each channel, so that it can be scaled.

    16-bit grey is scaled to 8 bits; the numbers of a palette become colours; a photograph that is
    stored on its side is turned, as its EXIF data say.

    :param channels: of what it is for: 4 keeps what is transparent in a palette.
    :raises ValueError: if the format leaves open what its numbers mean.
    """
    if image.mode in ("1", "P", "PA"):  # between whose numbers nothing lies
        colours = "L" if image.mode == "1" else "RGBA" if channels == 4 else "RGB"
        image = image.convert(colours)
    image = _turned(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of an unknown range")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    numbers = np.asarray(image).astype(np.int64)
    if numbers.min() < 0 or numbers.max() >= 2**16:
        raise ValueError("its grey values have more than 16 bits")
    return Image.fromarray(((numbers * 255 + 2**15) // (2**16 - 1)).astype(np.uint8))


def _turned(image: Image.Image) -> Image.Image:
    """A photograph as its EXIF data say; as it is where these cannot be read, which many cannot."""
    image.load()  # of which errors count
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # many kinds
        turn = None
    return image if turn is None else image.transpose(turn)


def fit(image: Image.Image, resolution: int) -> Image.Image:
    """Scale the shorter side to ``resolution`` and cut a square out of the middle.

    A large image is first halved with a box filter, as often as its shorter side allows: bicubic
    interpolation alone would alias.
    """
    while min(image.size) >= 2 * resolution:
        width, height = image.size
        image = image.resize((width // 2, height // 2), resample=Image.Resampling.BOX)
    if min(image.size) != resolution:
        scale = resolution / min(image.size)
        width, height = image.size
        size = round(width * scale), round(height * scale)
        image = image.resize(size, resample=Image.Resampling.BICUBIC)
    if image.size == (resolution, resolution):
        return image
    left, top = ((side - resolution) // 2 for side in image.size)
    return image.crop((left, top, left + resolution, top + resolution))
