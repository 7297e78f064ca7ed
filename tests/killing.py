"""Runs of a tiny training that are killed at chosen moments, and what must be left of them."""

import contextlib
import csv
import itertools
import multiprocessing
import os
import random
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import torch as th

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "image_train.py"
TIME_COLUMNS = ("wall_time", "steps_per_second")
STEPS = 11
TINY = {
    "image_size": 8,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,1",
    "attention_resolutions": "4",
    "diffusion_steps": 50,
    "batch_size": 4,
    "microbatch": 2,
    "lr": 1e-3,
    "ema_rate": "0.9,0.99",
    "log_interval": 2,
    "save_interval": 3,
    "max_steps": STEPS,
}
# Python imports once in the server; each run is then a fork of it.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["improved_diffusion.training_script", "improved_diffusion.spreadsheet", "openpyxl"]
)


def make_images(folder: Path, count: int = 10) -> Path:
    """Noise images of three classes; few, so that a run sees several epochs."""
    from PIL import Image

    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{'abc'[i % 3]}_{i}.png")
    return folder


def start(
    images: Path,
    log_dir: Path,
    kill_at: int | None = None,
    signal_in_step: tuple[int, int] | None = None,
    **flags,
) -> processes.Process:
    """Start, or continue, the training in another process.

    :param kill_at: which of its events it does not survive; see :func:`_die_at`.
    :param signal_in_step: a signal that it gets, and in which of its updates.
    """
    flags = {**TINY, "data_dir": images, "log_dir": log_dir, "resume_checkpoint": "auto", **flags}
    argv = [str(SCRIPT), *itertools.chain(*((f"--{k}", str(v)) for k, v in flags.items()))]
    process = processes.Process(target=_train, args=(argv, kill_at, signal_in_step, log_dir))
    process.start()
    return process


def _train(
    argv: list[str],
    kill_at: int | None,
    signal_in_step: tuple[int, int] | None,
    log_dir: Path,
) -> None:
    th.set_num_threads(1)
    sys.argv = argv
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        if kill_at is not None:
            _die_at(kill_at, log_dir)
        if signal_in_step is not None:
            _send_to_self(*signal_in_step)
        runpy.run_path(str(SCRIPT), run_name="__main__")


def _send_to_self(number: int, step: int) -> None:
    from improved_diffusion.train_util import TrainLoop

    original = TrainLoop.forward_backward

    def wrapped(self, *args):
        if self.step == step:
            os.kill(os.getpid(), number)
        original(self, *args)

    TrainLoop.forward_backward = wrapped


def _die_at(number: int, log_dir: Path) -> None:
    """Kill this process at its event of that number.

    Events are the beginning and the end of every update, every write to the CSV, every file of a
    checkpoint, every sync and every rename; a CSV write also dies in the middle of its row.
    """
    from improved_diffusion import checkpointing, log_formats, train_util

    count = itertools.count()

    def event() -> None:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner, name: str, middle=lambda: None) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            event()
            if next(count) == number:
                middle()
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            event()
            return result

        setattr(owner, name, wrapped)

    def tear_row() -> None:
        with open(log_dir / "progress.csv", "a") as file:
            file.write("0.123,4")

    around(train_util.TrainLoop, "run_step")
    around(log_formats.CSVOutputFormat, "writekvs", tear_row)
    around(checkpointing, "save_file")
    around(os, "fsync")
    around(os, "replace")


def rows(log_dir: Path) -> list[dict[str, str]]:
    """The CSV's rows, without the columns of time."""
    with open(log_dir / "progress.csv", newline="") as file:
        return [
            {key: value for key, value in row.items() if key not in TIME_COLUMNS}
            for row in csv.DictReader(file)
        ]


def tensors(log_dir: Path, step: int = STEPS) -> dict[str, th.Tensor]:
    """Every tensor of a checkpoint's model, EMAs, optimizer and random state, by file and path."""
    found = {}
    for path in sorted(log_dir.glob(f"*{step:06d}.pt")):
        content = th.load(path, weights_only=True)
        found |= {f"{path.name}{key}": value for key, value in _leaves(content)}
    return found


def _leaves(value, path: str = ""):
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in ("seconds", "flags", *TIME_COLUMNS):
                yield from _leaves(item, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}/{i}")
    else:
        yield path, value if isinstance(value, th.Tensor) else th.tensor(hash(value))


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs do not share bit for bit; empty if nothing."""
    a, b = tensors(one), tensors(other)
    differing = [name for name in a.keys() | b.keys() if name not in a or name not in b]
    differing += [name for name in a.keys() & b.keys() if not th.equal(a[name], b[name])]
    if rows(one) != rows(other):
        differing.append("progress.csv")
    return sorted(differing)


def run_with_kills(images: Path, log_dir: Path, rng: random.Random, **flags) -> int:
    """Run to the end, killed at random events on the way; the number of kills."""
    kills = 0
    while True:
        # Later runs have fewer events left; a number that never comes lets one end.
        process = start(images, log_dir, kill_at=rng.randrange(3, 160), **flags)
        process.join()
        if process.exitcode == 0:
            return kills
        assert process.exitcode == -signal.SIGKILL, f"ended with {process.exitcode}"
        kills += 1
