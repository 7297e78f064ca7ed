"""Images in one array: an .npz or .npy file, or memory."""

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from PIL import Image

from ..errors import InputError
from ..system.archives import Header, array_headers, read_arrays
from .image_files import MODES
from .image_source import ImageSource, LabelError, Labels

MAX_BYTES = 2**36  # of a file's pixels, all of which are held in memory
CLASS_NAMES = "classes"  # the array of what the class numbers are called
WANTED = "uint8 [N, H, W] or [N, H, W, 1, 3 or 4]"


class ArraySource(ImageSource):
    """Images in memory.

    :param pixels: uint8 [N, H, W, C], with 1, 3 or 4 channels.
    :param labels: their classes, or None.
    :param path: where they came from.
    """

    labelling = "put one whole number for each image beside them, as arr_1 of an .npz"

    def __init__(self, pixels: np.ndarray, labels: Labels | None = None, path: str = "images"):
        self.pixels, self.labels, self.path = pixels, labels, path
        self.names = [f"{number:06d}" for number in range(len(pixels))]

    def open(self, index: int) -> Image.Image:
        pixels = self.pixels[index]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    @cached_property
    def stamp(self) -> str:
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()


def open_array(path: str, by: str = "auto") -> ArraySource:
    """The images of an .npz or .npy file, and in an .npz their class numbers if it has them.

    The images are its only array of such a type and shape (``arr_0`` where guided-diffusion wrote
    it), the class numbers the only one of whole numbers with one for each image (``arr_1``).

    :param by: "auto" or "none".
    :raises InputError: if there is no such array, or several.
    """
    headers = array_headers(path)
    images = _only(path, headers)
    shape = headers[images].shape
    if math.prod(shape) == 0:
        raise InputError(f"{path} has images without a pixel, {list(shape)}")
    numbers = [name for name, header in headers.items() if _is_labels(header, shape[0])]
    chosen = ["arr_1"] if "arr_1" in numbers else numbers
    if by == "none":
        chosen = []
    elif "arr_1" in headers and not chosen:
        header = headers["arr_1"]
        raise LabelError(
            f"{path}: its arr_1 is {header.dtype} {list(header.shape)}, not a class number of each "
            f"of its {shape[0]} images; mend it, or give --labels none"
        )
    elif len(chosen) > 1:
        raise LabelError(
            f"{path} has several arrays of class numbers ({', '.join(chosen)}); call one of them "
            "arr_1, or give --labels none"
        )
    named = chosen and CLASS_NAMES in headers and headers[CLASS_NAMES].dtype.kind == "U"
    names = [CLASS_NAMES] if named else []
    arrays = read_arrays(path, (images, *chosen, *names), MAX_BYTES)
    labels = None
    if chosen:
        labels = Labels.of_numbers(arrays[chosen[0]].reshape(-1), chosen[0], path)
    if labels and names:
        labels = labels.called([str(name) for name in arrays[CLASS_NAMES].reshape(-1)], path)
    return ArraySource(arrays[images].reshape(*shape[:3], -1), labels, path)


def _is_images(header: Header) -> bool:
    dimensions = 4 if header.shape[-1:] in [(channels,) for channels in MODES] else 3  # grey
    return header.dtype == np.uint8 and len(header.shape) == dimensions


def _is_labels(header: Header, count: int) -> bool:
    return header.dtype.kind in "iu" and header.shape in ((count,), (count, 1))


def _only(path: str, headers: Mapping[str, Header]) -> str:
    """The array of images.

    :raises InputError: if there is none, or several.
    """
    names = [name for name, header in headers.items() if _is_images(header)]
    if "arr_0" in names:
        return "arr_0"
    if len(names) == 1:
        return names[0]
    if names:
        raise InputError(
            f"{path} has several arrays of images ({', '.join(names)}); call the one to take arr_0"
        )
    has = ", ".join(f"{name} {h.dtype} {list(h.shape)}".strip() for name, h in headers.items())
    raise InputError(f"{path} has no array of images, {WANTED}, but {has or 'nothing'}")
