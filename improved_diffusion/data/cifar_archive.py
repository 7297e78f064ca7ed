"""CIFAR-10's own archives, python and binary, read in place and without executing a pickle."""

import io
import os
import pickle
import tarfile
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ..errors import InputError
from ..system.files import is_folder, opener
from .array_source import ArraySource
from .image_source import Labels

ENDINGS = (".tar.gz", ".tgz", ".tar")
CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {
    "train": [f"data_batch_{number}" for number in range(1, 6)],
    "test": ["test_batch"],
}
PIXELS = 3 * 32 * 32
MAX_BATCH_BYTES = 2**26  # the official ones have 2**25

Batch = tuple[np.ndarray, np.ndarray]  # uint8 [N, 32, 32, 3], labels [N]


def open_cifar(path: str, by: str = "auto") -> ArraySource:
    """The training images of an archive, or those of ``path/train`` or ``path/test``.

    :param by: "auto" or "none".
    :raises InputError: if it is damaged, or not CIFAR-10.
    """
    archive, split = split_of(path)
    pixels, numbers = read_archive(archive, [split])[split]
    names = [CLASSES[number] for number in numbers]
    labels = None if by == "none" else Labels.of_names(names, "the archive")
    return ArraySource(pixels, labels, path)


def is_cifar(path: str) -> bool:
    """Whether a path is that of a tar archive, or of a split within one."""
    archive, _ = split_of(path)
    return archive.lower().endswith(ENDINGS) and not is_folder(archive)


def split_of(path: str) -> tuple[str, str]:
    """The archive of a path, and which images of it are meant."""
    plain = path.replace(os.sep, "/").rstrip("/")
    for split in BATCHES:
        if plain.lower().endswith(tuple(f"{end}/{split}" for end in ENDINGS)):
            return path[: len(plain) - len(split) - 1], split
    return path, "train"


def read_archive(path: str, splits: Iterable[str]) -> dict[str, Batch]:
    """Images of the python or the binary archive, without unpacking it to the disk.

    :param splits: "train", "test" or both.
    :raises InputError: if it is damaged, or not CIFAR-10.
    """
    wanted = {name for split in splits for name in BATCHES[split]}
    batches = {}
    try:
        with opener(path)() as file, tarfile.open(fileobj=file, tarinfo=_Member) as archive:
            for member in archive:
                name, kind = os.path.splitext(PurePosixPath(member.name).name)
                if name in wanted and kind in PARSERS:
                    batches[name] = _read_batch(archive, member, PARSERS[kind], path)
    except InputError:
        raise
    except Exception as error:  # many kinds, for whatever stands in a damaged file
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read archive {path}: {reason}") from error
    missing = sorted(wanted - batches.keys())
    if missing:
        raise InputError(f"archive {path} is not CIFAR-10's: it has no {', '.join(missing)}")
    return {split: _joined([batches[name] for name in BATCHES[split]]) for split in splits}


def _joined(batches: list[Batch]) -> Batch:
    pixels, labels = zip(*batches, strict=True)
    return np.concatenate(pixels), np.concatenate(labels).astype(np.int64)


class _Member(tarfile.TarInfo):
    """A member of the archive, or a header of one, which tarfile would read whole."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        _check_size(member)
        return member


def _check_size(member: tarfile.TarInfo) -> None:
    if member.size > MAX_BATCH_BYTES:
        raise InputError(f"the archive's {member.name} is larger than a batch of CIFAR-10")


def _read_batch(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    parse: Callable[[bytes], Batch],
    path: str,
) -> Batch:
    _check_size(member)  # headers that come after the first may have changed it
    file = archive.extractfile(member) if member.isreg() else None
    if file is None:
        raise InputError(f"{member.name} in {path} is no batch of CIFAR-10: wrong kind")
    payload = file.read()
    try:
        return parse(payload)
    except Exception as error:  # what a foreign pickle raises is its author's choice
        reason = str(error) or type(error).__name__
        raise InputError(f"{member.name} in {path} is no batch of CIFAR-10: {reason}") from error


def parse_binary(payload: bytes) -> Batch:
    """Read a batch of the binary archive: records of one label and 3072 pixels, channels first."""
    records = np.frombuffer(payload, dtype=np.uint8).reshape(-1, 1 + PIXELS)
    return _checked(records[:, 1:], records[:, 0])


def parse_python(payload: bytes) -> Batch:
    """Read a batch of the python archive, a pickle, without executing any of it."""
    batch = _InertUnpickler(io.BytesIO(payload), encoding="bytes").load()
    _, shape, _, is_fortran, data = batch[b"data"].state
    pixels = np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if is_fortran else "C")
    labels = batch[b"labels"]
    if not all(type(label) is int for label in labels):  # lists in lists may be endless
        raise ValueError("its labels are no numbers")
    return _checked(pixels, np.array(labels, dtype=np.int64))


PARSERS = {".bin": parse_binary, "": parse_python}


def _checked(pixels: np.ndarray, labels: np.ndarray) -> Batch:
    if labels.shape != (len(pixels),) or not np.isin(labels, range(len(CLASSES))).all():
        raise ValueError("its labels are not one of 0 to 9 for each image")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


class _Inert:
    """Stands in for every numpy object of a pickle: keeps the state that it is given."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _latin1(text: str, _: str) -> bytes:
    return text.encode("latin1")


STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Inert,
    ("numpy", "dtype"): _Inert,
    ("numpy.core.multiarray", "_reconstruct"): _Inert,
    ("numpy._core.multiarray", "_reconstruct"): _Inert,
    ("_codecs", "encode"): _latin1,  # how Python 3 writes bytes for Python 2
}


class _InertUnpickler(pickle._Unpickler):  # in C it would make a memo as large as a pickle says
    """Builds plain containers, bytes and numbers; whatever else a pickle names is refused."""

    def find_class(self, module_name: str, global_name: str) -> Callable[..., Any]:
        if (module_name, global_name) not in STAND_INS:
            raise pickle.UnpicklingError(f"its pickle asks for {module_name}.{global_name}")
        return STAND_INS[module_name, global_name]
