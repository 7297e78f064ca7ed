"""Tables in files: read, and cut back to a step."""

import contextlib
import math
import os

import pytest
from tiny_runs import rows_of

from improved_diffusion.errors import InputError
from improved_diffusion.logs.formats import CSVOutputFormat, JSONOutputFormat
from improved_diffusion.logs.tables import check_columns, cut_csv, cut_json, read_columns, read_csv


def test_damage_before_the_last_line_is_an_error_that_says_where(tmp_path):
    (tmp_path / "p.csv").write_text("a,b\n1,2\n3\n4,5\n")
    with pytest.raises(InputError, match=r"p\.csv: row 2 has 1 cells .* header has 2"):
        read_csv(tmp_path / "p.csv")


def test_an_empty_file_is_whole(tmp_path):
    """Another process may be about to write to the same folder, so nothing is written anew."""
    (tmp_path / "p.csv").touch()
    assert read_csv(tmp_path / "p.csv") == ([], [], False)


def test_columns_hold_numbers_text_and_gaps(tmp_path):
    (tmp_path / "p.csv").write_text(f"a,b\n3,0.1\n,nan\n1e300,x\n{2**60},{'9' * 400}\n")
    a, b = read_columns(tmp_path / "p.csv").values()
    assert a == [3, None, 1e300, float(2**60)]
    assert [type(value) for value in a] == [int, type(None), float, float]
    assert math.isnan(b[1])
    assert [b[0], *b[2:]] == [0.1, "x", math.inf]


def test_cut_and_continue_gives_the_bytes_of_the_run_that_never_stopped(tmp_path):
    def write(table, steps):
        for step in steps:
            line = {"step": step, "loss": 1 / (step + 3)}
            table.writekvs(line | ({"late": math.nan} if step >= 6 else {}))

    write(CSVOutputFormat(tmp_path / "whole.csv"), range(10))
    path = tmp_path / "progress.csv"
    write(CSVOutputFormat(path), range(8))
    table = CSVOutputFormat(path)
    assert cut_csv(path, 5) == 3
    assert [row["step"] for row in rows_of(tmp_path / "progress.csv.bak")] == ["5", "6", "7"]
    assert [row["step"] for row in rows_of(path)] == ["0", "1", "2", "3", "4"]
    write(table, range(5, 10))
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_kill_between_keeping_and_cutting_loses_nothing(tmp_path, monkeypatch):
    path, kept = tmp_path / "p.csv", tmp_path / "p.csv.bak"
    path.write_bytes(b"step,x\n1,a\n2,d\n3,\xff\n")
    kept.write_bytes(b"step\n7\n")
    replace = os.replace

    def die(source, destination):
        if os.fspath(destination).endswith(".csv"):
            raise KeyboardInterrupt
        replace(source, destination)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            cut_csv(path, 2)
    assert path.read_bytes() == b"step,x\n1,a\n2,d\n3,\xff\n"
    assert cut_csv(path, 2) == 2
    assert path.read_bytes() == b"step,x\n1,a\n"
    assert kept.read_bytes() == b"step,x\n2,d\n3,\xff\n", "the last cut's rows, no others"


def test_cutting_nothing_touches_nothing(tmp_path):
    path = tmp_path / "p.csv"
    assert cut_csv(path, 0) == 0
    path.write_bytes(b"step,x\n1,2\n,3\n2.0,4\n")
    assert cut_csv(path, 3) == 0
    assert path.read_bytes() == b"step,x\n1,2\n,3\n2.0,4\n"
    assert [file.name for file in tmp_path.iterdir()] == ["p.csv"]
    assert cut_csv(path, 2) == 1
    assert path.read_bytes() == b"step,x\n1,2\n,3\n"
    path.write_bytes(b"x\n")
    assert cut_csv(path, 0) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("step;loss\n0;0,5\n", "semicolons between its cells"),
        ("step\tloss\n0\t0.5\n", "tabs between its cells"),
        ("Step,loss\n0,0.5\n", "lost its column 'step' and has 'Step', 'loss'"),
        ("step,loss,step\n0,0.5,0\n", "two columns 'step'"),
        ("step,loss\nzero,0.5\n", "'zero' in row 1, column 'step', is no number"),
    ],
)
def test_a_log_that_a_spreadsheet_changed_is_not_cut(tmp_path, content, said):
    path = tmp_path / "progress.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        cut_csv(path, 0)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("step,Loss\n0,0.5\n", "lost its column 'loss' and has 'step', 'Loss'"),
        ('step,loss\n0,"0,5"\n', "'0,5' in row 1, column 'loss', is no number"),
        ("step,loss,note\n0,,anything\n", None),
        ("", None),
        ("Step\n", None),
    ],
)
def test_rows_are_added_to_the_columns_of_the_run_only(tmp_path, content, said):
    path = tmp_path / "progress.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
        check_columns(path, wanted=["step", "loss"], numbers=["step", "loss", "mse"])


def test_json_lines_are_cut(tmp_path):
    path = tmp_path / "progress.json"
    output = JSONOutputFormat(path)
    for step in range(4):
        output.writekvs({"step": step})
    assert cut_json(path, 2) == 2
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    assert (tmp_path / "progress.json.bak").read_text() == '{"step": 2}\n{"step": 3}\n'
    assert cut_json(path, 2) == 0
    assert cut_json(path, 1) == 1
    assert (tmp_path / "progress.json.bak").read_text() == '{"step": 1}\n'
    assert cut_json(tmp_path / "missing.json", 2) == 0
    path.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match="no file of JSON lines"):
        cut_json(path, 0)
