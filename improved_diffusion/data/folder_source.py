"""A folder of image files, here or behind a URL."""

import hashlib
import os
from contextlib import AbstractContextManager

from PIL import Image

from ..system.files import is_local, join, list_folder, read_file, remote
from .image_files import list_images, open_image
from .image_source import Files, hash_of_names


class FolderSource(Files):
    """The image files below a folder, found as :func:`.image_files.list_images` does.

    :param path: the folder, which may lie behind a URL.
    :param by: what classes are taken from, one of :data:`.image_source.BY`.
    :raises InputError: if there is no such folder, or no image, or classes cannot be had ``by``
        that.
    """

    def __init__(self, path: str, by: str = "auto"):
        super().__init__(path, list_images(path), by)

    def _read_list(self, name: str) -> bytes | None:
        parent, _, own = name.rpartition("/")
        folder = join(self.path, parent)
        return read_file(join(folder, own)) if own in list_folder(folder) else None

    def open(self, index: int) -> AbstractContextManager[Image.Image]:
        return open_image(self.where(index))

    @property
    def fingerprint(self) -> str:
        return hash_of_names(self.names)  # a folder that was copied is the same

    @property
    def stamp(self) -> str:
        digest = hashlib.sha256()
        for index, name in enumerate(self.names):
            line = f"\0{name}\0{_stamp(self.where(index))}"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _stamp(path: str) -> str:
    """Size and time of change of a file."""
    if is_local(path):
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}"
    with remote() as blobs:
        status = blobs.stat(path)
    return f"{status.size} {status.mtime}"
