"""Finished runs side by side: what their folders hold, as tables, a workbook and pictures.

Training losses of different noise schedules are means over different noise levels, so they rank
nothing; bits/dim, the error at equal log-SNR and samples do.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import plots
from .errors import InputError
from .image_files import open_image
from .log_formats import read_csv
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

CURVES = ("loss", "mse", "grad_norm")
QUARTERS = tuple(f"mse_q{q}" for q in range(4))
POINTS = 50  # a curve is smoothed over so many parts of it
BIN = 2.0  # width of a bin of log-SNR, in nats
SHEET_NAME = 31  # characters that Excel takes
WARNING = (
    "Losses of different schedules are means over different noise levels and do not compare; "
    "bits/dim and the error at equal log-SNR do."
)


class Evaluation(NamedTuple):
    """What ``image_nll.py`` found out: its summary, and log-SNR, error and count by timestep."""

    name: str
    summary: Mapping[str, Any]
    terms: np.ndarray  # [rows, 3]


class Run(NamedTuple):
    """What a run's folder holds."""

    name: str
    config: Mapping[str, Any]
    log: "pd.DataFrame"
    evaluations: Sequence[Evaluation]
    pictures: Mapping[str, Path]  # grids of samples, by what made them


# -- reading -------------------------------------------------------------------------------------


def read_run(folder: str | os.PathLike) -> Run:
    """Read a run: its log, and the evaluations and samples in folders within its own.

    :raises InputError: if it is no run, or something in it cannot be read.
    """
    import pandas as pd

    folder = Path(folder)
    csv = folder / "progress.csv"
    if not csv.is_file():
        raise InputError(f"{folder} is no run: it has no progress.csv")
    table = read_csv(csv)
    log = pd.DataFrame(table.rows, columns=table.header).apply(pd.to_numeric, errors="coerce")
    if not {"step", "loss"} <= set(log) or not len(log):
        raise InputError(f"{csv} is no log of a training: it has no step and loss")
    found = sorted(folder.glob("*/bits_per_dim.json"))
    grids = sorted(folder.glob("*/samples_*.png"), key=lambda path: path.stat().st_mtime)
    pictures = {path.parent.name: path for path in grids}  # the newest of each folder
    config = _read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    name = folder.resolve().name
    return Run(name, config, log, [_read_evaluation(path) for path in found], pictures)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); make it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not what it should be; make it again")
    return content


def _read_evaluation(path: Path) -> Evaluation:
    table = read_csv(path.with_suffix(".csv"))
    try:
        columns = [table.header.index(name) for name in ("log_snr", "mse", "images")]
        terms = np.array([[float(row[c]) for c in columns] for row in table.rows])
        summary = _read_json(path)
        float(summary["bits/dim"]), float(summary["standard error"] or 0)
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path.parent} holds no evaluation ({error}); make it again") from None
    return Evaluation(path.parent.name, summary, terms)


# -- what can be compared ------------------------------------------------------------------------


def smoothed(log: "pd.DataFrame") -> "pd.DataFrame":
    """The log's curves, each row the mean of the rows of the last fiftieth of the run."""
    columns = [name for name in (*CURVES, *QUARTERS) if name in log]
    window = max(1, len(log) // POINTS)
    means = log[columns].rolling(window, min_periods=1).mean()
    return log[["step"]].join(means)


def binned_error(terms: np.ndarray) -> dict[float, float]:
    """The error of the predicted noise by log-SNR: the middle of a bin to the mean in it.

    Every timestep in a bin counts alike, however often it was drawn.

    :param terms: log-SNR, error and count, [rows, 3].
    """
    bins = np.floor(terms[:, 0] / BIN) * BIN + BIN / 2
    return {float(b): float(terms[bins == b, 1].mean()) for b in np.unique(bins)}


def facts(run: Run) -> dict[str, Any]:
    """One row about a run: its settings, and where it came to."""
    flags = run.config.get("flags", {})
    schedule = flags.get("noise_schedule", "")
    if schedule == "polynomial":
        schedule += f", power {flags.get('poly_power', 2.0):g}"
    tail = run.log.tail(math.ceil(len(run.log) / 10))
    means = {f"{name}, last tenth": float(tail[name].mean()) for name in CURVES if name in tail}
    seconds = float(run.log["wall_time"].iloc[-1]) if "wall_time" in run.log else math.nan
    updates = int(run.log["step"].iloc[-1]) + 1
    return {
        "run": run.name,
        "schedule": schedule,
        "precision": flags.get("precision", ""),
        "updates": updates,
        "hours": seconds / 3600,
        "updates/s": updates / seconds if seconds else math.nan,
        **means,
    }


# -- the workbook --------------------------------------------------------------------------------


def save_workbook(runs: Sequence[Run], path: str | os.PathLike, samples: Path | None) -> None:
    """Write the comparison as a workbook.

    :param samples: picture of the samples side by side, if there is one.
    """
    book = new_book()
    _fill_summary(book["summary"], runs)
    charts = book.create_sheet("charts")
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
        put_picture(book.create_sheet("samples"), "Samples of the same noise", samples)
    save_book(book, path)


def _sheet_name(name: str) -> str:
    return re.sub(r"[\[\]:*?/\\]", "-", name)[:SHEET_NAME]


def _cells(column: "pd.Series") -> list[float | None]:
    return [value if math.isfinite(value) else None for value in column.tolist()]


def _fill_summary(sheet: Any, runs: Sequence[Run]) -> None:
    put_title(sheet, 1, "Runs side by side")
    rows = [facts(run) for run in runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    put_table(sheet, 3, names, [[row.get(name) for row in rows] for name in names])
    below = len(rows) + 5
    put(sheet, below, 1, WARNING)
    put_title(sheet, below + 2, "Bits per dimension of test images")
    table = bits_table(runs)
    put_table(sheet, below + 3, list(table), list(table.values()))
    set_widths(sheet, [22, 24, 24, *[16] * 6])


def bits_table(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Columns of the bits/dim of all evaluations."""
    rows = [(run.name, e.name, e.summary) for run in runs for e in run.evaluations]
    keys = ("bits/dim", "standard error", "images", "timesteps of each")
    return {
        "run": [name for name, _, _ in rows],
        "evaluation": [name for _, name, _ in rows],
        **{key: [summary.get(key) for _, _, summary in rows] for key in keys},
    }


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


def error_table(runs: Sequence[Run]) -> dict[str, list[float | None]]:
    """Columns of the error by log-SNR of all evaluations; empty if there are none."""
    binned = {
        f"{run.name}, {e.name}": binned_error(e.terms) for run in runs for e in run.evaluations
    }
    middles = sorted({middle for errors in binned.values() for middle in errors})
    if not middles:
        return {}
    columns = {name: [errors.get(m) for m in middles] for name, errors in binned.items()}
    return {"log-SNR": middles, **columns}


# -- the pictures --------------------------------------------------------------------------------


def save_curves(runs: Sequence[Run], path: str | os.PathLike) -> None:
    """Draw the curves of all runs, the error at equal log-SNR and bits/dim into one PNG."""
    figure, axes = plots.new_figure(columns=3, rows=2, width=13, height=7.2)
    for run, style in _styled(runs):
        curve = smoothed(run.log)
        for panel, name in zip(axes[:2], ("loss", "grad_norm"), strict=True):
            if name in curve:
                panel.plot(curve["step"], curve[name], label=run.name, **style)
        for number, name in enumerate(name for name in QUARTERS if name in curve):
            fading = {**style, "linestyle": "-", "alpha": 1 - 0.22 * number}
            axes[2].plot(curve["step"], curve[name], **fading)
        for evaluation in run.evaluations[:1]:
            errors = binned_error(evaluation.terms)
            axes[3].plot(errors.keys(), errors.values(), marker="o", markersize=3, **style)
    _draw_bits(axes[4], runs)
    _draw_step_time(axes[5], runs)
    plots.label_axes(axes[0], "Training loss (does not compare)", "update", "loss, smoothed")
    plots.label_axes(axes[1], "Gradient norm", "update", "L2 norm, smoothed")
    plots.label_axes(axes[2], "mse by quarter of t, q0 darkest", "update", "mse, smoothed")
    shown = sorted({e.name for run in runs for e in run.evaluations[:1]})
    title = ", ".join(["Error at equal log-SNR", *shown])
    plots.label_axes(axes[3], title, "log-SNR (nats)", "mse of the noise")
    for panel in axes[:4]:
        panel.set_yscale("log")
    for panel in (*axes[:3], axes[5]):
        panel.locator_params(axis="x", nbins=5)
    plots.shared_legend(figure, axes[0])
    plots.save_figure(figure, path)


def _styled(runs: Sequence[Run]) -> list[tuple[Run, dict[str, Any]]]:
    return [(run, plots.line_style(number)) for number, run in enumerate(runs)]


def _draw_bits(panel: Any, runs: Sequence[Run]) -> None:
    names = list(dict.fromkeys(e.name for run in runs for e in run.evaluations))
    for number, (run, style) in enumerate(_styled(runs)):
        offset = (number - (len(runs) - 1) / 2) * 0.6 / max(len(runs), 1)
        for e in run.evaluations:
            panel.errorbar(
                names.index(e.name) + offset,
                e.summary["bits/dim"],
                yerr=2 * (e.summary["standard error"] or 0),
                fmt="o",
                markersize=4,
                capsize=3,
                color=style["color"],
            )
    panel.set_xticks(range(len(names)), names)
    panel.set_xlim(-0.5, max(len(names), 1) - 0.5)
    plots.label_axes(panel, "Test images, ± 2 standard errors", "", "bits/dim")


def _draw_step_time(panel: Any, runs: Sequence[Run]) -> None:
    for run, style in _styled(runs):
        if "wall_time" in run.log:
            panel.plot(run.log["step"], run.log["wall_time"] / 3600, **style)
    plots.label_axes(panel, "Time", "update", "hours")


def save_samples(runs: Sequence[Run], path: str | os.PathLike) -> bool:
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
    plots.save_figure(figure, path)
    return True
