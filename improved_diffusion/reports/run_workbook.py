"""A run's CSV log as an Excel workbook: summary, charts, metrics, samples, configuration.

openpyxl is imported where it is used: a training run starts without it. pandas stays out of this
module, for a training run would hold its 34 MB from the first workbook on.
"""

import datetime
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..logs.formats import read_csv
from .sheets import (
    Line,
    add_chart,
    add_moving_mean,
    draw_lines,
    new_book,
    number_format,
    put,
    put_header,
    put_pairs,
    put_picture,
    put_table,
    put_title,
    save_book,
    set_widths,
)

if TYPE_CHECKING:
    from openpyxl.chart import ScatterChart
    from openpyxl.worksheet.worksheet import Worksheet

SUMMARY_METRICS = ("loss", "mse", "grad_norm")
FIRST_COLUMNS = ("step", "samples", *SUMMARY_METRICS)  # the others follow by name
TIME_COLUMNS = ("wall_time", "elapsed", "time")
MOST_ROWS = 1_048_575  # of an Excel sheet, less the header
EPOCH_SECONDS = 1e9  # larger times are clock readings, smaller ones are durations

Cells = Mapping[str, Sequence[int | float | str | None]]  # columns of the log, as they stand there
Numbers = Mapping[str, np.ndarray]  # the same as float64, NaN where there is no number


class Chart(NamedTuple):
    """One chart: its title, the title of its y axis, and column to name in the legend."""

    title: str
    unit: str
    series: Mapping[str, str]


CHARTS = (
    Chart("Loss", "loss", {"loss": "loss"}),
    Chart("Mean squared error", "mse", {"mse": "mse"}),
    Chart(
        "Loss by quarter of the timesteps",
        "loss",
        {
            "loss_q0": "q0 (least noise)",
            "loss_q1": "q1",
            "loss_q2": "q2",
            "loss_q3": "q3 (most noise)",
        },
    ),
    Chart("Gradient norm", "L2 norm", {"grad_norm": "grad_norm"}),
    Chart("Variational bound", "vb", {"vb": "vb"}),
)


def export_workbook(
    csv_path: str | os.PathLike,
    xlsx_path: str | os.PathLike,
    config: Mapping[str, Any] | None = None,
    picture: str | os.PathLike | None = None,
    note: str = "",
) -> None:
    """Write the log at ``csv_path`` as a workbook to ``xlsx_path``, atomically.

    :param config: what the sheet "config" lists, dictionaries in it as sections; default
        ``config.json`` beside the CSV file, if there is one.
    :param picture: a PNG for the sheet "samples".
    :param note: a line to stand on every sheet that shows figures or pictures.
    :raises InputError: if the CSV file, the picture or config.json is missing or is not one.
    """
    cells = _read_log(csv_path)
    numbers = {name: np.array([_as_float(cell) for cell in cells[name]]) for name in cells}
    if config is None:
        config = _read_config(Path(csv_path).with_name("config.json"))

    book = new_book()
    _fill_summary(book["summary"], numbers, Path(csv_path), note)
    charts = book.create_sheet("charts")
    metrics = book.create_sheet("metrics")
    _fill_metrics(metrics, cells)
    _fill_charts(charts, metrics, numbers, note)
    if picture is not None:
        title = f"Newest samples: {Path(picture).name}"
        put_picture(book.create_sheet("samples"), title, Path(picture), note)
    _fill_config(book.create_sheet("config"), config)
    save_book(book, xlsx_path)


# --- reading


def _read_log(path: str | os.PathLike) -> Cells:
    """Read the log's columns of ints, floats, other text and, where nothing stood, None."""
    if not os.path.isfile(path):
        raise InputError(f"there is no log {path}; give the progress.csv of a training run")
    table = read_csv(path)
    if not table.rows:
        raise InputError(f"the log {path} has no lines yet; export it after the first log interval")
    if len(table.rows) > MOST_ROWS:
        raise InputError(
            f"the log {path} has {len(table.rows)} lines, a sheet holds {MOST_ROWS}; "
            "export a part of it"
        )
    rows = [[_number(cell) for cell in row] for row in table.rows]
    if len(set(table.header)) < len(table.header) or not _has_numbers(rows):
        raise InputError(f"{path} is not a training log; give the progress.csv of a training run")
    front = [name for name in FIRST_COLUMNS if name in table.header]
    rest = sorted(name for name in table.header if name not in front)
    columns = dict(zip(table.header, zip(*rows, strict=True), strict=True))
    return {name: columns[name] for name in front + rest}


def _number(cell: str) -> int | float | str | None:
    for kind in (int, float):
        try:
            number = kind(cell)
            float(number)
            return number
        except ValueError:
            pass
        except OverflowError:  # hundreds of digits: no number that a sheet can hold
            return cell
    return cell or None


def _as_float(cell: int | float | str | None) -> float:
    return float(cell) if isinstance(cell, (int, float)) else math.nan


def _has_numbers(rows: Sequence[Sequence]) -> bool:
    return any(isinstance(cell, (int, float)) for row in rows for cell in row)


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); mend or move it") from None
    return config if isinstance(config, dict) else {"config": config}


def _finite(column: np.ndarray) -> np.ndarray:
    return column[np.isfinite(column)]


# --- sheets


def _fill_summary(sheet: "Worksheet", numbers: Numbers, csv_path: Path, note: str) -> None:
    folder = csv_path.resolve().parent.name
    put_title(sheet, 1, f"Training run {folder}")
    put(sheet, 2, 1, note)
    row = 4
    for name, value, form in _facts(numbers):
        put(sheet, row, 1, name)
        put(sheet, row, 2, value, number_format=form)
        row += 1
    row += 1
    put_header(
        sheet,
        row,
        ["metric", "first", "best (lowest)", "at step", "last", "mean of last tenth", "not finite"],
    )
    for name in SUMMARY_METRICS:
        if name in numbers:
            row += 1
            _put_metric(sheet, row, name, numbers)
    set_widths(sheet, [18, 14, 16, 12, 14, 20, 12])


def _facts(numbers: Numbers) -> list[tuple[str, Any, str]]:
    facts = [("log lines", _lines(numbers), "#,##0")]
    # A row names its last step, counted from 0: the updates made by then are one more.
    for title, name, extra in (("images", "samples", 0), ("steps", "step", 1)):
        if name in numbers and len(values := _finite(numbers[name])):
            facts.insert(0, (title, int(values.max()) + extra, "#,##0"))
    duration = _duration(numbers)
    if duration is not None:
        facts.append(("duration (h:mm:ss)", duration, "[h]:mm:ss"))
    return facts


def _lines(numbers: Numbers) -> int:
    return len(next(iter(numbers.values())))


def _duration(numbers: Numbers) -> datetime.timedelta | None:
    name = next((name for name in TIME_COLUMNS if name in numbers), None)
    if name is None or not len(times := _finite(numbers[name])):
        return None
    if times[0] > EPOCH_SECONDS:
        seconds = times[-1] - times[0]
    else:  # a resumed run may count from zero again
        seconds = times[np.append(times[:-1] > times[1:], True)].sum()
    return datetime.timedelta(seconds=round(max(float(seconds), 0.0)))


def _put_metric(sheet: "Worksheet", row: int, name: str, numbers: Numbers) -> None:
    column = numbers[name]
    finite = _finite(column)
    put(sheet, row, 1, name)
    if len(finite):
        best = int(np.where(np.isfinite(column), column, math.inf).argmin())
        last_tenth = _finite(column[-math.ceil(len(column) / 10) :])
        form = number_format(finite)
        put(sheet, row, 2, float(finite[0]), number_format=form)
        put(sheet, row, 3, float(column[best]), number_format=form)
        if "step" in numbers:
            put(sheet, row, 4, float(numbers["step"][best]), number_format="#,##0")
        put(sheet, row, 5, float(finite[-1]), number_format=form)
        if len(last_tenth):
            put(sheet, row, 6, float(last_tenth.mean()), number_format=form)
    put(sheet, row, 7, len(column) - len(finite), number_format="#,##0")


def _fill_metrics(sheet: "Worksheet", cells: Cells) -> None:
    put_table(sheet, 1, list(cells), [list(cells[name]) for name in cells])
    set_widths(sheet, [max(len(name) + 4, 11) for name in cells])
    sheet.freeze_panes = "B2"
    sheet.auto_filter.ref = sheet.dimensions
    sheet.print_title_rows = "1:1"


def _fill_config(sheet: "Worksheet", config: Mapping[str, Any]) -> None:
    put_title(sheet, 1, "Configuration")
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    sections = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    row = put_pairs(sheet, 3, plain)
    for title, section in sections.items():
        put_title(sheet, row, str(title), size=12)
        row = put_pairs(sheet, row + 1, section)
    if not config:
        put(sheet, 3, 1, "none was recorded")
    set_widths(sheet, [30, 80])


# --- charts


def _fill_charts(sheet: "Worksheet", metrics: "Worksheet", numbers: Numbers, note: str) -> None:
    put(sheet, 1, 1, note)
    drawn = 0
    for chart in CHARTS:
        columns = [name for name in chart.series if name in numbers and len(_finite(numbers[name]))]
        if columns:
            add_chart(sheet, _draw(chart, columns, metrics, numbers), drawn)
            drawn += 1
    if not drawn:
        put(sheet, 2, 1, "the log has no loss, mse or grad_norm to draw")


def _draw(
    chart: Chart, columns: Sequence[str], metrics: "Worksheet", numbers: Numbers
) -> "ScatterChart":
    place = list(numbers).index
    x = place("step") + 1 if "step" in numbers else None
    steps = _finite(numbers["step"]).tolist() if x else []
    lines = [
        Line(
            chart.series[name],
            metrics,
            x,
            place(name) + 1,
            steps,
            _finite(numbers[name]).tolist(),
            _lines(numbers),
        )
        for name in columns
    ]
    drawing = draw_lines(chart.title, "step" if x else "log line", chart.unit, lines)
    if len(lines) == 1 and _lines(numbers) >= 100:
        add_moving_mean(drawing, period=min(_lines(numbers) // 50, 255))
    return drawing
