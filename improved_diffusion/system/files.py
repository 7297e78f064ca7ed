"""Files and folders, here or behind a URL; what is written appears whole or not at all."""

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager as ContextManager
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from uuid import uuid4

from ..errors import InputError

CONFIG_NAME = "config.json"  # lies in a run's folder
UNFINISHED = ".improved_diffusion.tmp"  # how the names of files in the making end
LONGEST_START = 150  # bytes of the name that a file will have; 255 are usual for a whole one
LOCK_NAME = ".lock"  # of the file that says that a process writes to a folder


def is_local(path: str | os.PathLike) -> bool:
    """Whether ``path`` lies on this machine's file system rather than behind a URL."""
    return "://" not in os.fspath(path)


@contextlib.contextmanager
def remote() -> Iterator[ModuleType]:
    """blobfile, which opens what lies behind URLs, for a block whose errors become usual ones.

    It is slow to import, so local runs do without it.

    :raises InputError: if it knows no such place.
    :raises OSError: if the place does not answer as it should.
    """
    import blobfile

    try:
        yield blobfile
    except blobfile.Error as error:
        if str(error).startswith(("Unrecognized path", "Invalid path", "Invalid URL")):
            raise InputError(f"{error}; give a local path, or a gs:// or az:// URL") from error
        raise OSError(str(error)) from error


def join(folder: str, name: str) -> str:
    """``folder/name``, where the folder may lie behind a URL."""
    return os.path.join(folder, name) if is_local(folder) else f"{folder.rstrip('/')}/{name}"


def is_folder(path: str) -> bool:
    """Whether there is a folder at ``path``, local or behind a URL."""
    if is_local(path):
        return os.path.isdir(path)
    with remote() as blobs:
        return blobs.isdir(path)


def exists(path: str) -> bool:
    """Whether there is anything at ``path``, local or behind a URL."""
    if is_local(path):
        return os.path.exists(path)
    with remote() as blobs:
        return blobs.exists(path)


def list_folder(folder: str) -> list[str]:
    """Names of what lies in ``folder``, sorted; none where there is no such folder.

    :raises InputError: if it may not be read.
    """
    if not is_folder(folder):
        return []
    if is_local(folder):
        try:
            return sorted(os.listdir(folder))
        except PermissionError as error:
            raise InputError(f"cannot look into {folder} ({error.strerror})") from None
    with remote() as blobs:
        return sorted(blobs.listdir(folder))


class _Sink(io.FileIO):
    """A file that keeps its first failure, and lets what is written afterwards go nowhere.

    A writer of zip files (``torch.save``, openpyxl, numpy) that met the failure itself would go on
    to write the archive's end, fail there anew and put another error in the first one's place.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


class _Files:
    """The files that :func:`atomic_files` writes at a time."""

    def __init__(self) -> None:
        self._temporaries: dict[Path, Path] = {}  # temporary files, and their destinations
        self._new: list[str | os.PathLike] = []  # destinations where nothing was before

    @contextlib.contextmanager
    def open(self, path: str | os.PathLike) -> Iterator[IO[bytes]]:
        if not is_local(path):
            if not exists(os.fspath(path)):
                self._new.append(path)
            with remote() as blobs, blobs.BlobFile(os.fspath(path), "wb") as file:
                yield file
            return
        path = Path(path)
        with naming(path):
            start = path.name.encode(errors="replace")[:LONGEST_START].decode(errors="ignore")
            temporary = path.with_name(f".{start}.{uuid4().hex}{UNFINISHED}")
            sink = _Sink(temporary, "xb")
            self._temporaries[temporary] = path
            with io.BufferedWriter(sink) as file:
                try:
                    yield file
                    file.flush()
                except Exception:
                    if sink.failure is None:
                        raise
                if sink.failure is not None:
                    raise sink.failure
                os.fsync(sink.fileno())

    def rename(self) -> None:
        for temporary, path in self._temporaries.items():
            if not path.exists():
                self._new.append(path)
            with naming(path):
                os.replace(temporary, path)
        for folder in {path.parent for path in self._temporaries.values()}:
            sync_folder(folder)

    def undo(self) -> None:
        for temporary in self._temporaries:
            _remove_if_there(temporary)
        with contextlib.suppress(OSError):  # the failure that led here is the one to be told
            for path in reversed(self._new):
                _remove_if_there(path)


@contextlib.contextmanager
def atomic_files() -> Iterator[Callable[[str | os.PathLike], ContextManager[IO[bytes]]]]:
    """Write several files, of which none is seen before all are whole.

    Yields a function that opens a path for writing bytes. A local file is written beside its
    destination and flushed to the disk; when the block ends, all are renamed to their places, in
    the order in which they were opened. When anything fails, old files stay and new ones are
    removed, the last one first; but if it is a rename that fails, the files that were renamed
    before it have replaced the old ones. Behind a URL (``gs://``, ``az://``, ``https://``)
    blobfile does the writing: each object appears when it is complete.

    :raises OSError: if the folder is missing or not writable, or the disk is full; names the file.
    """
    files = _Files()
    try:
        yield files.open
        files.rename()
    except BaseException:
        files.undo()
        raise


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing bytes, so that readers see the old file or the whole new one.

    See :func:`atomic_files`, of which this is the case of one file.
    """
    with atomic_files() as start, start(path) as file:
        yield file


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Have an ``OSError`` name the file: "No space left on device" alone says too little."""
    try:
        yield
    except OSError as error:
        if error.errno and str(error.filename or UNFINISHED).endswith(UNFINISHED):
            error.filename = os.fspath(path)
        raise


def append_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Add ``data`` to the end of a local file, which is made if missing.

    :raises OSError: if the disk is full; names the file, which is as it was before.
    """
    with naming(path), open(path, "ab", buffering=0) as file:
        size = file.tell()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def remove_file(path: str | os.PathLike) -> None:
    """Delete a file, local or behind a URL."""
    if is_local(path):
        os.unlink(path)
    else:
        with remote() as blobs:
            blobs.remove(os.fspath(path))


def move_file(path: str, destination: str) -> None:
    """Give a file, local or behind a URL, another name in the same place."""
    if is_local(path):
        os.replace(path, destination)
        sync_folder(os.path.dirname(destination) or ".")
    else:
        with remote() as blobs:
            blobs.copy(path, destination, overwrite=True)
            blobs.remove(path)


def _remove_if_there(path: str | os.PathLike) -> None:
    with contextlib.suppress(FileNotFoundError):
        remove_file(path)


def remove_leftovers(folder: str | os.PathLike, names: str = "*") -> None:
    """Delete what :func:`atomic_write` was writing in ``folder`` when its process was killed.

    :param names: pattern of the names that the whole files would have had.
    """
    for path in Path(folder).glob(f".{names}.*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` as UTF-8 with :func:`atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode())


def legible(text: str) -> str:
    """Text with a question mark for what is no character, as in names of another encoding."""
    return text.encode(errors="replace").decode()


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.

    :raises ValueError: if it is none, is nested too deeply to be read, or has a whole number that
        no float can hold.
    """
    try:
        return json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _whole_number(digits: str) -> int:
    if math.isinf(float(digits)):
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def open_to_read(path: str | os.PathLike) -> IO[bytes]:
    """Open a file for reading bytes, local or behind a URL."""
    if is_local(path):
        return open(path, "rb")
    with remote() as blobs:
        return blobs.BlobFile(os.fspath(path), "rb")


def read_file(path: str | os.PathLike) -> bytes:
    """The whole content of a file, local or behind a URL.

    :raises InputError: if there is no such file.
    """
    try:
        with open_to_read(path) as file, contextlib.nullcontext() if is_local(path) else remote():
            return file.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        reason = error.strerror or "no such file"
        raise InputError(f"cannot read {path} ({reason}); check the path") from None


def opener(path: str | os.PathLike) -> Callable[[], IO[bytes]]:
    """What opens a file for reading anywhere in it, as often as one likes.

    What is no file of this machine, but behind a URL or a pipe, is read once and held in memory.

    :raises InputError: if there is no such file.
    """
    if is_local(path) and os.path.isfile(path) and os.access(path, os.R_OK):
        return lambda: open(path, "rb")
    data = read_file(path)
    return lambda: io.BytesIO(data)


def sync_folder(folder: str | os.PathLike) -> None:
    """Make renames in ``folder`` survive a power cut, where the system can sync a folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
