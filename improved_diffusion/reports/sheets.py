"""What every workbook of the project is made of: cells that stay what they are, titles, charts.

openpyxl is imported where it is used: a training run starts without it.
"""

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError
from ..system.files import atomic_write

if TYPE_CHECKING:
    from openpyxl import Workbook
    from openpyxl.chart import ScatterChart
    from openpyxl.drawing.spreadsheet_drawing import AbsoluteAnchor
    from openpyxl.worksheet.worksheet import Worksheet

FONT = "Calibri"
INK, ACCENT, PALE = "1F3864", "2F5597", "9DC3E6"
SERIES_COLOURS = ("2F5597", "2E9E6B", "E08E0B", "C0392B", "7B4FA3", "555555")
LOG_AXIS_FROM = 20  # largest over smallest value from which a logarithmic axis reads better
PICTURE_WIDTH = 1000  # pixels of a picture on a sheet, at most


def new_book() -> "Workbook":
    """An empty workbook whose first sheet is called "summary"."""
    from openpyxl import Workbook

    book = Workbook()
    book.properties.creator = "improved_diffusion"
    book.active.title = "summary"
    return book


def save_book(book: "Workbook", path: str | os.PathLike) -> None:
    """Write ``book`` to ``path``, atomically, ready to print."""
    for sheet in book:
        sheet.sheet_view.showGridLines = sheet.title == "metrics"
        sheet.page_setup.orientation = "landscape"
        sheet.page_setup.fitToHeight = 0  # as many pages as it takes, each one sheet wide
        sheet.sheet_properties.pageSetUpPr.fitToPage = True
        sheet.oddFooter.center.text = "&A, page &P of &N"
    with atomic_write(path) as file:
        book.save(file)


def put(sheet: "Worksheet", row: int, column: int, value: Any, **style: Any) -> Any:
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


def put_header(sheet: "Worksheet", row: int, names: Sequence[str]) -> None:
    """Write the names of columns, white on dark."""
    from openpyxl.styles import Alignment, Font, PatternFill

    style = {
        "font": Font(name=FONT, bold=True, color="FFFFFF"),
        "fill": PatternFill("solid", fgColor=INK),
        "alignment": Alignment(horizontal="center", vertical="center"),
    }
    for column, name in enumerate(names, start=1):
        put(sheet, row, column, name, **style)


def put_title(sheet: "Worksheet", row: int, text: str, size: int = 14) -> None:
    """Write a heading of ``size`` points into the first column."""
    from openpyxl.styles import Font

    put(sheet, row, 1, text, font=Font(name=FONT, bold=True, size=size, color=INK))


def put_pairs(sheet: "Worksheet", row: int, pairs: Mapping[str, Any]) -> int:
    """Write name and value per row; return the row after them and a gap."""
    from openpyxl.styles import Alignment

    for name, value in pairs.items():
        shown = value if isinstance(value, (int, float)) else str(value)
        put(sheet, row, 1, str(name), alignment=Alignment(vertical="top"))
        put(sheet, row, 2, shown, alignment=Alignment(horizontal="left", wrap_text=True))
        row += 1
    return row + 1 if pairs else row


def set_widths(sheet: "Worksheet", widths: Sequence[float]) -> None:
    """Set the widths of the first columns, in characters."""
    from openpyxl.utils import get_column_letter

    for column, width in enumerate(widths, start=1):
        sheet.column_dimensions[get_column_letter(column)].width = width


def number_format(values: Iterable[Any]) -> str:
    """The Excel format in which a column of these values reads well."""
    values = [value for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    if all(isinstance(value, int) for value in values):
        return "#,##0"
    sizes = [abs(value) for value in values if value]
    if max(sizes, default=1.0) < 1e3:
        return "0.0000" if min(sizes, default=1.0) >= 1e-3 else "0.00E+00"
    return "#,##0.00" if min(sizes) >= 0.1 else "0.00E+00"


def put_table(
    sheet: "Worksheet", row: int, names: Sequence[str], columns: Sequence[Sequence[Any]]
) -> None:
    """Write a header and the columns below it, each in one number format; None leaves a gap."""
    put_header(sheet, row, names)
    for column, values in enumerate(columns, start=1):
        form = number_format(values)
        for i, value in enumerate(values, start=row + 1):
            if value is not None:
                put(sheet, i, column, value, number_format=form)


def put_picture(sheet: "Worksheet", title: str, path: Path, note: str = "") -> None:
    """Fill a sheet with a picture under a title and a note.

    :raises InputError: if ``path`` is no picture.
    """
    from openpyxl.drawing.image import Image

    try:
        image = Image(path)
    except OSError as error:
        raise InputError(f"cannot read the picture {path} ({error}); give a PNG") from None
    scale = min(1.0, PICTURE_WIDTH / image.width)
    image.width, image.height = round(image.width * scale), round(image.height * scale)
    put_title(sheet, 1, title)
    put(sheet, 2, 1, note)
    sheet.add_image(image, "A4")


# -- charts --------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of a chart: its name, and the columns of a table on a sheet that it follows.

    ``sheet`` holds the table with its header in row 1; ``x`` (or None) and ``y`` are numbers of
    columns, from 1; ``xs`` and ``ys`` are their finite values, for the axes.
    """

    name: str
    sheet: "Worksheet"
    x: int | None
    y: int
    xs: Sequence[float]
    ys: Sequence[float]
    rows: int


def draw_lines(
    title: str, x_title: str, y_title: str, lines: Sequence[Line], *, legend: bool = False
) -> "ScatterChart":
    """A chart of lines without markers, with a logarithmic y axis where it reads better.

    :param legend: name the line also where it is alone.
    """
    from openpyxl.chart import ScatterChart

    chart = ScatterChart(scatterStyle="lineMarker")
    chart.varyColors = False
    chart.title = title
    chart.title.overlay = False
    for line, colour in zip(lines, itertools.cycle(SERIES_COLOURS), strict=False):
        chart.series.append(_series(line, colour))
    if len(lines) == 1 and not legend:
        chart.legend = None
    else:
        chart.legend.position = "b"
    _style_axes(chart, x_title, y_title)
    _scale_axes(chart, lines)
    return chart


def _series(line: Line, colour: str) -> Any:
    from openpyxl.chart import Reference, Series
    from openpyxl.chart.marker import Marker

    def cells(column: int) -> Reference:
        return Reference(line.sheet, min_col=column, min_row=2, max_row=line.rows + 1)

    series = Series(cells(line.y), cells(line.x) if line.x else None, title=line.name)
    series.marker = Marker(symbol="none")
    series.smooth = False
    series.graphicalProperties.line.solidFill = colour
    series.graphicalProperties.line.width = 9_525  # EMU, 12700 a point
    return series


def _style_axes(chart: "ScatterChart", x_title: str, y_title: str) -> None:
    from openpyxl.chart.shapes import GraphicalProperties

    for axis, title in ((chart.x_axis, x_title), (chart.y_axis, y_title)):
        axis.title = title
        axis.title.overlay = False
        axis.delete = False
        axis.crosses = "min"  # at the edge, also where values are below 1 or negative
        axis.majorGridlines.spPr = GraphicalProperties()
        axis.majorGridlines.spPr.line.solidFill = "E3E3E3"
    chart.x_axis.axPos = "b"
    chart.x_axis.number_format = "#,##0"
    chart.y_axis.number_format = "General"


def _scale_axes(chart: "ScatterChart", lines: Sequence[Line]) -> None:
    xs = [x for line in lines for x in line.xs]
    if len(set(xs)) > 1:
        low, high = min(xs), max(xs)
        chart.x_axis.scaling.max = high
        chart.x_axis.scaling.min = 0 if 0 <= low < high / 10 else low
    ys = [y for line in lines for y in line.ys]
    low, high = min(ys), max(ys)
    if low > 0 and high / low > LOG_AXIS_FROM:
        chart.y_axis.scaling.logBase = 10
        chart.y_axis.scaling.min = 10.0 ** math.floor(math.log10(low))
        chart.y_axis.scaling.max = 10.0 ** math.ceil(math.log10(high))


def add_moving_mean(chart: "ScatterChart", period: int) -> None:
    """Pale the chart's first line, and draw its mean over ``period`` rows over it."""
    from openpyxl.chart.legend import Legend
    from openpyxl.chart.shapes import GraphicalProperties
    from openpyxl.chart.trendline import Trendline

    line = chart.series[0]
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
    chart.legend = Legend()
    chart.legend.position = "b"


def add_chart(sheet: "Worksheet", chart: "ScatterChart", number: int) -> None:
    """Put a chart on a sheet as the ``number``-th, from 0, of two columns below its first row."""
    chart.anchor = _place(row=number // 2, column=number % 2)
    sheet.add_chart(chart)


def _place(row: int, column: int) -> "AbsoluteAnchor":
    """Place a chart by length: the width of columns differs between spreadsheet programs."""
    from openpyxl.drawing.spreadsheet_drawing import AbsoluteAnchor
    from openpyxl.drawing.xdr import XDRPoint2D, XDRPositiveSize2D
    from openpyxl.utils.units import cm_to_EMU

    width, height, gap, top = (cm_to_EMU(cm) for cm in (16, 10, 0.3, 0.8))
    corner = XDRPoint2D(gap + column * (width + gap), top + row * (height + gap))
    return AbsoluteAnchor(pos=corner, ext=XDRPositiveSize2D(width, height))
