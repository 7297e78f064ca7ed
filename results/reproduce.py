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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch as th

from improved_diffusion.commands.cli import run
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import Parser
from improved_diffusion.options.presets import COURSE, PRESETS
from improved_diffusion.system.cpu import processor_name
from improved_diffusion.system.files import atomic_write
from improved_diffusion.training import checkpoints

PROJECT = Path(__file__).resolve().parent.parent
RUNS, RESULTS = Path("runs", "results"), Path("results")  # relative to the project, as all paths
TRAIN_DATA, TEST_DATA = Path("datasets", "cifar_train"), Path("datasets", "cifar_test")

AUTO: dict[str, object] = {"precision": "auto"}  # bf16 where the processor has it
IN_FP32: dict[str, object] = {"precision": "fp32"}
SETTINGS = COURSE | AUTO | {"data_dir": TRAIN_DATA}
DRAWN = AUTO | {"batch_size": 16}
FAST = DRAWN | {"sampler": "dpmpp", "sampling_steps": 20, "eta": 0.5}
GUIDED = {name: PRESETS["cifar10_hour"].flags[name] for name in ("guidance", "guidance_high")}
# How an EMA is evaluated, by the name that the folder of it begins with.
EVALUATIONS: dict[str, tuple[str, dict[str, object]]] = {
    "nll": (
        "image_nll.py",
        {"data_dir": TEST_DATA, "num_samples": 256, "batch_size": 16, "num_timesteps": 20},
    ),
    "ddpm": ("image_sample.py", DRAWN | {"sampler": "ddpm", "num_samples": 500}),
    "dpmpp": ("image_sample.py", FAST | {"num_samples": 2000}),
    "plain": ("image_sample.py", FAST | {"num_samples": 1000, "guidance": 1}),
    "guided": ("image_sample.py", FAST | GUIDED | {"num_samples": 1000}),
    "brief": ("image_sample.py", FAST | IN_FP32 | {"num_samples": 500, "guidance": 1}),
    "judged_brief": ("image_eval.py", IN_FP32 | {"reference": TEST_DATA}),
}
JUDGED = "judged_"  # before the name of samples: what the judge says of them
JUDGE = AUTO | {"reference": TEST_DATA, "train": TRAIN_DATA}
WORKBOOK_NOTE = "Samples: EMA {rate}, {how}."
SHOWN = {
    "ddpm": "1,000 ancestral steps",
    "guided": "20 steps of DPM-Solver++, guidance {guidance:g} up to sigma "
    "{guidance_high:g}".format(**GUIDED),
}
COMPARISON_NOTE = (
    "One seed each. Bits/dim: 256 test images, 20 timesteps of each, float32. "
    "Samples: ddpm takes 1,000 steps, dpmpp 20 with eta 0.5."
)
ABLATION_NOTE = "About the time of the recipe's 1,000 updates, float32. Samples: 20 steps."
QUARTER_NOTE = "About the time of the recipe's 2,800 updates, float32. Samples: 20 steps."


@dataclass
class Job:
    """One run: how it is trained, and how it is evaluated."""

    name: str
    flags: dict[str, object]
    updates: int
    settings: dict[str, object] = field(default_factory=lambda: SETTINGS)  # before the flags
    ema_rates: tuple[str, ...] = ("0.999", "0.9999")
    kinds: tuple[str, ...] = ("nll", "dpmpp", "judged_dpmpp")  # of each EMA
    of_the_first: tuple[str, ...] = ()  # further ones, of the first EMA alone
    workbook: str = ""
    weights: bool = False  # publish the first EMA, too
    evaluations: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.evaluations = [
            f"{kind}_ema_{rate}"
            for number, rate in enumerate(self.ema_rates)
            for kind in (*self.kinds, *(() if number else self.of_the_first))
        ]


COSINE: dict[str, object] = {"noise_schedule": "cosine"}


def polynomial(power: float) -> dict[str, object]:
    return {"noise_schedule": "polynomial", "poly_power": power}


LINEAR: dict[str, object] = {"noise_schedule": "linear"}
MAIN = [
    Job(name, flags, 20_000, of_the_first=("ddpm", "judged_ddpm"), workbook=workbook)
    for name, flags, workbook in (
        ("linear", LINEAR, "results_lin_sched.xlsx"),
        ("polynomial", polynomial(2), "results_poly_sched.xlsx"),
    )
]
STUDY = [
    Job(name, flags, 3_000, ema_rates=("0.999",))
    for name, flags in (
        ("study_power_1", polynomial(1)),  # linear: the others are compared with the first
        ("study_power_0.5", polynomial(0.5)),
        ("study_power_2", polynomial(2)),
        ("study_power_3", polynomial(3)),
        ("study_cosine", COSINE),
    )
]
# The preset as it was before the ablation, from short trials.
RECIPE: dict[str, object] = {
    "preset": "cifar10_hour",
    "time_budget": 0,
    "num_res_blocks": 2,
    "batch_size": 16,
    "optimizer": "adamw",
    "adam_beta1": 0.9,
    "lr": 8e-4,
    "save_interval": 500,
    "num_threads": 1,
}
# What is published to be used: the preset, for two thirds of the time of 20,000 of the course
# project's updates (step_times.py). What chose the preset was trained with seeds 0 and 1.
HOUR = Job(
    "cifar10_hour",
    {
        "preset": "cifar10_hour",
        "seed": 10,
        "time_budget": 0,
        "lr_anneal_steps": 18_600,
        "lr_hold_steps": 9_300,
        "sample_interval": 2_000,
    },
    18_600,
    settings=AUTO | {"data_dir": TRAIN_DATA},
    ema_rates=("0.998",),
    kinds=("nll", "plain", "guided", "judged_plain", "judged_guided"),
    workbook="results_cifar10_hour.xlsx",
    weights=True,
)


# Short runs at half the width, one core each, so that every part of the recipe can be judged.
BRIEF = partial(
    Job,
    settings=IN_FP32 | {"data_dir": TRAIN_DATA},
    ema_rates=("0.99",),
    kinds=("brief", "judged_brief"),
)
NARROW: dict[str, object] = {"num_channels": 32, "sample_interval": 0}


def ablation(name: str, updates: int = 1_000, **flags: object) -> Job:
    """The recipe but for the flags."""
    ends = {"lr_anneal_steps": updates, "lr_hold_steps": updates // 2}
    return BRIEF(f"ablation/{name}", RECIPE | NARROW | ends | flags, updates)


def quarter(name: str, updates: int, **flags: object) -> Job:
    """The same for a quarter of the time of 20,000 updates of the course project's flags."""
    job = ablation(name, updates, **flags)
    return replace(job, name=f"quarter/{name}", ema_rates=("0.998",))


TOGETHER: dict[str, object] = {
    "batch_size": 8,
    "num_res_blocks": 1,
    "optimizer": "muon",
    "adam_beta1": 0.95,
}


# All take about the time of the first (step_times.py).
ABLATION = [
    ablation("recipe"),
    ablation("recipe_seed_1", seed=1),
    BRIEF("ablation/course", COURSE | NARROW | {"save_interval": 500, "num_threads": 1}, 1_784),
    ablation("eps", predict_v=False),
    ablation("linear", noise_schedule="linear"),
    ablation("uniform", schedule_sampler="uniform"),
    ablation("logsnr_mean_3.6", logsnr_mean=3.6),
    ablation("logsnr_mean_1.2", logsnr_mean=1.2),
    ablation("logsnr_std_1.6", logsnr_std=1.6),
    ablation("lr_1e-4", lr=1e-4, warmup_steps=0, lr_anneal_steps=0, lr_hold_steps=0),
    ablation("no_classes", class_cond=False, label_dropout=0, guidance=1),
    ablation("muon", 940, optimizer="muon", adam_beta1=0.95),
    ablation("channels_64", 396, num_channels=64),
    ablation("patches", 1_101, num_channels=64, patch_size=2, channel_mult="1,2,2"),
    ablation("one_block", 1_512, num_res_blocks=1),
    ablation("batch_8", 1_959, batch_size=8),
    ablation("batch_32", 566, batch_size=32),
    # Up to "preset" published of a Muon that moved linear layers too.
    ablation("together", 2_650, **TOGETHER),
    ablation("together_lr_4e-4", 2_650, **TOGETHER, lr=4e-4),
    ablation("together_lr_1.6e-3", 2_650, **TOGETHER, lr=1.6e-3),
    ablation("together_lr_3.2e-3", 2_650, **TOGETHER, lr=3.2e-3),
    ablation("preset", 2_650, **TOGETHER, lr=1.6e-3),
    ablation("laplace", schedule_sampler="laplace"),
    ablation("min_snr", schedule_sampler="uniform", loss_weight="min_snr"),
]
QUARTER = [
    quarter("recipe", 2_800),
    quarter("together", 6_600, **TOGETHER),
    quarter("together_logsnr_std_1.6", 6_600, **TOGETHER, logsnr_std=1.6),
    quarter("together_channels_64", 2_460, **TOGETHER, num_channels=64),
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
    parser.add_argument(
        "--only",
        default="",
        help="names of runs or groups of them, comma-separated; empty for the long ones",
    )
    parser.add_argument("--data", default="", help="what the images are, to stand by the figures")
    return parser.parse_args()


def chosen_jobs(only: str) -> list[Job]:
    wanted = [name for name in only.split(",") if name]
    jobs = {job.name: [job] for job in (*MAIN, *STUDY, HOUR, *ABLATION, *QUARTER)}
    jobs |= {"ablation": ABLATION, "quarter": QUARTER}
    unknown = [name for name in wanted if name not in jobs]
    if unknown:
        raise InputError(f"--only: no run {unknown[0]!r}; choose from {', '.join(jobs)}")
    return [job for name in wanted for job in jobs[name]] or [*MAIN, *STUDY, HOUR]


def is_done(job: Job) -> bool:
    return (RESULTS / job.name).is_dir()


def train(job: Job) -> None:
    run = RUNS / job.name
    if (run / f"state{job.updates:06d}.pt").exists():
        return
    run_script(
        "image_train.py",
        job.settings
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
    script, flags = EVALUATIONS.get(kind, ("image_eval.py", JUDGE))
    if kind.startswith(JUDGED):
        of = {"samples": RUNS / job.name / name.removeprefix(JUDGED)}
    else:
        of = {"model_path": ema_of(job, rate)}
    run_script(script, of | {"log_dir": making} | flags)
    making.rename(out)


def ema_of(job: Job, rate: str) -> Path:
    return RUNS / job.name / f"ema_{rate}_{job.updates:06d}.pt"


def publish(job: Job) -> None:
    """Copy what is small of a run to results/, in whose place it appears at once."""
    run, out = RUNS / job.name, RESULTS / job.name
    making = out.with_name(f".{out.name}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for name in ("progress.csv", "config.json"):
        shutil.copy(run / name, making / name)
    for name in job.evaluations:
        small = shutil.ignore_patterns("samples_*.npz", "*_terms.npz", "*.xlsx", "log.txt", ".lock")
        shutil.copytree(run / name, making / name, ignore=small)
    if job.weights:
        ema = ema_of(job, job.ema_rates[0])
        save_half(ema, making / ema.name)
    shutil.rmtree(out, ignore_errors=True)
    making.rename(out)


def save_half(path: Path, out: Path) -> None:
    """Write an EMA as 16-bit floats, without its initial weights."""
    weights = checkpoints.load_model_file(str(path))
    share, kept = checkpoints.initial_part(str(path))
    if kept:
        initial = checkpoints.load_model_file(kept)
        weights = checkpoints.without_initial(weights, initial, share)
    with atomic_write(out) as file:
        th.save({name: value.half() for name, value in weights.items()}, file)


def present(made: list[Job], data: str) -> None:
    """Make the workbooks and pictures of what is published, if it is new or they are missing.

    :param data: what the images are, to stand by the figures.
    """
    for job in filter(is_done, (*MAIN, HOUR)):
        if job in made or not (RESULTS / job.workbook).exists():
            export(job, data)
    for jobs, name, note in (
        (MAIN, "compare_schedules", COMPARISON_NOTE),
        (STUDY, "study", COMPARISON_NOTE),
        (ABLATION, "ablation", ABLATION_NOTE),
        (QUARTER, "quarter", QUARTER_NOTE),
    ):
        done = [job for job in jobs if is_done(job)]
        out = RESULTS / f"{name}.xlsx"
        if done and (any(job in made for job in done) or not out.exists()):
            flags = {"out": out, "note": f"{data} {note}".strip()}
            run_script("compare_runs.py", flags, *(RESULTS / job.name for job in done))


def export(job: Job, data: str) -> None:
    folder, rate = RESULTS / job.name, job.ema_rates[0]
    kind = next(kind for kind in SHOWN if f"{kind}_ema_{rate}" in job.evaluations)
    picture = next((folder / f"{kind}_ema_{rate}").glob("samples_*.png"))
    flags = {"log_dir": folder, "picture": picture, "out": RESULTS / job.workbook}
    note = f"{data} {WORKBOOK_NOTE.format(rate=rate, how=SHOWN[kind])}".strip()
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
