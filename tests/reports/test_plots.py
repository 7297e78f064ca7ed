"""The style that all figures share, and what drawing leaves alone."""

import sys

import pytest
from in_process import run_program

from improved_diffusion.errors import InputError
from improved_diffusion.reports import plots

pytest.importorskip("matplotlib", reason='pictures need matplotlib: pip install -e ".[plots]"')


def test_line_styles_differ():
    styles = [plots.line_style(i) for i in range(24)]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == 24


def test_a_missing_matplotlib_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[plots\]"'):
        plots.new_figure()


def test_drawing_changes_nothing_global():
    program = (
        "import sys, improved_diffusion.reports.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.new_figure()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    run_program(program)
