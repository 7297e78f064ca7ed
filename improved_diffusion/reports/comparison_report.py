"""Finished runs side by side on paper: a workbook, a picture of curves, a picture of samples."""

import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.image_files import open_image
from ..reports import plots
from .comparison import (
    CURVES,
    QUARTERS,
    WARNING,
    Run,
    bits_table,
    common_grid,
    difference_table,
    error_at,
    error_table,
    facts,
    smoothed,
)
from .sheets import (
    Line,
    add_chart,
    draw_lines,
    new_book,
    put,
    put_picture,
    put_table,
    put_title,
    save_book,
    set_widths,
)

if TYPE_CHECKING:
    import pandas as pd

SHEET_NAME = 31  # characters that Excel takes


# -- the workbook --------------------------------------------------------------------------------


def save_workbook(
    runs: Sequence[Run], path: str | os.PathLike, samples: Path | None, note: str = ""
) -> None:
    """Write the comparison as a workbook.

    :param samples: picture of the samples side by side, if there is one.
    :param note: a line to stand below the titles: what a reader must know of these runs.
    """
    book = new_book()
    _fill_summary(book["summary"], runs, note)
    charts = book.create_sheet("charts")
    put(charts, 1, 1, note)
    curves = {run.name: smoothed(run.log) for run in runs}
    sheets = {
        run.name: book.create_sheet(_sheet_name(f"{number} {run.name}"))
        for number, run in enumerate(runs, start=1)
    }
    for name, sheet in sheets.items():
        put_table(sheet, 1, list(curves[name]), [_cells(curves[name][c]) for c in curves[name]])
        set_widths(sheet, [12] * len(curves[name].columns))
    drawn = _add_curves(charts, curves, sheets)
    _add_errors(book, charts, runs, drawn)
    if samples is not None:
        put_picture(book.create_sheet("samples"), "Samples of the same noise", samples, note)
    save_book(book, path)


def _sheet_name(name: str) -> str:
    return re.sub(r"[\[\]:*?/\\]", "-", name)[:SHEET_NAME]


def _cells(column: "pd.Series") -> list[float | None]:
    return [value if math.isfinite(value) else None for value in column.tolist()]


def _fill_summary(sheet: Any, runs: Sequence[Run], note: str) -> None:
    put_title(sheet, 1, "Runs side by side")
    put(sheet, 2, 1, note)
    rows = [facts(run) for run in runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    put_table(sheet, 4, names, [[row.get(name) for row in rows] for name in names])
    row = len(rows) + 6
    put(sheet, row, 1, WARNING)
    bits = bits_table(runs)
    for title, table in (
        ("Bits per dimension of test images", bits),
        (f"The same images, less their bits in {runs[0].name}", difference_table(runs)),
    ):
        if table["run"]:
            put_title(sheet, row + 2, title)
            put_table(sheet, row + 3, list(table), list(table.values()))
            row += len(table["run"]) + 3
    headers = itertools.zip_longest(names, bits, fillvalue="")
    set_widths(sheet, [max(22, *(len(name) + 3 for name in column)) for column in headers])


def _add_curves(charts: Any, curves: Mapping[str, "pd.DataFrame"], sheets: Mapping) -> int:
    drawn = 0
    for name in (*CURVES, *QUARTERS):
        lines = [
            _line(run, sheets[run], list(curve), "step", name, curve)
            for run, curve in curves.items()
            if name in curve and np.isfinite(curve[name]).any()
        ]
        if lines:
            title = f"{name}, smoothed"
            add_chart(charts, draw_lines(title, "step", name, lines, legend=True), drawn)
            drawn += 1
    return drawn


def _line(name: str, sheet: Any, columns: list[str], x: str, y: str, table: Any) -> Line:
    finite = [value for value in table[y].tolist() if math.isfinite(value)]
    place = columns.index
    return Line(name, sheet, place(x) + 1, place(y) + 1, table[x].tolist(), finite, len(table))


def _add_errors(book: Any, charts: Any, runs: Sequence[Run], drawn: int) -> None:
    errors = error_table(runs)
    if not errors:
        return
    sheet = book.create_sheet("error at equal log-SNR")
    names = list(errors)
    put_table(sheet, 1, names, list(errors.values()))
    set_widths(sheet, [12, *[28] * (len(names) - 1)])
    xs = errors["log-SNR"]
    lines = []
    for column, name in enumerate(names[1:], start=2):
        ys = [value for value in errors[name] if value is not None and math.isfinite(value)]
        lines += [Line(name, sheet, 1, column, xs, ys, len(xs))] if ys else []
    if not lines:
        return
    chart = draw_lines("Error of the predicted noise", "log-SNR", "mse", lines, legend=True)
    add_chart(charts, chart, drawn)


# -- the pictures --------------------------------------------------------------------------------


def save_curves(runs: Sequence[Run], path: str | os.PathLike, note: str = "") -> None:
    """Draw the curves of all runs, the error at equal log-SNR and bits/dim into one PNG.

    :param note: a line to stand below: what a reader must know of these runs.
    """
    figure, axes = plots.new_figure(columns=3, rows=3, width=13, height=10.4)
    curves = [smoothed(run.log) for run in runs]
    mse_is_loss = all("mse" not in c or c["mse"].equals(c["loss"]) for c in curves)
    title = "Training loss and mse" if mse_is_loss else "Training loss"
    _draw_curves(axes[0], runs, curves, "loss", f"{title} (do not compare)")
    _draw_curves(axes[1], runs, curves, "grad_norm", "Gradient norm")
    _draw_bits(axes[2], runs)
    for panel, name, part in zip(
        axes[3:7], QUARTERS, (", least noise", "", "", ", most noise"), strict=True
    ):
        _draw_curves(panel, runs, curves, name, f"mse of quarter {name[-2:]} of t{part}")
    _draw_errors(axes[7:], runs)
    plots.shared_legend(figure, axes[0])
    plots.write_below(figure, note)
    plots.save_figure(figure, path)


def _styled(runs: Sequence[Run]) -> list[tuple[Run, dict[str, Any]]]:
    return [(run, plots.line_style(number)) for number, run in enumerate(runs)]


def _draw_curves(
    panel: Any, runs: Sequence[Run], curves: Sequence["pd.DataFrame"], name: str, title: str
) -> None:
    for (run, style), curve in zip(_styled(runs), curves, strict=True):
        if name in curve:
            alone = "." if np.isfinite(curve[name]).sum() == 1 else None  # no line shows it
            panel.plot(curve["step"], curve[name], label=run.name, marker=alone, **style)
    panel.locator_params(axis="x", nbins=5)
    plots.make_logarithmic(panel)
    plots.label_axes(panel, title, "update", "smoothed")


def _draw_errors(panels: Sequence[Any], runs: Sequence[Run]) -> None:
    """One evaluation of each run, if possible of one name, and its ratio to that of the first."""
    evaluated = [(run, style) for run, style in _styled(runs) if run.evaluations]
    named = [{e.name: e for e in run.evaluations} for run, _ in evaluated]
    shared = [name for name in (named[0] if named else ()) if all(name in e for e in named)]
    found = [e[shared[0]] if shared else next(iter(e.values())) for e in named]
    places = common_grid(found)
    columns = [np.array([error_at(e.terms, place) for place in places]) for e in found]
    for (_, style), errors in zip(evaluated, columns, strict=True):
        panels[0].plot(places, errors, marker="o", markersize=3, **style)
        panels[1].plot(places, errors / columns[0], marker="o", markersize=3, **style)
    shown = ", ".join(sorted({e.name for e in found}))
    ratio = f"The same, over that of {evaluated[0][0].name}" if found else "Ratio"
    plots.label_axes(panels[0], f"Error at equal log-SNR, {shown}", "log-SNR (nats)", "mse")
    plots.label_axes(panels[1], ratio, "log-SNR (nats)", "ratio")


def _draw_bits(panel: Any, runs: Sequence[Run]) -> None:
    names = list(dict.fromkeys(e.name for run in runs for e in run.evaluations))
    for number, (run, style) in enumerate(_styled(runs)):
        offset = (number - (len(runs) - 1) / 2) * 0.6 / max(len(runs), 1)
        for e in run.evaluations:
            panel.errorbar(
                names.index(e.name) + offset,
                e.summary["bits/dim"],
                yerr=2 * np.nan_to_num(e.summary["standard error"]),
                fmt="o",
                markersize=4,
                capsize=3,
                color=style["color"],
            )
    panel.set_xticks(range(len(names)), names)
    panel.set_xlim(-0.5, max(len(names), 1) - 0.5)
    plots.label_axes(panel, "Test images, ± 2 standard errors", "", "bits/dim")


def save_samples(runs: Sequence[Run], path: str | os.PathLike, note: str = "") -> bool:
    """Draw the grids of samples side by side, a column for each run; False if there are none."""
    names = sorted({name for run in runs for name in run.pictures})
    if not names:
        return False
    figure, axes = plots.new_figure(len(runs), len(names), 4 * len(runs), 4.25 * len(names))
    for place, panel in enumerate(axes):
        run, name = runs[place % len(runs)], names[place // len(runs)]
        panel.axis("off")
        plots.label_axes(panel, f"{run.name}: {name}", "", "")
        if name in run.pictures:
            with open_image(str(run.pictures[name])) as picture:
                panel.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest")
    plots.write_below(figure, note)
    plots.save_figure(figure, path)
    return True
