"""Where log lines go: terminal or text file, CSV, JSON lines, TensorBoard.

Every file continues where an earlier run in the same folder left it. A row reaches the file in one
write, so a killed run leaves at most one torn last line, which the next opening removes.
"""

import csv
import io
import json
import math
import operator
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ..errors import InputError
from ..system.files import append_bytes, atomic_write, atomic_write_text
from .progress import bar_is_shown

TABLE_CELL_WIDTH = 30
FORMATS = ("stdout", "line", "log", "json", "csv", "tensorboard")
LINE_KEYS = ("step", "loss", "mse", "vb", "grad_norm", "steps_per_second")
# Bytes that are no UTF-8 (a character torn in two, a foreign file) survive a rewrite unchanged.
_TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


class KVWriter:
    """Takes log lines as dictionaries."""

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Write one line of named values."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the writer holds."""


class SeqWriter:
    """Takes messages as sequences of words."""

    def writeseq(self, seq: Iterable[str]) -> None:
        """Write one message, its parts joined by spaces."""
        raise NotImplementedError


def plain(value: Any) -> Any:
    """Turn a scalar array or tensor into the Python number it holds; leave the rest as it is."""
    return value.item() if hasattr(value, "item") else value


class HumanOutputFormat(KVWriter, SeqWriter):
    """Boxed tables and messages, for a terminal (an open file) or appended to a file (its name)."""

    def __init__(self, filename_or_file: str | os.PathLike | TextIO):
        self._path = self.file = None
        if isinstance(filename_or_file, (str, os.PathLike)):
            self._path = filename_or_file
            append_bytes(self._path, b"")
        else:
            self.file = filename_or_file
        self._fails = False

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        cells = [
            (_shorten(key), _shorten(_readable(value)))
            for key, value in sorted(kvs.items(), key=lambda item: item[0].lower())
        ]
        if not cells:
            return
        left, right = (max(map(len, column)) for column in zip(*cells, strict=True))
        rule = "-" * (left + right + 7)
        body = [f"| {key:<{left}} | {value:<{right}} |" for key, value in cells]
        self._write("\n".join([rule, *body, rule]))

    def writeseq(self, seq: Iterable[str]) -> None:
        self._write(" ".join(seq))

    def _write(self, text: str) -> None:
        if self._path is None:
            self.file.write(text + "\n")
            self.file.flush()
            return
        try:
            append_bytes(self._path, f"{text}\n".encode(errors="replace"))
            self._fails = False
        except OSError as error:  # a text to read is not worth a training
            if not self._fails:
                print(f"warning: {self._path} lacks lines: {error.strerror}", file=sys.stderr)
            self._fails = True


def _readable(value: Any) -> str:
    return f"{float(value):<8.3g}" if hasattr(value, "__float__") else str(value)


def _shorten(text: str) -> str:
    if len(text) <= TABLE_CELL_WIDTH:
        return text
    return text[: TABLE_CELL_WIDTH - 3] + "..."


class LineOutputFormat(KVWriter, SeqWriter):
    """Messages, and one plain line for each log line, on whatever ``sys.stdout`` is by then.

    Log lines are left to the training's progress bar where that is on the same terminal.
    """

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        if not (sys.stdout.isatty() and bar_is_shown()):
            cells = [f"{key} {float(kvs[key]):.6g}" for key in LINE_KEYS if key in kvs]
            print("  ".join(cells), flush=True)

    def writeseq(self, seq: Iterable[str]) -> None:
        print(" ".join(seq), flush=True)


class JSONOutputFormat(KVWriter):
    """One JSON object a line; NaN and infinities, which JSON does not have, become null."""

    def __init__(self, filename: str | os.PathLike):
        self.path = Path(filename)
        with open(self.path, "ab+") as file:
            _drop_torn_line(file)

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        line = json.dumps({key: _json_value(value) for key, value in kvs.items()})
        append_bytes(self.path, f"{line}\n".encode())


def _json_value(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _drop_torn_line(file: io.BufferedRandom) -> None:
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


class CSVOutputFormat(KVWriter):
    """A table whose columns may grow: old rows get empty cells in the new columns.

    Numbers are written so that reading them gives the same bits. A row is appended, unless it
    brings new columns: then the whole file is replaced at once, so a kill loses no row.

    :raises InputError: if the file exists and is no CSV table.
    """

    def __init__(self, filename: str | os.PathLike):
        self.path = Path(filename)
        self.path.touch()
        table = read_csv(self.path)
        self.keys = table.header
        if table.torn:
            write_csv(self.path, table.header, table.rows)

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        new = sorted(kvs.keys() - set(self.keys))
        if new:
            self._grow(new)
        row = [_csv_cell(kvs.get(key)) for key in self.keys]
        is_empty = not self.path.exists() or self.path.stat().st_size == 0
        append_bytes(self.path, _csv_bytes([self.keys, row] if is_empty else [row]))

    def _grow(self, new: list[str]) -> None:
        table = read_csv(self.path)
        keys = self.keys + new
        if table.header:
            padding = [""] * len(new)
            write_csv(self.path, keys, [row + padding for row in table.rows])
        self.keys = keys


class Table(NamedTuple):
    """A CSV file as text cells; ``torn`` says that an unfinished last line was left out."""

    header: list[str]
    rows: list[list[str]]
    torn: bool


def read_csv(path: str | os.PathLike) -> Table:
    """Read the CSV file at ``path``; a missing or empty file is a table without columns.

    The last line counts as torn when its newline, a closing quote or some of its cells are missing.

    :raises InputError: if another line has more or fewer cells than the header.
    """
    try:
        with open(path, **{**_TEXT, "encoding": "utf-8-sig"}) as file:
            text = file.read()
    except FileNotFoundError:
        return Table([], [], torn=False)
    # A power cut can leave a file extended with zeros, which csv refuses before Python 3.11.
    written = text.rstrip("\0")
    try:
        records = [row for row in csv.reader(io.StringIO(written, newline="")) if row]
    except csv.Error as error:
        raise InputError(f"{path} is no CSV table ({error}); move it away") from None
    torn = text != written
    if records and not _is_whole(written, records):
        records.pop()
        torn = True
    if not records:
        return Table([], [], torn)
    header, *rows = records
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


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Replace the CSV file at ``path`` atomically; no columns make an empty file."""
    with atomic_write(path) as file:
        file.write(_csv_bytes([header, *rows] if header else []))


def cut_csv(path: str | os.PathLike, step: int) -> int:
    """Remove the rows of the CSV file at ``path`` whose "step" is ``step`` or later.

    They are kept beside it, in a file with ``.bak`` at the end of its name, behind those of earlier
    cuts.

    :return: the number of rows removed.
    """
    table = read_csv(path)
    if "step" not in table.header:
        return 0
    column = table.header.index("step")
    kept = [row for row in table.rows if not _reaches(row[column], step)]
    cut = [row for row in table.rows if _reaches(row[column], step)]
    if cut:
        _keep_rows(f"{os.fspath(path)}.bak", table.header, cut)
        write_csv(path, table.header, kept)
    return len(cut)


def _keep_rows(path: str, header: list[str], rows: list[list[str]]) -> None:
    """Add rows to the CSV file at ``path``, but for those that a killed cut has added before."""
    table = read_csv(path)
    columns = table.header + [name for name in header if name not in table.header]
    old = [_spread(row, table.header, columns) for row in table.rows]
    new = [_spread(row, header, columns) for row in rows]
    write_csv(path, columns, [*old, *(row for row in new if row not in old)])


def _spread(row: list[str], header: list[str], columns: list[str]) -> list[str]:
    cells = dict(zip(header, row, strict=True))
    return [cells.get(name, "") for name in columns]


def cut_json(path: str | os.PathLike, step: int) -> int:
    """Do what :func:`cut_csv` does, for a file of JSON lines."""
    if not os.path.exists(path):
        return 0
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        reached = [_reaches(json.loads(line).get("step"), step) for line in whole]
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is no file of JSON lines ({error}); move it away") from None
    if any(reached):
        _keep_lines(Path(f"{os.fspath(path)}.bak"), list(compress(whole, reached)))
        atomic_write_text(path, "".join(compress(whole, map(operator.not_, reached))))
    return sum(reached)


def _keep_lines(path: Path, lines: list[str]) -> None:
    """Do what :func:`_keep_rows` does, for a file of JSON lines."""
    old = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    atomic_write_text(path, "".join(old + [line for line in lines if line not in old]))


def _reaches(value: Any, step: int) -> bool:
    try:
        return float(value) >= step
    except (TypeError, ValueError):
        return False


def _csv_bytes(rows: Iterable[Sequence]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(_TEXT["encoding"], _TEXT["errors"])


def _csv_cell(value: Any) -> Any:
    value = plain(value)
    # Older Pythons leave a lone carriage return unquoted, which readers take for a row's end.
    return value.replace("\r", "\n") if isinstance(value, str) else value


class TensorBoardOutputFormat(KVWriter):
    """Scalars for TensorBoard, against "step" where a line has it, else against its number.

    :raises InputError: if the tensorboard package is not installed.
    """

    def __init__(self, dir: str | os.PathLike):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "the log format 'tensorboard' needs a package that is not installed: "
                "pip install tensorboard, or leave it out of OPENAI_LOG_FORMAT"
            ) from None
        self.step = 1
        self.writer = SummaryWriter(os.fspath(dir))

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        step = int(plain(kvs.get("step", self.step)))
        for key, value in kvs.items():
            if hasattr(value, "__float__"):
                self.writer.add_scalar(key, float(value), step)
        self.writer.flush()
        self.step = step + 1

    def close(self) -> None:
        self.writer.close()


def make_output_format(format: str, ev_dir: str, log_suffix: str = "") -> KVWriter:
    """Make the writer for ``format`` (one of ``FORMATS``), its file in the folder ``ev_dir``.

    :raises InputError: if the format is unknown or needs a package that is missing.
    """
    os.makedirs(ev_dir, exist_ok=True)
    if format == "stdout":
        return HumanOutputFormat(sys.stdout)
    if format == "line":
        return LineOutputFormat()
    if format == "log":
        return HumanOutputFormat(os.path.join(ev_dir, f"log{log_suffix}.txt"))
    if format == "json":
        return JSONOutputFormat(os.path.join(ev_dir, f"progress{log_suffix}.json"))
    if format == "csv":
        return CSVOutputFormat(os.path.join(ev_dir, f"progress{log_suffix}.csv"))
    if format == "tensorboard":
        return TensorBoardOutputFormat(os.path.join(ev_dir, f"tb{log_suffix}"))
    raise InputError(f"unknown log format {format!r}; known are {', '.join(FORMATS)}")
