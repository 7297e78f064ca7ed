"""Excel workbooks in one style: tables, notes, charts and pictures on sheets.

openpyxl is imported where it is used: a training run starts without it.
"""

import errno
import itertools
import math
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..system.files import atomic_write, legible

if TYPE_CHECKING:
    import pandas as pd
    from openpyxl import Workbook
    from openpyxl.chart import ScatterChart
    from openpyxl.worksheet.worksheet import Worksheet

FONT = "Calibri"
INK, ACCENT, PALE = "1F3864", "2F5597", "9DC3E6"
SERIES_COLOURS = ("2F5597", "2E9E6B", "E08E0B", "C0392B", "7B4FA3", "555555")
LOG_AXIS_FROM = 20  # largest over smallest value from which a logarithmic axis reads better
PICTURE_WIDTH = 1000  # pixels of a picture on a sheet, at most
WIDEST = 80  # characters of a column


def new_book() -> "Workbook":
    """An empty workbook whose first sheet is called "summary"."""
    from openpyxl import Workbook

    book = Workbook()
    book.properties.creator = "improved_diffusion"
    book.worksheets[0].title = "summary"
    return book


def save_book(book: "Workbook", path: str | os.PathLike) -> None:
    """Write ``book`` to ``path``, atomically, ready to print; its cells are gone then.

    :raises OSError: if the disk is full, or the temporary folder's, where openpyxl writes first.
    """
    from openpyxl.writer.excel import ExcelWriter

    sheet: Any
    for sheet in book:
        sheet.sheet_view.showGridLines = sheet.title == "metrics"
        sheet.page_setup.orientation = "landscape"
        sheet.page_setup.fitToHeight = 0  # as many pages as it takes, each one sheet wide
        sheet.sheet_properties.pageSetUpPr.fitToPage = True
        sheet.oddFooter.center.text = "&A, page &P of &N"
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        try:
            ExcelWriter(book, archive).save()
        except Exception as error:
            if type(error).__name__ != "SerialisationError":  # lxml's for any file's OSError
                raise
            said = f"no room for a workbook's sheet ({error})"
            raise OSError(errno.ENOSPC, said, tempfile.gettempdir()) from error
    for sheet in book:
        # Cells and their sheet know each other: they would stay until Python looks for circles,
        # which in a training is workbooks later.
        sheet.delete_rows(1, sheet.max_row)


def put(sheet: "Worksheet", row: int, column: int, value: Any, **style: Any) -> None:
    """Write a cell so that text stays text: no formulas, no characters that Excel refuses.

    A number that is not finite leaves the cell empty.
    """
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    cell: Any = sheet.cell(row, column)
    for name, setting in style.items():
        setattr(cell, name, setting)
    if isinstance(value, (list, dict)):  # of a JSON file that somebody changed
        value = str(value)
    if isinstance(value, str):
        cell.value = ILLEGAL_CHARACTERS_RE.sub("\N{REPLACEMENT CHARACTER}", legible(value))
        cell.data_type = "s"
    elif not isinstance(value, float) or math.isfinite(value):
        cell.value = value  # a duration gets a format of its own


def put_title(sheet: "Worksheet", row: int, text: str, note: str = "", size: int = 14) -> None:
    """Write a heading of ``size`` points into the first column, and a note below it."""
    from openpyxl.styles import Font

    put(sheet, row, 1, text, font=Font(name=FONT, bold=True, size=size, color=INK))
    if note:
        put(sheet, row + 1, 1, note)


def put_pairs(sheet: "Worksheet", row: int, pairs: Mapping[str, Any]) -> int:
    """Write name and value per row; return the row after them and a gap."""
    from openpyxl.styles import Alignment

    for name, value in pairs.items():
        shown = value if isinstance(value, (int, float, timedelta)) else str(value)
        put(sheet, row, 1, str(name), alignment=Alignment(vertical="top"))
        form = "#,##0" if type(value) is int else "General"
        left = Alignment(horizontal="left", wrap_text=True)
        put(sheet, row, 2, shown, alignment=left, number_format=form)
        row += 1
    _widen(sheet, 1, pairs)
    _widen(sheet, 2, map(str, pairs.values()))
    return row + 1 if pairs else row


def put_table(
    sheet: "Worksheet", row: int, table: "Mapping[str, Sequence[Any]] | pd.DataFrame"
) -> int:
    """Write names and the columns below them, each in one number format; None leaves a gap.

    :return: the row after them and a gap.
    """
    from openpyxl.styles import Alignment, Font, PatternFill

    header = {
        "font": Font(name=FONT, bold=True, color="FFFFFF"),
        "fill": PatternFill("solid", fgColor=INK),
        "alignment": Alignment(horizontal="center", vertical="center"),
    }
    rows = 0
    for column, (name, values) in enumerate(table.items(), start=1):
        put(sheet, row, column, str(name), **header)
        form = number_format(values)
        for i, value in enumerate(values, start=row + 1):
            if value is not None:
                put(sheet, i, column, value, number_format=form)
        _widen(sheet, column, [str(name), *(v for v in values if isinstance(v, str))])
        rows = len(values)
    return row + rows + 2


def _widen(sheet: "Worksheet", column: int, texts: Iterable[str]) -> None:
    from openpyxl.utils import get_column_letter

    place = sheet.column_dimensions[get_column_letter(column)]
    place.width = max(place.width, min(max(map(len, texts), default=0) + 4, WIDEST))


def number_format(values: Iterable[Any]) -> str:
    """The Excel format in which a column of these values reads well."""
    values = finite(values)
    if all(isinstance(value, int) for value in values):
        return "#,##0"
    sizes = [abs(value) for value in values if value]
    if max(sizes, default=1.0) < 1e3:
        return "0.0000" if min(sizes, default=1.0) >= 1e-3 else "0.00E+00"
    return "#,##0.00" if min(sizes) >= 0.1 else "0.00E+00"


def finite(values: Iterable[Any]) -> list[float]:
    """The values that are finite numbers."""
    return [value for value in values if isinstance(value, (int, float)) and math.isfinite(value)]


def put_picture(
    book: "Workbook", name: str, title: str, path: str | os.PathLike, note: str = ""
) -> None:
    """Add a sheet of that name: a picture under a title and a note.

    :raises InputError: if ``path`` is no picture.
    """
    from openpyxl.drawing.image import Image

    try:
        image = Image(path)
    except OSError as error:
        raise InputError(f"cannot read the picture {path} ({error}); give a PNG") from None
    scale = min(1.0, PICTURE_WIDTH / image.width)
    image.width, image.height = round(image.width * scale), round(image.height * scale)
    sheet = book.create_sheet(name)
    put_title(sheet, 1, title, note)
    sheet.add_image(image, "A4")


# -- charts --------------------------------------------------------------------------------------


def draw_lines(
    title: str,
    unit: str,
    sheet: "Worksheet",
    table: Mapping[str, Sequence[Any]],
    lines: Mapping[str, str],
    x: str | None,
    x_title: str,
) -> "ScatterChart":
    """A chart of lines, or of the only value, with a logarithmic y axis where it reads better.

    :param unit: title of the y axis.
    :param table: stands on ``sheet``, its header in row 1.
    :param lines: its columns to draw, with their names in the legend.
    :param x: its column for the x axis; None for the number of the row.
    """
    from openpyxl.chart import Reference, ScatterChart, Series
    from openpyxl.chart.marker import Marker

    def cells(name: str) -> Reference:
        column = list(table).index(name) + 1
        return Reference(sheet, min_col=column, min_row=2, max_row=len(table[name]) + 1)

    chart: Any = ScatterChart(scatterStyle="lineMarker")
    chart.varyColors = False
    chart.display_blanks = "span"  # what is measured now and then is a line, too
    chart.title = title
    chart.title.overlay = False
    for (name, legend), colour in zip(lines.items(), itertools.cycle(SERIES_COLOURS), strict=False):
        series = Series(cells(name), cells(x) if x else None, title=legend)
        alone = len(finite(table[name])) == 1  # no line shows it
        series.marker = Marker(symbol="circle" if alone else "none")
        series.smooth = False
        series.graphicalProperties.line.solidFill = colour
        series.graphicalProperties.line.width = 9_525  # EMU, 12700 a point
        chart.series.append(series)
    chart.legend = _legend() if len(lines) > 1 else None
    _style_axes(chart, x_title, unit)
    xs = finite(table[x]) if x else []
    _scale_axes(chart, xs, [y for name in lines for y in finite(table[name])])
    return chart


def _legend() -> Any:
    from openpyxl.chart.legend import Legend

    legend = Legend()
    legend.position = "b"
    return legend


def _style_axes(chart: Any, x_title: str, y_title: str) -> None:
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


def _scale_axes(chart: Any, xs: Sequence[float], ys: Sequence[float]) -> None:
    if len(set(xs)) > 1:
        low, high = min(xs), max(xs)
        chart.x_axis.scaling.max = high
        chart.x_axis.scaling.min = 0 if 0 <= low < high / 10 else low
    low, high = min(ys), max(ys)
    if low > 0 and high / low > LOG_AXIS_FROM:
        chart.y_axis.scaling.logBase = 10
        chart.y_axis.scaling.min = 10.0 ** math.floor(math.log10(low))
        chart.y_axis.scaling.max = 10.0 ** math.ceil(math.log10(high))


def add_moving_mean(chart: Any, period: int) -> None:
    """Make the chart's first line pale, and draw its mean over ``period`` rows in front of it."""
    from openpyxl.chart.shapes import GraphicalProperties
    from openpyxl.chart.trendline import Trendline

    line = chart.series[0]
    line.graphicalProperties.line.solidFill = PALE
    name = f"mean of {period} lines"
    mean: Any = Trendline(
        name=name, trendlineType="movingAvg", period=period, dispRSqr=False, dispEq=False
    )
    mean.spPr = GraphicalProperties()
    mean.spPr.line.solidFill = ACCENT
    mean.spPr.line.width = 19_050
    line.trendline = mean
    chart.legend = _legend()


def add_chart(sheet: "Worksheet", chart: Any, number: int) -> None:
    """Put a chart on a sheet as the ``number``-th, from 0, of two columns below its first row.

    Its place is a length, since the width of columns differs between spreadsheet programs.
    """
    from openpyxl.drawing.spreadsheet_drawing import AbsoluteAnchor
    from openpyxl.drawing.xdr import XDRPoint2D, XDRPositiveSize2D
    from openpyxl.utils.units import cm_to_EMU

    width, height, gap, top = (cm_to_EMU(cm) for cm in (16, 10, 0.3, 0.8))
    row, column = divmod(number, 2)
    corner = XDRPoint2D(gap + column * (width + gap), top + row * (height + gap))
    chart.anchor = AbsoluteAnchor(pos=corner, ext=XDRPositiveSize2D(width, height))
    sheet.add_chart(chart)
