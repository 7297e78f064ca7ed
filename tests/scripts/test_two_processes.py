"""Two processes: they stay equal, average their gradients, share the work, and resume exactly."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import killing
import numpy as np
import pytest
import torch as th

from improved_diffusion.commands import runs
from improved_diffusion.options.training import RunningOptions
from improved_diffusion.training.checkpoints import complete_steps

TESTS = Path(__file__).resolve().parents[1]
SCRIPTS = TESTS.parent / "scripts"
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return killing.make_images(tmp_path_factory.mktemp("data") / "images", count=22)


def start(program, *words, processes=2, status=0):
    done = subprocess.run(
        [sys.executable, *(LAUNCHER if processes == 2 else ()), str(program), *map(str, words)],
        # Lets each rank write the table of what it takes for the log of both.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENAI_LOG_FORMAT_MPI": "log,csv"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    said = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert (done.returncode == 0) == (status == 0), said or done.stderr[-2000:]
    return done.stderr if status else done.stdout


def with_flags(program, processes=2, status=0, **flags):
    words = itertools.chain(*((f"--{key}", value) for key, value in flags.items()))
    return start(program, *words, processes=processes, status=status)


def train_on_two(images, log_dir, program=killing.SCRIPT, **flags):
    flags = {**killing.TINY, "data_dir": images, "log_dir": log_dir, **flags}
    return with_flags(program, **flags)


@pytest.fixture(scope="module")
def updates(tmp_path_factory):
    """Of two processes, and of one that has the whole batch."""
    folder = tmp_path_factory.mktemp("updates")
    for processes in (2, 1):
        start(TESTS / "averaged_gradient.py", folder, processes=processes)
    return folder


@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_gradient_is_that_of_one_process_with_the_whole_batch(microbatches, updates):
    files = [updates / f"{name}_{microbatches}.pt" for name in ("rank0of2", "rank1of2", "rank0of1")]
    one, two, alone = (th.load(file, weights_only=True) for file in files)
    for kind in ("grads", "params", "ema"):
        assert all(th.equal(one[kind][name], two[kind][name]) for name in one[kind]), kind
    for name, grad in alone["grads"].items():
        assert grad.abs().max() > 0
        assert th.allclose(one["grads"][name], grad, rtol=1e-3, atol=1e-6), name


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A class-conditional run on two processes that logs every update."""
    folder = tmp_path_factory.mktemp("runs") / "classes"
    settings = {"max_steps": 3, "log_interval": 1, "class_cond": True, "num_classes": "auto"}
    out = train_on_two(images, folder, **settings)
    return folder, out


def test_rank_0_alone_writes_and_speaks(trained):
    folder, out = trained
    assert len(re.findall(r"^step \d", out, flags=re.M)) == 3
    others = {path.name for path in folder.glob("*rank001*")}
    assert others == {"log-rank001.txt", "progress-rank001.csv"}
    assert len(killing.rows(folder)) == 3


def test_the_log_is_of_both_ranks(trained):
    """Each rank writes the means over both, so they write the same; alone they would not."""
    folder, _ = trained
    assert (folder / "progress.csv").read_text() == (folder / "progress-rank001.csv").read_text()
    for row in killing.rows(folder):
        assert row["samples"] == str((int(row["step"]) + 1) * 8)


def test_sampling_shares_the_work(trained, tmp_path):
    folder, _ = trained
    flags = {"model_path": folder, "num_samples": 7, "sampling_steps": 5}
    made = []
    for processes in (1, 2):
        log_dir = tmp_path / str(processes)
        with_flags(
            SCRIPTS / "image_sample.py",
            processes,
            log_dir=log_dir,
            batch_size=4 // processes,
            **flags,
        )
        with np.load(log_dir / "samples_7x8x8x3.npz") as file:
            made.append((file["arr_0"].astype(int), file["arr_1"]))
    (alone, classes), (shared, shared_classes) = made
    assert np.array_equal(classes, shared_classes)
    assert np.abs(alone - shared).max() <= 1


def test_bits_per_dimension_share_the_work(trained, images, tmp_path):
    folder, _ = trained
    flags = {"model_path": folder, "data_dir": images, "num_samples": 9, "batch_size": 3}
    found = []
    for processes in (1, 2):
        log_dir = tmp_path / str(processes)
        settings = flags | {"log_dir": log_dir, "num_timesteps": 4}
        out = with_flags(SCRIPTS / "image_nll.py", processes, **settings)
        assert (
            re.findall(r"done (\d+) samples", out) == [["3", "6", "9"], ["6", "9"]][processes - 1]
        )
        found.append(json.loads((log_dir / "bits_per_dim.json").read_text()))
    names = {summary["names of images, sha256"] for summary in found}
    assert len(names) == 1
    for key in ("bits/dim", "standard error", "of which prior"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-4)


def test_what_cannot_be_shared_is_refused(trained, tmp_path):
    folder, _ = trained
    flags = {"model_path": folder, "first": 1, "last": 2, "label": 0, "log_dir": tmp_path / "out"}
    said = with_flags(SCRIPTS / "image_interpolate.py", status=2, **flags)
    lines = [line for line in said.splitlines() if ": error: " in line]
    assert len(lines) == 1, said
    assert "image_interpolate.py works in one process: start it with python" in lines[0]
    assert not (tmp_path / "out").exists()


def run_both(images, log_dir, **flags):
    """Train on two processes that import nothing anew; their exit codes and lines of stderr."""
    codes = killing.end_both(killing.start_two(images, log_dir, **flags))
    return codes, killing.error_of(log_dir).splitlines()


def test_a_guided_run_on_two_processes_resumes_exactly(images, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for log_dir, steps in ((whole, 8), (parts, 5), (parts, 8)):
        settings = killing.VARIANTS["guided"] | {"max_steps": steps}
        assert run_both(images, log_dir, **settings)[0] == [0, 0]
    assert killing.differences(whole, parts, 8) == []


# --- one of the two fails


def path_that_one_rank_reads_in_its_third_update(images, count):
    """Of an image that the look at the folder before the training leaves out."""
    order = np.random.default_rng([0, 0]).permutation(count)
    of_rank_1 = order[1 : count - count % 2 : 2][8:12]  # four a batch
    looked_at = np.linspace(0, count - 1, 256).astype(int)
    index = next(i for i in of_rank_1 if i not in looked_at)
    return sorted(images.iterdir())[index]


# The launcher ends all processes when one has gone; that one must not go before rank 0 has spoken.
SLOW_TO_COMPLAIN = f"""
import os, runpy, time
from improved_diffusion.commands import cli

def complain(*words):
    time.sleep(1 if os.environ["RANK"] == "0" else 0)
    return original(*words)

original, cli._complain = cli._complain, complain
runpy.run_path({str(killing.SCRIPT)!r}, run_name="__main__")
"""


def test_an_image_that_one_rank_cannot_read_ends_both_and_all_is_saved(tmp_path):
    images = killing.make_images(tmp_path / "images", count=400)
    bad = path_that_one_rank_reads_in_its_third_update(images, 400)
    good, stopped = bad.read_bytes(), tmp_path / "stopped"
    settings = {"log_interval": 1, "max_steps": 4}
    bad.write_bytes(good[:-40])
    program = tmp_path / "program.py"
    program.write_text(SLOW_TO_COMPLAIN)
    said = train_on_two(images, stopped, program, status=2, **settings)
    lines = [line for line in said.splitlines() if ": error: " in line]
    assert len(lines) == 1, said
    assert lines[0].startswith("image_train.py: error: ")
    assert bad.name in lines[0]
    assert lines[0].endswith("; 2 updates are saved")
    assert 'image_train.py", line' not in said, "a traceback of its own, beside the launcher's"
    assert complete_steps(str(stopped)) == [2]
    bad.write_bytes(good)
    for log_dir in (stopped, tmp_path / "whole"):
        assert run_both(images, log_dir, **settings)[0] == [0, 0]
    assert killing.differences(tmp_path / "whole", stopped, 4) == []


def test_a_folder_that_is_in_use_ends_both(images, tmp_path):
    with runs.open_run("image_train", RunningOptions(log_dir=str(tmp_path / "run"))):
        codes, said = run_both(images, tmp_path / "run")
    assert codes == [2, 2]
    (line,) = said
    assert "another run is writing to" in line


def test_a_disk_that_is_full_for_rank_0_ends_both(images, tmp_path):
    settings = {
        "largest_file": 200_000,
        "ema_correction": False,
    }  # so its first file is a later one
    codes, said = run_both(images, tmp_path / "run", **settings)
    assert codes == [1, 1]
    (line,) = said
    assert "model000003.pt" in line
    assert not list((tmp_path / "run").glob("*.pt"))


def test_a_log_that_rank_0_cannot_write_ends_both(images, tmp_path):
    settings = {"log_interval": 1, "save_interval": 1000, "max_steps": 60, "largest_file": 5000}
    settings["ema_correction"] = False  # so that the log is its first large file
    codes, said = run_both(images, tmp_path / "run", **settings)
    assert codes == [1, 1]
    (line,) = [line for line in said if not line.startswith("warning: ")]  # of log.txt
    assert "progress.csv" in line
