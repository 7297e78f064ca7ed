"""The files of bits/dim: the terms over t, each image's bits, the summary, a workbook."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from ..evaluation.bits_per_dim import BpdTable
from ..logs.tables import csv_lines
from ..system.files import atomic_files
from .sheets import new_book, put_pairs, put_table, put_title, save_book

RESULTS = ("bits_per_dim*", "*_terms.npz")  # the second by image_nll.py itself


def save_table(folder: str, table: BpdTable, about: Mapping[str, Any]) -> str:
    """Write ``bits_per_dim.csv``, ``.json`` (the summary) and ``.xlsx``, and each image's bits.

    ``bits_per_dim_images.csv`` lists the images in the order of their evaluation, so that two
    models that saw the same ones can be compared image by image.

    :param about: what else the summary says.
    :return: path of the workbook.
    """
    said = {key: _finite_or_none(value) for key, value in {**table.summary(), **about}.items()}
    stem = os.path.join(folder, "bits_per_dim")
    of_images = [("image", "bits/dim"), *enumerate(table.totals)]
    contents = {
        ".csv": table.frame().to_csv(index=False, na_rep="nan", lineterminator="\n").encode(),
        "_images.csv": csv_lines(of_images),
        ".json": f"{json.dumps(said, indent=2)}\n".encode(),
    }
    with atomic_files() as start:  # whoever finds the summary finds the tables that belong to it
        for end, content in contents.items():
            with start(f"{stem}{end}") as file:
                file.write(content)
    book = new_book()
    put_title(book["summary"], 1, "Bits per dimension")
    put_pairs(book["summary"], 3, said)
    metrics = book.create_sheet("metrics")
    put_table(metrics, 1, table.frame())
    metrics.freeze_panes = "B2"
    save_book(book, f"{stem}.xlsx")
    return f"{stem}.xlsx"


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
