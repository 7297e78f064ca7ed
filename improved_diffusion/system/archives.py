"""Files that are zip archives: whether a checkpoint holds its bytes, and arrays out of an .npz.

``torch.save`` writes a zip archive with a CRC-32 of each record, which ``torch.load`` does not look
at: a flipped bit becomes another weight.
"""

import contextlib
import io
import math
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING, NamedTuple

from ..errors import InputError
from .files import open_to_read

if TYPE_CHECKING:
    import numpy as np

LEGACY = b"\x80"  # the first byte of files from before PyTorch 1.6, which have no checksums
LENGTHS = struct.Struct("<HH")  # of a record's name and of its extra field
LENGTHS_AT, HEADER_SIZE = 26, 30  # in the header before each record
BLOCK = 2**20  # bytes to read at a time
# Of these compressions zipfile unpacks no more than is asked for, of others all that there is.
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def find_damage(file: IO[bytes]) -> str:
    """What is wrong with the content of a file that ``torch.save`` wrote; "" if nothing is.

    It is faster than ``ZipFile.testzip``, which takes long over each of many small records.
    """
    if file.read(1) == LEGACY:
        return ""
    try:
        with _content(file) as content, zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED:  # unpacked, it might have no end
                    return f"its record {record.filename} is compressed, as torch.save never does"
                lengths = LENGTHS.unpack_from(content, record.header_offset + LENGTHS_AT)
                start = record.header_offset + HEADER_SIZE + sum(lengths)
                if zlib.crc32(content[start : start + record.file_size]) != record.CRC:
                    return f"its record {record.filename} does not match its checksum"
    except Exception:  # many kinds, for whatever stands in a damaged file
        return "it is cut short, or no archive"
    return ""


def _content(file: IO[bytes]) -> memoryview:
    """All bytes of a file, which are in memory no longer than they are looked at."""
    if isinstance(file, io.BytesIO):
        return file.getbuffer()
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class Header(NamedTuple):
    """What an array in a file is, before it is read."""

    shape: tuple[int, ...]
    dtype: "np.dtype"


def open_packed(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open a file of an archive, to be read in parts: no more is unpacked than is asked for.

    :raises ValueError: if it is compressed so that this cannot be.
    """
    if info.compress_type not in BOUNDED:
        raise ValueError("it is compressed in another way than deflate; pack it anew")
    return archive.open(info)


def array_headers(path: str) -> dict[str, Header]:
    """The arrays of an .npz by name, or the one of an .npy, named "".

    :raises InputError: if the file is missing or damaged.
    """
    with _members(path) as members:
        found = {}
        for name, (_, start) in members.items():
            with start() as file:
                found[name] = _read_header(file)
        return found


def read_arrays(path: str, names: Sequence[str], max_bytes: int) -> "dict[str, np.ndarray]":
    """Those of the named arrays that an .npz holds, with their checksums compared.

    They take no more memory than their numbers, even while they are read.

    :param names: as :func:`array_headers` has them.
    :param max_bytes: the most that all of them together may have, unpacked.
    :raises InputError: if the file is missing or damaged, holds more, or needs unpickling.
    """
    with _members(path) as members:
        there = {name: members[name] for name in names if name in members}
        size = sum(size for size, _ in there.values())
        if size > max_bytes:
            raise ValueError(f"it holds {size} bytes, more than {max_bytes}")
        arrays = {}
        for name, (size, start) in there.items():
            arrays[name] = _read_array(start, size)
        return arrays


_Start = Callable[[], contextlib.AbstractContextManager[IO[bytes]]]  # opens a file at its start
_Member = tuple[int, _Start]  # its size before it


@contextlib.contextmanager
def _members(path: str) -> Iterator[dict[str, _Member]]:
    """The .npy files within a file, for a block whose errors become one that names the file."""
    kind = ".npy" if path.lower().endswith(".npy") else ".npz"
    try:
        with open_to_read(path) as file:
            if kind == ".npy":
                yield {"": (file.seek(0, os.SEEK_END), partial(_from_start, file))}
                return
            with zipfile.ZipFile(file) as archive:
                yield {
                    info.filename.removesuffix(".npy"): (
                        info.file_size,
                        partial(open_packed, archive, info),
                    )
                    for info in archive.infolist()
                    if info.filename.endswith(".npy")
                }
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror or error}); check the path"
        ) from None
    except Exception as error:  # many kinds, for whatever stands in a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is no whole {kind}: {reason}") from error


def _read_header(file: IO[bytes]) -> Header:
    import numpy as np

    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, _, dtype = readers[version](file)
    return Header(shape, dtype)


@contextlib.contextmanager
def _from_start(file: IO[bytes]) -> Iterator[IO[bytes]]:
    file.seek(0)
    yield file


def _read_array(start: _Start, size: int) -> "np.ndarray":
    """The array of an .npy file of that many bytes, which a header cannot make larger.

    It is opened a second time for the array: after a seek, newer zipfiles may compare no checksum.

    :raises ValueError: if it holds objects, or less than its header says.
    """
    import numpy as np

    with start() as file:
        shape, dtype = _read_header(file)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"{dtype} {list(shape)} cannot be in its {size} bytes")
    with start() as file:
        numbers = np.lib.format.read_array(file, allow_pickle=False)
        while file.read(BLOCK):  # the checksum is compared at the end
            pass
    return numbers
