"""A .zip of image files, read in place: nothing is unpacked to the disk."""

import hashlib
import io
import os
import zipfile
from typing import Any

from PIL import Image

from ..errors import InputError
from ..system.archives import BOUNDED, open_packed
from ..system.files import open_to_read
from .image_files import EXTENSIONS, decoding
from .image_source import Files

MAX_FILE = 2**27  # bytes of one image file, unpacked
MAX_LIST = 2**28  # of the list of labels


class ZipSource(Files):
    """The image files in a zip archive, with folders and labels as :class:`.FolderSource` has them.

    Checksums are compared as files are read, and no file is unpacked to more than it may have.

    :param path: of the archive, which may lie behind a URL.
    :param by: what classes are taken from, one of :data:`.image_source.BY`.
    :raises InputError: if it is no archive, has no images, two of one name, or names that lead out
        of it; or if classes cannot be had ``by`` that.
    """

    def __init__(self, path: str, by: str = "auto"):
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in self._archive().infolist():
            name = _plain(info)
            if info.is_dir() or not name.lower().endswith(EXTENSIONS):
                continue
            self._check_name(name)
            if not any(part.startswith(".") for part in name.split("/")):  # hidden
                self._check(name, info)
                self._infos[name] = info
        if not self._infos:
            raise InputError(f"no images ({' '.join(EXTENSIONS)}) in {path}")
        super().__init__(path, sorted(self._infos), by)

    def _archive(self) -> zipfile.ZipFile:
        """The archive as this process has opened it: processes must not share its position."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(open_to_read(self.path))
            except OSError as error:
                raise InputError(
                    f"cannot read {self.path} ({error.strerror or error}); check the path"
                ) from None
            except Exception as error:  # many kinds, for whatever stands in a damaged file
                raise InputError(f"{self.path} is no whole .zip: {error}") from error
        return self._opened[1]

    def _check_name(self, name: str) -> None:
        parts = name.split("/")
        if not parts[0] or ".." in parts or ":" in parts[0]:
            raise InputError(f"{self.path}/{name} leads out of the archive; pack its files anew")

    def _check(self, name: str, info: zipfile.ZipInfo) -> None:
        where = f"{self.path}/{name}"
        if name in self._infos:
            raise InputError(f"{self.path} has two files of the name {name}; remove one")
        if info.flag_bits & 1:
            raise InputError(f"{where} is encrypted; pack the files without a password")
        if info.compress_type not in BOUNDED:
            raise InputError(f"{where} is compressed in another way than deflate; pack it anew")
        if info.file_size > MAX_FILE:
            raise InputError(f"{where} claims {info.file_size} bytes, more than {MAX_FILE}")

    def _read_list(self, name: str) -> bytes | None:
        found = [info for info in self._archive().infolist() if _plain(info) == name]
        try:
            return self._unpack(found[-1], MAX_LIST) if found else None
        except Exception as error:
            raise InputError(f"{self.path}/{name} cannot be read: {error}") from error

    def _unpack(self, info: zipfile.ZipInfo, most: int) -> bytes:
        if info.file_size > most:
            raise ValueError(f"it claims {info.file_size} bytes")
        with open_packed(self._archive(), info) as file:
            return file.read(info.file_size)  # without a number, zipfile unpacks 2 GB at a time

    def open(self, index: int) -> Image.Image:
        return decoding(io.BytesIO(self._unpack(self._infos[self.names[index]], MAX_FILE)))

    @property
    def stamp(self) -> str:
        digest = hashlib.sha256()
        for name in self.names:
            line = f"{name}\0{self._infos[name].CRC}\0"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:  # for processes that are not forked
        return {**self.__dict__, "_opened": None}


def _plain(info: zipfile.ZipInfo) -> str:
    """The name of a file without what some programs write: backslashes, and dots as parts."""
    parts = info.filename.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part != ".")
