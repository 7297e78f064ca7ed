"""Time a training step and a sampling step in every variant, interleaved.

Each variant runs in a process of its own; they take turns, so that whatever else the machine does
falls on all of them alike. "plain" is the textbook, and what the published code does: separate
operations, tensors visited one by one by the optimizer, the gradient's norm and the EMA,
microbatches, freed memory that goes back to the system. All others take what a script would take.
"""

import contextlib
import json
import multiprocessing
import os
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch as th
from plain import PlainTraining, PlainUNet
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from improved_diffusion import logger
from improved_diffusion.commands.cli import check_out, run, say_replaced
from improved_diffusion.commands.sampling import evaluating
from improved_diffusion.options.command_line import parse_options
from improved_diffusion.options.flags import complaint, flag, with_default
from improved_diffusion.options.model import ImageModelOptions
from improved_diffusion.options.training import ThreadOptions
from improved_diffusion.script_util import build_diffusion, build_model
from improved_diffusion.system import cpu
from improved_diffusion.system.files import atomic_write_text
from improved_diffusion.system.precision import DTYPES
from improved_diffusion.train_util import Batch, TrainLoop

MATRIX = 4096
WARM_UP = 3  # steps that are not timed
LR, EMA_RATE = 1e-4, 0.9999


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(ThreadOptions, ImageModelOptions):
    """Flags of this script; the model is by default that of the CIFAR-10 runs."""

    image_size: int = with_default(ImageModelOptions, "image_size", 32)
    num_channels: int = with_default(ImageModelOptions, "num_channels", 64)
    batch_size: int = flag(8, "images of a training step", at_least=1)
    microbatch: int = flag(4, "images of a microbatch, where there are such", at_least=1)
    sample_batch: int = flag(16, "images of a sampling step", at_least=1)
    rounds: int = flag(15, "steps of each variant to time", at_least=1)
    compile: bool = flag(False, "also time variants that go through torch.compile")
    json: str = flag("", "file to write the results to; empty for none")

    def check(self) -> Iterator[str]:
        yield from super().check()
        if self.json:
            yield from complaint(lambda: check_out(self.json, ".json", "json"))


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    precision: str = "fp32"
    microbatches: bool = False
    plain: bool = False
    compile: bool = False


@dataclass
class Timing:
    """What a row says."""

    name: str
    milliseconds: float
    ratio_to_plain: float
    images_per_second: float
    gflop_per_second: float
    share_of_matrix_peak: float
    peak_memory_mb: float


def main() -> None:
    options = parse_options(BenchmarkOptions, __doc__)
    processor = cpu.configure_cpu(options.num_threads)
    print(f"{processor}; {platform.platform()}; {date.today()}", flush=True)
    if "bf16" not in precisions():
        print("bf16 is left out: without native bfloat16 a step takes 10 to 80 times as long")
    flags = options.as_dict()
    report = {"processor": str(processor), "date": str(date.today()), "flags": flags}
    for task, images in (("training", options.batch_size), ("sampling", options.sample_batch)):
        gflop = count_gflop(options, task)
        timings = measure(options, task, images, gflop)
        print_table(task, images, gflop, timings)
        report[task] = {"gflop": gflop, "variants": [asdict(timing) for timing in timings]}
    if options.json:
        say_replaced(options.json)
        atomic_write_text(options.json, json.dumps(report, indent=2) + "\n")


def precisions() -> list[str]:
    """The precisions that are worth a measurement here, the fastest last."""
    return ["fp32", "bf16"] if cpu.has_native_bfloat16() else ["fp32"]


def variants(options: BenchmarkOptions, task: str) -> list[Variant]:
    rows = [Variant("plain", microbatches=True, plain=True)]
    for precision in precisions():
        tuned = [Variant(precision, precision)]
        if task == "training":
            tuned.append(Variant(f"{precision}, microbatches", precision, microbatches=True))
        rows += tuned
    if options.compile:
        rows += [replace(row, name=f"{row.name}, compiled", compile=True) for row in tuned]
    return rows


# -- measuring: one process for each row, and one for the matrix product ------------------------


def measure(options: BenchmarkOptions, task: str, images: int, gflop: float) -> list[Timing]:
    rows = variants(options, task)
    workers = [Worker(matrix_products, options, precisions()[-1])]
    workers += [Worker(make_steps, options, task, row) for row in rows]
    for _ in tqdm(range(options.rounds), task, unit="round", disable=None):
        for worker in workers:
            worker.step()
    medians = [statistics.median(worker.milliseconds) for worker in workers]
    peak = 2 * MATRIX**3 / 1e6 / medians[0]  # GFLOP/s
    product = f"{precisions()[-1]} matrix product of {MATRIX} x {MATRIX}"
    print(f"{product}: {peak:.0f} GFLOP/s", flush=True)
    timings = []
    for row, worker, median in zip(rows, workers[1:], medians[1:], strict=True):
        speed = gflop / median * 1e3
        timings.append(
            Timing(
                row.name, median, medians[1] / median, images / median * 1e3, speed, speed / peak,
                worker.close(),
            )
        )  # fmt: skip
    workers[0].close()
    return timings


class Worker:
    """A process that makes one step each time it is asked.

    :param make: called there with ``args``; each item of the iterator that it returns is a step.
    """

    def __init__(self, make: Callable[..., Iterator[object]], *args: object):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self.process.start()
        theirs.close()
        self._answer()  # it is warm
        self.milliseconds: list[float] = []

    def step(self) -> None:
        self.pipe.send("step")
        self.milliseconds.append(self._answer())

    def close(self) -> float:
        """End the process; its peak memory in MB."""
        self.pipe.send("stop")
        peak = self._answer()
        self.process.join()
        return peak

    def _answer(self) -> float:
        """:raises SystemExit: with the process's status, if it ended with a line of its own.

        :raises OSError: if it was killed.
        """
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            status = self.process.exitcode or 0
        if status < 0:
            how = f"signal {-status} ended a process that made steps, as when memory runs out"
            raise OSError(f"{how}; take a smaller batch or model")
        raise SystemExit(status or 1)


def _serve(pipe: Connection, make: Callable[..., Iterator[object]], args: tuple) -> None:
    with contextlib.suppress(EOFError):  # nobody asks any more
        run(lambda: _make_steps(pipe, make, args))


def _make_steps(pipe: Connection, make: Callable[..., Iterator[object]], args: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which that one ends this one
    steps = make(*args)
    for _ in range(WARM_UP):
        next(steps)
    pipe.send(0.0)
    while pipe.recv() == "step":
        started = time.perf_counter()
        next(steps)
        pipe.send((time.perf_counter() - started) * 1e3)
    pipe.send(cpu.peak_memory() / 1e6)


def matrix_products(options: BenchmarkOptions, precision: str) -> Iterator[th.Tensor]:
    cpu.configure_cpu(options.num_threads)
    a = th.randn(MATRIX, MATRIX).to(DTYPES[precision])
    while True:
        yield a @ a


def make_steps(options: BenchmarkOptions, task: str, variant: Variant) -> Iterator[object]:
    cpu.configure_cpu(options.num_threads, tune_memory=not variant.plain)
    th.manual_seed(0)
    return (training_steps if task == "training" else sampling_steps)(options, variant)


def training_steps(options: BenchmarkOptions, variant: Variant) -> Iterator[object]:
    make = partial(plain_loop if variant.plain else tuned_loop, options, variant)
    return silent_updates(make, make_batch(options, options.batch_size))


def silent_updates(make: Callable[[], Any], batch: Batch) -> Iterator[object]:
    """Updates of a loop by one batch, again and again, which say nothing and leave nothing.

    :param make: makes the loop.
    """
    os.environ.pop("DIFFUSION_BLOB_LOGDIR", None)
    with tempfile.TemporaryDirectory() as empty:
        logger.Logger.CURRENT = logger.Logger(dir=empty, output_formats=[])
        loop = make()
        while True:
            yield loop.run_step(*batch)


def plain_loop(options: BenchmarkOptions, variant: Variant) -> PlainTraining:
    model, diffusion = PlainUNet(build_model(options)), build_diffusion(options)
    return PlainTraining(model, diffusion, microbatch=options.microbatch, lr=LR, ema_rate=EMA_RATE)


def tuned_loop(options: BenchmarkOptions, variant: Variant) -> TrainLoop:
    return TrainLoop(
        model=build_model(options),
        diffusion=build_diffusion(options),
        data=iter(()),
        batch_size=options.batch_size,
        microbatch=options.microbatch if variant.microbatches else -1,
        lr=LR,
        ema_rate=EMA_RATE,
        log_interval=1,
        save_interval=1,
        resume_checkpoint="",
        precision=variant.precision,
        compile=variant.compile,
    )


def sampling_steps(options: BenchmarkOptions, variant: Variant) -> Iterator[th.Tensor]:
    diffusion, tuned = build_diffusion(options), build_model(options)
    model = (PlainUNet(tuned) if variant.plain else tuned).eval()
    x, cond = make_batch(options, options.sample_batch)
    t = th.full((len(x),), diffusion.num_timesteps - 1)
    with evaluating(model, variant.precision, variant.compile) as call:
        while True:
            yield diffusion.p_sample(call, x, t, model_kwargs=cond)["sample"]


def make_batch(options: ImageModelOptions, count: int) -> Batch:
    """Images of noise, [count, C, H, W] in [-1, 1], and their labels, if the model takes any."""
    images = th.rand(count, options.in_channels, options.image_size, options.image_size) * 2 - 1
    return images, {"y": th.zeros(count, dtype=th.int64)} if options.class_cond else {}


# -- counting and printing -------------------------------------------------------------------------


def count_gflop(options: BenchmarkOptions, task: str) -> float:
    """Floating-point operations of the matrix products and convolutions of one step, in 1e9."""
    model, diffusion = build_model(options), build_diffusion(options)
    images, cond = make_batch(options, 1)
    with FlopCounterMode(display=False) as counter:
        losses = diffusion.training_losses(model, images, th.zeros(1, dtype=th.int64), cond)
        if task == "training":
            losses["loss"].mean().backward()
    batch = options.batch_size if task == "training" else options.sample_batch
    return counter.get_total_flops() * batch / 1e9


def print_table(task: str, images: int, gflop: float, timings: list[Timing]) -> None:
    print(f"\n{task}: a step of {images} images, {gflop:.1f} GFLOP", flush=True)
    print("| variant | median ms | times plain | images/s | GFLOP/s | of peak | peak MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in timings:
        print(
            f"| {row.name} | {row.milliseconds:.0f} | {row.ratio_to_plain:.2f} "
            f"| {row.images_per_second:.1f} | {row.gflop_per_second:.0f} "
            f"| {row.share_of_matrix_peak:.0%} | {row.peak_memory_mb:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    run(main)
