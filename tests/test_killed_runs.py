"""A run that is killed and continued is bit for bit the run that was not."""

import random
import signal
import time

import killing
import pytest

from improved_diffusion.checkpointing import complete_steps

VARIANTS = {
    "uniform": {},
    "second_moment": {"schedule_sampler": "loss-second-moment", "learn_sigma": True},
    "bf16_classes": {"precision": "bf16", "class_cond": True, "num_classes": 3},
    "anneal_dropout": {"lr_anneal_steps": 20, "dropout": 0.2, "weight_decay": 0.01},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return killing.make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.mark.parametrize("name", VARIANTS)
def test_killed_at_random_events(name, images, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = killing.start(images, whole, **VARIANTS[name])
    process.join()
    assert process.exitcode == 0
    kills = killing.run_with_kills(images, killed, random.Random(name), **VARIANTS[name])
    assert kills >= 2
    assert killing.differences(whole, killed) == []
    steps = [row["step"] for row in killing.rows(killed)]
    assert len(steps) == len(set(steps)) == 6
    assert not list(killed.glob(".*.tmp")), "leftovers of killed writes"


def test_killed_at_random_times(images, tmp_path):
    rng = random.Random(5)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    killing.start(images, whole).join()
    for _ in range(4):
        process = killing.start(images, killed)
        time.sleep(rng.uniform(0.2, 1.5))
        process.kill()
        process.join()
    process = killing.start(images, killed)
    process.join()
    assert process.exitcode == 0
    assert killing.differences(whole, killed) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(number, images, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    killing.start(images, whole).join()
    process = killing.start(images, stopped, signal_in_step=(number, 4))
    process.join()
    assert process.exitcode == 128 + number
    assert complete_steps(str(stopped))[-1] == 5, "the step in hand was not finished and saved"
    assert (stopped / "results.xlsx").exists()
    process = killing.start(images, stopped)
    process.join()
    assert process.exitcode == 0
    assert killing.differences(whole, stopped) == []


def test_a_checkpoint_counts_when_it_is_whole(images, tmp_path):
    """Kill at every event around the first checkpoint; what is found is never half of one."""
    seen = set()
    for kill_at in range(24, 110, 8):
        log_dir = tmp_path / str(kill_at)
        killing.start(images, log_dir, kill_at=kill_at).join()
        for step in complete_steps(str(log_dir)):
            names = {path.name.split("0000")[0] for path in log_dir.glob(f"*{step:06d}.pt")}
            assert names == {"model", "opt", "state", "ema_0.9_", "ema_0.99_"}
        seen.add(len(complete_steps(str(log_dir))))
    assert {0, 1} <= seen  # kills fell on both sides of the checkpoint
