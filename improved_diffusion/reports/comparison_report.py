"""Finished runs side by side: a workbook, a picture of curves, a picture of samples."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..data.image_files import open_image
from ..data.image_grid import evenly
from . import plots
from .comparison import PANELS, WARNING, Run, error_table, smoothed, tables
from .sheets import new_book, put, put_picture, put_table, put_title, save_book

MOST_ACROSS = 4  # grids of samples side by side, so that they can be seen
MOST_SHOWN = 2 * MOST_ACROSS


def save_workbook(
    runs: Sequence[Run],
    path: str | os.PathLike,
    pictures: Mapping[str, Path],
    note: str = "",
) -> None:
    """Write the tables that compare runs, and pictures, as a workbook.

    :param pictures: files by the name of the sheet that shows them.
    :param note: a line below the titles, such as what the data are.
    """
    book = new_book()
    summary = book["summary"]
    put_title(summary, 1, "Runs side by side", note)
    put(summary, 3, 1, WARNING)
    row = 5
    for title, table in tables(runs).items():
        put_title(summary, row, title)
        row = put_table(summary, row + 1, table)
    for name, picture in pictures.items():
        put_picture(book, name, name.capitalize(), picture, note)
    save_book(book, path)


def save_curves(runs: Sequence[Run], path: str | os.PathLike, note: str = "") -> None:
    """Draw the curves of all runs into one PNG, and what their evaluations say, if there are any.

    Of more evaluated runs than there are colours, nobody could tell the curves apart: then it shows
    what the evaluations say alone, and each run's own workbook has its curves.

    :param note: a line below the figure, such as what the data are.
    """
    bits, judged = _bits(runs), _judged(runs)
    if len(runs) > len(plots.COLOURS) and (bits.shown or judged):
        return _save_points([each for p in (bits, *judged) for each in _apart(p)], runs, path, note)
    curves = [smoothed(run.log) for run in runs]
    titles = {name: title for name, title in PANELS.items() if any(name in c for c in curves)}
    if "mse" in titles and all("mse" not in c or c["mse"].equals(c["loss"]) for c in curves):
        del titles["mse"]
        titles["loss"] = titles["loss"].replace("loss", "loss and mse")
    count = len(titles) + len(judged) + (3 if bits.shown else 0)
    rows = math.ceil(count / 3)
    figure, axes = plots.new_figure(columns=3, rows=rows, width=13, height=3.4 * rows + 0.2)
    panels = iter(axes)
    for name, title in titles.items():
        _draw_curves(next(panels), runs, curves, name, title)
    if bits.shown:
        _draw_points(next(panels), bits, runs)
        _draw_errors(next(panels), next(panels), runs)
    for points in judged:
        _draw_points(next(panels), points, runs)
    for panel in panels:
        panel.axis("off")
    plots.shared_legend(figure, axes[0])
    plots.write_below(figure, note)
    plots.save_figure(figure, path)


def _save_points(
    found: Sequence["Points"], runs: Sequence[Run], path: str | os.PathLike, note: str
) -> None:
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    height = max(3.4, 0.2 * len(runs) + 0.8) * rows
    figure, axes = plots.new_figure(columns, rows, width=13 * columns / 3, height=height)
    for panel, points in zip(axes, found, strict=False):
        _draw_points(panel, points, runs)
    for panel in axes[len(found) :]:
        panel.axis("off")
    plots.write_below(figure, note)
    plots.save_figure(figure, path)


def _styled(runs: Sequence[Run]) -> list[tuple[Run, dict[str, Any]]]:
    return [(run, plots.line_style(number)) for number, run in enumerate(runs)]


def _draw_curves(
    panel: Any, runs: Sequence[Run], curves: Sequence[pd.DataFrame], name: str, title: str
) -> None:
    for (run, style), curve in zip(_styled(runs), curves, strict=True):
        if name in curve:
            seen = curve[["step", name]].dropna()  # what is measured now and then is a line, too
            alone = "." if np.isfinite(seen[name]).sum() == 1 else None  # no line shows it
            panel.plot(seen["step"], seen[name], label=run.name, marker=alone, **style)
    panel.locator_params(axis="x", nbins=5)
    if not any((curve[name] <= 0).any() for curve in curves if name in curve):
        plots.make_logarithmic(panel)
    plots.label_axes(panel, title, "update", f"{name}, smoothed")


def _draw_errors(errors: Any, ratios: Any, runs: Sequence[Run]) -> None:
    """Draw one evaluation of each run, and its ratio to the first such run's.

    Where all runs have an evaluation of one name, it is that one.
    """
    evaluated = [(run, style) for run, style in _styled(runs) if run.evaluations]
    named = [[e.name for e in run.evaluations] for run, _ in evaluated]
    shared = [name for name in named[0] if all(name in e for e in named)]
    chosen = [shared[0] if shared else names[0] for names in named]
    table = error_table(runs)
    columns = [table[f"{run.name}, {e}"] for (run, _), e in zip(evaluated, chosen, strict=True)]
    for (_, style), column in zip(evaluated, columns, strict=True):
        for panel, values in ((errors, column), (ratios, column / columns[0])):
            panel.plot(table["log-SNR"], values, marker="o", markersize=3, **style)
    shown = ", ".join(sorted(set(chosen)))
    plots.label_axes(errors, f"Error at equal log-SNR, {shown}", "log-SNR (nats)", "mse")
    title = f"The same, relative to {evaluated[0][0].name}"
    plots.label_axes(ratios, title, "log-SNR (nats)", "ratio")


class Points(NamedTuple):
    """A figure, with a point for each evaluation."""

    title: str
    axis: str
    shown: Sequence[tuple[int, str, float, float]]  # number of the run, name, value and error
    largest_first: bool = False  # the best ones


def _bits(runs: Sequence[Run]) -> Points:
    """The bits/dim of all evaluations."""
    found = [(number, e) for number, run in enumerate(runs) for e in run.evaluations]
    title = f"{_counts(e.summary.get('images') for _, e in found)} test images"
    keys = "bits/dim", "standard error"
    shown = [(number, e.name, *(e.summary[key] for key in keys)) for number, e in found]
    return Points(title, keys[0], shown)


def _judged(runs: Sequence[Run]) -> list[Points]:
    """The kernel distances of all samples that were judged, and how many of them are recognised."""
    found = [(number, j) for number, run in enumerate(runs) for j in run.judgements]
    networks = ", ".join(sorted({str(j.figures["features"]) for _, j in found}))
    title = f"{_counts(j.figures['num_samples'] for _, j in found)} samples"
    points = []
    for key, axis, more in (
        ("kid", f"KID ({networks})", False),
        ("recognised", "share recognised", True),
    ):
        shown = [
            (number, j.name, j.figures[key], j.figures.get(f"{key}_error") or 0.0)
            for number, j in found
            if isinstance(j.figures.get(key), float)
        ]
        points += [Points(title, axis, shown, more)] if shown else []
    return points


def _apart(points: Points) -> list[Points]:
    """The points of each evaluation's name by themselves."""
    names = dict.fromkeys(name for _, name, _, _ in points.shown)
    return [points._replace(shown=[p for p in points.shown if p[1] == name]) for name in names]


def _counts(found: Iterable[object]) -> str:
    return " to ".join(str(n) for n in sorted({n for n in found if isinstance(n, int)}))


def _draw_points(panel: Any, points: Points, runs: Sequence[Run]) -> None:
    """Draw the runs' points side by side at each evaluation; of a single one, below each other."""
    names = list(dict.fromkeys(name for _, name, _, _ in points.shown))
    draw = _draw_below if len(names) == 1 else _draw_beside
    title = f"{points.title}, ± 2 standard errors".strip()
    draw(panel, title, points, runs, names)


def _draw_below(
    panel: Any, title: str, points: Points, runs: Sequence[Run], names: Sequence[str]
) -> None:
    """A row for each run, the best first, what is not finite last."""
    sign = -1 if points.largest_first else 1
    shown = sorted(points.shown, key=lambda point: (math.isnan(point[2]), sign * point[2]))
    for row, (number, _, value, error) in enumerate(shown):
        panel.errorbar(value, row, xerr=2 * np.nan_to_num(error), **_marker(number))
    panel.set_yticks(range(len(shown)), [runs[number].name for number, *_ in shown])
    panel.set_ylim(len(shown) - 0.5, -0.5)
    for text in panel.get_yticklabels():
        text.set_parse_math(False)
    plots.label_axes(panel, title, f"{points.axis}, {names[0]}", "")


def _draw_beside(
    panel: Any, title: str, points: Points, runs: Sequence[Run], names: Sequence[str]
) -> None:
    """A column for each evaluation, with the runs in their order."""
    for number, name, value, error in points.shown:
        beside = names.index(name) + (number - (len(runs) - 1) / 2) * 0.6 / len(runs)
        panel.errorbar(beside, value, yerr=2 * np.nan_to_num(error), **_marker(number))
    panel.set_xticks(range(len(names)), names)
    for text in panel.get_xticklabels():
        text.set_parse_math(False)
    panel.set_xlim(-0.5, max(len(names), 1) - 0.5)
    plots.label_axes(panel, title, "", points.axis)


def _marker(number: int) -> dict[str, Any]:
    colour = plots.line_style(number)["color"]
    return {"fmt": "o", "markersize": 4, "capsize": 3, "color": colour}


def save_samples(runs: Sequence[Run], path: str | os.PathLike, note: str = "") -> None:
    """Draw the grids of samples by the names of their folders, the runs side by side.

    At least one run must have such a picture.

    Of more runs than there are colours, it shows :data:`MOST_SHOWN` from the best to the worst, if
    all samples were judged.
    """
    if len(runs) > len(plots.COLOURS) and all(run.pictures and run.judgements for run in runs):
        ranked = sorted(runs, key=lambda run: run.judgements[0].figures["kid"])
        runs = [ranked[number] for number in evenly(len(ranked), MOST_SHOWN)]
    names = sorted({name for run in runs for name in run.pictures})
    down = math.ceil(len(runs) / MOST_ACROSS)  # for each name
    across = math.ceil(len(runs) / down)
    rows = down * len(names)
    figure, axes = plots.new_figure(across, rows, 4 * across, 4.25 * rows)
    for place, panel in enumerate(axes):
        panel.axis("off")
        panel.set_anchor("N")
        name, number = names[place // (across * down)], place % (across * down)
        if number < len(runs) and name in runs[number].pictures:
            run = runs[number]
            plots.label_axes(panel, f"{run.name}: {name}", "", "")
            with open_image(str(run.pictures[name])) as picture:
                panel.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest")
    plots.write_below(figure, note)
    plots.save_figure(figure, path)
