"""A run that is killed and continued is bit for bit the run that was not."""

import random
import signal
import time

import killing
import pytest
import torch as th

from improved_diffusion.training.checkpoints import complete_steps, save_checkpoint

TWO_PROCESSES = {
    **killing.MOMENTS,
    **killing.VARIANTS["bf16_classes"],
    "batch_size": 4,
    "log_interval": 1,
    "max_steps": 9,
}


LONG = {"log_interval": 1, "max_steps": 60}


@pytest.fixture(scope="module")
def long_whole(photos, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("long") / "run"
    killing.finish(photos, log_dir, **LONG)
    return log_dir


def assert_sampler_is_warm(log_dir, step):
    """From here on it draws by what it has learned."""
    state = th.load(log_dir / f"state{step:06d}.pt", weights_only=True)
    for rank in state["ranks"]:
        assert (rank["sampler"]["loss_counts"] == 10).all()


@pytest.mark.parametrize("name", killing.VARIANTS)
def test_killed_at_random_events(name, photos, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killing.finish(photos, whole, **killing.VARIANTS[name])
    kills = killing.run_with_kills(photos, killed, random.Random(name), **killing.VARIANTS[name])
    assert kills >= 3
    assert len(killing.deaths(killed)) == kills
    assert killing.differences(whole, killed) == []
    steps = [row["step"] for row in killing.rows(killed)]
    assert len(steps) == len(set(steps)) == 6
    assert not list(killed.glob(".*.tmp")), "leftovers of killed writes"
    if name == "second_moment":
        assert_sampler_is_warm(whole, 6)


def test_killed_once_at_every_kind_of_event(photos, long_whole, tmp_path):
    """In one run, which also keeps a single checkpoint: of others nothing may be left."""
    flags = {**LONG, "keep_checkpoints": 1}
    killed = tmp_path / "killed"
    rng = random.Random(1)
    rows_seen = set()
    for kind in killing.KINDS:
        # A life cuts the log once, and writes its configuration once.
        once = kind.endswith((".json", ".bak", ".csv"))
        number = 0 if once else rng.randrange(1, 4)
        if once:  # rows for the next life to cut off
            killing.exit_code(killing.start(photos, killed, kill_at=("row ends", 4), **flags))
        code = killing.exit_code(killing.start(photos, killed, kill_at=(kind, number), **flags))
        assert code == -signal.SIGKILL, f"survived {kind}: {killing.error_of(killed)}"
        assert killing.deaths(killed)[-1] == kind
        rows_seen.add(len(killing.rows(killed)))
    assert len(rows_seen) > 5, "the kills did not fall all over the run"
    killing.finish(photos, killed, **flags)
    assert killing.differences(long_whole, killed, LONG["max_steps"]) == []
    parts = {path.name for path in long_whole.glob("*000060.pt")}
    others = {".lock", "config.json", "log.txt", "progress.csv", "progress.csv.bak", "results.xlsx"}
    others |= {"model000000.pt"}  # what the EMAs began with
    assert {path.name for path in killed.iterdir()} == parts | others


def test_killed_at_random_times(photos, long_whole, tmp_path):
    """Each kill comes at some moment after the run has gone on by a row, so none at start-up."""
    rng = random.Random(5)
    killed = tmp_path / "killed"
    for _ in range(3):
        before = checkpoints_and_rows(killed)
        process = killing.start(photos, killed, **LONG)
        while process.is_alive() and checkpoints_and_rows(killed) <= before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        assert killing.exit_code(process) == -signal.SIGKILL, "it had ended before"
    killing.finish(photos, killed, **LONG)
    assert killing.differences(long_whole, killed, LONG["max_steps"]) == []


def checkpoints_and_rows(log_dir):
    """How far a run is, in a form that grows."""
    log = log_dir / "progress.csv"
    lines = log.read_bytes().count(b"\n") if log.exists() else 0
    return len(complete_steps(str(log_dir))), lines


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_signals(number, times, photos, whole, tmp_path):
    """One lets the step in hand finish and saves; a second stops at once and saves nothing."""
    stopped = tmp_path / "stopped"
    process = killing.start(photos, stopped, signals_in_step=(number, times, 4))
    assert killing.exit_code(process) == 128 + number
    said = (stopped / "log.txt").read_text()
    if times == 1:
        assert complete_steps(str(stopped)) == [3, 5]
        assert (stopped / "results.xlsx").exists()
        assert f"Stopped after 5 updates, saved in {stopped}" in said
    else:
        assert complete_steps(str(stopped)) == [3]
        assert f"Stopped after 4 updates, of which 3 are saved in {stopped}" in said
    assert f"--log_dir {stopped} --resume_checkpoint auto" in said
    assert "Traceback" not in killing.error_of(stopped)
    killing.finish(photos, stopped)
    assert killing.differences(whole, stopped) == []


def test_two_processes_are_killed(photos, tmp_path):
    """Each dies once by itself, in the middle of a file or of an update, and the other with it."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert killing.end_both(killing.start_two(photos, whole, **TWO_PROCESSES)) == [0, 0]
    assert_sampler_is_warm(whole, 6)
    assert killing.rows(whole)[0]["samples"] == "8"  # of both ranks
    ranks = th.load(whole / "state000009.pt", weights_only=True)["ranks"]
    assert not th.equal(*(rank["random"]["torch"] for rank in ranks)), "they draw the same noise"
    one, two = (rank["sampler"] for rank in ranks)  # both have seen all losses
    assert all(th.equal(one[name], two[name]) for name in one)
    assert one["loss_history"].unique().numel() > 10
    for kill_at in (
        (None, ("update ends", 4)),
        (("half of .pt", 7), None),
        (("half of .pt", 17), None),
        (None, ("update begins", 1)),
    ):
        lone = {"kill_at": kill_at, "survivor_saves": False}
        pair = killing.start_two(photos, killed, **lone, **TWO_PROCESSES)
        assert -signal.SIGKILL in killing.end_both(pair)
    assert killing.end_both(killing.start_two(photos, killed, **TWO_PROCESSES)) == [0, 0]
    assert killing.differences(whole, killed, 9) == []
    assert len(killing.deaths(killed)) == 4


def save_and_die(folder, number):
    tensors = {"w": th.zeros(5000)}
    parts = dict.fromkeys(("model", "ema_0.9_", "ema_0.99_", "opt", "state"), tensors)
    killing.die_at(None, number, folder)
    save_checkpoint(str(folder), 3, parts)


def test_a_checkpoint_counts_when_it_is_whole(tmp_path):
    """Killed at every single event of writing a checkpoint; what is found is never half of one."""
    found = []
    while not found or found[-1] is not None:
        folder = tmp_path / str(len(found))
        folder.mkdir()
        process = killing.processes.Process(target=save_and_die, args=(folder, len(found)))
        process.start()
        code = killing.exit_code(process)
        names = {path.name for path in folder.glob("[!.]*")}
        counts = complete_steps(str(folder)) == [3]
        assert counts == (len(names) == 5)
        found.append(counts if code else None)
    kinds = [killing.deaths(tmp_path / str(number))[0] for number in range(len(found) - 1)]
    assert kinds.count("half of .pt") >= 5
    assert kinds.count("sync of a file") == kinds.count("rename of .pt") == 5
    assert True in found, "no kill fell between the last rename and the end"
