import csv
import json
import math
import os
import random
import struct

import numpy as np
import pytest

from improved_diffusion import logger
from improved_diffusion.errors import InputError
from improved_diffusion.logs.formats import (
    CSVOutputFormat,
    HumanOutputFormat,
    JSONOutputFormat,
    cut_csv,
    cut_json,
    make_output_format,
    read_csv,
)


@pytest.fixture(autouse=True)
def fresh_logger(monkeypatch, tmp_path):
    for name in ("OPENAI_LOGDIR", "OPENAI_LOG_FORMAT", "OPENAI_LOG_FORMAT_MPI"):
        monkeypatch.delenv(name, raising=False)
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(logger.Logger, "CURRENT", None)
    monkeypatch.setattr(logger.Logger, "DEFAULT", None)


def log_line(**values):
    logger.logkvs(values)
    return logger.dumpkvs()


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- logger


def test_dumpkvs_returns_what_it_wrote_and_starts_anew(tmp_path):
    logger.configure(dir=tmp_path / "run", format_strs=["csv"])
    logger.logkv("step", 3)
    logger.logkv_mean("loss", 1.0)
    logger.logkv_mean("loss", 2.0)
    assert logger.getkvs() == {"step": 3, "loss": 1.5}
    assert logger.dumpkvs() == {"step": 3, "loss": 1.5}
    assert logger.getkvs() == {}
    logger.logkv_mean("loss", 7.0)
    assert logger.dumpkvs() == {"loss": 7.0}
    assert rows_of(tmp_path / "run/progress.csv")[0] == {"step": "3", "loss": "1.5"}


def test_running_mean_is_the_published_recurrence(tmp_path):
    logger.configure(dir=tmp_path, format_strs=[])
    mean = 0.0
    for count, value in enumerate(np.random.RandomState(0).uniform(0, 1, 200).tolist()):
        mean = mean * count / (count + 1) + value / (count + 1)
        logger.logkv_mean("x", value)
        assert logger.getkvs()["x"] == mean


def test_an_empty_line_is_not_written(tmp_path, capsys):
    logger.configure(dir=tmp_path, format_strs=["stdout", "csv", "json"])
    capsys.readouterr()
    assert logger.dumpkvs() == {}
    assert capsys.readouterr().out == ""
    assert (tmp_path / "progress.csv").read_bytes() == b""
    assert (tmp_path / "progress.json").read_bytes() == b""


def test_scalars_of_numpy_and_torch_become_plain_numbers(tmp_path):
    torch = pytest.importorskip("torch")
    logger.configure(dir=tmp_path, format_strs=["csv", "json"])
    line = log_line(a=np.float32(0.5), b=torch.tensor(2), c=np.float64(0.1), d=np.int64(7))
    assert line == {"a": 0.5, "b": 2, "c": 0.1, "d": 7}
    assert {type(value) for value in line.values()} == {int, float}
    assert (tmp_path / "progress.csv").read_text() == "a,b,c,d\n0.5,2,0.1,7\n"


def test_default_directory_and_formats(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_LOGDIR", str(tmp_path / "from env"))
    logger.configure()
    assert logger.get_dir() == str(tmp_path / "from env")
    names = sorted(path.name for path in (tmp_path / "from env").iterdir())
    assert names == ["log.txt", "progress.csv"]
    assert str(tmp_path / "from env") in capsys.readouterr().out
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "json,")
    logger.configure(dir=str(tmp_path / "b"))
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["progress.json"]


def test_use_without_configure_speaks_on_stdout(capsys):
    logger.log("hello", 3)
    assert "hello 3\n" in capsys.readouterr().out
    assert "openai-" in logger.get_dir()
    assert logger.Logger.CURRENT is logger.Logger.DEFAULT


@pytest.mark.parametrize("variable", ["RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"])
def test_other_ranks_write_only_their_own_text(tmp_path, monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "2")
    logger.configure(dir=tmp_path / "run")
    log_line(x=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log-rank002.txt"]
    assert capsys.readouterr().out == ""


def test_levels(tmp_path, capsys):
    logger.configure(dir=tmp_path, format_strs=["stdout"])
    capsys.readouterr()
    logger.debug("a")
    logger.info("b")
    logger.set_level(logger.WARN)
    logger.info("c")
    logger.warn("d")
    logger.error("e")
    logger.set_level(logger.DISABLED)
    logger.error("f")
    assert capsys.readouterr().out == "b\nd\ne\n"


def test_scoped_configure_restores_even_after_an_error(tmp_path):
    logger.configure(dir=tmp_path / "outer", format_strs=["csv"])
    logger.logkv("x", 1)

    def fail_inside():
        with logger.scoped_configure(dir=tmp_path / "inner", format_strs=["csv"]):
            log_line(y=2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert logger.get_dir() == str(tmp_path / "outer")
    assert logger.dumpkvs() == {"x": 1}
    assert rows_of(tmp_path / "inner/progress.csv") == [{"y": "2"}]


def test_reset_goes_back_to_the_default(tmp_path):
    logger.log("make the default")
    default = logger.Logger.CURRENT
    logger.configure(dir=tmp_path, format_strs=["log"])
    logger.reset()
    assert logger.Logger.CURRENT is default


def test_profile_adds_up_seconds(tmp_path):
    logger.configure(dir=tmp_path, format_strs=[])

    @logger.profile("work")
    def work(x, *, y):
        return x + y

    assert work(1, y=2) == 3
    once = logger.getkvs()["wait_work"]
    with logger.profile_kv("work"):
        pass
    assert logger.getkvs()["wait_work"] > once > 0
    assert work.__name__ == "work"


def test_comm_averages_by_weight_and_leaves_text_alone(tmp_path):
    class WithAnotherProcess:
        def weighted_mean(self, values):
            assert values == {"loss": (2.0, 3)}
            mean, count = values["loss"]
            return {"loss": (mean * count + 10.0 * 1) / (count + 1), "theirs": 5.0}

    logger.configure(dir=tmp_path, format_strs=["csv"], comm=WithAnotherProcess())
    for value in (1.0, 2.0, 3.0):
        logger.logkv_mean("loss", value)
    logger.logkv("name", "text")
    assert logger.dumpkvs() == {"loss": 4.0, "name": "text", "theirs": 5.0}


def test_state_continues_a_line_exactly(tmp_path):
    torch = pytest.importorskip("torch")
    values = np.random.RandomState(1).uniform(0, 1, 37).tolist()
    whole = logger.Logger(None, [])
    first = logger.Logger(None, [])
    for log in (whole, first):
        for value in values[:20]:
            log.logkv_mean("loss", value)
        log.logkv("step", 20)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = logger.Logger(None, [])
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for log in (whole, second):
        for value in values[20:]:
            log.logkv_mean("loss", value)
    assert second.state_dict() == whole.state_dict()
    assert second.dumpkvs() == whole.dumpkvs()


def test_state_is_a_copy():
    log = logger.Logger(None, [])
    log.logkv_mean("x", 1.0)
    state = log.state_dict()
    log.logkv_mean("x", 3.0)
    assert state == {"values": {"x": 1.0}, "counts": {"x": 1}}


@pytest.mark.parametrize("dir", ["file/run", "file"])
def test_unwritable_directory_is_one_line_that_names_it(tmp_path, dir):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=str(tmp_path / dir)) as caught:
        logger.configure(dir=tmp_path / dir)
    assert "\n" not in str(caught.value)


def test_bad_formats_and_urls(tmp_path):
    with pytest.raises(InputError, match=r"'xml'.*stdout"):
        logger.configure(dir=tmp_path, format_strs=["xml"])
    with pytest.raises(InputError, match="DIFFUSION_BLOB_LOGDIR"):
        logger.configure(dir="gs://bucket/run")


# --- terminal and text


def test_table(tmp_path, capsys):
    logger.configure(dir=tmp_path, format_strs=["stdout"])
    capsys.readouterr()
    log_line(Zeta=0.00012345, alpha=10, **{"k" * 40: "v" * 40})
    assert capsys.readouterr().out == (
        "-------------------------------------------------------------------\n"
        "| alpha                          | 10                             |\n"
        "| kkkkkkkkkkkkkkkkkkkkkkkkkkk... | vvvvvvvvvvvvvvvvvvvvvvvvvvv... |\n"
        "| Zeta                           | 0.000123                       |\n"
        "-------------------------------------------------------------------\n"
    )


def test_text_file_is_continued(tmp_path):
    for word in ("one", "two"):
        log = HumanOutputFormat(tmp_path / "log.txt")
        log.writeseq([word, "é"])
        log.close()
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "one é\ntwo é\n"


# --- CSV


def random_float(source):
    return struct.unpack("d", source.randbytes(8))[0]


@pytest.mark.parametrize("seed", range(5))
def test_floats_come_back_with_the_same_bits(tmp_path, seed):
    source = random.Random(seed)
    values = [random_float(source) for _ in range(200)] + [math.nan, math.inf, -math.inf, -0.0]
    table = CSVOutputFormat(tmp_path / "progress.csv")
    for value in values:
        table.writekvs({"x": value})
    back = [float(row["x"]) for row in rows_of(tmp_path / "progress.csv")]
    assert [repr(value) for value in back] == [repr(value) for value in values]
    assert {row["x"] for row in rows_of(tmp_path / "progress.csv")[200:203]} == {
        "nan",
        "inf",
        "-inf",
    }


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


def test_new_columns_come_last_in_alphabetical_order(tmp_path):
    table = CSVOutputFormat(tmp_path / "p.csv")
    table.writekvs({"m": 1})
    table.writekvs({"z": 2, "a": 3, "m": 4})
    table.writekvs({"a": 5})
    assert (tmp_path / "p.csv").read_bytes() == b"m,a,z\n1,,\n4,3,2\n,5,\n"


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
        path.write_bytes(whole[:length])
        CSVOutputFormat(path)
        kept = first_two if length >= len(first_two) else header if length >= len(header) else b""
        assert path.read_bytes() == kept, length
        path.write_bytes(whole[:length] + b"\0" * 9)
        CSVOutputFormat(path)
        assert path.read_bytes() == kept, length


def test_a_repaired_table_goes_on(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(b"a,b\n1,2\n3")
    CSVOutputFormat(path).writekvs({"b": 4, "c": 5})
    assert path.read_bytes() == b"a,b,c\n1,2,\n,4,5\n"


def test_a_table_deleted_under_the_run_gets_its_header_again(tmp_path):
    table = CSVOutputFormat(tmp_path / "p.csv")
    table.writekvs({"a": 1})
    (tmp_path / "p.csv").unlink()
    table.writekvs({"a": 2})
    assert (tmp_path / "p.csv").read_bytes() == b"a\n2\n"


def test_damage_before_the_last_line_is_an_error_that_says_where(tmp_path):
    (tmp_path / "p.csv").write_text("a,b\n1,2\n3\n4,5\n")
    with pytest.raises(InputError, match=r"p\.csv: row 2 has 1 cells .* header has 2"):
        CSVOutputFormat(tmp_path / "p.csv")


def test_a_spreadsheet_programs_byte_order_mark_and_line_ends_are_read(tmp_path):
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n")
    CSVOutputFormat(tmp_path / "p.csv").writekvs({"a": 3, "c": 4})
    assert (tmp_path / "p.csv").read_bytes() == b"a,b,c\n1,2,\n3,,4\n"


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


def test_what_was_cut_off_stays_through_later_cuts(tmp_path):
    """Also where the columns have grown, and where a kill came between keeping and cutting."""
    path, kept = tmp_path / "p.csv", tmp_path / "p.csv.bak"
    path.write_bytes(b"step,x\n1,a\n2,b\n3,c\n")
    assert cut_csv(path, 3) == 1
    path.write_bytes(b"step,x,y\n1,a,\n2,d,e\n3,f,\xff\n")
    with pytest.MonkeyPatch.context() as patched:
        replace = os.replace

        def die(source, destination):
            if os.fspath(destination).endswith(".csv"):
                raise KeyboardInterrupt
            replace(source, destination)

        patched.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            cut_csv(path, 2)
    assert path.read_bytes().count(b"\n") == 4
    assert cut_csv(path, 2) == 2
    assert path.read_bytes() == b"step,x,y\n1,a,\n"
    assert kept.read_bytes() == b"step,x,y\n3,c,\n2,d,e\n3,f,\xff\n"


def test_cutting_nothing_touches_nothing(tmp_path):
    path = tmp_path / "p.csv"
    assert cut_csv(path, 0) == 0
    path.write_bytes(b"step,x\n1,2\n,3\n2.0,4\n")
    assert cut_csv(path, 3) == 0
    assert path.read_bytes() == b"step,x\n1,2\n,3\n2.0,4\n"
    assert [file.name for file in tmp_path.iterdir()] == ["p.csv"]
    assert cut_csv(path, 2) == 1
    assert path.read_bytes() == b"step,x\n1,2\n,3\n"
    path.write_bytes(b"x\n1\n")
    assert cut_csv(path, 0) == 0


# --- JSON


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
    assert (tmp_path / "progress.json.bak").read_text().endswith('{"step": 3}\n{"step": 1}\n')
    assert cut_json(tmp_path / "missing.json", 2) == 0


# --- TensorBoard


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


def test_tensorboard_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        logger.configure(dir=tmp_path, format_strs=["tensorboard"])


def test_a_format_named_twice_writes_once(tmp_path):
    with logger.scoped_configure(dir=tmp_path, format_strs=["csv", " csv"]):
        for step in range(2):
            logger.logkv("step", step)
            logger.dumpkvs()
    assert (tmp_path / "progress.csv").read_text() == "step\n0\n1\n"
