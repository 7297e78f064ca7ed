"""Files that log lines go to: continued by a second run, whole after a kill."""

import json
import math
import random
import struct

import numpy as np
import pytest
from tiny_runs import rows_of

from improved_diffusion.logs.formats import (
    CSVOutputFormat,
    HumanOutputFormat,
    JSONOutputFormat,
    make_output_format,
)
from improved_diffusion.logs.tables import read_csv


def test_text_file_is_continued(tmp_path):
    for word in ("one", "two"):
        log = HumanOutputFormat(tmp_path / "log.txt")
        log.writeseq([word, "é"])
        log.close()
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "one é\ntwo é\n"


def test_floats_come_back_with_the_same_bits(tmp_path):
    source = random.Random(0)
    values = [struct.unpack("d", source.randbytes(8))[0] for _ in range(1000)]
    values += [math.nan, math.inf, -math.inf, -0.0]
    table = CSVOutputFormat(tmp_path / "progress.csv")
    for value in values:
        table.writekvs({"x": value})
    cells = [row["x"] for row in rows_of(tmp_path / "progress.csv")]
    assert [repr(float(cell)) for cell in cells] == [repr(value) for value in values]
    assert cells[1000:] == ["nan", "inf", "-inf", "-0.0"]


@pytest.mark.parametrize("seed", range(20))
def test_columns_grow_without_losing_a_cell(tmp_path, seed):
    source = random.Random(seed)
    path = tmp_path / "progress.csv"
    texts = ["plain", "with,comma", 'with "quotes"', "two\nlines", "ünï", "=1+1", " space ", '"']
    keys = [f"k{n}" for n in range(8)] + ["a,b", 'a"b', "a\nb"]
    expected = []
    order = []
    table = CSVOutputFormat(path)
    for _ in range(30):
        chosen = source.sample(keys, source.randint(1, len(keys)))
        line = {key: source.choice([source.random(), 7, *texts]) for key in chosen}
        order += sorted(set(line) - set(order))
        expected.append({key: str(value) for key, value in line.items()})
        if source.random() < 0.3:
            table = CSVOutputFormat(path)  # as a run that continues does
        table.writekvs(line)
        assert read_csv(path).header == order
    assert rows_of(path) == [{key: row.get(key, "") for key in order} for row in expected]


def test_carriage_returns_do_not_split_a_row(tmp_path):
    table = CSVOutputFormat(tmp_path / "p.csv")
    table.writekvs({"a": "x\ry", "b": 1})
    table.writekvs({"a": "z", "b": 2})
    assert read_csv(tmp_path / "p.csv").rows == [["x\ny", "1"], ["z", "2"]]


def test_growth_that_fails_leaves_the_old_rows(tmp_path, monkeypatch):
    table = CSVOutputFormat(tmp_path / "p.csv")
    table.writekvs({"a": 1})

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        table.writekvs({"a": 2, "b": 3})
    assert (tmp_path / "p.csv").read_bytes() == b"a\n1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_every_tear_of_the_last_line_is_repaired(tmp_path):
    table = CSVOutputFormat(tmp_path / "whole.csv")
    for line in ({"a": 0.25, "b": 'q"uo,te\nnext', "c": "é"}, {"a": 0.5, "b": "x\ny", "c": "ü\nü"}):
        table.writekvs(line)
    whole = (tmp_path / "whole.csv").read_bytes()
    first_two = whole[: whole.rindex(b"0.5,")]
    header = first_two[: first_two.index(b"\n") + 1]
    for length in range(len(whole)):
        path = tmp_path / "torn.csv"
        path.write_bytes(whole[:length] + b"\0" * 9)  # as a power cut may leave it
        CSVOutputFormat(path)
        kept = first_two if length >= len(first_two) else header if length >= len(header) else b""
        assert path.read_bytes() == kept, length
        path.write_bytes(whole[:length])
        CSVOutputFormat(path)
        all_cells = whole[:length].endswith((b'",', b'",\xc3', b'",\xc3\xa9', b'\xbc"'))
        assert path.read_bytes() == (whole[:length] + b"\n" if all_cells else kept), length


def test_a_row_without_its_newline_is_a_row(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(b"step,loss\n0,0.5\n1,0.25")
    assert read_csv(path).rows == [["0", "0.5"], ["1", "0.25"]]
    CSVOutputFormat(path).writekvs({"step": 2, "loss": 0.125})
    assert path.read_bytes() == b"step,loss\n0,0.5\n1,0.25\n2,0.125\n"
    lines = tmp_path / "p.json"
    lines.write_bytes(b'{"step": 0}\n{"step": 1}')
    JSONOutputFormat(lines).writekvs({"step": 2})
    assert lines.read_bytes() == b'{"step": 0}\n{"step": 1}\n{"step": 2}\n'


def test_blank_lines_alone_are_a_table_without_columns(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text("\n\n")
    CSVOutputFormat(path).writekvs({"step": 2, "loss": 0.5})
    assert rows_of(path) == [{"loss": "0.5", "step": "2"}]


def test_a_table_deleted_under_the_run_gets_its_header_again(tmp_path):
    table = CSVOutputFormat(tmp_path / "p.csv")
    table.writekvs({"a": 1})
    (tmp_path / "p.csv").unlink()
    table.writekvs({"a": 2})
    assert (tmp_path / "p.csv").read_bytes() == b"a\n2\n"


def test_a_spreadsheet_programs_byte_order_mark_and_line_ends_are_read(tmp_path):
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n")
    CSVOutputFormat(tmp_path / "p.csv").writekvs({"a": 3, "c": 4})
    assert (tmp_path / "p.csv").read_bytes() == b"a,b,c\n1,2,\n3,,4\n"


def test_json_lines_are_strict_json_and_continue_after_a_tear(tmp_path):
    path = tmp_path / "progress.json"
    JSONOutputFormat(path).writekvs({"step": 1, "a": math.nan, "b": -math.inf, "c": "é\n"})
    with open(path, "a") as file:
        file.write('{"step": 2, "a"')
    JSONOutputFormat(path).writekvs({"step": 2, "a": np.float64(0.1)})

    def refuse(word):
        raise AssertionError(word)

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "a": None, "b": None, "c": "é\n"}, {"step": 2, "a": 0.1}]


def test_tensorboard_scalars_stand_at_their_step(tmp_path):
    pytest.importorskip("tensorboard", reason="the tensorboard package is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = make_output_format("tensorboard", str(tmp_path))
    output.writekvs({"step": 10, "loss": 0.5, "note": "text"})
    output.writekvs({"step": 20, "loss": 0.25})
    output.writekvs({"loss": 0.125})
    output.close()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (10, 0.5),
        (20, 0.25),
        (21, 0.125),
    ]
    assert "note" not in events.Tags()["scalars"]
