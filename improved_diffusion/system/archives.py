"""Files that are zip archives: whether a checkpoint holds its bytes, and arrays out of an .npz.

``torch.save`` writes a zip archive with a CRC-32 of each record, which ``torch.load`` does not look
at: a flipped bit becomes another weight.
"""

import io
import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from ..errors import InputError
from .files import is_local, open_to_read, read_file

if TYPE_CHECKING:
    import numpy as np

LEGACY = b"\x80"  # the first byte of files from before PyTorch 1.6, which have no checksums
LENGTHS = struct.Struct("<HH")  # of a record's name and of its extra field
LENGTHS_AT, HEADER_SIZE = 26, 30  # in the header before each record


def find_damage(data: bytes) -> str:
    """What is wrong with the content of a file that ``torch.save`` wrote; "" if nothing is."""
    return "" if data[:1] == LEGACY else _find_damage(io.BytesIO(data), memoryview(data))


def find_damage_in(path: str) -> str:
    """:func:`find_damage` of the file at ``path``, without holding all of it in memory.

    :raises InputError: if there is no such file.
    """
    if not is_local(path) or os.path.getsize(path) == 0:
        return find_damage(read_file(path))
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        memoryview(data) as view,
    ):
        return "" if data[:1] == LEGACY else _find_damage(file, view)


def _find_damage(file: IO[bytes], view: memoryview) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED:  # unpacked, it might fill the memory
                    return f"its record {record.filename} is compressed, as torch.save never does"
                lengths = LENGTHS.unpack_from(view, record.header_offset + LENGTHS_AT)
                start = record.header_offset + HEADER_SIZE + sum(lengths)
                with view[start : start + record.file_size] as content:
                    if zlib.crc32(content) != record.CRC:
                        return f"its record {record.filename} does not match its checksum"
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError):
        return "it is cut short, or no archive"
    return ""


def read_arrays(path: str, names: Sequence[str], max_bytes: int) -> "dict[str, np.ndarray]":
    """Those of the named arrays that an .npz holds, with their checksums compared.

    :param max_bytes: the most that all of them together may have, unpacked.
    :raises InputError: if the file is missing or damaged, holds more, or needs unpickling.
    """

    try:
        with open_to_read(path) as file, zipfile.ZipFile(file) as archive:
            members = {name: f"{name}.npy" for name in names}
            there = {n: m for n, m in members.items() if m in archive.namelist()}
            size = sum(archive.getinfo(member).file_size for member in there.values())
            if size > max_bytes:
                raise ValueError(f"it holds {size} bytes, more than {max_bytes}")
            arrays = {}
            for name, member in there.items():
                with archive.open(member) as content:
                    arrays[name] = _read_array(content)
            return arrays
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror or error}); check the path"
        ) from None
    except Exception as error:  # many kinds, for whatever stands in a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is no whole .npz: {reason}") from error


def _read_array(file: IO[bytes]) -> "np.ndarray":
    """The array of an .npy file; unlike numpy's reader it takes no memory that a header makes up.

    :raises ValueError: if it holds objects, or less than its header says.
    """
    import numpy as np

    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, is_fortran, dtype = readers[version](file)
    numbers = np.frombuffer(file.read(), dtype)
    return numbers.reshape(shape, order="F" if is_fortran else "C").copy()
