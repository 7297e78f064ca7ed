"""Finished runs side by side: what their folders hold, as tables, a workbook and pictures.

Training losses of different noise schedules are means over different noise levels, so they rank
nothing; bits/dim, the error at equal log-SNR and samples do.
"""

import itertools
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
GRID = 2.0  # from one log-SNR to the next at which errors are compared, in nats
NEAR = 1.0  # an error is read off the timesteps within so many nats
SHEET_NAME = 31  # characters that Excel takes
WARNING = (
    "Losses of different schedules are means over different noise levels and do not compare; "
    "bits/dim and the error at equal log-SNR do."
)


class Evaluation(NamedTuple):
    """What ``image_nll.py`` found out.

    ``terms`` has log-SNR, error of the predicted noise and count of each timestep, [rows, 3];
    ``images`` the bits/dim of each image, or nothing where they were not kept.
    """

    name: str
    summary: Mapping[str, Any]
    terms: np.ndarray
    images: np.ndarray


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
    images = path.with_name(f"{path.stem}_images.csv")
    try:
        terms = _read_numbers(path.with_suffix(".csv"), ("log_snr", "mse", "images"))
        totals = _read_numbers(images, ("bits/dim",))[:, 0] if images.exists() else np.array([])
        summary = _read_json(path)
        float(summary["bits/dim"]), float(summary["standard error"] or 0)
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path.parent} holds no evaluation ({error}); make it again") from None
    return Evaluation(path.parent.name, summary, terms, totals)


def _read_numbers(path: Path, names: Sequence[str]) -> np.ndarray:
    table = read_csv(path)
    columns = [table.header.index(name) for name in names]
    return np.array([[float(row[c]) for c in columns] for row in table.rows])


# -- what can be compared ------------------------------------------------------------------------


def smoothed(log: "pd.DataFrame") -> "pd.DataFrame":
    """The log's curves, each row the mean of the rows of the last fiftieth of the run."""
    columns = [name for name in (*CURVES, *QUARTERS) if name in log]
    window = max(1, len(log) // POINTS)
    means = log[columns].rolling(window, min_periods=1).mean()
    return log[["step"]].join(means)


def error_at(terms: np.ndarray, log_snr: float) -> float:
    """The error of the predicted noise at a log-SNR, by a line through the timesteps near it.

    Schedules have their timesteps at different log-SNRs, so a mean over a range would compare
    errors of different places.

    :param terms: log-SNR, error and count, [rows, 3].
    :return: NaN outside of the timesteps' log-SNRs.
    """
    offset = terms[:, 0] - log_snr
    near = np.abs(offset) <= NEAR
    for side in (offset <= 0, offset >= 0):
        if not side.any():
            return math.nan
        if not (near & side).any():  # timesteps are far apart here: the next one on this side
            near |= side & (np.abs(offset) == np.abs(offset[side]).min())
    x, (y, count) = offset[near], terms[near, 1:].T
    x_mean, y_mean = np.average(x, weights=count), np.average(y, weights=count)
    spread = count @ (x - x_mean) ** 2
    slope = count @ ((x - x_mean) * (y - y_mean)) / spread if spread else 0.0
    return float(y_mean - slope * x_mean)


def common_grid(evaluations: Sequence[Evaluation]) -> list[float]:
    """The odd log-SNRs at which any of the evaluations has an error."""
    ends = [(e.terms[:, 0].min(), e.terms[:, 0].max()) for e in evaluations]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    first = math.ceil((low - 1) / GRID) * GRID + 1
    return np.arange(first, high + 1e-9, GRID).tolist()


def error_bits(terms: np.ndarray, low: float, high: float) -> float:
    """Bits/dim that a model's errors between two log-SNRs cost in infinitely many steps.

    Half the area under the error of the noise over the log-SNR: whatever the schedule, and
    whatever its steps and variances add (Kingma et al. 2021, arXiv 2107.00630, 5.1).
    """
    places = np.linspace(low, high, 1 + round((high - low) * 4))
    errors = np.array([error_at(terms, place) for place in places])
    area = ((errors[1:] + errors[:-1]) / 2 * np.diff(places)).sum()
    return float(area / (2 * math.log(2)))


def paired_difference(one: Evaluation, other: Evaluation) -> tuple[float, float] | None:
    """Mean and standard error of ``one``'s bits/dim less ``other``'s, image by image.

    Images differ far more than models do; on the same ones, most of that cancels.

    :return: None unless both kept the bits of the same two or more images.
    """
    keys = ("data_dir", "seed", "timesteps of each")
    same = all(one.summary.get(key) == other.summary.get(key) for key in keys)
    if not same or len(one.images) != len(other.images) or len(one.images) < 2:
        return None
    gaps = one.images - other.images
    return float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps)))


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


def bits_table(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Columns of the bits/dim of all evaluations, and of what they are made of.

    "of which fixed variance" is the schedule's; "by the errors" is the model's alone, see
    :func:`error_bits`, over the log-SNRs that all evaluations have.
    """
    found = [(run.name, e) for run in runs for e in run.evaluations]
    keys = ("bits/dim", "standard error", "images", "timesteps of each", "of which fixed variance")
    table = {
        "run": [name for name, _ in found],
        "evaluation": [e.name for _, e in found],
        **{key: [e.summary.get(key) for _, e in found] for key in keys},
    }
    if shared := _shared_range([e for _, e in found]):
        low, high = shared
        column = f"by the errors, log-SNR {low:g} to {high:g}"
        table[column] = [error_bits(e.terms, low, high) for _, e in found]
    return table


def _shared_range(evaluations: Sequence[Evaluation]) -> tuple[float, float] | None:
    errors = {
        place: [error_at(e.terms, place) for e in evaluations]
        for place in (common_grid(evaluations) if evaluations else ())
    }
    shared = [place for place, values in errors.items() if not any(map(math.isnan, values))]
    return (shared[0], shared[-1]) if len(shared) > 1 else None


def difference_table(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Columns of the differences in bits/dim to the first run, image by image."""
    first = {e.name: e for e in runs[0].evaluations}
    rows = [
        (run.name, e.name, *difference)
        for run in runs[1:]
        for e in run.evaluations
        if e.name in first and (difference := paired_difference(e, first[e.name]))
    ]
    names = ("run", "evaluation", "difference", "standard error")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


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
    found = {f"{run.name}, {e.name}": e for run in runs for e in run.evaluations}
    if not found:
        return {}
    places = common_grid(list(found.values()))
    columns = {
        name: [None if math.isnan(v := error_at(e.terms, place)) else v for place in places]
        for name, e in found.items()
    }
    return {"log-SNR": places, **columns}


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
            panel.plot(curve["step"], curve[name], label=run.name, **style)
    panel.locator_params(axis="x", nbins=5)
    plots.make_logarithmic(panel)
    plots.label_axes(panel, title, "update", "smoothed")


def _draw_errors(panels: Sequence[Any], runs: Sequence[Run]) -> None:
    """The first evaluation of each run, and its ratio to that of the first run."""
    evaluated = [(run, style) for run, style in _styled(runs) if run.evaluations]
    found = [run.evaluations[0] for run, _ in evaluated]
    places = common_grid(found) if found else []
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
                yerr=2 * (e.summary["standard error"] or 0),
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
