"""A run's CSV log as an Excel workbook: summary, charts, metrics, samples, configuration.

openpyxl is imported where it is used: a training run starts without it. pandas is not used here: a
training would hold its 33 MB from the first workbook on, and the code would be no shorter.
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..logs.columns import COLUMNS, in_order
from ..logs.tables import read_columns
from ..system.files import CONFIG_NAME, legible, parse_json
from .sheets import (
    add_chart,
    add_moving_mean,
    draw_lines,
    finite,
    new_book,
    put,
    put_pairs,
    put_picture,
    put_table,
    put_title,
    save_book,
)

if TYPE_CHECKING:
    from openpyxl.worksheet.worksheet import Worksheet

MOST_ROWS = 1_048_575  # of an Excel sheet, less the header
MEAN_FROM = 100  # rows from which a chart of one line shows a moving mean
LONGEST_MEAN = 255  # rows that Excel takes into one
SUMMARY = ("first", "best (lowest)", "at step", "last", "mean of last tenth", "not finite")

Log = Mapping[str, Sequence[Any]]  # columns: numbers, other text, None where nothing stands


def export_workbook(
    csv_path: str | os.PathLike,
    xlsx_path: str | os.PathLike,
    picture: str | os.PathLike | None = None,
    note: str = "",
) -> None:
    """Write the log at ``csv_path`` as a workbook to ``xlsx_path``, atomically.

    Its sheet "config" shows ``config.json`` beside the log, if there is one.

    :param picture: a PNG for the sheet "samples".
    :param note: a line on every sheet that shows figures or pictures.
    :raises InputError: if the CSV file, the picture or config.json is missing or is not one.
    """
    log = _read_log(csv_path)
    config = Path(csv_path).with_name(CONFIG_NAME)
    book = new_book()
    put_title(book["summary"], 1, f"Training run {Path(csv_path).resolve().parent.name}", note)
    put_table(book["summary"], put_pairs(book["summary"], 4, _facts(log)), _summary(log))
    charts, metrics = book.create_sheet("charts"), book.create_sheet("metrics")
    _fill_metrics(metrics, log)
    put(charts, 1, 1, note)
    _fill_charts(charts, metrics, log)
    if picture is not None:
        put_picture(book, "samples", f"Newest samples: {Path(picture).name}", picture, note)
    _fill_config(book.create_sheet("config"), read_json(config) if config.is_file() else {})
    save_book(book, xlsx_path)


def _read_log(path: str | os.PathLike) -> Log:
    if not os.path.isfile(path):
        raise InputError(f"there is no log {path}; give the progress.csv of a training run")
    columns = read_columns(path)
    rows = len(next(iter(columns.values()), ()))
    if not rows:
        raise InputError(f"the log {path} has no lines yet; export it after the first log interval")
    if rows > MOST_ROWS:
        raise InputError(f"the log {path} has {rows} lines; export a part, a sheet has {MOST_ROWS}")
    if not any(map(finite, columns.values())):
        raise InputError(f"{path} is not a training log; give the progress.csv of a training run")
    return {name: columns[name] for name in in_order(columns)}


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object, with :func:`.system.files.legible` text.

    :raises InputError: if it does not.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); mend or move it") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not what it should be; mend or move it")
    return parse_json(legible(json.dumps(content, ensure_ascii=False)))


# --- sheets


def seconds_of(wall_times: Iterable[Any]) -> float:
    """How long a run took, by the column ``wall_time``; 0 where it does not say.

    A run that was resumed without its state counts from zero again.
    """
    times = finite(wall_times)
    return sum(t for t, after in itertools.pairwise([*times, 0]) if after < t)


def _facts(log: Log) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # A row names its last step, counted from 0: the updates made by then are one more.
    for title, name, extra in (("steps", "step", 1), ("images", "samples", 0)):
        if values := finite(log.get(name, ())):
            found[title] = int(max(values)) + extra
    found["log lines"] = len(next(iter(log.values())))
    if seconds := seconds_of(log.get("wall_time", ())):
        found["duration (h:mm:ss)"] = timedelta(seconds=round(seconds))
    return found


def _summary(log: Log) -> dict[str, list[Any]]:
    names = [c.name for c in COLUMNS if c.is_summarised and c.name in log]
    rows = [_summary_of(log[name], log.get("step")) for name in names]
    return {"metric": names} | {title: [row.get(title) for row in rows] for title in SUMMARY}


def _summary_of(column: Sequence[Any], steps: Sequence[Any] | None) -> dict[str, Any]:
    numbers = finite(column)
    strange = sum(value is not None for value in column) - len(numbers)
    if not numbers:
        return {"not finite": strange}
    best = min(numbers)
    tail = finite(column[-math.ceil(len(column) / 10) :])
    return {
        "first": numbers[0],
        "best (lowest)": best,
        "at step": steps[column.index(best)] if steps else None,
        "last": numbers[-1],
        "mean of last tenth": fmean(tail) if tail else None,
        "not finite": strange,
    }


def _fill_metrics(sheet: "Worksheet", log: Log) -> None:
    from openpyxl.comments import Comment

    put_table(sheet, 1, log)
    for column, values in enumerate(log.values(), start=1):
        for row, value in enumerate(values, start=2):
            if isinstance(value, float) and not math.isfinite(value):
                note = Comment(f"logged as {value}", "log", height=40, width=140)
                sheet.cell(row, column).comment = note
    sheet.freeze_panes = "B2"
    sheet.auto_filter.ref = sheet.dimensions
    sheet.print_title_rows = "1:1"


def _fill_charts(sheet: "Worksheet", metrics: "Worksheet", log: Log) -> None:
    x = "step" if "step" in log else None
    drawn = [c for c in COLUMNS if c.chart and finite(log.get(c.name, ()))]
    groups = itertools.groupby(drawn, key=lambda column: (column.chart, column.unit))
    for number, ((title, unit), columns) in enumerate(groups):
        lines = {column.name: column.legend or column.name for column in columns}
        chart = draw_lines(title, unit, metrics, log, lines, x, x or "log line")
        rows = min(len(finite(log[name])) for name in lines)
        if len(lines) == 1 and rows >= MEAN_FROM:
            add_moving_mean(chart, period=min(rows // 50, LONGEST_MEAN))
        add_chart(sheet, chart, number)


def _fill_config(sheet: "Worksheet", config: Mapping[str, Any]) -> None:
    put_title(sheet, 1, "Configuration")
    sections = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in config.items() if key not in sections}
    row = put_pairs(sheet, 3, plain)
    for title, section in sections.items():
        put_title(sheet, row, str(title), size=12)
        row = put_pairs(sheet, row + 1, section)
    if not config:
        put(sheet, 3, 1, "none was recorded")
