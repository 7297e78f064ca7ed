"""Images to judge and to judge by, all of one size."""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ..data.array_source import ArraySource
from ..data.image_files import files_below
from ..data.image_source import ImageSource, Labels
from ..data.sources import open_source
from ..errors import InputError
from ..system.files import CONFIG_NAME, is_local

FEATURES = ".features.npz"  # how the names of files of features end
GLANCE = 50  # images that say whether all are in colour
TINGE = 16  # difference of channels, of 255, that JPEG may give to grey


class ImageSet:
    """Images of a source, scaled and cropped to squares of one size as in training.

    :param size: height and width in pixels.
    :param channels: 1, 3 or 4.
    """

    def __init__(self, source: ImageSource, size: int, channels: int = 3):
        self.source = source
        self.size, self.channels = size, channels

    @property
    def labels(self) -> Labels | None:
        """The images' classes, or None where they have none."""
        return self.source.labels

    @property
    def name(self) -> str:
        """What the images are called where they are, and their shape."""
        return f"{os.path.basename(self._path)}_{self.size}x{self.size}x{self.channels}"

    @property
    def parent(self) -> str:
        """The folder around the images' folder or file."""
        folder = os.path.dirname(self._path)
        return os.path.dirname(folder) if os.path.isfile(folder) else folder  # an archive's part

    @property
    def _path(self) -> str:
        path = self.source.path.rstrip("/")
        return os.path.abspath(path) if is_local(path) else path

    @cached_property
    def identity(self) -> str:
        """A SHA-256 that is another one when an image or the shape changes."""
        about = f"{self.size} {self.channels} {self.source.stamp}"
        return hashlib.sha256(about.encode()).hexdigest()

    @property
    def is_grey(self) -> bool:
        """Whether the first images are kept in grey, all of them."""
        return _most_channels(self.source) == 1

    @property
    def has_colours(self) -> bool:
        """Whether one of the first images has any, whatever number of channels its file has."""
        some = range(min(len(self), GLANCE))
        pixels = np.stack([self.source.read(i, self.size, 3) for i in some]).astype(int)
        return bool(np.ptp(pixels, axis=-1).max() > TINGE)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Images of those numbers, uint8 [n, size, size, channels].

        :raises InputError: naming the image, if one cannot be read, or is smaller.
        """
        shape = self.size, self.channels
        return np.stack([self.source.read(int(i), *shape, enlarge=False) for i in indices])


def in_memory(pixels: np.ndarray) -> ImageSet:
    """Images that were made here, uint8 [N, S, S, C]."""
    return ImageSet(ArraySource(pixels), *pixels.shape[2:])


def open_images(
    path: str | os.PathLike, size: int | None = None, channels: int | None = None, by: str = "auto"
) -> ImageSet:
    """Images at ``path``, of any kind that training takes, at the size that is asked for.

    :param size: height and width to scale and crop them to; None for the shorter side of the
        first. No image may be smaller.
    :param channels: 1, 3 or 4 to convert them to; None for the most that the first ones have.
    :param by: what classes are taken from, one of :data:`.data.image_source.BY`.
    :raises InputError: if there are no images, or smaller ones.
    """
    source = open_source(path, by)
    shorter, _ = source.shape(0)
    if size and size > shorter:
        raise InputError(
            f"the pictures in {path} are {shorter} pixels wide or high, fewer than {size}"
        )
    return ImageSet(source, size or shorter, channels or _most_channels(source))


def _most_channels(source: ImageSource) -> int:
    return max(source.shape(i)[1] for i in range(min(len(source), GLANCE)))


def find_samples(path: str) -> str:
    """Where the samples are that ``path`` means.

    In a run's folder the one ``samples_*.npz`` counts, else the one in a folder of it; any other
    path is that of the images themselves.

    :raises InputError: if there are no or several ``samples_*.npz`` in a run's folder.
    """
    made = files_below(path, "samples_*.npz")
    found = [name for name in made if not name.endswith(FEATURES)]  # of samples once judged by
    if len(found) > 1:
        raise InputError(f"several samples in {path}: give one of {', '.join(found)}")
    if not found and os.path.isfile(os.path.join(path, CONFIG_NAME)):
        raise InputError(
            f"no samples_*.npz in {path}, the folder of a run; make some with image_sample.py"
        )
    return found[0] if found else path
