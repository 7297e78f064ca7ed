"""The kinds of places that images come in, and opening one of them.

A new kind is one file with an :class:`.image_source.ImageSource`, and one line of :data:`KINDS`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError
from ..system.files import is_folder, is_local
from .array_source import open_array
from .cifar_archive import is_cifar, open_cifar
from .folder_source import FolderSource
from .image_source import BY, ImageSource, LabelError
from .parquet_source import ParquetSource, is_parquet
from .zip_source import ZipSource


@dataclass(frozen=True)
class Kind:
    """A kind of place.

    :param name: what it is, for ``--help``.
    :param fits: whether a path is of this kind.
    :param open: its images, from the path and what classes are taken from, one of
        :data:`.image_source.BY`.
    :param has_names: whether these are files whose names can say their classes.
    """

    name: str
    fits: Callable[[str], bool]
    open: Callable[[str, str], ImageSource]
    has_names: bool = False


def _ending(*endings: str) -> Callable[[str], bool]:
    return lambda path: path.lower().endswith(endings) and not is_folder(path)


KINDS = (
    Kind("a .zip of files", _ending(".zip"), ZipSource, True),
    Kind("an .npz or .npy of uint8 [N, H, W, C]", _ending(".npz", ".npy"), open_array),
    Kind("CIFAR-10's .tar.gz", is_cifar, open_cifar),
    Kind("Hugging Face's .parquet files", is_parquet, ParquetSource),
    # The last one, since it takes every path.
    Kind("a folder of files", lambda path: True, FolderSource, True),
)
KNOWN = ", ".join(kind.name for kind in (KINDS[-1], *KINDS[:-1]))  # for help and messages


def open_source(
    path: str | os.PathLike, by: str = "auto", needs_labels: bool = True
) -> ImageSource:
    """The images at a path, of whatever kind.

    :param by: what classes are taken from, one of :data:`.image_source.BY`.
    :param needs_labels: if false, classes that cannot be used are as good as none.
    :raises InputError: if there are no images, or ``by`` cannot be.
    """
    if by not in BY:
        raise InputError(f"unknown labels {by!r}; choose from {', '.join(BY)}")
    path = os.fspath(path)
    kind = next(kind for kind in KINDS if kind.fits(path))
    if kind is KINDS[-1] and is_local(path) and os.path.isfile(path):
        raise InputError(f"{path} is a file of no known kind; images can be {KNOWN}")
    if by not in ("auto", "none") and not kind.has_names:
        raise LabelError(f"{path} has no file names to take classes from; leave --labels {by} out")
    try:
        return kind.open(path, by)
    except LabelError:
        if needs_labels or by != "auto":
            raise
        return kind.open(path, "none")
