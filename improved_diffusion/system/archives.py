"""Whether a checkpoint's file holds the bytes that were written.

``torch.save`` writes a zip archive with a CRC-32 of each record, which ``torch.load`` does not look
at: a flipped bit becomes another weight.
"""

import io
import mmap
import os
import struct
import zipfile
import zlib
from typing import IO

from .files import is_local, read_file

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
