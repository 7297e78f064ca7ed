"""Finished runs side by side: what their folders hold, and the tables that compare them.

Training losses of different noise schedules are means over different noise levels, so they rank
nothing; bits/dim, the error at equal log-SNR and samples do.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..logs.formats import read_csv

if TYPE_CHECKING:
    import pandas as pd

CURVES = ("loss", "mse", "grad_norm")
QUARTERS = tuple(f"mse_q{q}" for q in range(4))
POINTS = 50  # a curve is smoothed over so many parts of it
GRID = 2.0  # from one log-SNR to the next at which errors are compared, in nats
NEAR = 1.0  # an error is read off the timesteps within so many nats
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
        terms = terms[np.isfinite(terms).all(axis=1)]  # of a model that diverged nothing is left
        totals = _read_numbers(images, ("bits/dim",))[:, 0] if images.exists() else np.array([])
        summary = _read_json(path)
        for key in ("bits/dim", "standard error"):
            summary[key] = math.nan if summary[key] is None else float(summary[key])
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path.parent} holds no evaluation ({error}); make it again") from None
    return Evaluation(path.parent.name, summary, terms, totals)


def _read_numbers(path: Path, names: Sequence[str]) -> np.ndarray:
    table = read_csv(path)
    columns = [table.header.index(name) for name in names]
    return np.array([[float(row[c]) for c in columns] for row in table.rows]).reshape(
        -1, len(names)
    )


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
    places = np.concatenate([e.terms[:, 0] for e in evaluations] or [[]])
    if not len(places):
        return []
    low, high = places.min(), places.max()
    first = math.ceil((low - 1) / GRID) * GRID + 1
    return np.arange(first, high + 1e-9, GRID).tolist()


def error_bits(terms: np.ndarray, low: float, high: float) -> float:
    """The bound's share between two log-SNRs in infinitely many steps, in bits/dim.

    Half the area under the error of the noise over the log-SNR, in nats: whatever the schedule,
    its steps and its variances (Kingma et al. 2021, arXiv 2107.00630, section 5.1).
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
    keys = ("names of images, sha256", "seed", "timesteps of each")
    ours, theirs = ([e.summary.get(key) for key in keys] for e in (one, other))
    same = ours == theirs and None not in ours
    if not same or len(one.images) != len(other.images) or len(one.images) < 2:
        return None
    gaps = one.images - other.images
    return float(gaps.mean()), float(gaps.std(ddof=1) / math.sqrt(len(gaps)))


def facts(run: Run) -> dict[str, Any]:
    """One row about a run: its settings, and where it came to."""
    flags = run.config.get("flags")
    flags = flags if isinstance(flags, Mapping) else {}
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


def bits_table(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Columns of the bits/dim of all evaluations.

    "by the errors" is what :func:`error_bits` says over the log-SNRs that all evaluations have.
    """
    found = [(run.name, e) for run in runs for e in run.evaluations]
    keys = ("bits/dim", "standard error", "images", "timesteps of each")
    table = {
        "run": [name for name, _ in found],
        "evaluation": [e.name for _, e in found],
        **{key: [e.summary.get(key) for _, e in found] for key in keys},
    }
    if shared := _shared_range([e for _, e in found if len(e.terms)]):
        low, high = shared
        column = f"by the errors, log-SNR {low:g} to {high:g}"
        table[column] = [error_bits(e.terms, low, high) for _, e in found]
    return table


def _shared_range(evaluations: Sequence[Evaluation]) -> tuple[float, float] | None:
    errors = {
        place: [error_at(e.terms, place) for e in evaluations] for place in common_grid(evaluations)
    }
    shared = [place for place, values in errors.items() if not any(map(math.isnan, values))]
    return (shared[0], shared[-1]) if len(shared) > 1 else None


def difference_table(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Columns of the differences in bits/dim to the first run, image by image."""
    first = {e.name: e for e in runs[0].evaluations}
    rows = [
        (run.name, runs[0].name, e.name, *difference)
        for run in runs[1:]
        for e in run.evaluations
        if e.name in first and (difference := paired_difference(e, first[e.name]))
    ]
    names = ("run", "less", "evaluation", "difference", "standard error")
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


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
