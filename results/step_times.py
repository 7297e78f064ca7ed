"""Time an update of each run of reproduce.py, interleaved.

Prints how many updates of each fit into the time of the first run, and into a quarter of it, so
that runs with other settings can be given the same time on any machine.
"""

import statistics
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from reproduce import Job, chosen_jobs
from tqdm import tqdm

from improved_diffusion.commands.cli import run
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import Parser, as_words, parse_options
from improved_diffusion.options.training import ImageTraining, LoopOptions
from improved_diffusion.resample import create_named_schedule_sampler
from improved_diffusion.script_util import build_diffusion, build_model
from improved_diffusion.system import cpu
from improved_diffusion.train_util import TrainLoop

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
from benchmark import Worker, make_batch, silent_updates


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--only", default="", help="names of runs, comma-separated")
    parser.add_argument("--rounds", type=int, default=15, help="updates of each run to time")
    parser.add_argument("--num_threads", type=int, default=1, help="of each; 0 for all cores")
    args = parser.parse_args()
    if args.rounds < 1:
        raise InputError(f"--rounds must be at least 1, got {args.rounds}")
    if not args.only:
        raise InputError("no --only given; name the runs to time, first the one to compare with")
    jobs = chosen_jobs(args.only)
    print(cpu.configure_cpu(args.num_threads), flush=True)
    workers = [Worker(updates, job, args.num_threads) for job in jobs]
    for _ in tqdm(range(args.rounds), unit="round", disable=None):
        for worker in workers:
            worker.step()
    medians = [statistics.median(worker.milliseconds) for worker in workers]
    print("| run | median ms | updates | in a quarter |")
    print("| --- | ---: | ---: | ---: |")
    for job, worker, median in zip(jobs, workers, medians, strict=True):
        fitting = jobs[0].updates * medians[0] / median
        print(f"| {job.name} | {median:.0f} | {fitting:.0f} | {fitting / 4:.0f} |", flush=True)
        worker.close()


def updates(job: Job, num_threads: int) -> Iterator[object]:
    """Updates with the job's flags, on images of noise."""
    cpu.configure_cpu(num_threads)
    words = as_words(job.settings | job.flags | {"num_threads": num_threads, "num_classes": 10})
    options = parse_options(ImageTraining, __doc__, words)
    settings = options.of(LoopOptions).but(sample_interval=0, save_gif=False)
    model, diffusion = build_model(options), build_diffusion(options)
    density = options.logsnr_mean, options.logsnr_std
    sampler = create_named_schedule_sampler(options.schedule_sampler, diffusion, *density)
    make = partial(
        TrainLoop,
        model=model,
        diffusion=diffusion,
        data=iter(()),
        schedule_sampler=sampler,
        flags=options.as_dict(),
        **settings.as_dict(),
    )
    return silent_updates(make, make_batch(options, options.batch_size))


if __name__ == "__main__":
    run(main)
