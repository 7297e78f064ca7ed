"""Finished runs side by side: a workbook, a picture of curves, a picture of samples."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data.image_files import open_image
from . import plots
from .comparison import PANELS, WARNING, Run, error_table, smoothed, tables
from .sheets import new_book, put, put_picture, put_table, put_title, save_book


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
    """Draw the curves of all runs, the error at equal log-SNR and bits/dim into one PNG.

    :param note: a line below the figure, such as what the data are.
    """
    curves = [smoothed(run.log) for run in runs]
    titles = {name: title for name, title in PANELS.items() if any(name in c for c in curves)}
    if "mse" in titles and all("mse" not in c or c["mse"].equals(c["loss"]) for c in curves):
        del titles["mse"]
        titles["loss"] = titles["loss"].replace("loss", "loss and mse")
    rows = math.ceil((len(titles) + 3) / 3)
    figure, axes = plots.new_figure(columns=3, rows=rows, width=13, height=3.4 * rows + 0.2)
    for panel, (name, title) in zip(axes, titles.items(), strict=False):
        _draw_curves(panel, runs, curves, name, title)
    bits, errors, ratios, *empty = axes[len(titles) :]
    _draw_bits(bits, runs)
    _draw_errors(errors, ratios, runs)
    for panel in empty:
        panel.axis("off")
    plots.shared_legend(figure, axes[0])
    plots.write_below(figure, note)
    plots.save_figure(figure, path)


def _styled(runs: Sequence[Run]) -> list[tuple[Run, dict[str, Any]]]:
    return [(run, plots.line_style(number)) for number, run in enumerate(runs)]


def _draw_curves(
    panel: Any, runs: Sequence[Run], curves: Sequence[pd.DataFrame], name: str, title: str
) -> None:
    for (run, style), curve in zip(_styled(runs), curves, strict=True):
        if name in curve:
            alone = "." if np.isfinite(curve[name]).sum() == 1 else None  # no line shows it
            panel.plot(curve["step"], curve[name], label=run.name, marker=alone, **style)
    panel.locator_params(axis="x", nbins=5)
    if not any((curve[name] <= 0).any() for curve in curves if name in curve):
        plots.make_logarithmic(panel)
    plots.label_axes(panel, title, "update", f"{name}, smoothed")


def _draw_errors(errors: Any, ratios: Any, runs: Sequence[Run]) -> None:
    """Draw one evaluation of each run, and its ratio to the first run's.

    Where all runs have an evaluation of one name, it is that one.
    """
    evaluated = [(run, style) for run, style in _styled(runs) if run.evaluations]
    named = [[e.name for e in run.evaluations] for run, _ in evaluated]
    shared = [name for name in (named[0] if named else ()) if all(name in e for e in named)]
    chosen = [shared[0] if shared else names[0] for names in named]
    table = error_table(runs)
    columns = [table[f"{run.name}, {e}"] for (run, _), e in zip(evaluated, chosen, strict=True)]
    for (_, style), column in zip(evaluated, columns, strict=True):
        for panel, values in ((errors, column), (ratios, column / columns[0])):
            panel.plot(table["log-SNR"], values, marker="o", markersize=3, **style)
    shown = ", ".join(sorted(set(chosen)))
    plots.label_axes(errors, f"Error at equal log-SNR, {shown}", "log-SNR (nats)", "mse")
    first = f"The same, relative to {evaluated[0][0].name}" if evaluated else "The same"
    plots.label_axes(ratios, first, "log-SNR (nats)", "ratio")


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
    counts = {e.summary.get("images") for run in runs for e in run.evaluations}
    count = " to ".join(str(n) for n in sorted(n for n in counts if isinstance(n, int)))
    plots.label_axes(panel, f"{count} test images, ± 2 standard errors".strip(), "", "bits/dim")


def save_samples(runs: Sequence[Run], path: str | os.PathLike, note: str = "") -> bool:
    """Draw the grids of samples side by side, a column for each run; False if there are none."""
    names = sorted({name for run in runs for name in run.pictures})
    if not names:
        return False
    figure, axes = plots.new_figure(len(runs), len(names), 4 * len(runs), 4.25 * len(names))
    for place, panel in enumerate(axes):
        run, name = runs[place % len(runs)], names[place // len(runs)]
        panel.axis("off")
        if name in run.pictures:
            plots.label_axes(panel, f"{run.name}: {name}", "", "")
            with open_image(str(run.pictures[name])) as picture:
                panel.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest")
    plots.write_below(figure, note)
    plots.save_figure(figure, path)
    return True
