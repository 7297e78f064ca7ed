"""Files that users would not make: harmful, broken, or claiming to be huge; and full disks."""

import contextlib
import io
import pickle
import struct
import tarfile
import zlib

import numpy as np
import pytest


class Harmful:
    """Pickled, it asks whoever reads it to do something."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def laughs():
    """Tuples in tuples: a few references that would be 2 ** 60 labels."""
    found = (1, 2)
    for _ in range(60):
        found = (found, found)
    return found


def png_claiming(width, height):
    """A PNG file without pixels that claims to be so large."""
    header = b"IHDR" + struct.pack(">II", width, height) + b"\x08\x02\0\0\0"
    chunks = (
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, b"IDAT")
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# -- CIFAR-10 ------------------------------------------------------------------------------------


def cifar_batches(count=4):
    """Names, pixels and labels of all batches."""
    rng = np.random.default_rng(0)
    for number, name in enumerate((*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")):
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        yield name, pixels, [(number + image) % 10 for image in range(count)]


def cifar_members(kind, count=4):
    """The files of the archive, ``bin`` or ``py``."""
    members = {}
    for name, pixels, labels in cifar_batches(count):
        if kind == "bin":
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1)
            members[f"cifar-10-batches-bin/{name}.bin"] = rows.tobytes()
        else:
            batch = {b"labels": labels, b"data": pixels}
            members[f"cifar-10-batches-py/{name}"] = pickle.dumps(batch, protocol=2)
    return members


def tar_of(members, kinds=None):
    """An archive of files, or of other things by name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, payload in members.items():
            info = tarfile.TarInfo(name)
            info.type = (kinds or {}).get(name, tarfile.REGTYPE)
            info.linkname = "/etc/passwd" if info.type != tarfile.REGTYPE else ""
            info.size = len(payload) if info.type == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(payload))
    return file.getvalue()


@contextlib.contextmanager
def room_for(size):
    """A disk on which no file can grow beyond so many bytes."""
    resource = pytest.importorskip("resource", reason="the system limits no file's size")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
