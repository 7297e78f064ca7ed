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

TESTS = Path(__file__).resolve().parent
SCRIPTS = TESTS.parent / "scripts"
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return killing.make_images(tmp_path_factory.mktemp("data") / "images", count=22)


def start(program, *words, processes=2):
    done = subprocess.run(
        [sys.executable, *(LAUNCHER if processes == 2 else ()), str(program), *map(str, words)],
        # Lets each rank write the table of what it takes for the log of both.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENAI_LOG_FORMAT_MPI": "log,csv"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def with_flags(program, processes=2, **flags):
    words = itertools.chain(*((f"--{key}", value) for key, value in flags.items()))
    return start(program, *words, processes=processes)


def train_on_two(images, log_dir, **flags):
    flags = {**killing.TINY, "data_dir": images, "log_dir": log_dir, **flags}
    return with_flags(killing.SCRIPT, **flags)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_gradient_is_that_of_one_process_with_the_whole_batch(microbatches, tmp_path):
    program = TESTS / "averaged_gradient.py"
    start(program, tmp_path, microbatches)
    start(program, tmp_path, microbatches, processes=1)
    names = ("rank0of2", "rank1of2", "rank0of1")
    one, two, alone = (th.load(tmp_path / f"{name}.pt", weights_only=True) for name in names)
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
    for key in ("bits/dim", "standard error", "of which prior"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-4)


def test_a_run_on_two_processes_resumes_exactly(images, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = {"schedule_sampler": "loss-second-moment", "max_steps": 8}
    settings |= {"diffusion_steps": 3, "noise_schedule": "cosine"}  # few: the sampler warms up
    train_on_two(images, whole, **settings)
    train_on_two(images, parts, **{**settings, "max_steps": 5})
    train_on_two(images, parts, resume_checkpoint="auto", **settings)
    first = killing.tensors(whole, 8)
    second = killing.tensors(parts, 8)
    assert first.keys() == second.keys()
    assert [name for name in first if not th.equal(first[name], second[name])] == []
    assert killing.rows(whole) == killing.rows(parts)
    state = th.load(whole / "state000008.pt", weights_only=True)
    random_numbers = [rank["random"]["torch"] for rank in state["ranks"]]
    assert len(random_numbers) == 2
    assert not th.equal(*random_numbers), "the ranks draw the same noise"
    assert killing.rows(whole)[0]["samples"] == "8"  # of both ranks
    # Both ranks have seen all losses, enough of them to draw timesteps by.
    samplers = [rank["sampler"] for rank in state["ranks"]]
    assert samplers[0]["loss_counts"].tolist() == [10, 10, 10]
    assert all(th.equal(samplers[0][name], samplers[1][name]) for name in samplers[0])
    assert samplers[0]["loss_history"].unique().numel() > 10
