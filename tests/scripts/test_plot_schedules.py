"""The picture of the noise schedules: its lines are the schedules, its file is a PNG."""

import re
import runpy

import numpy as np
import pytest
from in_process import SCRIPTS
from PIL import Image

from improved_diffusion.diffusion.noise_schedules import get_named_beta_schedule

pytest.importorskip("matplotlib", reason='pictures need matplotlib: pip install -e ".[plots]"')

EXPECTED = {
    "linear": ("linear", 2.0),
    "cosine": ("cosine", 2.0),
    "polynomial 0.5": ("polynomial", 0.5),
    "polynomial 2": ("polynomial", 2.0),
}


@pytest.fixture(scope="module")
def program():
    """The script's names."""
    return runpy.run_path(str(SCRIPTS / "plot_schedules.py"))


@pytest.fixture(scope="module")
def figure(program):
    return program["draw"](program["compute_schedules"](100, [0.5, 2.0]))


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_lines_are_the_schedules(figure, name):
    schedule, power = EXPECTED[name]
    betas = get_named_beta_schedule(schedule, 100, power)
    alpha_bar = np.cumprod(1 - betas)
    log_snr = np.log(alpha_bar / (1 - alpha_bar))
    for axes, values in zip(figure.axes, (betas, alpha_bar, log_snr), strict=True):
        line = lines_of(axes)[name]
        np.testing.assert_allclose(line.get_ydata(), values, rtol=1e-9)
        np.testing.assert_allclose(line.get_xdata(), np.arange(1, 101) / 100)


def test_every_line_is_named_and_looks_different(figure):
    for axes in figure.axes:
        lines = lines_of(axes)
        assert list(lines) == list(EXPECTED)
        assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) == 4
        assert axes.get_xlabel() == "t / T"
        assert axes.get_ylabel()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(EXPECTED)


def test_nothing_leaves_the_figure_or_overlaps(program):
    figure = program["draw"](program["compute_schedules"](100, [0.5, 1, 2, 3, 4, 5, 6, 7, 8]))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert box.x0 >= 0
    assert box.x1 <= whole.x1
    assert box.y1 <= whole.y1
    for axes in figure.axes:
        assert axes.get_tightbbox().y1 <= box.y0 + 1


def test_nothing_left_is_minus_infinity(program):
    linear = program["compute_schedules"](20, [1.0])[0]
    assert linear.betas[-1] == 1
    assert linear.log_snr[-1] == -np.inf


@pytest.mark.parametrize(("text", "powers"), [("2", [2]), ("3,0.5, 1,3", [0.5, 1, 3])])
def test_powers(program, text, powers):
    assert program["parse_powers"](text) == powers


def test_the_script_writes_a_png_and_prints_the_ends(scripts, tmp_path):
    out, err = scripts.run_process("plot_schedules.py", out=tmp_path / "a.png", poly_powers="1,3")
    assert err == ""
    assert out.splitlines()[-1] == str(tmp_path / "a.png")
    assert re.search(r"^linear +0\.0001 +0\.02 +4\.04e-05 +-10\.12$", out, re.MULTILINE)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1500, 480)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
