"""The files of a judgement: figures, what each image changes, a workbook, nearest images."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.image_grid import make_grid, save_png
from ..evaluation.judge import SHOWN, Verdict
from ..system.files import atomic_files
from .sheets import new_book, put_pairs, put_picture, put_table, put_title, save_book

RESULTS = ("evaluation.*", "nearest.png")


def save_verdict(folder: str, verdict: Verdict, about: Mapping[str, Any]) -> str:
    """Write ``evaluation.json``, ``.xlsx`` and ``.npz``, and ``nearest.png`` where there is one.

    The ``.npz`` has what each sample (``samples``) and each reference image (``reference``) changes
    in the kernel distance, so that two models can be compared image by image.

    :param about: what else they say.
    :return: path of the workbook.
    """
    said = verdict.as_dict() | dict(about)
    stem = os.path.join(folder, "evaluation")
    of_images = verdict.kernel
    with atomic_files() as start:  # whoever finds the summary finds the arrays that belong to it
        with start(f"{stem}.npz") as file:
            np.savez(file, samples=of_images.of_samples, reference=of_images.of_reference)
        with start(f"{stem}.json") as file:
            file.write(f"{json.dumps(said, indent=2)}\n".encode())
    book = new_book()
    put_title(book["summary"], 1, "How good the samples are")
    row = put_table(book["summary"], 3, verdict.table(verdict.lines))
    if verdict.classes:
        row = put_table(book["summary"], row, verdict.table(verdict.classes))
    put_pairs(book["summary"], row, {**verdict.about, **about})
    if verdict.closest is not None:
        picture = os.path.join(folder, "nearest.png")
        columns = len(verdict.closest) // SHOWN
        headings = "sample", "the nearest", *map("no. {}".format, range(2, columns))
        save_png(picture, make_grid(verdict.closest, columns, headings=headings))
        title = "The samples that are nearest to training images, and these"
        put_picture(book, "nearest", title, picture)
    save_book(book, f"{stem}.xlsx")
    return f"{stem}.xlsx"
