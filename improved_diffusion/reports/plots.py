"""Line plots for documents: one style for all figures, and PNG files that appear whole.

matplotlib is optional and imported where it is used. Figures are made without pyplot, so nothing
global changes and no window is ever opened.
"""

import math
import os
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
INK, QUIET, GRID = "#222222", "#8C8C8C", "#E3E3E3"
TITLE_SIZE, LABEL_SIZE, TICK_SIZE = 10, 9.5, 8.5
LINE_WIDTH = 1.7
# Okabe and Ito's colours, which people with any colour vision tell apart; without the pale ones.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.6)), (0, (1.3, 1.3)), (0, (6, 1.6, 1.3, 1.6)))


def new_figure(
    columns: int = 1, rows: int = 1, width: float = 10.0, height: float = 3.2
) -> tuple["Figure", list["Axes"]]:
    """A figure and its axes, row by row.

    :param width: of the whole figure in inches; a PNG has :data:`DPI` pixels an inch.
    :raises InputError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise InputError(
            'drawing needs matplotlib, which is not installed; run `pip install -e ".[plots]"` '
            "in the project's folder"
        ) from None
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=0.03)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for each in axes:
        _style_axes(each)
    return figure, axes


def _style_axes(axes: "Axes") -> None:
    """Thin lines on the left and below, a faint grid behind the curves."""
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(linewidth=0.7, color=QUIET)
    axes.tick_params(which="both", labelsize=TICK_SIZE, labelcolor=INK, color=QUIET, width=0.7)
    axes.tick_params(length=3)
    axes.tick_params(which="minor", length=0)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def label_axes(axes: "Axes", title: str, x: str, y: str) -> None:
    """Write a title over the left edge, and both axes' names, units included."""
    text = axes.set_title(title, loc="left", fontsize=TITLE_SIZE, fontweight="bold", color=INK)
    text.set_parse_math(False)  # a name may hold dollar signs
    axes.set_xlabel(x, fontsize=LABEL_SIZE, color=INK)
    axes.set_ylabel(y, fontsize=LABEL_SIZE, color=INK)


def make_logarithmic(axes: "Axes") -> None:
    """Make the y axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the line of that number: all differ in one, neighbours in both."""
    colour = COLOURS[index % len(COLOURS)]
    dashes = DASHES[(index + index // math.lcm(len(COLOURS), len(DASHES))) % len(DASHES)]
    return {"color": colour, "linestyle": dashes, "linewidth": LINE_WIDTH}


def ramp(count: int) -> list[Any]:
    """``count`` colours from light to dark, for lines that have an order."""
    from matplotlib import colormaps

    places = [0.5] if count == 1 else [0.9 * i / (count - 1) for i in range(count)]
    return [colormaps["viridis_r"](0.2 + 0.8 * place) for place in places]


def shared_legend(figure: "Figure", axes: "Axes") -> None:
    """One legend over the whole figure, of the lines in ``axes``, in as few rows as fit."""
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    names = [name for name in lines if not name.startswith("_child")]
    # As many columns as fit by the usual width of letters; 4.6: ems of the line and the gaps.
    width = (0.6 * max(map(len, names)) + 4.6) * LABEL_SIZE / 72
    legend = figure.legend(
        [lines[name] for name in names],
        names,
        loc="outside upper center",
        ncols=max(1, int(figure.get_figwidth() / width)),
        frameon=False,
        fontsize=LABEL_SIZE,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=1.6,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def write_below(figure: "Figure", text: str) -> None:
    """Write a line below the whole figure, broken where it is too long; nothing for ""."""
    if text:
        figure.supxlabel(text, fontsize=TICK_SIZE, color=INK, parse_math=False, wrap=True)


def save_figure(figure: "Figure", path: str | os.PathLike) -> None:
    """Write ``figure`` as a PNG, which appears whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=DPI)
