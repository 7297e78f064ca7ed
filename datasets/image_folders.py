"""Splits of labelled images as folders of PNG files that appear whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from improved_diffusion.errors import InputError
from improved_diffusion.system.files import naming, parse_json, sync_folder

MARKER = ".dataset.json"
SYSTEM_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}  # of systems that show the folder
OUR_FILES = re.compile(r"[a-z]+_\d{5,}\.png")


class Split(NamedTuple):
    """Images with their labels: one folder.

    ``pixels`` is uint8 [N, H, W, 3]; ``labels``, int [N], are indices into ``classes``.
    """

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]

    def first(self, limit: int | None) -> "Split":
        """Keep the first ``limit`` images; None keeps all."""
        return self._replace(pixels=self.pixels[:limit], labels=self.labels[:limit])


def is_whole(folder: Path, images: int) -> bool:
    """Whether an earlier run wrote ``images`` images into ``folder`` and all are still there."""
    return _marked_count(folder) == images and len(_names(folder)) == images + 1


def is_kept(folder: Path, images: int, overwrite: bool) -> bool:
    """Whether :func:`write_split` leaves what is there."""
    return not overwrite and is_whole(folder, images)


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) - SYSTEM_FILES


def check_replaceable(folder: Path, overwrite: bool = False) -> None:
    """Refuse to touch what no earlier run of these scripts made, or what was added to it since.

    :param overwrite: whether a whole split may go.
    :raises InputError: if ``folder`` is there with anything in it that is not ours, or is whole.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_dir() and not folder.is_symlink():
        names = _names(folder)
        ours = MARKER in names and all(map(OUR_FILES.fullmatch, names - {MARKER}))
        if ours and not overwrite and is_whole(folder, len(names) - 1):
            raise InputError(
                f"{folder} has {len(names) - 1} images of an earlier call: choose another "
                "--out_dir, or give --overwrite True to replace them"
            )
        if ours or not names:
            return
    raise InputError(
        f"{folder} holds something that this script did not make: move it away or choose another "
        "--out_dir"
    )


def write_split(split: Split, out_dir: Path, overwrite: bool = False) -> Path:
    """Write ``split`` as ``out_dir/<name>/<class>_<index>.png`` and return that folder.

    The files are written into a hidden folder beside it, which takes its name when it is whole.
    A whole folder of that name and size is kept, one that an earlier run left in pieces replaced.

    :param overwrite: whether a whole one is replaced, of whatever size.
    :raises InputError: if a folder of that name is not ours, or whole and of another size.
    :raises OSError: if ``out_dir`` cannot be written or the disk is full.
    """
    folder = out_dir / split.name
    if is_kept(folder, len(split.labels), overwrite):
        print(f"{folder}: {len(split.labels)} images, there already")
        return folder
    check_replaceable(folder, overwrite)
    partial, aside = (out_dir / f".{split.name}.{end}" for end in ("partial", "old"))
    for left in (partial, aside):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_images(split, partial)
        with naming(partial / MARKER):
            (partial / MARKER).write_text(json.dumps({"images": len(split.labels)}))
        _flush_to_disk()
        if folder.exists():
            print(f"Replacing {folder}")
            os.replace(folder, aside)
        os.replace(partial, folder)
    except BaseException:
        if aside.exists() and not folder.exists():
            os.replace(aside, folder)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(out_dir)
    shutil.rmtree(aside, ignore_errors=True)
    print(f"{folder}: {len(split.labels)} images")
    return folder


def _write_images(split: Split, folder: Path) -> None:
    pairs = zip(split.pixels, split.labels, strict=True)
    bar = tqdm(pairs, split.name, len(split.labels), unit="image", disable=None)
    for index, (pixels, label) in enumerate(bar):
        path = folder / f"{split.classes[label]}_{index:05d}.png"
        with naming(path):
            Image.fromarray(pixels).save(path)


def _flush_to_disk() -> None:
    # Or a power cut could leave the whole folder's name on files that are still empty.
    if hasattr(os, "sync"):
        os.sync()


def _marked_count(folder: Path) -> int | None:
    try:
        return int(parse_json((folder / MARKER).read_bytes())["images"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):  # the last by Infinity
        return None
