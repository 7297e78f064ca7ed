"""Draw the noise schedules side by side into a PNG, and print what they leave of the image."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from improved_diffusion.commands.cli import check_out, run, say_replaced
from improved_diffusion.diffusion.noise_schedules import (
    NOISE_SCHEDULES,
    checked_betas,
    get_named_beta_schedule,
)
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import parse_options
from improved_diffusion.options.flags import Options, flag, with_default
from improved_diffusion.options.model import DiffusionOptions
from improved_diffusion.reports import plots


@dataclass(frozen=True, kw_only=True)
class PlotOptions(Options):
    """Flags of this script."""

    diffusion_steps: int = with_default(DiffusionOptions, "diffusion_steps", 1000)
    poly_powers: str = flag(
        "0.5,1,2,3", "powers of the polynomial schedules to draw, comma-separated"
    )
    out: str = flag("noise_schedules.png", "file to write")


PANELS = (
    ("betas", "Noise added by step t", r"$\beta_t$ (variance, log scale)"),
    ("alpha_bar", "Image left after step t", r"$\bar\alpha_t$ (share of the variance)"),
    ("log_snr", "Log-SNR after step t", r"$\ln\,\bar\alpha_t / (1 - \bar\alpha_t)$ (nats)"),
)


class Schedule(NamedTuple):
    """One schedule: its name, and float64 [T] values at the timesteps 1..T."""

    name: str
    betas: np.ndarray
    alpha_bar: np.ndarray
    log_snr: np.ndarray


def main() -> None:
    options = parse_options(PlotOptions, __doc__)
    schedules = compute_schedules(options.diffusion_steps, parse_powers(options.poly_powers))
    check_out(options.out, ".png")
    say_replaced(options.out)
    plots.save_figure(draw(schedules), options.out)
    print_ends(schedules)
    print(Path(options.out).absolute())


def parse_powers(text: str) -> list[float]:
    """The numbers of ``"0.5,1,2"``, in ascending order."""
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise InputError(f"poly_powers must be numbers such as 0.5,1,2, got {text!r}") from None


def compute_schedules(steps: int, powers: list[float]) -> list[Schedule]:
    """All schedules, and at the end those that take a power, for each of the powers."""
    powered = [name for name in NOISE_SCHEDULES if NOISE_SCHEDULES.takes(name, "power")]
    named = [name for name in NOISE_SCHEDULES if name not in powered]
    schedules = [make_schedule(name, get_named_beta_schedule(name, steps)) for name in named]
    for name, power in itertools.product(powered, powers):
        betas = get_named_beta_schedule(name, steps, power)
        schedules.append(make_schedule(f"{name} {power:g}", betas))
    return schedules


def make_schedule(name: str, betas: np.ndarray) -> Schedule:
    alpha_bar = np.cumprod(1 - checked_betas(betas))
    with np.errstate(divide="ignore"):  # a last beta of 1 leaves nothing: minus infinity is meant
        return Schedule(name, betas, alpha_bar, np.log(alpha_bar) - np.log(1 - alpha_bar))


# -- drawing and printing ------------------------------------------------------------------------


def draw(schedules: list[Schedule]) -> Any:
    """One panel for each quantity, over t / T."""
    figure, axes = plots.new_figure(columns=len(PANELS))
    named = sum(schedule.name in NOISE_SCHEDULES for schedule in schedules)
    styles = choose_styles(named, len(schedules) - named)
    for panel, (quantity, title, unit) in zip(axes, PANELS, strict=True):
        for schedule, style in zip(schedules, styles, strict=True):
            values = getattr(schedule, quantity)
            t = np.arange(1, len(values) + 1) / len(values)
            panel.plot(t, values, label=schedule.name, **style)
        plots.label_axes(panel, title, "t / T", unit)
        panel.set_xlim(-0.01, 1.01)
    axes[0].set_yscale("log")
    plots.shared_legend(figure, axes[0])
    return figure


def choose_styles(named: int, powers: int) -> list[dict[str, Any]]:
    """Linear broad and pale, so that power 1 shows on top of it; the powers from light to dark."""
    linear = {"color": "#BDBDBD", "linewidth": 3 * plots.LINE_WIDTH}
    others = [plots.line_style(number) for number in range(1, named)]
    ramp = [{"color": c, "linewidth": plots.LINE_WIDTH} for c in plots.ramp(powers)]
    return [linear, *others, *ramp]


def print_ends(schedules: list[Schedule]) -> None:
    """What each schedule begins and ends with."""
    width = max(len(schedule.name) for schedule in schedules)
    print(f"{'schedule':<{width}}  {'beta_1':>9}  {'beta_T':>9}  {'alpha_bar_T':>11}  log_snr_T")
    for name, betas, alpha_bar, log_snr in schedules:
        ends = f"{betas[0]:>9.3g}  {betas[-1]:>9.3g}  {alpha_bar[-1]:>11.3g}  {log_snr[-1]:>9.2f}"
        print(f"{name:<{width}}  {ends}")


if __name__ == "__main__":
    run(main)
