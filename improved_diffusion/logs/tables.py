"""Tables in files: CSV, and JSON lines. Reading, replacing and cutting them.

Numbers are written so that reading them gives the same bits.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..system.files import atomic_write, atomic_write_text

# Bytes that are no UTF-8 (a character torn in two, a foreign file) survive a rewrite unchanged.
FOREIGN_BYTES = "surrogateescape"


class Table(NamedTuple):
    """A CSV file as text cells; ``torn`` says that an unfinished last line was left out."""

    header: list[str]
    rows: list[list[str]]
    torn: bool


def read_csv(path: str | os.PathLike) -> Table:
    """Read the CSV file at ``path``; a missing or empty file is a table without columns.

    The last line counts as torn when its newline, a closing quote or some of its cells are missing.

    :raises InputError: if the file is no CSV table, or a line before the last one has more or
        fewer cells than the header.
    """
    try:
        with open(path, encoding="utf-8-sig", errors=FOREIGN_BYTES, newline="") as file:
            text = file.read()
    except FileNotFoundError:
        return Table([], [], torn=False)
    written = text.rstrip("\0")  # a power cut can leave a file extended with zeros
    try:
        records = [row for row in csv.reader(io.StringIO(written, newline="")) if row]
    except csv.Error as error:
        raise InputError(f"{path} is no CSV table ({error}); move it away") from None
    torn = text != written
    if records and not _is_whole(written, records):
        records.pop()
        torn = True
    header, *rows = records or [[]]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise InputError(
                f"{path}: row {number} has {len(row)} cells where the header has {len(header)}; "
                "mend that row or move the file away"
            )
    return Table(header, rows, torn)


def _is_whole(text: str, records: Sequence[Sequence[str]]) -> bool:
    quotes_closed = text.count('"') % 2 == 0
    return text.endswith("\n") and quotes_closed and len(records[-1]) == len(records[0])


def read_columns(path: str | os.PathLike) -> dict[str, list[Any]]:
    """The columns of a CSV file by name: numbers, other text, and None where nothing stands.

    :raises InputError: as :func:`read_csv`.
    """
    table = read_csv(path)
    cells = [[_value(cell) for cell in row] for row in table.rows]
    return {name: [row[i] for row in cells] for i, name in enumerate(table.header)}


def _value(cell: str) -> float | str | None:
    try:
        number = float(cell)
    except ValueError:
        return cell or None
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Replace the CSV file at ``path`` atomically; no columns make an empty file."""
    with atomic_write(path) as file:
        file.write(csv_lines([header, *rows] if header else []))


def csv_lines(rows: Iterable[Sequence]) -> bytes:
    """The rows as they stand in a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors=FOREIGN_BYTES)


def cut_csv(path: str | os.PathLike, step: int) -> int:
    """Remove the rows of the CSV file at ``path`` whose "step" is ``step`` or later.

    Before that they are written into a file beside it, with ``.bak`` at the end of its name, in
    place of what an earlier cut had put there.

    :return: the number of rows removed.
    :raises InputError: as :func:`read_csv`.
    """
    header, rows, _ = read_csv(path)
    if "step" not in header:
        return 0
    column = header.index("step")
    cut = [_reaches(row[column], step) for row in rows]
    if any(cut):
        write_csv(f"{os.fspath(path)}.bak", header, compress(rows, cut))
        write_csv(path, header, compress(rows, (not each for each in cut)))
    return sum(cut)


def cut_json(path: str | os.PathLike, step: int) -> int:
    """Do what :func:`cut_csv` does, for a file of JSON lines."""
    if not os.path.exists(path):
        return 0
    try:
        text = Path(path).read_text(encoding="utf-8")
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        cut = [_reaches(json.loads(line).get("step"), step) for line in lines]
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is no file of JSON lines ({error}); move it away") from None
    if any(cut):
        atomic_write_text(f"{os.fspath(path)}.bak", "".join(compress(lines, cut)))
        atomic_write_text(path, "".join(compress(lines, (not each for each in cut))))
    return sum(cut)


def _reaches(value: Any, step: int) -> bool:
    try:
        return float(value) >= step
    except (TypeError, ValueError):
        return False
