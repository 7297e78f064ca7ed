"""Images in one place, whatever form they have there: their names, their classes, reading them."""

import hashlib
import posixpath
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from ..errors import InputError
from ..system.files import parse_json
from .image_files import explaining, squared

BY = ("auto", "name", "folder", "none")  # what classes are taken from
MOST_CLASSES = 2**20


class LabelError(InputError):
    """Images that have classes which cannot be used; without classes they can be."""


@dataclass(frozen=True)
class Labels:
    """The class of each image.

    :param classes: names of the classes, of which the index is the number.
    :param numbers: int64 [N].
    :param origin: what says so, for people.
    :param named: whether the names are known; else they are the numbers in words.
    """

    classes: list[str]
    numbers: np.ndarray
    origin: str
    named: bool = True

    @classmethod
    def of_names(cls, names: Sequence[str], origin: str) -> "Labels":
        """From each image's class name; classes are numbered in the sorted order of their names."""
        classes, numbers = np.unique(np.array(names, dtype=object), return_inverse=True)
        return cls([str(name) for name in classes], numbers.astype(np.int64), origin)

    @classmethod
    def of_numbers(cls, numbers: np.ndarray, origin: str, path: str) -> "Labels":
        """From each image's class number, int [N], found at ``path``.

        :raises LabelError: if one is negative, or so large that it cannot be a class.
        """
        odd = numbers[(numbers < 0) | (numbers >= MOST_CLASSES)]
        if len(odd):
            raise LabelError(
                f"{path}: {origin} has numbers that are no classes, such as {odd[0]}; mend it, or "
                "give --labels none"
            )
        numbers = numbers.astype(np.int64)
        classes = [str(number) for number in range(numbers.max(initial=-1) + 1)]
        return cls(classes, numbers, origin, named=False)

    def called(self, names: list[str], path: str) -> "Labels":
        """The same numbers, whose names are those at ``path``.

        :raises LabelError: if there are too few, or two alike.
        """
        if len(set(names)) < len(names) or len(names) < len(self.classes):
            raise LabelError(
                f"{path} names {len(set(names))} different classes, {len(names)} in all, and its "
                f"{self.origin} has {len(self.classes)}; mend it, or give --labels none"
            )
        return Labels(names, self.numbers, self.origin)

    def numbers_among(
        self, classes: Sequence[str], count: int, where: str, refusal: str
    ) -> np.ndarray:
        """The class of each image by its number among others, int64 [N].

        Where names are not known, here or there, the numbers are taken to be those.

        :param classes: names of the others, or empty; there are ``count`` of them.
        :param where: what has the images, for an error.
        :param refusal: what an error says after the class that is not among them.
        :raises InputError: if an image is of such a class.
        """
        by_name = self.named and classes
        known = classes if by_name else self.classes[:count]
        place = {as_typed(name): number for number, name in enumerate(known)}
        own = [place.get(as_typed(name), -1) for name in self.classes]
        for number in np.unique(self.numbers):
            if own[number] < 0:
                raise InputError(f"{where} has images of class {self.classes[number]}{refusal}")
        return np.array(own)[self.numbers]


def as_typed(name: str) -> str:
    """A class's name with whole letters: a Mac's file names may have ä as a and its dots."""
    return unicodedata.normalize("NFC", name)


class ImageSource(ABC):
    """N images. Each kind of place is a class with a file of its own.

    :ivar path: where they are, as the user named it.
    :ivar names: what each is called there; no two alike, and always in the same order.
    :ivar labels: their classes, or None where they have none.
    """

    path: str
    names: Sequence[str]
    labels: Labels | None
    labelling = ""  # how to give images of this kind their classes

    @abstractmethod
    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        """Image ``index``; what cannot be read may raise any error here or within the block."""

    @property
    @abstractmethod
    def stamp(self) -> str:
        """What changes when an image changes, as far as can be seen without reading them all."""

    @property
    def fingerprint(self) -> str:
        """What changes when a training cannot go on with the images."""
        return self.stamp

    def __len__(self) -> int:
        return len(self.names)

    def where(self, index: int) -> str:
        """Image ``index`` in a message."""
        return f"{self.path.rstrip('/')}/{self.names[index]}"

    def read(
        self, index: int, resolution: int, channels: int = 3, *, enlarge: bool = True
    ) -> np.ndarray:
        """Image ``index``, scaled and cropped: uint8 [resolution, resolution, channels].

        :param enlarge: whether it may be smaller.
        :raises InputError: naming the image, if it cannot be read, or must not be so small.
        """
        with explaining(self.where(index)), self.open(index) as image:
            if min(image.size) < resolution and not enlarge:
                raise ValueError(
                    f"it is {min(image.size)} pixels wide or high, fewer than {resolution}"
                )
            return squared(image, resolution, channels)

    def shape(self, index: int) -> tuple[int, int]:
        """The shorter side of image ``index`` in pixels, and its channels: 1, 3 or 4.

        :raises InputError: naming the image, if it cannot be read.
        """
        with explaining(self.where(index)), self.open(index) as image:
            bands = image.getbands()
            is_grey = len(bands) == 1 and image.mode != "P"  # a palette has colours
            return min(image.size), 4 if bands[-1] == "A" else 1 if is_grey else 3

    def needed_labels(self) -> Labels:
        """``labels``.

        :raises InputError: if there are none; names the first image without a class.
        """
        if self.labels is None:
            raise LabelError(
                f"{self.unlabelled} carries no class label: {self.labelling}, or do without "
                "classes (--class_cond False)"
            )
        return self.labels

    @property
    def unlabelled(self) -> str:
        """What has no class, in a message."""
        return self.path


class Files(ImageSource):
    """Images that are files with names, which may say their classes.

    :param path: what the names are below.
    :param names: of the files, parts joined by ``/``.
    :param by: one of :data:`BY`.
    :raises InputError: if classes cannot be taken from where ``by`` says.
    """

    labelling = (
        "name the files <class>_<number>.png, or give each class a folder of its own (with "
        "--labels folder, if it has folders itself)"
    )

    def __init__(self, path: str, names: Sequence[str], by: str = "auto"):
        self.path, self.names = path, names
        self.labels = self._labels(by)

    @abstractmethod
    def _read_list(self, name: str) -> bytes | None:
        """What a file beside the images says; None where there is none of that name."""

    def _labels(self, by: str) -> Labels | None:
        if by == "auto" and (listed := self._find_list()) is not None:
            return self._from_list(listed)
        if by == "folder" or (by == "auto" and self._are_in_folders):
            if not all(self._folders):
                raise LabelError(
                    f"{self.where(self._folders.index(''))} is in no folder of its class, which "
                    "--labels folder asks for; put it into one, or leave --labels out"
                )
            return Labels.of_names(self._folders, "folder")
        names = [] if by == "none" else [class_of(name) for name in self.names]
        if by == "name" and not all(names):
            raise LabelError(
                f"{self.where(names.index(''))} carries no class label, which --labels name asks "
                f"for; {self.labelling}, or leave --labels out"
            )
        return Labels.of_names(names, "name") if names and all(names) else None

    def _find_list(self) -> dict[str, int] | None:
        """The class number of each name that :data:`LIST` has; None where there is no such file.

        It lies at the top, or in a folder around all images.
        """
        shared = self._around.split("/")[:-1]
        for depth in range(len(shared) + 1):
            folder = "".join(f"{part}/" for part in shared[:depth])
            try:
                content = self._read_list(folder + LIST)
            except InputError as error:
                raise LabelError(f"{error}; mend it, or give --labels none") from error
            if content is not None:
                listed = listed_labels(content, f"{self.path.rstrip('/')}/{folder}{LIST}")
                return {folder + name: number for name, number in listed.items()}
        return None

    def _from_list(self, listed: Mapping[str, int]) -> Labels | None:
        if not listed:  # it says that there are no classes
            return None
        missing = next((name for name in self.names if name not in listed), None)
        if missing is not None:
            raise LabelError(
                f"{LIST} in {self.path} says no class of {missing}; add it, or give --labels none"
            )
        numbers = np.array([listed[name] for name in self.names], dtype=np.int64)
        return Labels.of_numbers(numbers, LIST, self.path)

    @cached_property
    def _around(self) -> str:
        """The folders around all files, each with a ``/`` behind it; "" for none."""
        shared = posixpath.commonpath([posixpath.dirname(name) for name in self.names])
        return shared and f"{shared}/"

    @cached_property
    def _folders(self) -> list[str]:
        """The folder that each file is in, but for folders around them all; "" for none."""
        return [name[len(self._around) :].rpartition("/")[0] for name in self.names]

    @property
    def _are_in_folders(self) -> bool:
        """Whether all files lie in folders one deep."""
        return all(self._folders) and not any("/" in folder for folder in self._folders)

    @property
    def unlabelled(self) -> str:
        classes = [class_of(name) for name in self.names]
        return self.where(classes.index("")) if "" in classes else self.path


LIST = "dataset.json"  # beside the images of a data set in EDM's form


def listed_labels(content: bytes, where: str) -> dict[str, int]:
    """The class numbers of :data:`LIST`, ``{"labels": [[name, number], ...]}``; of null none.

    :raises InputError: if it says something else.
    """
    try:
        parsed = parse_json(content)
    except ValueError as error:
        raise LabelError(f"{where} cannot be read ({error}); move it away") from None
    try:
        pairs = parsed["labels"]
        listed = {str(name): number for name, number in pairs or []}
    except (TypeError, ValueError, KeyError):
        raise LabelError(
            f'{where} is no list of labels, {{"labels": [["name.png", 0], ...]}}; mend it or '
            "move it away"
        ) from None
    for name, number in listed.items():
        if type(number) is not int or not 0 <= number < MOST_CLASSES:
            raise LabelError(f"{where} gives {name} the class {number!r}, which is no class number")
    return listed


def hash_of_names(names: Sequence[str]) -> str:
    """A SHA-256 of names in their order."""
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def class_of(name: str) -> str:
    """The part of a file's name before the first ``_``; "" where there is none."""
    label, underscore, _ = name.rpartition("/")[2].partition("_")
    return label if underscore else ""
