"""Runs of a tiny training that are killed at chosen moments, and what must be left of them."""

import contextlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import runpy
import select
import signal
import socket
import stat
import subprocess
import sys
import time
import types
from pathlib import Path

import torch as th
from in_process import HANGS
from tiny_runs import rows_of, write_images

from improved_diffusion.training import lost_rank

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "image_train.py"
TIME_COLUMNS = ("wall_time", "steps_per_second")
STEPS = 11
LAUNCHED = 0.04  # share of the lives of two processes that torchrun starts, which takes seconds
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
BF16 = {"precision": "bf16", "allow_slow_bf16": True}  # tiny models are no slower in it
# Trainings that are killed, by name.
MOMENTS = {
    "schedule_sampler": "loss-second-moment",
    "diffusion_steps": 2,  # few enough for the sampler to know its ten losses of each
    "noise_schedule": "cosine",
    "batch_size": 8,
}
VARIANTS = {
    "uniform": {},
    "second_moment": {**MOMENTS, "learn_sigma": True},
    "bf16_classes": BF16 | {"class_cond": True, "num_classes": 3, "optimizer": "muon"},
    "anneal_dropout_keep": {
        "lr_anneal_steps": 20,
        "lr_hold_steps": 6,
        "dropout": 0.2,
        "weight_decay": 0.01,
        "keep_checkpoints": 1,
    },
    "guided": {
        "class_cond": True,
        "num_classes": 3,
        "label_dropout": 0.3,
        "patch_size": 2,
        "predict_v": True,
        "noise_schedule": "cosine",
        "diffusion_steps": 8,  # its samples would take most of the time
        "schedule_sampler": "lognormal",
        "loss_weight": "min_snr",
        "warmup_steps": 4,
        "lr_schedule": "cosine",
        "seconds_an_update": 1.0,
        "time_budget": (STEPS + 0.5) / 60,
        "max_steps": None,
        "grad_clip": 1.0,
        "sample_interval": 4,
        "guidance": 2,
    },
    "super_resolution": {
        "script": SCRIPT.with_name("super_res_train.py"),
        "image_size": None,
        "large_size": 8,
        "small_size": 4,
        "schedule_sampler": "laplace",
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
    },
}
# The moments at which a run can be told to die: see die_at.
KINDS = (
    "update begins",
    "update ends",
    "row begins",
    "row is torn",
    "row ends",
    *(f"half of .{suffix}" for suffix in ("pt", "xlsx", "csv", "bak", "json")),
    *(f"rename of .{suffix}" for suffix in ("pt", "xlsx", "csv", "bak", "json")),
    "sync of a file",
    "sync of a folder",
    "removal",
)
# Python imports once in the server; each run is then a fork of it.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "improved_diffusion.commands.training",
        "improved_diffusion.reports.run_workbook",
        "openpyxl",
        "torch._dynamo",  # the first optimizer imports it
    ]
)


def make_images(folder: Path, count: int = 10) -> Path:
    """Noise images of three classes; few, so that a run sees several epochs."""
    return write_images(folder, count, size=8, names="abc")


def start(
    images: Path,
    log_dir: Path,
    *,
    script: Path = SCRIPT,
    kill_at: tuple[str | None, int] | None = None,
    signals_in_step: tuple[int, int, int] | None = None,
    largest_file: int | None = None,
    seconds_an_update: float | None = None,
    environment: dict[str, str] | None = None,
    **flags,
) -> processes.Process:
    """Start, or continue, the training in another process; its stderr goes to ``LOG_DIR.err``.

    :param kill_at: which of its events of a kind (None: of all) it does not survive.
    :param signals_in_step: a signal, how often it gets that, and in which of its updates.
    :param largest_file: bytes of the largest file that its disk has room for.
    :param seconds_an_update: of a clock that nothing else moves.
    """
    argv = command(images, log_dir, script, flags)
    faults = (kill_at, signals_in_step, largest_file, seconds_an_update)
    settings = (argv, log_dir, *faults, environment or {})
    process = processes.Process(target=_train, args=settings)
    process.start()
    return process


def command(images: Path, log_dir: Path, script: Path, flags: dict) -> list[str]:
    """The words that start, or continue, the training."""
    flags = {**TINY, "data_dir": images, "log_dir": log_dir, "resume_checkpoint": "auto", **flags}
    words = ((f"--{k}", str(v)) for k, v in flags.items() if v is not None)
    return [str(script), *itertools.chain(*words)]


def finish(*arguments, **flags) -> None:
    """Run, or continue, the training to its end."""
    assert exit_code(start(*arguments, **flags)) == 0, error_of(arguments[1])


def exit_code(process) -> int | None:
    """What a process ended with; None of one that hangs, which is killed."""
    process.join(HANGS)
    code = process.exitcode
    process.kill()
    return code


ONE_CLOCK = "RANKS_HAVE_ONE_CLOCK"
NOTHING_ALONE = "SURVIVORS_SAVE_NOTHING"


def start_two(
    images: Path, log_dir: Path, *, kill_at=(None, None), survivor_saves=True, **flags
) -> list:
    """Start, or continue, the training on two processes.

    :param kill_at: which of its events each of the two does not survive.
    :param survivor_saves: False where the other one is killed, and what it had saved until then
        would be chance.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {ONE_CLOCK: ""} if any(kill_at) else {}
    shared |= {} if survivor_saves else {NOTHING_ALONE: ""}
    return [
        start(
            images,
            log_dir,
            kill_at=kill_at[rank],
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            **flags,
        )
        for rank in (0, 1)
    ]


def end_both(pair: list) -> list[int | None]:
    """Wait for two processes; when one was killed, kill the other. Their exit codes.

    The other may have missed the one before that, and have ended by itself; None is one that hangs.
    """
    multiprocessing.connection.wait([process.sentinel for process in pair], timeout=HANGS)
    if any(process.exitcode == -signal.SIGKILL for process in pair):
        for process in pair:
            process.kill()
    return [exit_code(process) for process in pair]


def finish_two(images: Path, log_dir: Path, **flags) -> None:
    """Run, or continue, two processes to their end."""
    assert end_both(start_two(images, log_dir, **flags)) == [0, 0], error_of(log_dir)


def run_two_with_kills(images: Path, log_dir: Path, rng: random.Random, **flags) -> int:
    """Run two processes to the end, killed at random events; the number of kills.

    One of the two is killed, or both at once, or now and then their launcher. Whoever is left may
    save what it has, or is killed, too.
    """
    kills = 0
    while True:
        if rng.random() < LAUNCHED:
            kills += kill_a_launcher(images, log_dir, rng, **flags)
            continue
        most = (80, 26)  # events of a whole run: rank 0 alone writes
        kill_at = [(None, rng.randrange(n)) if rng.random() < 0.7 else None for n in most]
        pair = start_two(images, log_dir, kill_at=kill_at, **flags)
        multiprocessing.connection.wait([process.sentinel for process in pair], timeout=HANGS)
        if rng.random() < 0.3:  # all, wherever they are
            for process in pair:
                process.kill()
        for process in pair:
            process.join(HANGS)
        codes = [process.exitcode for process in pair]
        if codes == [0, 0]:
            return kills
        dead = codes.count(-signal.SIGKILL)
        said = f"{codes} {error_of(log_dir)}"
        assert dead, said
        assert set(codes) <= {-signal.SIGKILL, 0, 1}, said
        kills += dead


def kill_a_launcher(
    images: Path,
    log_dir: Path,
    rng: random.Random,
    *,
    script: Path = SCRIPT,
    seconds_an_update: float | None = None,
    **flags,
) -> int:
    """Continue the training on two processes of ``torchrun``, which dies; the number of kills.

    Its processes outlive it, in groups of their own: they come to an end, or are killed, too.
    """
    pids = Path(f"{log_dir}.pids")
    pids.unlink(missing_ok=True)
    argv = command(images, log_dir, script, flags)
    victim = rng.randrange(2), rng.randrange(12)
    settings = json.dumps([argv, str(log_dir), seconds_an_update, *victim])
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    said = Path(f"{log_dir}.launcher")
    with open(said, "w") as file:
        launcher = subprocess.Popen(
            [sys.executable, *words, settings],
            env={**os.environ, "OMP_NUM_THREADS": "1", ONE_CLOCK: ""},
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    code = launcher.wait(HANGS)
    ranks = {int(line): os.pidfd_open(int(line)) for line in _running(pids)}
    doomed = [pid for pid in ranks if rng.random() < 0.5]
    time.sleep(rng.uniform(0, 0.3) if doomed else 0)
    kills = int(code == -signal.SIGKILL)
    for pid, descriptor in ranks.items():
        if pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                kills += 1
        ended, _, _ = select.select([descriptor], [], [], HANGS)  # readable when it has ended
        os.close(descriptor)
        assert ended, f"a process hangs without its launcher: {error_of(log_dir)}"
    assert code in (0, -signal.SIGKILL), f"{code} {error_of(log_dir)} {said.read_text()}"
    return kills


def _running(pids: Path) -> list[str]:
    """Those of the processes in a file that have not ended."""
    return [line for line in pids.read_text().split() if Path(f"/proc/{line}").exists()]


def error_of(log_dir: Path) -> str:
    """What the runs in that folder have written to stderr."""
    return Path(f"{log_dir}.err").read_text()


def deaths(log_dir: Path) -> list[str]:
    """The kinds of events at which the runs in that folder died."""
    path = Path(f"{log_dir}.deaths")
    return path.read_text().splitlines() if path.exists() else []


def _train(
    argv: list[str],
    log_dir: Path,
    kill_at: tuple[str | None, int] | None,
    signals_in_step: tuple[int, int, int] | None,
    largest_file: int | None,
    seconds_an_update: float | None,
    environment: dict[str, str],
) -> None:
    # Models this small are computed fastest by one thread, above all where others compute beside.
    os.environ.update({"OMP_NUM_THREADS": "1", **environment})
    th.set_num_threads(1)
    sys.argv = argv
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = open(f"{log_dir}.err", "a", buffering=1)  # noqa: SIM115
    if kill_at is not None:
        die_at(*kill_at, log_dir)
    if NOTHING_ALONE in environment:
        lost_rank.save_alone = lambda *_: time.sleep(HANGS)
    if signals_in_step is not None:
        _send_to_self(*signals_in_step)
    if seconds_an_update is not None:
        _move_clock_by_updates(seconds_an_update)
    runpy.run_path(argv[0], run_name="__main__")


def _move_clock_by_updates(seconds: float) -> None:
    """An update takes so many seconds, on other ranks than 0 more, and nothing else takes any.

    A time budget is measured over the second update. Where ranks are killed they have one clock, as
    in life: what a survivor saves has the seconds of its own.
    """
    from improved_diffusion import train_util
    from improved_diffusion.training import budget

    now = 0.0

    def wrapped(self, *args):
        nonlocal now
        now += seconds * (1 if ONE_CLOCK in os.environ else 1 + int(os.environ.get("RANK", "0")))
        return original(self, *args)

    budget.UNMEASURED = budget.FEWEST = 1
    train_util.time = types.SimpleNamespace(monotonic=lambda: now)
    original, train_util.TrainLoop.run_step = train_util.TrainLoop.run_step, wrapped


def _send_to_self(number: int, times: int, step: int) -> None:
    from improved_diffusion.train_util import TrainLoop

    original = TrainLoop.forward_backward

    def wrapped(self, *args):
        if self.step == step:
            for _ in range(times):
                os.kill(os.getpid(), number)
                time.sleep(0.01)  # two at once would be one
        return original(self, *args)

    TrainLoop.forward_backward = wrapped


def die_at(kind: str | None, number: int, log_dir: Path, victim: int | None = None) -> None:
    """Kill this process, or a ``victim``, at its event of that number and kind (None: of any).

    Events are the beginning and the end of every update and of every row of the CSV, the middle of
    a row, the middle of every file (of a large one twice), every sync, rename and removal.
    """
    from improved_diffusion import train_util
    from improved_diffusion.logs import formats
    from improved_diffusion.system import files
    from improved_diffusion.training import checkpoints

    count = itertools.count()

    def event(this: str, before_dying=lambda: None) -> None:
        if kind in (None, this) and next(count) == number:
            before_dying()
            with open(f"{log_dir}.deaths", "a") as file:
                file.write(f"{this}{' (the launcher)' if victim else ''}\n")
            os.kill(victim or os.getpid(), signal.SIGKILL)

    def around(owner, name: str, before=lambda *_: None, after=lambda *_: None) -> None:
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            before(*args)
            result = original(*args, **kwargs)
            after(*args)
            return result

        setattr(owner, name, wrapped)

    def tear_row() -> None:
        with open(log_dir / "progress.csv", "a") as file:
            file.write("0.123,4")

    def row_begins(*_) -> None:
        event("row begins")
        event("row is torn", tear_row)

    def write_in_halves(sink, data) -> int:
        sink.writes = getattr(sink, "writes", 0) + 1
        if sink.writes not in (1, 10):
            return write(sink, data)
        half = write(sink, memoryview(data)[: len(data) // 2])
        event(f"half of .{sink.name.name.split('.')[-4]}")  # .NAME.csv.HEX.<UNFINISHED>
        return half + write(sink, memoryview(data)[half:])

    write, files._Sink.write = files._Sink.write, write_in_halves
    is_folder = lambda descriptor: stat.S_ISDIR(os.fstat(descriptor).st_mode)  # noqa: E731
    around(
        train_util.TrainLoop,
        "run_step",
        lambda *_: event("update begins"),
        lambda *_: event("update ends"),
    )
    around(formats.CSVOutputFormat, "writekvs", row_begins, lambda *_: event("row ends"))
    around(os, "fsync", lambda fd: event(f"sync of a {'folder' if is_folder(fd) else 'file'}"))
    around(os, "replace", lambda _, path: event(f"rename of {Path(path).suffix}"))
    around(checkpoints, "remove_file", lambda _: event("removal"))


def rows(log_dir: Path) -> list[dict[str, str]]:
    """The CSV's rows, without the columns of time."""
    return [
        {key: value for key, value in row.items() if key not in TIME_COLUMNS}
        for row in rows_of(log_dir / "progress.csv")
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


def differences(one: Path, other: Path, step: int = STEPS) -> list[str]:
    """What two runs that ended at ``step`` do not share bit for bit; empty if nothing."""
    a, b = tensors(one, step), tensors(other, step)
    assert a, f"no checkpoint {step} in {one}"
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
        process = start(images, log_dir, kill_at=(None, rng.randrange(3, 80)), **flags)
        code = exit_code(process)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, error_of(log_dir)
        kills += 1


def _launched() -> None:
    """One of the processes that :func:`kill_a_launcher` has torchrun start."""
    argv, log_dir, seconds_an_update, rank, number = json.loads(sys.argv[1])
    with open(f"{log_dir}.pids", "a") as file:
        file.write(f"{os.getpid()}\n")
    if int(os.environ["RANK"]) == rank:
        die_at(None, number, Path(log_dir), victim=os.getppid())
    _train(argv, Path(log_dir), None, None, None, seconds_an_update, {})


if __name__ == "__main__":
    _launched()
