"""Images to judge and to judge by: a folder of pictures, or the .npz that sampling writes."""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ..data.image_files import (
    EXTENSIONS,
    MODES,
    class_indices,
    class_of,
    list_images,
    open_image,
    read_image,
)
from ..errors import InputError
from ..system.archives import read_arrays
from ..system.files import is_local, join, list_folder, remote

MAX_BYTES = 2**32  # of an .npz's pixels, all of which are held in memory
RUN_CONFIG = "config.json"  # lies in a run's folder


class ImageFolder:
    """The pictures below a folder, scaled and cropped to squares of one size as in training.

    :ivar names: paths below the folder, sorted.
    :ivar classes: names of the classes, sorted; None unless every file's name has one.
    :ivar labels: the classes' numbers, int64 [N], or None.
    :ivar size: height and width in pixels.
    :ivar channels: 1, 3 or 4.
    :raises InputError: if there is no such folder, or it has no pictures.
    """

    def __init__(self, folder: str, size: int, channels: int = 3):
        self.folder = folder.rstrip("/")
        self.size, self.channels = size, channels
        self.names: Sequence[str] = list_images(folder)
        self.classes: list[str] | None = None
        self.labels: np.ndarray | None = None
        if all(map(class_of, self.names)):
            self.classes, numbers = class_indices(self.names, folder)
            self.labels = np.array(numbers, dtype=np.int64)

    @property
    def name(self) -> str:
        """The folder's name and the images' shape."""
        return f"{os.path.basename(self._path)}_{self.size}x{self.size}x{self.channels}"

    @property
    def parent(self) -> str:
        """The folder around this one."""
        return os.path.dirname(self._path)

    @property
    def _path(self) -> str:
        return os.path.abspath(self.folder) if is_local(self.folder) else self.folder

    @cached_property
    def identity(self) -> str:
        """A SHA-256 over the files' names, sizes and times of change, and the images' shape."""
        digest = hashlib.sha256(f"{self.size} {self.channels}".encode())
        for name in self.names:
            stamp = f"\0{name}\0{_stamp(f'{self.folder}/{name}')}"
            digest.update(stamp.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Images of those numbers, uint8 [n, size, size, channels].

        :raises InputError: naming the file, if one cannot be read.
        """
        images = [
            read_image(f"{self.folder}/{self.names[i]}", self.size, self.channels) for i in indices
        ]
        return np.stack(images)


def _stamp(path: str) -> str:
    if is_local(path):
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}"
    status = remote().stat(path)
    return f"{status.size} {status.mtime}"


class ImageArray:
    """Images in memory, as sampling writes them.

    :param pixels: uint8 [N, S, S, C].
    :param labels: the classes' numbers, int64 [N], or None.
    :param classes: names of the classes, where they are known.
    :param name: what they are called.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
        name: str = "images",
    ):
        self.pixels, self.labels, self.classes = pixels, labels, classes
        self.size, self.channels = pixels.shape[2:]
        self.name = name

    @property
    def names(self) -> Sequence[str]:
        """The images' numbers."""
        return [f"{i:06d}" for i in range(len(self))]

    @cached_property
    def identity(self) -> str:
        """A SHA-256 over the pixels and their shape."""
        digest = hashlib.sha256(repr(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Images of those numbers, uint8 [n, size, size, channels]."""
        return self.pixels[np.asarray(indices)]


def open_images(
    path: str, size: int | None = None, channels: int | None = None
) -> ImageFolder | ImageArray:
    """Images at ``path``: an .npz of samples, a run's folder with one, or a folder of pictures.

    In a run's folder the one ``samples_*.npz`` counts, else the one in a folder of it. A folder of
    pictures is read at the size that is asked for, or at that of the first.

    :param size: height and width that the images have to have; None for what they have.
    :param channels: 1, 3 or 4 that they have to have; None for what they have.
    :raises InputError: if there is no such file or folder, no or several ``samples_*.npz`` in a
        run's folder, or images of another size or number of channels.
    """
    if path.endswith(".npz"):
        return _open_array(path, size, channels)
    found = _sample_files(path)
    if len(found) > 1:
        raise InputError(f"several samples in {path}: give one of {', '.join(found)}")
    if found:
        return _open_array(found[0], size, channels)
    if RUN_CONFIG in list_folder(path):
        raise InputError(
            f"no samples_*.npz in {path}, the folder of a run; make some with image_sample.py"
        )
    return open_folder(path, size, channels)


def open_folder(folder: str, size: int | None = None, channels: int | None = None) -> ImageFolder:
    """The pictures below a folder, at the size that is asked for.

    :param size: height and width to scale and crop them to; None for the shorter side of the
        first, which must not be smaller.
    :param channels: 1, 3 or 4 to convert them to; None for those of the first.
    :raises InputError: if there are no pictures, or smaller ones.
    """
    first = list_images(folder)[0]
    with open_image(f"{folder.rstrip('/')}/{first}") as image:
        shorter, bands = min(image.size), image.getbands()
        is_grey = len(bands) == 1 and image.mode != "P"  # a palette has colours
    if size and size > shorter:
        raise InputError(
            f"the pictures in {folder} are {shorter} pixels wide or high, fewer than {size}"
        )
    own_channels = 4 if bands[-1] == "A" else 1 if is_grey else 3
    return ImageFolder(folder, size or shorter, channels or own_channels)


def _sample_files(folder: str) -> list[str]:
    """The .npz files that sampling wrote in ``folder``; if there are none, in folders of it."""

    def within(folder: str) -> list[str]:
        return [
            join(folder, name)
            for name in list_folder(folder)
            if name.startswith("samples_") and name.endswith(".npz")
        ]

    names = (name for name in list_folder(folder) if not name.lower().endswith(EXTENSIONS))
    below = (join(folder, name.rstrip("/")) for name in names)
    return within(folder) or [path for inner in below for path in within(inner)]


def _open_array(path: str, size: int | None, channels: int | None) -> ImageArray:
    arrays = read_arrays(path, ("arr_0", "arr_1"), MAX_BYTES)
    pixels, labels = _check_pixels(path, arrays.get("arr_0")), arrays.get("arr_1")
    _, height, _, depth = pixels.shape
    if size and height != size:
        raise InputError(
            f"the images in {path} are {height} x {height} pixels, not {size} x {size}"
        )
    if channels and depth != channels:
        raise InputError(f"the images in {path} have {depth} channels, not {channels}")
    if labels is not None:
        if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
            raise InputError(
                f"{path} is no file of samples: its arr_1 is {labels.dtype} {list(labels.shape)}, "
                f"not a class number of each of its {len(pixels)} images"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < 2**31:
            raise InputError(f"{path} is no file of samples: its arr_1 has no class numbers")
        labels = labels.astype(np.int64)
    return ImageArray(pixels, labels, name=os.path.basename(path).removesuffix(".npz"))


def _check_pixels(path: str, pixels: np.ndarray | None) -> np.ndarray:
    if pixels is None:
        raise InputError(f"{path} is no file of samples: it has no arr_0")
    shape = pixels.shape
    square = len(shape) == 4 and shape[1] == shape[2] > 0 and shape[3] in MODES
    if pixels.dtype != np.uint8 or not square:
        raise InputError(
            f"{path} is no file of samples: its arr_0 is {pixels.dtype} {list(shape)}, "
            "not uint8 [N, size, size, 1, 3 or 4]"
        )
    return pixels
