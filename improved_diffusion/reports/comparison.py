"""Finished runs side by side: what their folders hold, and the tables that compare them.

Training losses of different noise schedules are means over different noise levels, so they rank
nothing; bits/dim, the error at equal log-SNR and samples do.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..diffusion.noise_schedules import NOISE_SCHEDULES
from ..errors import InputError
from ..evaluation.quality import FIGURES_OF_ALL, jackknife_error
from ..logs.columns import COLUMNS
from ..logs.tables import read_columns
from ..system.archives import read_arrays
from ..system.files import CONFIG_NAME, legible
from .run_workbook import read_json, seconds_of

PANELS = {c.name: c.panel for c in COLUMNS if c.panel}  # the columns that are compared
POINTS = 50  # a curve is smoothed over this part of its length
PLACES = range(-29, 30, 2)  # log-SNRs at which errors are compared, in nats
CHANGES = ("samples", "reference")  # arrays of a judgement's .npz
SIZES = ("features", "num_samples", "num_reference")  # of a judgement
ALIKE = (
    *SIZES,
    "features, sha256",
    "size",
    "channels",
    "names of reference images, sha256",
)  # in judgements that compare
NEAR = 1.0  # nats; timesteps as near as this tell the error at a log-SNR
WARNING = (
    "Losses of different schedules are means over different noise levels and do not compare; "
    "bits/dim and the error at equal log-SNR do."
)


class Evaluation(NamedTuple):
    """An evaluation by ``image_nll.py``.

    ``terms`` holds log-SNR, error of the predicted noise and count of each timestep, [rows, 3];
    ``images`` holds the bits/dim of each image and is empty where they were not kept.
    """

    name: str
    summary: Mapping[str, Any]
    terms: np.ndarray
    images: np.ndarray


class Judgement(NamedTuple):
    """What ``image_eval.py`` found.

    ``of_samples`` and ``of_reference`` are what each image changes in the kernel distance.
    """

    name: str
    figures: Mapping[str, Any]
    of_samples: np.ndarray
    of_reference: np.ndarray


class Run(NamedTuple):
    """What a run's folder holds."""

    name: str
    config: Mapping[str, Any]
    log: pd.DataFrame
    evaluations: Sequence[Evaluation]
    judgements: Sequence[Judgement]
    pictures: Mapping[str, Path]  # grids of samples by the name of their folder


# -- reading -------------------------------------------------------------------------------------


def read_run(folder: str | os.PathLike) -> Run:
    """Read a run: its log, and what evaluations and samples there are in folders within its own.

    :raises InputError: if it is no run, or something in it cannot be read.
    """
    folder = Path(folder)
    csv = folder / "progress.csv"
    if not csv.is_file():
        raise InputError(f"{folder} is no run: it has no progress.csv")
    columns = read_columns(csv)
    if not any(columns.values()):
        raise InputError(f"{csv} has no lines yet; compare the run after its first log interval")
    known = [column.name for column in COLUMNS if column.name in columns]
    log = pd.DataFrame({name: _numbers(columns[name]) for name in known})
    if not {"step", "loss"} <= set(log) or not np.isfinite(log["step"]).all():
        raise InputError(f"{csv} is no log of a training: it has no step and loss")
    found = sorted(folder.glob("*/bits_per_dim.json"))
    grids = sorted(folder.glob("*/samples_*.png"), key=lambda path: path.stat().st_mtime)
    pictures = {legible(path.parent.name): path for path in grids}  # the newest of each folder
    path = folder / CONFIG_NAME
    config = read_json(path) if path.exists() else {}
    return Run(
        legible(folder.resolve().name),
        config,
        log,
        [_read_evaluation(path) for path in found],
        [_read_judgement(path) for path in sorted(folder.glob("*/evaluation.json"))],
        pictures,
    )


def _numbers(column: Sequence[Any]) -> list[float]:
    return [value if isinstance(value, (int, float)) else math.nan for value in column]


def _read_evaluation(path: Path) -> Evaluation:
    images = path.with_name(f"{path.stem}_images.csv")
    try:
        terms = _read_numbers(path.with_suffix(".csv"), "log_snr", "mse", "images")
        # Of a model that diverged nothing is left.
        terms = terms[np.isfinite(terms).all(axis=1) & (terms[:, 2] > 0)]
        totals = _read_numbers(images, "bits/dim")[:, 0] if images.exists() else np.array([])
        summary = read_json(path)
        for key in ("bits/dim", "standard error"):
            summary[key] = math.nan if summary[key] is None else float(summary[key])
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path.parent} holds no evaluation ({error}); make it again") from None
    return Evaluation(legible(path.parent.name), summary, terms, totals)


def _read_judgement(path: Path) -> Judgement:
    changes = read_arrays(str(path.with_suffix(".npz")), CHANGES, max_bytes=2**30)
    figures = read_json(path)
    missing = [key for key in (*SIZES, *FIGURES_OF_ALL) if key not in figures]
    lengths = {name: figures.get(f"num_{name}") for name in CHANGES}
    missing += [n for n in CHANGES if n not in changes or changes[n].shape != (lengths[n],)]
    missing += [f"numbers {n}" for n in CHANGES if n in changes and changes[n].dtype.kind != "f"]
    missing += [] if isinstance(figures.get("kid"), float) else ["number kid"]
    if missing:
        raise InputError(f"{path} is no judgement of samples: no {missing[0]}; make it again")
    return Judgement(legible(path.parent.name), figures, *(changes[name] for name in CHANGES))


def _read_numbers(path: Path, *names: str) -> np.ndarray:
    columns = read_columns(path)
    return np.array([columns[name] for name in names], dtype=float).T  # [rows, names]


# -- what can be compared ------------------------------------------------------------------------


def smoothed(log: pd.DataFrame) -> pd.DataFrame:
    """The columns to compare, each value the mean of the rows up to it, over 1/50 of the run.

    A row without a value of its own has none here.
    """
    values = log[[name for name in PANELS if name in log]]
    window = max(1, len(log) // POINTS)
    means = values.rolling(window, min_periods=1).mean()
    return log[["step"]].join(means.where(values.notna()))


def error_at(terms: np.ndarray, log_snr: float) -> float:
    """The error of the predicted noise at a log-SNR: a line is fitted to the timesteps near it.

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


def error_bits(terms: np.ndarray, low: float, high: float) -> float:
    """The bound's share between two log-SNRs in infinitely many steps, in bits/dim.

    It is half the area under the error of the noise over the log-SNR, in nats, and does not depend
    on the schedule, its steps or its variances (Kingma et al. 2021, arXiv 2107.00630, section 5.1).

    :param terms: log-SNR, error and count, [rows, 3].
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
    """One row about a run: its settings, how far it is, and the means of its last tenth."""
    flags = run.config.get("flags")
    flags = flags if isinstance(flags, Mapping) else {}
    schedule = flags.get("noise_schedule", "")
    if schedule in NOISE_SCHEDULES and NOISE_SCHEDULES.takes(schedule, "power"):
        power = flags.get("poly_power", 2.0)
        schedule += f", power {power:g}" if isinstance(power, (int, float)) else f", power {power}"
    log = run.log
    tail = log.tail(math.ceil(len(log) / 10))
    names = [c.name for c in COLUMNS if c.is_summarised and c.name in log]
    means = {f"{name}, last tenth": float(tail[name].mean()) for name in names}
    seconds = seconds_of(log.get("wall_time", ())) or math.nan
    updates = int(log["step"].iloc[-1]) + 1
    return {
        "run": run.name,
        "schedule": schedule,
        "precision": flags.get("precision", ""),
        "updates": updates,
        "hours": seconds / 3600,
        "updates/s": updates / seconds,
        **means,
    }


def tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """The tables that compare runs, by title; those with nothing in them are left out."""
    found = {
        "Settings and progress": pd.DataFrame([facts(run) for run in runs]),
        "Bits per dimension of test images": bits_table(runs),
        f"The same images, less their bits in {runs[0].name}": difference_table(runs),
        "Error of the predicted noise at equal log-SNR": error_table(runs),
        "How good the samples are": quality_table(runs),
        f"The kernel distance (KID), less that of {runs[0].name}": kernel_table(runs),
    }
    return {title: table for title, table in found.items() if not table.empty}


def bits_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The bits/dim of all evaluations.

    The column "by the errors" is :func:`error_bits` between the log-SNRs that all evaluations have.
    """
    found = [(run.name, e) for run in runs for e in run.evaluations]
    keys = ("bits/dim", "standard error", "images", "timesteps of each")
    table = pd.DataFrame(
        {"run": name, "evaluation": e.name} | {key: e.summary.get(key) for key in keys}
        for name, e in found
    )
    shared = error_table(runs).dropna(axis=1, how="all").dropna()  # without models that diverged
    if len(shared) > 1:
        low, high = shared["log-SNR"].min(), shared["log-SNR"].max()
        column = f"by the errors, log-SNR {low:g} to {high:g}"
        table[column] = [error_bits(e.terms, low, high) for _, e in found]
    return table


def difference_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The differences in bits/dim to the first run, image by image."""
    first = {e.name: e for e in runs[0].evaluations}
    rows = [
        (run.name, runs[0].name, e.name, *difference)
        for run in runs[1:]
        for e in run.evaluations
        if e.name in first and (difference := paired_difference(e, first[e.name]))
    ]
    return pd.DataFrame(rows, columns=["run", "less", "evaluation", "difference", "standard error"])


def error_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The error by log-SNR of all evaluations, NaN outside of their timesteps' log-SNRs."""
    errors = {
        f"{run.name}, {e.name}": [error_at(e.terms, place) for place in PLACES]
        for run in runs
        for e in run.evaluations
    }
    table = pd.DataFrame(errors, index=pd.Index(PLACES, name="log-SNR"))
    return table.dropna(how="all").reset_index()


def quality_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The figures of all judgements, with their standard errors."""
    table = pd.DataFrame(
        {"run": run.name, "evaluation": found.name}
        | {key: found.figures.get(key) for key in SIZES}
        | {
            key: found.figures.get(key)
            for name in found.figures
            for key in (name, f"{name}_error")
            if f"{name}_error" in found.figures
        }
        for run in runs
        for found in run.judgements
    )
    return table.dropna(axis=1, how="all")


def kernel_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The differences in kernel distance to the first run, by one network and one reference.

    Samples of one number that were drawn from the same noise are alike, and what they share
    cancels; so does what the choice of the reference images adds to both.
    """
    first = {found.name: found for found in runs[0].judgements}
    rows = [
        (run.name, runs[0].name, found.name, found.figures["features"], *difference)
        for run in runs[1:]
        for found in run.judgements
        if found.name in first and (difference := kernel_difference(found, first[found.name]))
    ]
    columns = ["run", "less", "evaluation", "features", "difference", "standard error"]
    return pd.DataFrame(rows, columns=columns)


def kernel_difference(one: Judgement, other: Judgement) -> tuple[float, float] | None:
    """``one``'s kernel distance less ``other``'s, and its standard error.

    :return: None unless both have as many samples, and were judged by the same images.
    """
    ours, theirs = ([found.figures.get(key) for key in ALIKE] for found in (one, other))
    if ours != theirs or None in ours:
        return None
    gaps = (one.of_samples - other.of_samples, one.of_reference - other.of_reference)
    return float(one.figures["kid"] - other.figures["kid"]), jackknife_error(*gaps)
