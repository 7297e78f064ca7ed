"""What users do to their runs, and what machines do: nothing that is damaged goes unnoticed."""

import csv
import errno
import os
import pty
import shutil
import signal
import sys
import time

import killing
import pytest
import torch as th
from in_process import in_process

from improved_diffusion.options.command_line import as_words

STEPS = killing.STEPS


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it, up to its 9 updates."""
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    for path in copy.glob(f"*{STEPS:06d}.pt"):
        path.unlink()
    return copy


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def resume(photos, log_dir, **flags):
    flags = killing.TINY | {"data_dir": photos, "log_dir": log_dir} | flags
    return in_process("image_train.py", flags)


def the_line(capsys):
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    return line


# --- checkpoints


@pytest.mark.parametrize(
    ("prefix", "damage"),
    [
        ("model", flip_a_bit),
        ("ema_0.99_", flip_a_bit),
        ("opt", flip_a_bit),
        ("state", flip_a_bit),
        ("state", cut_short),
    ],
)
def test_auto_goes_on_from_the_newest_whole_checkpoint(photos, whole, run, prefix, damage):
    broken = run / f"{prefix}000009.pt"
    damage(broken)
    content = broken.read_bytes()
    killing.finish(photos, run)
    assert killing.differences(whole, run) == []
    assert (run / f"{broken.name}.broken").read_bytes() == content
    log = (run / "log.txt").read_text()
    assert f"Checkpoint 000009 is broken and set aside as *.broken ({broken.name}: it" in log
    assert f"Loading model from {run / 'model000006.pt'}" in log


def test_auto_without_a_whole_checkpoint_touches_nothing(photos, run, capsys):
    for path in run.glob("state*.pt"):
        cut_short(path)
    before = {path.name: path.read_bytes() for path in run.glob("*.pt")}
    rows = (run / "progress.csv").read_bytes()
    assert resume(photos, run, resume_checkpoint="auto") == 2
    assert "no checkpoint in" in the_line(capsys)
    assert {path.name: path.read_bytes() for path in run.glob("*.pt")} == before
    assert (run / "progress.csv").read_bytes() == rows


def test_what_a_kill_left_of_a_first_checkpoint_is_set_aside(photos, whole, run):
    for path in {*run.glob("state*.pt"), *run.glob("*000006.pt"), *run.glob("*000003.pt")}:
        path.unlink()
    before = {path.name: path.read_bytes() for path in run.glob("*000009.pt")}
    killing.finish(photos, run)
    assert killing.differences(whole, run) == []
    assert before
    for name, content in before.items():
        assert (run / f"{name}.broken").read_bytes() == content


@pytest.mark.parametrize("wanted", ["auto", "", "model000006.pt"])
def test_weights_without_a_state_are_never_replaced(photos, run, capsys, wanted):
    for path in run.glob("state*.pt"):
        path.unlink()
    before = {path.name: path.read_bytes() for path in run.glob("*.pt*")}
    path = run / wanted if wanted.endswith(".pt") else wanted
    assert resume(photos, run, resume_checkpoint=path) == 2
    assert "without a run's state, which would be replaced or removed" in the_line(capsys)
    assert {path.name: path.read_bytes() for path in run.glob("*.pt*")} == before


def test_weights_without_a_state_are_never_removed(photos, run, capsys):
    for path in run.glob("state*.pt"):
        path.unlink()
    newest = {"resume_checkpoint": run / "model000009.pt"}
    assert resume(photos, run, **newest, keep_checkpoints=1) == 2
    assert "which would be replaced or removed" in the_line(capsys)
    assert resume(photos, run, **newest) == 0
    assert len(list(run.glob("model*.pt"))) == 5  # 0, 3, 6, 9 and the last one


def test_an_image_that_cannot_be_read_ends_a_run_that_can_go_on(photos, tmp_path, capsys):
    images = shutil.copytree(photos, tmp_path / "images")
    assert resume(images, tmp_path / "run", resume_checkpoint="auto", max_steps=1) == 0
    for bad in sorted(images.iterdir()):
        bad.write_bytes(bad.read_bytes()[:60])
    assert resume(images, tmp_path / "run", resume_checkpoint="auto") == 2
    out, err = capsys.readouterr()
    assert f"cannot read image {images}" in err
    assert "mend or remove it, or give --on_bad_image skip; 1 updates are saved" in err
    assert err.count("\n") == 1
    assert "Go on with: " in out
    shutil.copytree(photos, images, dirs_exist_ok=True)
    bad = sorted(images.iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:60])
    skipping = {"resume_checkpoint": "auto", "on_bad_image": "skip", "max_steps": 30}
    assert resume(images, tmp_path / "skipping", **skipping) == 0
    said = (tmp_path / "skipping" / "log.txt").read_text()
    assert said.count(f"left out: cannot read image {bad}") == 1


def test_a_broken_checkpoint_given_by_hand_is_an_error(photos, run, capsys):
    flip_a_bit(run / "opt000009.pt")
    path = run / "model000009.pt"
    assert resume(photos, run, resume_checkpoint=path) == 2
    line = the_line(capsys)
    assert f"{path} is broken (opt000009.pt: its record" in line
    assert line.endswith(f"the newest whole one there is {run / 'model000006.pt'}")
    assert (run / "opt000009.pt").exists()


# --- logs that people edit


def edit(run, change):
    path = run / "progress.csv"
    with open(path, newline="") as file:
        table = list(csv.reader(file))
    path.write_text(change(table))
    return path


def semicolons(table):
    return "\n".join(";".join(cell.replace(".", ",") for cell in row) for row in table) + "\n"


def renamed(name):
    def change(table):
        header = [name.title() if cell == name else cell for cell in table[0]]
        return "\n".join(",".join(row) for row in [header, *table[1:]]) + "\n"

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (semicolons, "semicolons between its cells"),
        (renamed("mse"), "lost its column 'mse'"),
    ],
)
def test_a_log_that_cannot_be_continued_is_refused(photos, run, capsys, change, said):
    path = edit(run, change)
    before = path.read_bytes()
    assert resume(photos, run, resume_checkpoint="auto") == 2
    assert said in the_line(capsys)
    assert path.read_bytes() == before
    assert not (run / "state000011.pt").exists()


def test_a_log_of_an_earlier_version_keeps_its_columns_too(photos, run, capsys):
    """Whose states do not say which these are."""
    edit(run, renamed("loss"))
    for path in run.glob("state*.pt"):
        state = th.load(path, weights_only=True)
        th.save({**state, "columns": []}, path)
    assert resume(photos, run, resume_checkpoint="auto") == 2
    assert "lost its column 'loss'" in the_line(capsys)


def excel(table):
    """With the byte order mark and the line ends that Excel writes, and rows sorted by the loss."""
    column = table[0].index("loss")
    rows = [table[0], *sorted(table[1:], key=lambda row: float(row[column]))]
    return "\ufeff" + "\r\n".join(",".join(row) for row in rows) + "\r\n"


def without_its_last_newline(table):
    return "\n".join(",".join(row) for row in table if row[0] != "10")


@pytest.mark.parametrize("change", [excel, without_its_last_newline])
def test_a_log_that_can_be_continued_is(photos, whole, run, change):
    edit(run, change)
    killing.finish(photos, run)
    by_step = [
        sorted(killing.rows(folder), key=lambda row: int(row["step"])) for folder in (whole, run)
    ]
    assert by_step[0] == by_step[1]


# --- processes that die


def steps_saved(log_dir):
    return [int(path.stem[5:]) for path in log_dir.glob("state*.pt")]


TWO = {"log_interval": 2, "save_interval": 100}


@pytest.fixture(scope="module")
def whole_of_two(photos, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("whole") / "two"
    assert killing.end_both(killing.start_two(photos, log_dir, **TWO)) == [0, 0]
    return log_dir


@pytest.mark.parametrize(
    ("rank", "kind", "number", "saved"),
    [
        (0, "update begins", 5, 5),
        (1, "update begins", 5, 5),
        (0, "row begins", 2, 5),
        (0, "row ends", 2, 5),
        (0, "row begins", 5, 11),
    ],
)
def test_a_rank_that_is_killed_costs_nothing(
    photos, whole_of_two, tmp_path, rank, kind, number, saved
):
    run = tmp_path / "run"
    kill_at = [(kind, number) if r == rank else None for r in (0, 1)]
    pair = killing.start_two(photos, run, kill_at=kill_at, **TWO)
    assert {killing.exit_code(process) for process in pair} == {-signal.SIGKILL, 1}
    (line,) = killing.error_of(run).splitlines()
    assert line.endswith(f"another process of this run is gone; saved {saved} updates")
    assert steps_saved(run) == [saved]
    assert killing.end_both(killing.start_two(photos, run, **TWO)) == [0, 0]
    assert killing.differences(whole_of_two, run) == []


def test_a_rank_that_is_lost_before_it_said_how_to_go_on_costs_no_weights(photos, tmp_path):
    run = tmp_path / "run"
    pair = killing.start_two(photos, run, kill_at=[None, ("update ends", 4)], **TWO)
    assert {killing.exit_code(process) for process in pair} == {-signal.SIGKILL, 1}
    (line,) = killing.error_of(run).splitlines()
    assert line.endswith("saved the weights only, from which auto does not go on, of 5 updates")
    assert (run / "model000005.pt").exists()
    assert steps_saved(run) == []


def test_a_rank_that_is_lost_in_the_first_update_leaves_nothing_and_says_so(photos, tmp_path):
    run = tmp_path / "run"
    pair = killing.start_two(photos, run, kill_at=[None, ("update begins", 0)], **TWO)
    assert {killing.exit_code(process) for process in pair} == {-signal.SIGKILL, 1}
    (line,) = killing.error_of(run).splitlines()
    assert line.endswith("gone before an update was finished; there is nothing to save")
    said = (run / "log.txt").read_text()
    assert "Stopped before the first update; nothing is saved\nStart again with: " in said
    assert [path.name for path in run.glob("*.pt")] == ["model000000.pt"]  # of the EMAs


def test_a_rank_that_is_lost_while_a_time_budget_is_measured_changes_no_number(photos, tmp_path):
    run, budget = tmp_path / "run", killing.VARIANTS["guided"] | {"sample_interval": 0}
    pair = killing.start_two(photos, run, kill_at=[("update begins", 1), None], **budget)
    assert {killing.exit_code(process) for process in pair} == {-signal.SIGKILL, 1}
    assert steps_saved(run) == [1]
    assert killing.end_both(killing.start_two(photos, run, **budget)) == [0, 0]
    assert max(steps_saved(run)) == STEPS


@pytest.mark.parametrize("workers", [0, 1])
def test_a_terminal_that_goes_away_costs_nothing(photos, tmp_path, workers):
    """It takes its signal and the output along."""
    log_dir = tmp_path / "run"
    flags = killing.TINY | {"max_steps": 0, "save_interval": 10**6, "log_interval": 1}
    flags |= {"data_dir": photos, "log_dir": log_dir, "num_workers": workers}
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(sys.executable, [sys.executable, str(killing.SCRIPT), *as_words(flags)])
    progress = log_dir / "progress.csv"
    end = time.monotonic() + 60
    while not (progress.exists() and progress.read_bytes().count(b"\n") > 3):
        assert time.monotonic() < end
        os.set_blocking(terminal, False)
        try:
            os.read(terminal, 2**16)
        except BlockingIOError:
            time.sleep(0.05)
    os.close(terminal)  # the system sends the signal
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    (saved,) = steps_saved(log_dir)
    assert saved > 3
    killing.finish(photos, log_dir, max_steps=saved + 1, log_interval=1, save_interval=10**6)


def test_a_closed_pipe_does_not_stop_a_training(photos, whole, scripts, tmp_path):
    flags = killing.TINY | {"data_dir": photos, "log_dir": tmp_path / "run"}
    process = scripts.start("image_train.py", **flags)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert killing.differences(whole, tmp_path / "run") == []


def test_a_log_directory_may_be_a_link(photos, whole, tmp_path):
    (tmp_path / "disk").mkdir()
    run = tmp_path / "run"
    run.symlink_to(tmp_path / "disk", target_is_directory=True)
    assert resume(photos, run, resume_checkpoint="auto", max_steps=6) == 0
    assert resume(photos, run, resume_checkpoint="auto") == 0
    assert killing.differences(whole, tmp_path / "disk") == []
    assert run.is_symlink()


def test_what_is_evaluated_while_training_writes_is_whole(photos, tmp_path):
    run, flags = tmp_path / "run", {"max_steps": 25, "save_interval": 1}
    training = killing.start(photos, run, **flags)
    while not list(run.glob("state*.pt")):
        assert training.exitcode is None, killing.error_of(run)
        time.sleep(0.05)
    times = 0
    while training.exitcode is None:
        assert sampled(run, tmp_path / f"samples_{times}") == 0
        times += 1
    assert times > 1, "it was over too soon"
    assert training.exitcode == 0, killing.error_of(run)
    killing.finish(photos, tmp_path / "alone", **flags)
    assert killing.differences(tmp_path / "alone", run, step=25) == []


# --- results that are there


def sampled(run, out, **flags):
    flags = {"model_path": run, "num_samples": 3, "save_png": True, "log_dir": out} | flags
    return in_process("image_sample.py", flags)


def test_results_are_refused_or_replaced_as_a_whole(whole, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert sampled(whole, out, num_samples=5) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.npz")}
    assert sampled(whole, out) == 2
    line = the_line(capsys)
    assert "has results of this script already" in line
    assert "--overwrite True" in line
    assert {path: path.read_bytes() for path in out.rglob("*.npz")} == before
    # Those of another script are not in the way.
    bounds = {"model_path": whole, "data_dir": photos, "log_dir": out, "num_samples": 2}
    assert in_process("image_nll.py", bounds | {"num_timesteps": 50}) == 0
    assert (out / "vb_terms.npz").exists()
    assert in_process("image_nll.py", bounds | {"num_timesteps": 2}) == 2
    capsys.readouterr()
    replacing = {"num_timesteps": 2, "overwrite": True}
    assert in_process("image_nll.py", bounds | replacing) == 0
    assert not (out / "vb_terms.npz").exists(), "of the evaluation before"
    assert sampled(whole, out, overwrite=True) == 0
    assert "Replaced 7 files of an earlier call" in capsys.readouterr().out
    assert len(list((out / "images").iterdir())) == 3
    names = sorted(path.name for path in out.glob("samples_*"))
    assert names == ["samples_3x8x8x3.npz", "samples_3x8x8x3.png"]


def fail(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_fails_before_it_makes_anything_replaces_nothing(whole, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert sampled(whole, out) == 0
    before = sorted(path.name for path in out.rglob("*"))
    monkeypatch.setattr("improved_diffusion.commands.sampling.make_samples", fail)
    assert sampled(whole, out, overwrite=True) == 1
    assert sorted(path.name for path in out.rglob("*")) == before
    capsys.readouterr()
    assert sampled(whole, tmp_path / "new") == 1
    assert "Results are in" not in capsys.readouterr().out


# --- smaller


def test_a_terminal_that_cannot_write_everything_costs_no_evaluation(
    whole, photos, scripts, tmp_path
):
    folder = tmp_path / "Läufe 試"
    bounds = {"model_path": whole, "data_dir": photos, "log_dir": folder, "num_samples": 2}
    terminal = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    out, _ = scripts.run_process("image_nll.py", env=terminal, **bounds, num_timesteps=2)
    assert "\\xb1" in out
    assert (folder / "bits_per_dim.json").exists()


def test_a_run_that_has_all_its_updates_says_so(photos, run, capsys):
    assert resume(photos, run, resume_checkpoint="auto", max_steps=2) == 0
    assert "Training: the run has 9 updates already" in capsys.readouterr().out
