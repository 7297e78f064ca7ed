"""Disks that fail in the middle of a file: the old one stays, nothing is left lying about."""

import contextlib
import errno
import gc
import itertools
import os
import re
import shutil
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from made_files import room_for
from toy_training import TIME_COLUMNS, rows, toy_data, toy_loop

from improved_diffusion import logger
from improved_diffusion.commands import cli
from improved_diffusion.logs.formats import CSVOutputFormat, HumanOutputFormat, JSONOutputFormat
from improved_diffusion.reports.sheets import new_book, save_book
from improved_diffusion.system.files import atomic_write
from improved_diffusion.training import checkpoints, log_rows

resource = pytest.importorskip("resource", reason="the system limits no file's size")
FAULTS = [errno.ENOSPC, errno.EIO]
CALLS = ["fsync", "replace"]


class Failing:
    """A stand-in for a function that fails after so many calls, once or from then on."""

    def __init__(self, original, number, after=0, lasting=True):
        self.original, self.number, self.calls, self.after = original, number, 0, after
        self.lasting = lasting

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.after + 1 or (self.lasting and self.calls > self.after):
            raise OSError(self.number, os.strerror(self.number))
        return self.original(*args, **kwargs)


# --- one file


def write_archive(path):
    with atomic_write(path) as file:
        np.savez(file, a=np.zeros(5000), b=np.zeros(5000))


@pytest.mark.parametrize("room", [0, 1000, 4000])
@pytest.mark.parametrize("write", [lambda path: save_book(new_book(), path), write_archive])
def test_writers_of_zip_files_tell_the_first_failure_once(write, room, tmp_path, monkeypatch):
    """Such a writer fails anew when it ends its archive, and again when it is collected."""
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with room_for(room), pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
        write(tmp_path / "file")
    assert caught.value.filename == str(tmp_path / "file")
    gc.collect()
    assert not unraisable
    assert not os.listdir(tmp_path)


def test_a_full_temporary_folder_is_a_full_disk(tmp_path, monkeypatch):
    """openpyxl writes a sheet there, unpacked, before it goes into the workbook."""
    monkeypatch.setattr(sys, "unraisablehook", lambda *_: None)  # a generator of openpyxl's
    book = new_book()
    for _ in range(3000):
        book.worksheets[0].append([1, 2, 3])
    with room_for(50_000), pytest.raises(OSError, match=re.escape(tempfile.gettempdir())):
        save_book(book, tmp_path / "file")
    assert not os.listdir(tmp_path)


# --- a checkpoint


def parts(value, *more):
    """Files of growing size, so that a disk can be full in any of them."""
    names = ("model", "ema_0.9_", "opt", *more, "state")
    return {name: {"w": th.full((3000 * i,), float(value))} for i, name in enumerate(names, 1)}


def value_of(path):
    """What fills a file of a checkpoint; fails if the file is not whole."""
    (value,) = th.load(path, weights_only=True)["w"].unique().tolist()
    return value


def calls_of(call, save, monkeypatch):
    """How often a function of ``os`` is called."""
    with monkeypatch.context() as patched:
        counting = Failing(getattr(os, call), 0, after=10**6)
        patched.setattr(os, call, counting)
        save()
    return counting.calls


def failures(call, count, monkeypatch):
    """Contexts in which a function of ``os`` fails: at each call in turn, once or from then on."""

    @contextlib.contextmanager
    def failing(after, number, lasting):
        with (
            monkeypatch.context() as patched,
            pytest.raises(OSError, match=os.strerror(number)),
        ):
            patched.setattr(os, call, Failing(getattr(os, call), number, after, lasting))
            yield

    assert count >= 4
    return itertools.starmap(failing, itertools.product(range(count), FAULTS, (True, False)))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("stale", [(), ("state",), ("state", "opt"), ("model", "ema_0.9_")])
def test_a_checkpoint_that_fails_leaves_the_last_one(call, stale, tmp_path, monkeypatch):
    """Whichever call fails, the last checkpoint is found, whole, and nothing of the new one counts.

    A torn checkpoint of the new one's number may have been there before.
    """
    folder = str(tmp_path / "run")

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder)
        checkpoints.save_checkpoint(folder, 1, parts(1))
        for name in stale:
            th.save(parts(0)[name], f"{folder}/{name}000002.pt")

    def save():
        checkpoints.save_checkpoint(folder, 2, parts(2))

    prepare()
    count = calls_of(call, save, monkeypatch)
    assert checkpoints.complete_steps(folder) == [1, 2]
    assert {value_of(path) for path in (tmp_path / "run").glob("*2.pt")} == {2}
    for failure in failures(call, count, monkeypatch):
        prepare()
        with failure:
            save()
        assert checkpoints.complete_steps(folder) == [1]
        assert checkpoints.newest_checkpoint(folder) == f"{folder}/model000001.pt"
        assert {value_of(path) for path in (tmp_path / "run").glob("*1.pt")} == {1}
        left = {path.name[:-9] for path in (tmp_path / "run").glob("*2.pt")}
        assert left <= set(stale) - {"state"}
        assert not list((tmp_path / "run").glob(".*.tmp"))


@pytest.mark.parametrize("call", CALLS)
def test_a_checkpoint_that_is_written_again_is_not_lost(call, tmp_path, monkeypatch):
    """It is complete before and after, whatever fails, and so is each of its files."""
    folder = str(tmp_path)

    def save_again():
        checkpoints.save_checkpoint(folder, 1, parts(2, "ema_0.5_"))

    count = calls_of(call, save_again, monkeypatch)
    (tmp_path / "ema_0.5_000001.pt").unlink()
    checkpoints.save_checkpoint(folder, 1, parts(1))
    before = set(os.listdir(folder))
    for failure in failures(call, count, monkeypatch):
        with failure:
            save_again()
        assert checkpoints.complete_steps(folder) == [1]
        assert {value_of(path) for path in tmp_path.iterdir()} <= {1, 2}
        assert set(os.listdir(folder)) == before
    save_again()
    assert {value_of(path) for path in tmp_path.iterdir()} == {2}
    assert set(os.listdir(folder)) == before | {"ema_0.5_000001.pt"}


@pytest.mark.parametrize("removals", range(5))
def test_a_clean_up_that_fails_leaves_no_half_that_counts(removals, tmp_path, monkeypatch):
    folder = str(tmp_path)
    checkpoints.save_checkpoint(folder, 1, parts(1))
    monkeypatch.setattr(os, "fsync", Failing(os.fsync, errno.EIO, after=4))  # that of the folder
    monkeypatch.setattr(os, "unlink", Failing(os.unlink, errno.EIO, after=4 + removals))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        checkpoints.save_checkpoint(folder, 2, parts(2))
    left = [path.name for path in tmp_path.glob("*2.pt")]
    assert len(left) == 4 - min(removals, 4)
    assert checkpoints.complete_steps(folder) == [1, 2][: 1 + (len(left) == 4)]


def test_a_disk_that_is_full_within_torch_save(tmp_path, capsys, monkeypatch):
    """At the beginning, in the middle and at the end of every file; each is one line."""
    folder = str(tmp_path)
    checkpoints.save_checkpoint(folder, 1, parts(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full = 0
    for name in parts(1):
        size = len(before[f"{name}000001.pt"])
        for room in (full, full + 1, full + 500, (full + size) // 2, size - 200, size - 1):
            with room_for(room), pytest.raises(SystemExit) as ended:
                cli.run(lambda: checkpoints.save_checkpoint(folder, 2, parts(2)))
            assert ended.value.code == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert line.endswith(f"{os.strerror(errno.EFBIG)}: '{folder}/{name}000002.pt'")
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        full = size
    with room_for(full):
        checkpoints.save_checkpoint(folder, 2, parts(2))
    assert checkpoints.complete_steps(folder) == [1, 2]


# --- the log


@pytest.mark.parametrize(
    ("kind", "name"), [(CSVOutputFormat, "p.csv"), (JSONOutputFormat, "p.json")]
)
def test_a_row_that_fails_leaves_the_others(kind, name, tmp_path):
    path = tmp_path / name
    table = kind(path)
    table.writekvs({"step": 1, "note": "x"})
    before = path.read_bytes()
    with room_for(len(before) + 5), pytest.raises(OSError, match="too large") as caught:
        table.writekvs({"step": 2, "note": "x" * 100})
    assert caught.value.filename in (path, str(path))
    assert path.read_bytes() == before
    with room_for(0), pytest.raises(OSError, match="too large"):
        table.writekvs({"step": 2, "other": "x"})
    assert path.read_bytes() == before
    table.writekvs({"step": 2, "note": "x"})
    assert path.read_bytes().startswith(before)


def test_a_text_that_fails_is_warned_of_and_survived(tmp_path, capsys):
    path = tmp_path / "log.txt"
    log = HumanOutputFormat(path)
    log.writeseq(["before"])
    with room_for(10):
        log.writeseq(["lost"])
        log.writekvs({"lost": 1})
    log.writeseq(["after"])
    log.close()
    assert path.read_text() == "before\nafter\n"
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: {path} lacks lines: {os.strerror(errno.EFBIG)}"


def test_a_log_on_a_full_disk_ends_the_training_with_one_line(silent_log, capsys):
    """Its checkpoints and its rows up to then are there."""
    size = resource.getrlimit(resource.RLIMIT_FSIZE)

    def data():
        for i, item in enumerate(toy_data()):
            if i == 4:
                room = (silent_log / "progress.csv").stat().st_size + 10
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, size[1]))
            yield item

    try:
        with pytest.raises(SystemExit) as ended:
            cli.run(toy_loop(data=data(), save_interval=2).run_loop)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, size)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{os.strerror(errno.EFBIG)}: '{silent_log}/progress.csv'; and no checkpoint" in line
    assert [row["step"] for row in rows(silent_log)] == ["0", "1", "2", "3"]
    assert checkpoints.complete_steps(str(silent_log)) == [2, 4]


def test_a_log_that_another_program_holds_costs_no_update(silent_log, monkeypatch):
    """As Excel does on Windows: the run ends with its last update saved, and goes on the same."""
    folder = silent_log.parent
    with logger.scoped_configure(dir=folder / "whole", format_strs=["csv"]):
        toy_loop(max_steps=6).run_loop()
    write = CSVOutputFormat.writekvs

    def held(table, line):
        if line["step"] == 3:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(table.path))
        write(table, line)

    monkeypatch.setattr(CSVOutputFormat, "writekvs", held)
    with pytest.raises(OSError, match=r"progress.csv'; 4 updates are saved"):
        toy_loop(max_steps=6).run_loop()
    monkeypatch.setattr(CSVOutputFormat, "writekvs", write)
    path = silent_log / "model000004.pt"
    toy_loop(max_steps=6, resume_checkpoint=str(path)).run_loop()
    found, wanted = (
        [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in rows(place)]
        for place in (silent_log, folder / "whole")
    )
    assert found == wanted
    ends = [(place / "model000006.pt").read_bytes() for place in (silent_log, folder / "whole")]
    assert ends[0] == ends[1]


def test_samples_for_which_there_is_no_memory_are_survived(silent_log, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")

    said = []
    monkeypatch.setattr("improved_diffusion.logger.warn", said.append)
    preview = SimpleNamespace(draw=fail)
    toy_loop(max_steps=2, sample_interval=1, preview=preview).run_loop()
    assert checkpoints.complete_steps(str(silent_log)) == [2]
    assert len(said) == 2
    assert said[0].startswith("No samples this time: DefaultCPUAllocator")


def test_a_workbook_that_fails_is_survived(silent_log, monkeypatch, capsys):
    def fail(csv, path, **_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(log_rows, "export_workbook", fail)
    said = []
    monkeypatch.setattr("improved_diffusion.logger.warn", said.append)
    toy_loop(save_interval=2, max_steps=3).run_loop()
    assert checkpoints.complete_steps(str(silent_log)) == [2, 3]
    assert not (silent_log / "results.xlsx").exists()
    wanted = f"No workbook this time: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"
    assert said
    assert set(said) == {f"{wanted}: '{silent_log}/results.xlsx'"}
