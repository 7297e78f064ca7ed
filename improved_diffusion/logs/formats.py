"""Where log lines go: terminal or text file, CSV, JSON lines, TensorBoard.

Every file continues where an earlier run in the same folder left it. A row reaches the file in one
write, so a killed run leaves at most one torn last line, which the next opening removes. A whole
last line that has lost its newline, as editors may save it, gets it back.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from ..errors import InputError
from ..system.files import append_bytes, parse_json
from .columns import COLUMNS
from .tables import csv_lines, read_csv, write_csv

TABLE_CELL_WIDTH = 30


class Writer:
    """An output of the logger. It leaves out what it has no method for."""

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Write one log line of named values."""

    def writeseq(self, seq: Iterable[str]) -> None:
        """Write one message, its parts joined by spaces."""

    def close(self) -> None:
        """Release what the writer holds."""


def plain(value: Any) -> Any:
    """Turn a scalar array or tensor into the Python number it holds; leave the rest as it is."""
    return value.item() if hasattr(value, "item") else value


class HumanOutputFormat(Writer):
    """Boxed tables and messages, for a terminal (an open file) or appended to a file (its name)."""

    def __init__(self, filename_or_file: str | os.PathLike | TextIO):
        self._target = filename_or_file
        self._fails = False
        if isinstance(filename_or_file, (str, os.PathLike)):
            append_bytes(filename_or_file, b"")

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
        if not isinstance(self._target, (str, os.PathLike)):
            print(text, file=self._target, flush=True)
            return
        try:
            append_bytes(self._target, f"{text}\n".encode(errors="replace"))
            self._fails = False
        except OSError as error:  # a text to read is not worth a training
            if not self._fails:
                print(f"warning: {self._target} lacks lines: {error.strerror}", file=sys.stderr)
            self._fails = True


def _readable(value: Any) -> str:
    return f"{float(value):<8.3g}" if hasattr(value, "__float__") else str(value)


def _shorten(text: str) -> str:
    if len(text) <= TABLE_CELL_WIDTH:
        return text
    return text[: TABLE_CELL_WIDTH - 3] + "..."


class LineOutputFormat(Writer):
    """Messages, and one plain line for each log line, on whatever ``sys.stdout`` is by then.

    Where stdout and stderr are terminals, the training's progress bar says what a log line would.
    """

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            shown = [c.name for c in COLUMNS if c.on_console and c.name in kvs]
            print("  ".join(f"{name} {float(kvs[name]):.6g}" for name in shown), flush=True)

    def writeseq(self, seq: Iterable[str]) -> None:
        print(" ".join(seq), flush=True)


class JSONOutputFormat(Writer):
    """One JSON object a line; NaN and infinities, which JSON does not have, become null."""

    def __init__(self, filename: str | os.PathLike):
        self.path = Path(filename)
        with open(self.path, "ab+") as file:
            file.seek(0)
            content = file.read()
            last = content[content.rfind(b"\n") + 1 :]
            if _is_json(last):
                file.write(b"\n")
            else:  # torn, or nothing
                file.truncate(len(content) - len(last))

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        line = json.dumps({key: _json_value(value) for key, value in kvs.items()})
        append_bytes(self.path, f"{line}\n".encode())


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _json_value(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


class CSVOutputFormat(Writer):
    """A table whose columns may grow: old rows get empty cells in the new columns.

    A row is appended, unless it brings new columns: then the whole file is replaced at once, so a
    kill loses no row.

    :raises InputError: if the file exists and is no CSV table.
    """

    def __init__(self, filename: str | os.PathLike):
        self.path = Path(filename)
        self.path.touch()
        self.keys, rows, torn = read_csv(self.path)
        only_blank = not self.keys and self.path.stat().st_size
        if torn or only_blank:
            write_csv(self.path, self.keys, rows)

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        new = sorted(kvs.keys() - set(self.keys))
        if new:
            self._grow(new)
        row = [_csv_cell(kvs.get(key)) for key in self.keys]
        is_empty = not self.path.exists() or self.path.stat().st_size == 0
        append_bytes(self.path, csv_lines([self.keys, row] if is_empty else [row]))

    def _grow(self, new: list[str]) -> None:
        table = read_csv(self.path)
        keys = self.keys + new
        if table.header:
            write_csv(self.path, keys, [row + [""] * len(new) for row in table.rows])
        self.keys = keys


def _csv_cell(value: Any) -> Any:
    value = plain(value)
    # Older Pythons leave a lone carriage return unquoted, which readers take for a row's end.
    return value.replace("\r", "\n") if isinstance(value, str) else value


class TensorBoardOutputFormat(Writer):
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


# By name: what makes the writer, given a folder and what the names of its files end in.
OUTPUT_FORMATS: dict[str, Callable[[Path, str], Writer]] = {
    "stdout": lambda folder, suffix: HumanOutputFormat(sys.stdout),
    "line": lambda folder, suffix: LineOutputFormat(),
    "log": lambda folder, suffix: HumanOutputFormat(folder / f"log{suffix}.txt"),
    "json": lambda folder, suffix: JSONOutputFormat(folder / f"progress{suffix}.json"),
    "csv": lambda folder, suffix: CSVOutputFormat(folder / f"progress{suffix}.csv"),
    "tensorboard": lambda folder, suffix: TensorBoardOutputFormat(folder / f"tb{suffix}"),
}


def make_output_format(format: str, ev_dir: str | os.PathLike, log_suffix: str = "") -> Writer:
    """Make the writer for ``format`` (one of :data:`OUTPUT_FORMATS`), its file in ``ev_dir``.

    :raises InputError: if the format is unknown or needs a package that is missing.
    """
    if format not in OUTPUT_FORMATS:
        raise InputError(f"unknown log format {format!r}; known are {', '.join(OUTPUT_FORMATS)}")
    os.makedirs(ev_dir, exist_ok=True)
    return OUTPUT_FORMATS[format](Path(ev_dir), log_suffix)
