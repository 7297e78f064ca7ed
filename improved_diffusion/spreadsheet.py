"""A run's CSV log as an Excel workbook: summary, charts, metrics, samples, configuration.

pandas and openpyxl are imported where they are used: a training run starts without them.
"""

import datetime
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError
from .files import atomic_write
from .log_formats import read_csv

if TYPE_CHECKING:
    import pandas as pd
    from openpyxl import Workbook
    from openpyxl.chart import ScatterChart
    from openpyxl.drawing.spreadsheet_drawing import AbsoluteAnchor
    from openpyxl.worksheet.worksheet import Worksheet

SUMMARY_METRICS = ("loss", "mse", "grad_norm")
FIRST_COLUMNS = ("step", "samples", *SUMMARY_METRICS)  # the others follow by name
TIME_COLUMNS = ("wall_time", "elapsed", "time")
MOST_ROWS = 1_048_575  # of an Excel sheet, less the header
LOG_AXIS_FROM = 20  # largest over smallest value from which a logarithmic axis reads better
EPOCH_SECONDS = 1e9  # larger times are clock readings, smaller ones are durations

FONT = "Calibri"
INK, ACCENT, PALE = "1F3864", "2F5597", "9DC3E6"
SERIES_COLOURS = ("2F5597", "2E9E6B", "E08E0B", "C0392B")


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
) -> None:
    """Write the log at ``csv_path`` as a workbook to ``xlsx_path``, atomically.

    :param config: what the sheet "config" lists, dictionaries in it as sections; default
        ``config.json`` beside the CSV file, if there is one.
    :param picture: a PNG for the sheet "samples".
    :raises InputError: if the CSV file, the picture or config.json is missing or is not one.
    """
    import pandas as pd
    from openpyxl import Workbook

    cells = _read_log(csv_path)
    numbers = cells.apply(pd.to_numeric, errors="coerce").astype(float)
    if config is None:
        config = _read_config(Path(csv_path).with_name("config.json"))

    book = Workbook()
    book.properties.creator = "improved_diffusion"
    summary = book.active
    summary.title = "summary"
    _fill_summary(summary, numbers, Path(csv_path))
    charts = book.create_sheet("charts")
    metrics = book.create_sheet("metrics")
    _fill_metrics(metrics, cells)
    _fill_charts(charts, metrics, numbers)
    if picture is not None:
        _fill_samples(book.create_sheet("samples"), Path(picture))
    _fill_config(book.create_sheet("config"), config)
    _save(book, xlsx_path)


def _save(book: "Workbook", path: str | os.PathLike) -> None:
    for sheet in book:
        sheet.sheet_view.showGridLines = sheet.title == "metrics"
        sheet.page_setup.orientation = "landscape"
        sheet.page_setup.fitToHeight = 0  # as many pages as it takes, each one sheet wide
        sheet.sheet_properties.pageSetUpPr.fitToPage = True
        sheet.oddFooter.center.text = "&A, page &P of &N"
    with atomic_write(path) as file:
        book.save(file)


# --- reading


def _read_log(path: str | os.PathLike) -> "pd.DataFrame":
    """Read the log as a table of ints, floats, other text and, where nothing stood, None."""
    import pandas as pd

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
    return pd.DataFrame(rows, columns=table.header, dtype=object)[front + rest]


def _number(cell: str) -> int | float | str | None:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell or None


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


# --- cells


def _put(sheet: "Worksheet", row: int, column: int, value: Any, **style: Any) -> Any:
    """Write a cell so that text stays text: no formulas, no characters that Excel refuses."""
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    cell = sheet.cell(row, column)
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
        cell.value = ILLEGAL_CHARACTERS_RE.sub("\N{REPLACEMENT CHARACTER}", value)
        cell.data_type = "s"
    elif isinstance(value, float) and not math.isfinite(value):
        _note(cell, str(value))
    else:
        cell.value = value
    for name, setting in style.items():
        setattr(cell, name, setting)
    return cell


def _note(cell: Any, value: str) -> None:
    from openpyxl.comments import Comment

    name = {"nan": "NaN", "inf": "+infinity", "-inf": "-infinity"}[value]
    cell.comment = Comment(f"logged as {name}", "log", height=40, width=140)


def _put_header(sheet: "Worksheet", row: int, names: Sequence[str]) -> None:
    from openpyxl.styles import Alignment, Font, PatternFill

    style = {
        "font": Font(name=FONT, bold=True, color="FFFFFF"),
        "fill": PatternFill("solid", fgColor=INK),
        "alignment": Alignment(horizontal="center", vertical="center"),
    }
    for column, name in enumerate(names, start=1):
        _put(sheet, row, column, name, **style)


def _put_title(sheet: "Worksheet", row: int, text: str, size: int = 14) -> None:
    from openpyxl.styles import Font

    _put(sheet, row, 1, text, font=Font(name=FONT, bold=True, size=size, color=INK))


def _set_widths(sheet: "Worksheet", widths: Sequence[float]) -> None:
    from openpyxl.utils import get_column_letter

    for column, width in enumerate(widths, start=1):
        sheet.column_dimensions[get_column_letter(column)].width = width


def _finite(column: "pd.Series") -> "pd.Series":
    return column[column.abs() < math.inf]


def _number_format(column: "pd.Series") -> str:
    values = [cell for cell in column if isinstance(cell, (int, float)) and math.isfinite(cell)]
    if all(isinstance(value, int) for value in values):
        return "#,##0"
    sizes = [abs(value) for value in values if value]
    if max(sizes, default=1.0) < 1e3:
        return "0.0000" if min(sizes, default=1.0) >= 1e-3 else "0.00E+00"
    return "#,##0.00" if min(sizes) >= 0.1 else "0.00E+00"


# --- sheets


def _fill_summary(sheet: "Worksheet", numbers: "pd.DataFrame", csv_path: Path) -> None:
    folder = csv_path.resolve().parent.name
    _put_title(sheet, 1, f"Training run {folder}")
    row = 3
    for name, value, number_format in _facts(numbers):
        _put(sheet, row, 1, name)
        _put(sheet, row, 2, value, number_format=number_format)
        row += 1
    row += 1
    _put_header(
        sheet,
        row,
        ["metric", "first", "best (lowest)", "at step", "last", "mean of last tenth", "not finite"],
    )
    for name in SUMMARY_METRICS:
        if name in numbers:
            row += 1
            _put_metric(sheet, row, name, numbers)
    _set_widths(sheet, [18, 14, 16, 12, 14, 20, 12])


def _facts(numbers: "pd.DataFrame") -> list[tuple[str, Any, str]]:
    facts = [("log lines", len(numbers), "#,##0")]
    # A row names its last step, counted from 0: the updates made by then are one more.
    for title, name, extra in (("images", "samples", 0), ("steps", "step", 1)):
        if name in numbers and len(values := _finite(numbers[name])):
            facts.insert(0, (title, int(values.max()) + extra, "#,##0"))
    duration = _duration(numbers)
    if duration is not None:
        facts.append(("duration (h:mm:ss)", duration, "[h]:mm:ss"))
    return facts


def _duration(numbers: "pd.DataFrame") -> datetime.timedelta | None:
    name = next((name for name in TIME_COLUMNS if name in numbers), None)
    if name is None or not len(times := _finite(numbers[name])):
        return None
    if times.iloc[0] > EPOCH_SECONDS:
        seconds = times.iloc[-1] - times.iloc[0]
    else:  # a resumed run may count from zero again
        ends = times[times.diff(-1).fillna(1) > 0]
        seconds = ends.sum()
    return datetime.timedelta(seconds=round(max(float(seconds), 0.0)))


def _put_metric(sheet: "Worksheet", row: int, name: str, numbers: "pd.DataFrame") -> None:
    column = numbers[name]
    finite = _finite(column)
    _put(sheet, row, 1, name)
    if len(finite):
        best = finite.idxmin()
        last_tenth = _finite(column.iloc[-math.ceil(len(column) / 10) :])
        form = _number_format(finite)
        _put(sheet, row, 2, float(finite.iloc[0]), number_format=form)
        _put(sheet, row, 3, float(finite[best]), number_format=form)
        if "step" in numbers:
            _put(sheet, row, 4, float(numbers["step"][best]), number_format="#,##0")
        _put(sheet, row, 5, float(finite.iloc[-1]), number_format=form)
        _put(sheet, row, 6, float(last_tenth.mean()), number_format=form)
    _put(sheet, row, 7, len(column) - len(finite), number_format="#,##0")


def _fill_metrics(sheet: "Worksheet", cells: "pd.DataFrame") -> None:
    _put_header(sheet, 1, list(cells))
    for column, name in enumerate(cells, start=1):
        form = _number_format(cells[name])
        for row, value in enumerate(cells[name], start=2):
            if value is not None:
                _put(sheet, row, column, value, number_format=form)
    _set_widths(sheet, [max(len(name) + 4, 11) for name in cells])
    sheet.freeze_panes = "B2"
    sheet.auto_filter.ref = sheet.dimensions
    sheet.print_title_rows = "1:1"


def _fill_samples(sheet: "Worksheet", picture: Path) -> None:
    from openpyxl.drawing.image import Image

    try:
        image = Image(picture)
    except OSError as error:
        raise InputError(f"cannot read the picture {picture} ({error}); give a PNG") from None
    scale = min(1.0, 1000 / image.width)
    image.width, image.height = round(image.width * scale), round(image.height * scale)
    _put_title(sheet, 1, f"Newest samples: {picture.name}")
    sheet.add_image(image, "A3")


def _fill_config(sheet: "Worksheet", config: Mapping[str, Any]) -> None:
    _put_title(sheet, 1, "Configuration")
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    sections = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    row = _put_pairs(sheet, 3, plain)
    for title, section in sections.items():
        _put_title(sheet, row, str(title), size=12)
        row = _put_pairs(sheet, row + 1, section)
    if not config:
        _put(sheet, 3, 1, "none was recorded")
    _set_widths(sheet, [30, 80])


def _put_pairs(sheet: "Worksheet", row: int, pairs: Mapping[str, Any]) -> int:
    """Write name and value per row; return the row after them and a gap."""
    from openpyxl.styles import Alignment

    for name, value in pairs.items():
        shown = value if isinstance(value, (int, float)) else str(value)
        _put(sheet, row, 1, str(name), alignment=Alignment(vertical="top"))
        _put(sheet, row, 2, shown, alignment=Alignment(horizontal="left", wrap_text=True))
        row += 1
    return row + 1 if pairs else row


# --- charts


def _fill_charts(sheet: "Worksheet", metrics: "Worksheet", numbers: "pd.DataFrame") -> None:
    drawn = 0
    for chart in CHARTS:
        columns = [name for name in chart.series if name in numbers and len(_finite(numbers[name]))]
        if columns:
            drawing = _draw(chart, columns, metrics, numbers)
            drawing.anchor = _place(row=drawn // 2, column=drawn % 2)
            sheet.add_chart(drawing)
            drawn += 1
    if not drawn:
        _put(sheet, 1, 1, "the log has no loss, mse or grad_norm to draw")


def _place(row: int, column: int) -> "AbsoluteAnchor":
    """Place a chart by length: the width of columns differs between spreadsheet programs."""
    from openpyxl.drawing.spreadsheet_drawing import AbsoluteAnchor
    from openpyxl.drawing.xdr import XDRPoint2D, XDRPositiveSize2D
    from openpyxl.utils.units import cm_to_EMU

    width, height, gap = cm_to_EMU(16), cm_to_EMU(10), cm_to_EMU(0.3)
    corner = XDRPoint2D(gap + column * (width + gap), gap + row * (height + gap))
    return AbsoluteAnchor(pos=corner, ext=XDRPositiveSize2D(width, height))


def _draw(
    chart: Chart, columns: Sequence[str], metrics: "Worksheet", numbers: "pd.DataFrame"
) -> "ScatterChart":
    from openpyxl.chart import Reference, ScatterChart, Series

    def cells(name: str) -> Reference:
        column = numbers.columns.get_loc(name) + 1
        return Reference(metrics, min_col=column, min_row=2, max_row=len(numbers) + 1)

    steps = cells("step") if "step" in numbers else None
    drawing = ScatterChart(scatterStyle="lineMarker")
    drawing.varyColors = False
    drawing.title = chart.title
    drawing.title.overlay = False
    for name, colour in zip(columns, SERIES_COLOURS, strict=False):
        line = Series(cells(name), steps, title=chart.series[name])
        _style_line(line, colour, width=9_525)
        drawing.series.append(line)
    if len(columns) == 1 and len(numbers) >= 100:
        _add_moving_mean(drawing.series[0], period=min(len(numbers) // 50, 255))
    if len(columns) == 1 and len(numbers) < 100:
        drawing.legend = None
    else:
        drawing.legend.position = "b"
    _set_axes(drawing, chart.unit, [_finite(numbers[name]) for name in columns], numbers)
    return drawing


def _style_line(line: Any, colour: str, width: int) -> None:
    """Draw ``line`` in one colour without markers; ``width`` in EMU, 12700 a point."""
    from openpyxl.chart.marker import Marker

    line.marker = Marker(symbol="none")
    line.smooth = False
    line.graphicalProperties.line.solidFill = colour
    line.graphicalProperties.line.width = width


def _add_moving_mean(line: Any, period: int) -> None:
    from openpyxl.chart.shapes import GraphicalProperties
    from openpyxl.chart.trendline import Trendline

    line.graphicalProperties.line.solidFill = PALE
    mean = Trendline(
        name=f"mean of {period} lines",
        trendlineType="movingAvg",
        period=period,
        dispRSqr=False,
        dispEq=False,
    )
    mean.spPr = GraphicalProperties()
    mean.spPr.line.solidFill = ACCENT
    mean.spPr.line.width = 19_050
    line.trendline = mean


def _set_axes(
    drawing: "ScatterChart", unit: str, values: Sequence["pd.Series"], numbers: "pd.DataFrame"
) -> None:
    from openpyxl.chart.shapes import GraphicalProperties

    x_axis, y_axis = drawing.x_axis, drawing.y_axis
    for axis, title in ((x_axis, "step" if "step" in numbers else "log line"), (y_axis, unit)):
        axis.title = title
        axis.title.overlay = False
        axis.delete = False
        axis.crosses = "min"  # at the edge, also where values are below 1 or negative
        axis.majorGridlines.spPr = GraphicalProperties()
        axis.majorGridlines.spPr.line.solidFill = "E3E3E3"
    x_axis.axPos = "b"
    x_axis.number_format = "#,##0"
    y_axis.number_format = "General"
    if "step" in numbers and len(steps := _finite(numbers["step"])) > 1:
        x_axis.scaling.max = steps.max()
        x_axis.scaling.min = 0 if steps.min() < steps.max() / 10 else steps.min()
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    if low > 0 and high / low > LOG_AXIS_FROM:
        y_axis.scaling.logBase = 10
        y_axis.scaling.min = 10.0 ** math.floor(math.log10(low))
        y_axis.scaling.max = 10.0 ** math.ceil(math.log10(high))
