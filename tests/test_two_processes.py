"""Training on two processes: they stay equal, and resume exactly."""

import itertools
import os
import subprocess
import sys

import killing
import pytest
import torch as th


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return killing.make_images(tmp_path_factory.mktemp("data") / "images", count=22)


def train_on_two(images, log_dir, **flags):
    flags = {**killing.TINY, "data_dir": images, "log_dir": log_dir, **flags}
    words = itertools.chain(*((f"--{key}", str(value)) for key, value in flags.items()))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(killing.SCRIPT), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_run_on_two_processes_resumes_exactly(images, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = {"schedule_sampler": "loss-second-moment", "max_steps": 8}
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
