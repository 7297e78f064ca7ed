"""Train, evaluate and compare the runs of results/README.md; what is done is skipped.

Runs are made in runs/results/ and may be interrupted at any time. What is small of them goes to
results/: log, configuration, bits/dim, pictures, workbooks. A run whose folder is there
counts as done; remove results/NAME to make it again.
"""

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

from improved_diffusion.commands.cli import run
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import Parser
from improved_diffusion.system.cpu import processor_name

PROJECT = Path(__file__).resolve().parent.parent
RUNS, RESULTS = Path("runs", "results"), Path("results")  # relative to the project, as all paths
TRAIN_DATA, TEST_DATA = Path("datasets", "cifar_train"), Path("datasets", "cifar_test")

# The course project's settings; bfloat16 where it set nothing.
SETTINGS = {
    "data_dir": TRAIN_DATA,
    "image_size": 32,
    "num_channels": 64,
    "num_res_blocks": 2,
    "diffusion_steps": 1000,
    "lr": 1e-4,
    "batch_size": 8,
    "microbatch": 4,
    "precision": "bf16",
    "log_interval": 10,
    "sample_interval": 1000,
    "save_interval": 1000,
    "keep_checkpoints": 1,
}
NLL = {"data_dir": TEST_DATA, "num_samples": 256, "batch_size": 16, "num_timesteps": 20}
SAMPLES = {"num_samples": 64, "batch_size": 16, "precision": "bf16"}
SAMPLERS = {"ddpm": {}, "dpmpp": {"sampling_steps": 20, "eta": 0.5}}
WORKBOOK_NOTE = "Trained in bfloat16. Samples: EMA {rate}, 1,000 ancestral steps, bfloat16."
COMPARISON_NOTE = (
    "Trained in bfloat16, one seed each. Bits/dim: 256 test images, 20 timesteps of each, float32. "
    "Samples in bfloat16: ddpm takes 1,000 steps, dpmpp 20 with eta 0.5."
)


@dataclass
class Job:
    """One run: how it is trained, and how it is evaluated."""

    name: str
    flags: dict[str, object]
    updates: int
    ema_rates: tuple[str, ...] = ("0.999", "0.9999")
    samplers: tuple[str, ...] = ("ddpm", "dpmpp")
    workbook: str = ""
    evaluations: list[str] = field(init=False)

    def __post_init__(self) -> None:
        kinds = ("nll", *self.samplers)
        self.evaluations = [f"{kind}_ema_{rate}" for rate in self.ema_rates for kind in kinds]


COSINE: dict[str, object] = {"noise_schedule": "cosine"}


def polynomial(power: float) -> dict[str, object]:
    return {"noise_schedule": "polynomial", "poly_power": power}


MAIN = [
    Job("linear", {"noise_schedule": "linear"}, 20_000, workbook="results_lin_sched.xlsx"),
    Job("polynomial", polynomial(2), 20_000, workbook="results_poly_sched.xlsx"),
]
STUDY = [
    Job(name, flags, 3_000, ema_rates=("0.999",), samplers=("dpmpp",))
    for name, flags in (
        ("study_power_1", polynomial(1)),  # linear: the others are compared with the first
        ("study_power_0.5", polynomial(0.5)),
        ("study_power_2", polynomial(2)),
        ("study_power_3", polynomial(3)),
        ("study_cosine", COSINE),
    )
]


def main() -> None:
    args = parse_flags()
    jobs = chosen_jobs(args.only)
    os.chdir(PROJECT)
    for folder in (TRAIN_DATA, TEST_DATA):
        if not folder.is_dir() and not all(map(is_done, jobs)):
            raise InputError(f"no images in {folder}; run `python datasets/cifar10.py` first")
    print(f"Processor: {processor_name()}", flush=True)
    made = []
    for job in jobs:
        if is_done(job):
            print(f"{job.name} is done; remove {RESULTS / job.name} to repeat it", flush=True)
            continue
        train(job)
        for name in job.evaluations:
            evaluate(job, name)
        publish(job)
        made.append(job)
    present(made, args.data)


def parse_flags() -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--only", default="", help="names of runs, comma-separated; empty for all")
    parser.add_argument("--data", default="", help="what the images are, to stand by the figures")
    return parser.parse_args()


def chosen_jobs(only: str) -> list[Job]:
    wanted = [name for name in only.split(",") if name]
    jobs = {job.name: job for job in MAIN + STUDY}
    unknown = [name for name in wanted if name not in jobs]
    if unknown:
        raise InputError(f"--only: no run {unknown[0]!r}; choose from {', '.join(jobs)}")
    return [jobs[name] for name in wanted or jobs]


def is_done(job: Job) -> bool:
    return (RESULTS / job.name).is_dir()


def train(job: Job) -> None:
    run = RUNS / job.name
    if (run / f"state{job.updates:06d}.pt").exists():
        return
    run_script(
        "image_train.py",
        SETTINGS
        | job.flags
        | {"max_steps": job.updates, "ema_rate": ",".join(job.ema_rates)}
        | {"log_dir": run, "resume_checkpoint": "auto"},
    )


def evaluate(job: Job, name: str) -> None:
    """Bits/dim or samples of one EMA, into a folder of their own within the run's."""
    out = RUNS / job.name / name
    if out.is_dir():
        return
    kind, _, rate = name.partition("_ema_")
    making = out.with_name(f".{name}")  # only what is whole gets its name
    shutil.rmtree(making, ignore_errors=True)
    flags = {"model_path": RUNS / job.name / f"ema_{rate}_{job.updates:06d}.pt", "log_dir": making}
    if kind == "nll":
        run_script("image_nll.py", flags | NLL)
    else:
        run_script("image_sample.py", flags | SAMPLES | {"sampler": kind} | SAMPLERS[kind])
    making.rename(out)


def publish(job: Job) -> None:
    """Copy what is small of a run to results/, in whose place it appears at once."""
    run, out = RUNS / job.name, RESULTS / job.name
    making = out.with_name(f".{job.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for name in ("progress.csv", "config.json"):
        shutil.copy(run / name, making / name)
    for name in job.evaluations:
        small = shutil.ignore_patterns("*.npz", "*.xlsx", "log.txt", ".lock")
        shutil.copytree(run / name, making / name, ignore=small)
    shutil.rmtree(out, ignore_errors=True)
    making.rename(out)


def present(made: list[Job], data: str) -> None:
    """Make the workbooks and pictures of what is published, if it is new or they are missing.

    :param data: what the images are, to stand by the figures.
    """
    for job in filter(is_done, MAIN):
        if job in made or not (RESULTS / job.workbook).exists():
            export(job, data)
    for jobs, name in ((MAIN, "compare_schedules"), (STUDY, "study")):
        done = [job for job in jobs if is_done(job)]
        out = RESULTS / f"{name}.xlsx"
        if done and (any(job in made for job in done) or not out.exists()):
            flags = {"out": out, "note": f"{data} {COMPARISON_NOTE}".strip()}
            run_script("compare_runs.py", flags, *(RESULTS / job.name for job in done))


def export(job: Job, data: str) -> None:
    folder, rate = RESULTS / job.name, job.ema_rates[0]
    picture = next((folder / f"ddpm_ema_{rate}").glob("samples_*.png"))
    flags = {"log_dir": folder, "picture": picture, "out": RESULTS / job.workbook}
    note = f"{data} {WORKBOOK_NOTE.format(rate=rate)}".strip()
    run_script("export_results.py", flags | {"note": note})


def run_script(script: str, flags: dict[str, object], *words: object) -> None:
    """:raises SystemExit: with the script's status, if it did not end well."""
    given = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, str(Path("scripts", script)), *map(str, words), *given]
    print("$", *command[1:], flush=True)
    process = subprocess.Popen(command)
    try:
        status = process.wait()
    except KeyboardInterrupt:  # the terminal sent it to the script too, which saves now
        process.wait()
        raise
    except SystemExit:
        process.terminate()
        process.wait()
        raise
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    run(main)
