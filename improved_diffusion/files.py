"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import InputError

UNFINISHED = ".improved_diffusion.tmp"  # how the names of files in the making end


def is_local(path: str | os.PathLike) -> bool:
    """Whether ``path`` lies on this machine's file system rather than behind a URL."""
    return "://" not in os.fspath(path)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing bytes, so that readers see the old file or the whole new one.

    A local file is written beside its destination, flushed to the disk and renamed over it; when
    the body raises, the destination is untouched and nothing is left behind. Behind a URL
    (``gs://``, ``az://``, ``https://``) blobfile does the writing: an object appears when it is
    complete.

    :raises OSError: if the folder is missing or not writable, or the disk is full.
    """
    if not is_local(path):
        import blobfile as bf  # slow to import, and local runs have no use for it here

        with bf.BlobFile(os.fspath(path), "wb") as file:
            yield file
        return
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(UNFINISHED, f".{path.name}.", path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # a temporary file starts as 0600
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = os.fspath(path)  # "No space left on device" alone says too little
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Delete what :func:`atomic_write` was writing in ``folder`` when its process was killed."""
    for path in Path(folder).glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def atomic_write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` as UTF-8 with :func:`atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode())


def read_file(path: str | os.PathLike) -> bytes:
    """The whole content of a file, local or behind a URL.

    :raises InputError: if there is no such file.
    """
    try:
        if is_local(path):
            return Path(path).read_bytes()
        import blobfile as bf  # slow to import, and local runs have no use for it here

        with bf.BlobFile(os.fspath(path), "rb") as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        reason = error.strerror or "no such file"
        raise InputError(f"cannot read {path} ({reason}); check the path") from None


def sync_folder(folder: str | os.PathLike) -> None:
    """Make renames in ``folder`` survive a power cut, where the system can sync a folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
