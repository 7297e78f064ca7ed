"""Draw the noise schedules side by side into a PNG, and print what they leave of the image."""

from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from improved_diffusion.commands import cli
from improved_diffusion.diffusion.noise_schedules import checked_betas, get_named_beta_schedule
from improved_diffusion.errors import InputError
from improved_diffusion.reports import plots
from improved_diffusion.script_util import add_dict_to_argparser

DEFAULTS = {
    "diffusion_steps": 1000,
    "poly_powers": "0.5,1,2,3",
    "out": "noise_schedules.png",
}

NAMED = ("linear", "cosine")
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
    args = parse_flags()
    schedules = compute_schedules(args.diffusion_steps, parse_powers(args.poly_powers))
    plots.check_picture_path(args.out)
    plots.save_figure(draw(schedules), args.out)
    print_ends(schedules)
    print(Path(args.out).absolute())


def parse_flags() -> Namespace:
    parser = cli.Parser(__doc__)
    add_dict_to_argparser(parser, DEFAULTS)
    return parser.parse_args()


def parse_powers(text: str) -> list[float]:
    """The numbers of ``"0.5,1,2"``, in ascending order."""
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise InputError(f"poly_powers must be numbers such as 0.5,1,2, got {text!r}") from None


def compute_schedules(steps: int, powers: list[float]) -> list[Schedule]:
    """Linear, cosine, and one polynomial schedule for each of the powers."""
    schedules = [make_schedule(name, get_named_beta_schedule(name, steps)) for name in NAMED]
    for power in powers:
        betas = get_named_beta_schedule("polynomial", steps, power)
        schedules.append(make_schedule(f"polynomial {power:g}", betas))
    return schedules


def make_schedule(name: str, betas: np.ndarray) -> Schedule:
    alpha_bar = np.cumprod(1 - checked_betas(betas))
    with np.errstate(divide="ignore"):  # a last beta of 1 leaves nothing: minus infinity is meant
        return Schedule(name, betas, alpha_bar, np.log(alpha_bar) - np.log(1 - alpha_bar))


# -- drawing and printing ------------------------------------------------------------------------


def draw(schedules: list[Schedule]) -> Any:
    """One panel for each quantity, over t / T."""
    figure, axes = plots.new_figure(columns=len(PANELS))
    styles = choose_styles(powers=len(schedules) - len(NAMED))
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


def choose_styles(powers: int) -> list[dict[str, Any]]:
    """Linear broad and pale, so that power 1 shows on top of it; the powers from light to dark."""
    linear = {"color": "#BDBDBD", "linewidth": 3 * plots.LINE_WIDTH}
    cosine = plots.line_style(1)
    ramp = [{"color": c, "linewidth": plots.LINE_WIDTH} for c in plots.ramp(powers)]
    return [linear, cosine, *ramp]


def print_ends(schedules: list[Schedule]) -> None:
    """What each schedule begins and ends with."""
    width = max(len(schedule.name) for schedule in schedules)
    print(f"{'schedule':<{width}}  {'beta_1':>9}  {'beta_T':>9}  {'alpha_bar_T':>11}  log_snr_T")
    for name, betas, alpha_bar, log_snr in schedules:
        ends = f"{betas[0]:>9.3g}  {betas[-1]:>9.3g}  {alpha_bar[-1]:>11.3g}  {log_snr[-1]:>9.2f}"
        print(f"{name:<{width}}  {ends}")


if __name__ == "__main__":
    cli.run(main)
