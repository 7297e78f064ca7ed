import datetime
import gc
import json
import math

import numpy as np
import openpyxl
import pytest
from in_process import run_program
from PIL import Image

from improved_diffusion.errors import InputError
from improved_diffusion.logs.formats import CSVOutputFormat
from improved_diffusion.reports.run_workbook import export_workbook
from improved_diffusion.reports.sheets import number_format


def write_log(path, lines=30, **changes):
    """Write a log in which the loss falls from 1 to 0.01; ``changes``: column to {line: value}."""
    table = CSVOutputFormat(path)
    for n in range(lines):
        loss = 10 ** (-2 * n / max(lines - 1, 1))
        line = {"step": 10 * n, "samples": 80 * n + 8, "loss": loss, "mse": loss / 3}
        line |= {f"loss_q{q}": loss * (q + 1) for q in range(4)}
        line |= {"grad_norm": 2 + loss, "wall_time": 1.5 * n}
        table.writekvs(line | {k: v[n] for k, v in changes.items() if n in v})
    return path


def export(path, **options):
    out = path.with_name("results.xlsx")
    export_workbook(path, out, **options)
    return openpyxl.load_workbook(out)


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ([3, 12000, None], "#,##0"),
        ([0.5, math.nan, 999.0], "0.0000"),
        ([0.5, 1e-4, 0.0], "0.00E+00"),
        ([0.5, 12345.6], "#,##0.00"),
        ([0.05, 12345.6], "0.00E+00"),
        ([math.nan, 0.0], "0.0000"),
    ],
)
def test_a_column_shows_the_digits_that_tell_its_numbers_apart(values, form):
    assert number_format(values) == form


def test_no_workbook_costs_a_training_the_memory_of_pandas(tmp_path):
    log = write_log(tmp_path / "progress.csv")
    program = (
        "import sys\n"
        "from improved_diffusion.reports.run_workbook import export_workbook\n"
        f"export_workbook({str(log)!r}, {str(tmp_path / 'results.xlsx')!r})\n"
        "print('pandas' in sys.modules)"
    )
    assert run_program(program) == "False\n"


def test_no_cells_stay_in_memory(tmp_path):
    log = write_log(tmp_path / "progress.csv")
    gc.collect()
    gc.disable()
    try:
        before = number_of_cells()  # of books that other tests cut short
        export_workbook(log, tmp_path / "results.xlsx")
        after = number_of_cells()
    finally:
        gc.enable()
    assert after == before


def number_of_cells():
    return sum(type(thing) is openpyxl.cell.Cell for thing in gc.get_objects())


def records(sheet):
    header, *rows = sheet.iter_rows()
    names = [cell.value for cell in header]
    return [dict(zip(names, row, strict=True)) for row in rows]


def summary_of(book):
    rows = [[cell for cell in row if cell is not None] for row in book["summary"].values]
    return {row[0]: row[1:] for row in rows if row}


def title_of(titled):
    return "".join(run.t for p in titled.title.tx.rich.p for run in p.r)


def charts_of(book):
    return {title_of(chart): chart for chart in book["charts"]._charts}


def test_every_number_arrives_as_that_number(tmp_path):
    path = write_log(tmp_path / "progress.csv")
    rows = records(export(path)["metrics"])
    assert len(rows) == 30
    for n, row in enumerate(rows):
        assert {cell.data_type for cell in row.values()} == {"n"}
        assert row["step"].value == 10 * n
        # The file format's writer keeps 16 digits.
        assert row["loss"].value == pytest.approx(10 ** (-2 * n / 29), rel=1e-15)


def test_known_columns_come_first_in_the_order_of_the_list(tmp_path):
    extra = {"alpha": {0: 1}, "vb": {0: 1}, "steps_per_second": {0: 2}}
    (header, *_) = export(write_log(tmp_path / "progress.csv", lines=2, **extra))["metrics"].values
    quarters = ["loss_q0", "loss_q1", "loss_q2", "loss_q3"]
    front = ["step", "samples", "loss", "mse", "vb", "grad_norm", *quarters]
    assert list(header) == [*front, "wall_time", "steps_per_second", "alpha"]


def test_header_is_frozen_and_pages_are_set_up(tmp_path):
    book = export(write_log(tmp_path / "progress.csv"))
    assert book.sheetnames == ["summary", "charts", "metrics", "config"]
    sheet = book["metrics"]
    assert sheet.freeze_panes == "B2"
    assert sheet.print_title_rows == "$1:$1"
    for sheet in book:
        assert sheet.page_setup.orientation == "landscape"
        assert sheet.sheet_properties.pageSetUpPr.fitToPage
        assert sheet.page_setup.fitToHeight == 0


def test_what_is_not_finite_is_an_empty_cell_with_a_note(tmp_path):
    odd = {"loss": {3: math.nan, 4: math.inf, 5: -math.inf}, "vb": {2: 0.5}}
    rows = records(export(write_log(tmp_path / "progress.csv", **odd))["metrics"])
    assert [row["loss"].value for row in rows[3:6]] == [None] * 3
    notes = [row["loss"].comment.text for row in rows[3:6]]
    assert notes == ["logged as nan", "logged as inf", "logged as -inf"]
    assert rows[2]["loss"].comment is None
    assert rows[2]["loss"].value is not None
    assert [row["vb"].value for row in rows[:4]] == [None, None, 0.5, None]
    assert rows[0]["vb"].comment is None, "it was not logged"


def test_summary(tmp_path):
    last = {"loss": {7: 0.001, 20: math.nan, 28: math.inf, 29: 0.5}}
    summary = summary_of(export(write_log(tmp_path / "progress.csv", **last)))
    assert summary["steps"] == [291]
    assert summary["images"] == [29 * 80 + 8]
    assert summary["log lines"] == [30]
    assert summary["duration (h:mm:ss)"] == [datetime.timedelta(seconds=44)]
    mean = (10 ** (-2 * 27 / 29) + 0.5) / 2  # of lines 27 to 29, without the infinity
    assert summary["loss"] == [1.0, 0.001, 70, 0.5, pytest.approx(mean), 2]
    assert summary["mse"][0] == 1 / 3
    assert summary["mse"][-1] == 0
    assert summary["grad_norm"][:4] == [3.0, 2.01, 290, 2.01]


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ([5.0, 10.0, 15.0, 20.0], 20),
        ([5.0, 10.0, 4.0, 8.0], 18),  # a resumed run that counts anew
        ([math.nan, 10.0, 20.0, math.nan], 20),
    ],
)
def test_duration(tmp_path, times, seconds):
    path = write_log(tmp_path / "p.csv", lines=4, wall_time=dict(enumerate(times)))
    duration = summary_of(export(path))["duration (h:mm:ss)"]
    assert duration == [datetime.timedelta(seconds=seconds)]


def test_charts_draw_the_metrics_against_the_step(tmp_path):
    book = export(write_log(tmp_path / "progress.csv"))
    charts = charts_of(book)
    header = [cell.value for cell in book["metrics"][1]]
    drawn = {}
    for title, chart in charts.items():
        assert not chart.x_axis.delete
        assert not chart.y_axis.delete
        assert title_of(chart.x_axis) == "step"
        for series in chart.series:
            assert series.marker.symbol is None, "lines have no markers"
            column = {}
            for axis in ("xVal", "yVal"):
                sheet, cells = getattr(series, axis).numRef.f.split("!")
                first, last = cells.replace("$", "").split(":")
                assert (sheet, first[1:], last[1:]) == ("'metrics'", "2", "31")
                column[axis] = header[ord(first[0]) - ord("A")]
            assert column["xVal"] == "step"
            drawn.setdefault(title, []).append(column["yVal"])
    assert drawn == {
        "Loss": ["loss"],
        "Mean squared error": ["mse"],
        "Loss by quarter of the timesteps": ["loss_q0", "loss_q1", "loss_q2", "loss_q3"],
        "Gradient norm": ["grad_norm"],
    }


def test_axes_are_logarithmic_where_that_reads_better(tmp_path):
    charts = charts_of(export(write_log(tmp_path / "progress.csv")))
    assert charts["Loss"].y_axis.scaling.logBase == 10
    assert (charts["Loss"].y_axis.scaling.min, charts["Loss"].y_axis.scaling.max) == (0.01, 1)
    assert charts["Gradient norm"].y_axis.scaling.logBase is None
    for value in (0.0, -0.001):
        path = write_log(tmp_path / f"{value}.csv", loss={5: value})
        assert charts_of(export(path))["Loss"].y_axis.scaling.logBase is None


def test_long_logs_get_a_moving_mean(tmp_path):
    assert charts_of(export(write_log(tmp_path / "s.csv")))["Loss"].series[0].trendline is None
    charts = charts_of(export(write_log(tmp_path / "l.csv", lines=500)))
    trendline = charts["Loss"].series[0].trendline
    assert (trendline.trendlineType, trendline.period) == ("movingAvg", 10)


def test_a_single_line_and_a_log_without_known_columns_work(tmp_path):
    for lines, symbol in ((1, "circle"), (2, None)):
        charts = charts_of(export(write_log(tmp_path / f"{lines}.csv", lines=lines)))
        assert len(charts) == 4
        assert charts["Loss"].series[0].marker.symbol == symbol
    (tmp_path / "other.csv").write_text("name,psnr\nx,30.5\ny,31\n")
    book = export(tmp_path / "other.csv")
    assert not book["charts"]._charts
    assert book["metrics"]["B2"].value == 30.5


def test_column_that_is_never_finite(tmp_path):
    path = write_log(tmp_path / "p.csv", lines=3, loss=dict.fromkeys(range(3), math.nan))
    book = export(path)
    assert "Loss" not in charts_of(book)
    assert summary_of(book)["loss"] == [3]


def test_last_tenth_that_is_not_finite(tmp_path):
    broken = dict.fromkeys(range(27, 30), math.nan)
    book = export(write_log(tmp_path / "p.csv", lines=30, loss=broken))
    names, row = (
        next(row for row in book["summary"].values if row[0] == name) for name in ("metric", "loss")
    )
    loss = dict(zip(names, row, strict=True))
    assert (loss["first"], loss["at step"], loss["not finite"]) == (1, 260, 3)
    assert loss["mean of last tenth"] is None


def test_text_never_becomes_a_formula(tmp_path):
    evil = ['=HYPERLINK("http://x")', "=1+1", "#N/A", "bell\a"]
    path = write_log(tmp_path / "p.csv", note=dict(enumerate(evil)), **{"=A1": {0: "=B2"}})
    (tmp_path / "config.json").write_text('{"=key": "=value", "flags": {"x": "=2"}}')
    book = export(path)
    cells = [cell for sheet in book for row in sheet.iter_rows() for cell in row]
    assert not [cell for cell in cells if cell.data_type in "fe"]
    notes = [row["note"].value for row in records(book["metrics"])[:4]]
    assert notes == [*evil[:3], "bell\ufffd"]
    assert {"=key", "=value", "=2", "=B2", "=A1"} <= {cell.value for cell in cells}


def test_config_is_that_of_the_file_beside(tmp_path):
    path = write_log(tmp_path / "progress.csv")
    flags = {"lr": 1e-4, "batch_size": 8, "class_cond": False, "resume": None, "l": [1, 2]}
    config = {"processor": "a CPU", "flags": flags, "versions": {"torch": "2.13.0"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = list(export(path)["config"].values)
    for row in [
        ("processor", "a CPU"),
        ("flags", None),
        ("lr", 1e-4),
        ("batch_size", 8),
        ("class_cond", False),
        ("resume", "None"),
        ("l", "[1, 2]"),
        ("torch", "2.13.0"),
    ]:
        assert row in rows
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        export(path)


def test_picture(tmp_path):
    Image.fromarray(np.zeros((100, 2000, 3), np.uint8)).save(tmp_path / "000010.png")
    path = write_log(tmp_path / "progress.csv")
    sheet = export(path, picture=tmp_path / "000010.png")["samples"]
    assert len(sheet._images) == 1
    assert "000010.png" in sheet["A1"].value
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for name in ("bad.png", "missing.png"):
        with pytest.raises(InputError, match=name):
            export(path, picture=tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no log"),
        (b"", "no lines yet"),
        (b"step,loss\n", "no lines yet"),
        (b"step,loss\n1", "no lines yet"),
        (b"a,b\nx,y\n", "not a training log"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0,\0\n,,\n", "p.csv"),
    ],
)
def test_what_is_no_log_is_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "p.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        export(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results.xlsx").exists()


@pytest.mark.slow
def test_script_writes_beside_the_log_with_the_newest_samples(tmp_path, scripts):
    write_log(tmp_path / "progress.csv")
    (tmp_path / "samples").mkdir()
    for name in ("000010.png", "000020.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "samples" / name)
    out, _ = scripts.run("export_results.py", log_dir=tmp_path)
    assert out == f"{tmp_path / 'results.xlsx'}\n"
    book = openpyxl.load_workbook(tmp_path / "results.xlsx")
    assert "000020.png" in book["samples"]["A1"].value


@pytest.mark.slow
def test_script_puts_a_note_by_figures_and_picture(tmp_path, scripts):
    log = write_log(tmp_path / "progress.csv")
    Image.new("RGB", (64, 64)).save(tmp_path / "grid.png")
    flags = {"csv": log, "picture": tmp_path / "grid.png", "note": "=of copies"}
    scripts.run("export_results.py", out=tmp_path / "o.xlsx", **flags)
    book = openpyxl.load_workbook(tmp_path / "o.xlsx")
    cells = [book["summary"]["A2"], book["charts"]["A1"], book["samples"]["A2"]]
    assert [(cell.value, cell.data_type) for cell in cells] == [("=of copies", "s")] * 3
    assert book["charts"]._charts[0].anchor.pos.y > 200_000, "charts begin below the note"
    assert len(book["samples"]._images) == 1
