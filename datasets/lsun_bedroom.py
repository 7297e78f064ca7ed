"""Write the images of an LSUN lmdb as square PNG files, <prefix>_<index>.png."""

import io
import shutil
from argparse import Namespace
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from improved_diffusion.commands.cli import run
from improved_diffusion.data.image_files import MAX_PIXELS
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import Parser
from improved_diffusion.system.files import naming


def main() -> None:
    args = create_parser().parse_args()
    if args.image_size < 1:
        raise InputError(f"--image-size must be at least 1, got {args.image_size}")
    if not args.prefix or not set(args.prefix).isdisjoint("_/"):
        raise InputError(f"--prefix must be a word without _ and /, got {args.prefix!r}")
    whole = args.out_dir / f".{args.prefix}.whole"
    if whole.exists():
        print(f"Giving the images of an earlier call their places, those in {whole}")
    else:
        write_images(args, whole)
    for path in whole.iterdir():
        path.rename(args.out_dir / path.name)
    whole.rmdir()
    print(f"{args.out_dir}: {len([*args.out_dir.glob(f'{args.prefix}_*.png')])} images")


def write_images(args: Namespace, whole: Path) -> None:
    """Decode all images into a new folder, which gets its name when they are there."""
    images = read_images(args.lmdb_path, args.image_size)
    if next(args.out_dir.glob(f"{args.prefix}_*.png"), None):
        raise InputError(f"{args.out_dir} has images of that prefix already: choose another folder")
    images = chain([next(images)], images)  # before anything is made, the first one must be right
    partial = args.out_dir / f".{args.prefix}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for index, image in enumerate(images):
            path = partial / f"{args.prefix}_{index:07d}.png"
            with naming(path):
                image.save(path)
        partial.rename(whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def create_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--image-size", type=int, default=256, help="height and width in pixels")
    parser.add_argument("--prefix", default="bedroom", help="class label in the file names")
    parser.add_argument("lmdb_path", type=Path, help="folder of the LSUN database")
    parser.add_argument("out_dir", type=Path, help="folder for the PNG files")
    return parser


def read_images(lmdb_path: Path, image_size: int) -> Iterator[Image.Image]:
    """Yield the images of an LSUN database in the order of their keys, cut to squares.

    :raises InputError: if lmdb is not installed, or if the database or one of its images cannot
        be read.
    """
    try:
        import lmdb
    except ImportError as error:
        raise InputError('lmdb is missing: pip install -e ".[lsun]"') from error
    try:
        with (
            lmdb.open(str(lmdb_path), readonly=True, create=False, lock=False) as database,
            database.begin() as transaction,
        ):
            count = transaction.stat()["entries"]
            if not count:
                raise InputError(f"the LSUN database {lmdb_path} is empty")
            for key, value in tqdm(transaction.cursor(), total=count, unit="image", disable=None):
                yield decode(value, image_size, f"{key!r} in {lmdb_path}")
    except lmdb.Error as error:
        raise InputError(f"cannot read the LSUN database {lmdb_path}: {error}") from error


def decode(value: bytes, image_size: int, where: str) -> Image.Image:
    """Decode one WebP or JPEG image, scale its shorter side and cut a square out of its middle.

    :raises InputError: if ``value`` is no such image; ``where`` names it.
    """
    try:
        with Image.open(io.BytesIO(value), formats=("WEBP", "JPEG", "PNG")) as image:
            if image_size**2 * max(image.size) > MAX_PIXELS * min(image.size):
                raise ValueError(f"it has {image.width} x {image.height} pixels")
            scale = image_size / min(image.size)
            width, height = (round(side * scale) for side in image.size)
            large = image.convert("RGB").resize((width, height), resample=Image.Resampling.BOX)
    except Exception as error:  # a decoder raises whatever it stumbles over in a broken file
        raise InputError(f"cannot read image {where}: {error}") from error
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return large.crop((left, top, left + image_size, top + image_size))


if __name__ == "__main__":
    run(main)
