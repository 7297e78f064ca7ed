"""Time a training step and a sampling step in every variant, interleaved.

Each variant runs in a process of its own; they take turns, so that whatever else the machine does
falls on all of them alike. "plain" is the textbook, and what the published code does: separate
operations, tensors visited one by one by the optimizer, the gradient's norm and the EMA,
microbatches, the system's own memory allocation. All others take what a script would take.
"""

import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from improved_diffusion.commands import cli
from improved_diffusion.errors import InputError
from improved_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from improved_diffusion.system import cpu
from improved_diffusion.system.allocator import PRELOAD
from improved_diffusion.system.files import atomic_write_text

DEFAULTS = {
    "batch_size": 8,
    "microbatch": 4,
    "sample_batch": 16,
    "rounds": 15,
    "compile": False,
    "num_threads": 0,
    "json": "",
}
MODEL = {"image_size": 32, "num_channels": 64}  # the CIFAR-10 model, where flags do not say
MATRIX = 4096


@dataclass
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
    args = parse_flags()
    processor = cpu.configure_cpu(args.num_threads)
    print(f"{processor}; {platform.platform()}; {date.today()}", flush=True)
    report = {"processor": str(processor), "date": str(date.today()), "flags": vars(args)}
    for task, images in (("training", args.batch_size), ("sampling", args.sample_batch)):
        gflop = count_gflop(args, task)
        timings = measure(args, task, images, gflop)
        print_table(task, images, gflop, timings)
        report[task] = {"gflop": gflop, "variants": [asdict(timing) for timing in timings]}
    if args.json:
        atomic_write_text(args.json, json.dumps(report, indent=2) + "\n")


def parse_flags() -> Namespace:
    parser = cli.Parser(__doc__)
    add_dict_to_argparser(parser, DEFAULTS | model_and_diffusion_defaults() | MODEL)
    args = parser.parse_args()
    for flag in ("batch_size", "microbatch", "sample_batch", "rounds"):
        if getattr(args, flag) < 1:
            raise InputError(f"--{flag} must be at least 1, got {getattr(args, flag)}")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise InputError(f"the folder of --json {args.json} does not exist; make it first")
    create_model_and_diffusion(**args_to_dict(args, model_and_diffusion_defaults()))
    return args


def variants(args: Namespace, task: str) -> list[Variant]:
    rows = [Variant("plain", microbatches=True, plain=True)]
    for precision in ("fp32", "bf16"):
        rows.append(Variant(precision, precision))
        if task == "training":
            rows.append(Variant(f"{precision}, microbatches", precision, microbatches=True))
    if args.compile:
        rows += [
            Variant(f"{row.name}, compiled", "bf16", row.microbatches, compile=True)
            for row in rows
            if row.precision == "bf16"
        ]
    return rows


# -- measuring: one process for each row, and one for the matrix product ------------------------


def measure(args: Namespace, task: str, images: int, gflop: float) -> list[Timing]:
    rows = variants(args, task)
    workers = [Worker(make_matrix_product, args)]
    workers += [Worker(make_step, args, task, row, plain=row.plain) for row in rows]
    for _ in range(args.rounds):
        for worker in workers:
            worker.step()
    medians = [statistics.median(worker.milliseconds) for worker in workers]
    peak = 2 * MATRIX**3 / 1e6 / medians[0]  # GFLOP/s
    print(f"bf16 matrix product of {MATRIX} x {MATRIX}: {peak:.0f} GFLOP/s", flush=True)
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
    """A process that makes one step each time it is asked."""

    def __init__(self, make: Callable, *args, plain: bool = False):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        with system_allocator() if plain else contextlib.nullcontext():
            self.process.start()
        theirs.close()
        self.pipe.recv()  # it is warm
        self.milliseconds: list[float] = []

    def step(self) -> None:
        self.pipe.send("step")
        self.milliseconds.append(self.pipe.recv())

    def close(self) -> float:
        """End the process; its peak memory in MB."""
        self.pipe.send("stop")
        peak = self.pipe.recv()
        self.process.join()
        return peak


@contextlib.contextmanager
def system_allocator() -> Iterator[None]:
    """Have a process that starts here take its memory from the C library."""
    before = os.environ.get(PRELOAD)
    os.environ[PRELOAD] = ""
    try:
        yield
    finally:
        os.environ.pop(PRELOAD) if before is None else os.environ.update({PRELOAD: before})


def _serve(pipe, make: Callable, args: tuple) -> None:
    step = make(*args)
    for _ in range(3):
        step()
    pipe.send("warm")
    while pipe.recv() == "step":
        started = time.perf_counter()
        step()
        pipe.send((time.perf_counter() - started) * 1e3)
    pipe.send(cpu.peak_memory() / 1e6)


def make_matrix_product(args: Namespace) -> Callable[[], object]:
    import torch as th

    cpu.configure_cpu(args.num_threads)
    a = th.randn(MATRIX, MATRIX).bfloat16()
    return lambda: a @ a


def make_step(args: Namespace, task: str, variant: Variant) -> Callable[[], object]:
    import torch as th

    from improved_diffusion import logger

    logger.Logger.CURRENT = logger.Logger(dir=None, output_formats=[])  # steps say nothing
    cpu.configure_cpu(args.num_threads, tune_memory=not variant.plain)
    th.manual_seed(0)
    model, diffusion = create_model_and_diffusion(
        **args_to_dict(args, model_and_diffusion_defaults())
    )
    if variant.plain:
        from plain import make_plain

        make_plain(model)
    return (make_training_step if task == "training" else make_sampling_step)(
        args, variant, model, diffusion
    )


def make_training_step(args: Namespace, variant: Variant, model, diffusion) -> Callable:
    import torch as th
    from plain import make_loop_plain

    from improved_diffusion.train_util import TrainLoop

    loop = TrainLoop(
        model=model,
        diffusion=diffusion,
        data=iter(()),
        batch_size=args.batch_size,
        microbatch=args.microbatch if variant.microbatches else -1,
        lr=1e-4,
        ema_rate=0.9999,
        log_interval=1,
        save_interval=1,
        resume_checkpoint="",
        precision=variant.precision,
        compile=variant.compile,
    )
    if variant.plain:
        make_loop_plain(loop)
    images = th.rand(args.batch_size, args.in_channels, args.image_size, args.image_size) * 2 - 1
    cond = {"y": th.zeros(args.batch_size, dtype=th.int64)} if args.class_cond else {}
    return lambda: loop.run_step(images, cond)


def make_sampling_step(args: Namespace, variant: Variant, model, diffusion) -> Callable:
    import torch as th

    from improved_diffusion.commands.sampling import evaluating

    model.eval()
    shape = (args.sample_batch, args.in_channels, args.image_size, args.image_size)
    kwargs = {"y": th.zeros(args.sample_batch, dtype=th.int64)} if args.class_cond else {}
    context = evaluating(model, variant.precision, variant.compile)
    call = context.__enter__()  # for as long as the process lives, as for a whole sampling
    x, t = th.randn(shape), th.full((args.sample_batch,), diffusion.num_timesteps - 1)

    def step(keep=context):
        return diffusion.p_sample(call, x, t, model_kwargs=kwargs)

    return step


# -- counting and printing -------------------------------------------------------------------------


def count_gflop(args: Namespace, task: str) -> float:
    """Floating-point operations of the matrix products and convolutions of one step, in 1e9."""
    import torch as th
    from torch.utils.flop_counter import FlopCounterMode

    model, diffusion = create_model_and_diffusion(
        **args_to_dict(args, model_and_diffusion_defaults())
    )
    images = th.zeros(1, args.in_channels, args.image_size, args.image_size)
    kwargs = {"y": th.zeros(1, dtype=th.int64)} if args.class_cond else {}
    with FlopCounterMode(display=False) as counter:
        losses = diffusion.training_losses(model, images, th.zeros(1, dtype=th.int64), kwargs)
        if task == "training":
            losses["loss"].mean().backward()
    batch = args.batch_size if task == "training" else args.sample_batch
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
    cli.run(main)
