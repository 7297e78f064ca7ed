"""Tables in files: CSV, and JSON lines. Reading, replacing and cutting them.

Numbers are written so that reading them gives the same bits.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..system.files import atomic_write, atomic_write_text, parse_json

# Bytes that are no UTF-8 (a character torn in two, a foreign file) survive a rewrite unchanged.
FOREIGN_BYTES = "surrogateescape"


class Table(NamedTuple):
    """A CSV file as text cells.

    ``torn`` says that the file does not end with a whole line: an unfinished one was left out, or
    the newline of the last row is missing.
    """

    header: list[str]
    rows: list[list[str]]
    torn: bool


def read_csv(path: str | os.PathLike) -> Table:
    """Read the CSV file at ``path``; a missing or empty file is a table without columns.

    The last line is left out as unfinished when a closing quote or some of its cells are missing.

    :raises InputError: if the file is no CSV table, a line before the last one has more or fewer
        cells than the header, two columns have one name, or not commas separate the cells.
    """
    try:
        with open(path, encoding="utf-8-sig", errors=FOREIGN_BYTES, newline="") as file:
            text = file.read()
    except FileNotFoundError:
        return Table([], [], torn=False)
    written = text.rstrip("\0")  # a power cut can leave a file extended with zeros
    ends_whole = written.endswith(("\n", "\r"))
    try:
        records = [row for row in csv.reader(io.StringIO(written, newline="")) if row]
    except csv.Error as error:
        raise InputError(f"{path} is no CSV table ({error}); move it away") from None
    torn = text != written or (bool(written) and not ends_whole)
    # An editor may drop the last newline; without it a header cannot be told from half a one.
    if records and not (ends_whole or (text == written and len(records) > 1)):
        records.pop()
    elif records and (written.count('"') % 2 or len(records[-1]) != len(records[0])):
        records.pop()
        torn = True
    header, *rows = records or [[]]
    _check_header(header, path)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise InputError(
                f"{path}: row {number} has {len(row)} cells where the header has {len(header)}; "
                "mend that row or move the file away"
            )
    return Table(header, rows, torn)


def _check_header(header: Sequence[str], path: str | os.PathLike) -> None:
    foreign = {";": "semicolons", "\t": "tabs"}
    for separator, name in foreign.items():
        if len(header) == 1 and separator in header[0]:
            raise InputError(
                f"{path} has {name} between its cells, as spreadsheets of some countries save them;"
                " save it with commas between the cells and points in the numbers, or move it away"
            )
    twice = [name for number, name in enumerate(header) if name in header[:number]]
    if twice:
        raise InputError(f"{path} has two columns {twice[0]!r}; rename one or move the file away")


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
    :raises InputError: as :func:`read_csv`, or if there is a row whose step cannot be read.
    """
    header, rows, _ = check_columns(path, wanted=["step"], numbers=["step"])
    column = header.index("step") if rows else 0
    cut = [bool(row[column]) and float(row[column]) >= step for row in rows]
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
        steps = [parse_json(line).get("step") for line in lines]
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is no file of JSON lines ({error}); move it away") from None
    cut = [isinstance(each, (int, float)) and each >= step for each in steps]
    if any(cut):
        atomic_write_text(f"{os.fspath(path)}.bak", "".join(compress(lines, cut)))
        atomic_write_text(path, "".join(compress(lines, (not each for each in cut))))
    return sum(cut)


def check_columns(path: str | os.PathLike, wanted: Iterable[str], numbers: Iterable[str]) -> Table:
    """The CSV file at ``path``, if rows can be added to it.

    :param wanted: columns that it has to have, if it has any rows.
    :param numbers: columns whose cells have to be numbers, or empty.
    :raises InputError: as :func:`read_csv`, or if it has not; names the column and the row.
    """
    header, rows, torn = read_csv(path)
    missing = [name for name in wanted if name not in header]
    if rows and missing:
        raise InputError(
            f"{path} has lost its column {missing[0]!r} and has {', '.join(map(repr, header))}; "
            "give the columns their names back, or move it away"
        )
    columns = [(name, header.index(name)) for name in numbers if name in header]
    for number, row in enumerate(rows, start=1):
        for name, column in columns:
            if isinstance(_value(row[column]), str):
                raise InputError(
                    f"{path}: {row[column]!r} in row {number}, column {name!r}, is no number; "
                    "mend that row or move the file away"
                )
    return Table(header, rows, torn)
