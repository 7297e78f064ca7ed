"""Kill and continue tiny runs for a while, and count what is lost: ``make soak``."""

import argparse
import collections
import itertools
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import killing
from killing import VARIANTS

ROUND = 200  # cases of a kind in a row
EARLY = 500  # updates after which memory is measured first, and then again and again
MOST_GROWTH = 0.05  # most of it for the workbook, which has 50 rows early and 2,000 in the end


def kill(processes: int, minutes: float, most: float, seed: int) -> int:
    """Runs that are killed and continued end as those that were not, bit for bit."""
    on_two = processes == 2
    finish = killing.finish_two if on_two else killing.finish
    run_with_kills = killing.run_two_with_kills if on_two else killing.run_with_kills
    end = time.monotonic() + 60 * minutes
    kills = lost = doubled = differing = 0
    kinds = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = killing.make_images(root / "images", count=22 if on_two else 10)
        whole = {name: root / f"whole_{name}" for name in VARIANTS}
        for name, log_dir in whole.items():
            finish(images, log_dir, **VARIANTS[name])
        for runs, name in enumerate(itertools.cycle(VARIANTS)):
            if time.monotonic() > end or kills >= most:
                break
            killed = root / f"killed_{runs}"
            rng = random.Random(f"{seed} {runs}")
            kills += run_with_kills(images, killed, rng, **VARIANTS[name])
            kinds.update(killing.deaths(killed))
            wanted = [row["step"] for row in killing.rows(whole[name])]
            found = [row["step"] for row in killing.rows(killed)]
            lost += len(set(wanted) - set(found))
            doubled += len(found) - len(set(found))
            if differences := killing.differences(whole[name], killed):
                differing += len(differences)
                print(f"Run {runs} ({name}) differs: {', '.join(differences)}")
            print(
                f"{runs + 1} runs, {kills} kills: {lost} rows lost, {doubled} rows doubled, "
                f"{differing} tensors or logs that differ",
                flush=True,
            )
        print("Killed at:", ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common()))
    return int(bool(lost or doubled or differing))


def fuzz(cases: int, seed: int) -> int:
    """Files of all kinds that were changed or made to do harm are read or refused."""
    import fuzzing
    import hypothesis

    settings = hypothesis.settings(
        max_examples=ROUND,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        subjects = fuzzing.subjects(Path(folder))
        read: dict[str, list[bool]] = {name: [] for name in subjects}

        def read_some(name: str, number: int) -> None:
            @hypothesis.seed(f"{seed} {number}")
            @settings
            @hypothesis.given(subjects[name].cases)
            def find(case: Any) -> None:
                read[name].append(fuzzing.is_read(subjects[name], case, Path(folder)))

            find()

        for number in range(-(-cases // (ROUND * len(subjects)))):
            for name in subjects:
                try:
                    read_some(name, number)
                except Exception:
                    failures += 1
                    traceback.print_exc()
            counts = (f"{name} {sum(was)} of {len(was)}" for name, was in read.items())
            total = sum(map(len, read.values()))
            print(f"{total} cases, {failures} failures; read: {', '.join(counts)}", flush=True)
    return int(failures > 0)


def memory(updates: int) -> int:
    """A long run, with checkpoints and samples, needs no more memory in the end than early on."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images, log_dir = killing.make_images(root / "images"), root / "run"
        flags = {"max_steps": updates, "log_interval": 10, "save_interval": EARLY // 2}
        flags |= {"sample_interval": EARLY // 2, "keep_checkpoints": 2, "diffusion_steps": 8}
        flags |= {"noise_schedule": "cosine", "batch_size": 2}
        flags |= {"channel_mult": "1", "attention_resolutions": ""}
        argv = killing.command(images, log_dir, killing.SCRIPT, flags)
        process = killing.processes.Process(target=_train_and_measure, args=(argv, log_dir))
        process.start()
        process.join()
        assert process.exitcode == 0, killing.error_of(log_dir)
        measured = [int(line) for line in Path(f"{log_dir}.memory").read_text().split()]
    growth = measured[-1] / measured[0] - 1
    print(f"Resident after {EARLY} updates: {measured[0] / 1e6:.1f} MB; the most later on:")
    print(f"{max(measured) / 1e6:.1f} MB; at the end: {measured[-1] / 1e6:.1f} MB ({growth:+.1%})")
    return int(growth > MOST_GROWTH)


def _train_and_measure(argv: list[str], log_dir: Path) -> None:
    from improved_diffusion.train_util import TrainLoop

    original = TrainLoop.run_step

    def run_step(self: TrainLoop, *batch: Any) -> float:
        loss = original(self, *batch)
        if (self.step + 1) % EARLY == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1])
            with open(f"{log_dir}.memory", "a") as file:
                file.write(f"{resident * resource.getpagesize()}\n")
        return loss

    TrainLoop.run_step = run_step
    killing._train(argv, log_dir, None, None, None, None, {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    soaks = parser.add_subparsers(required=True)
    kills = soaks.add_parser("kills", help=kill.__doc__)
    kills.add_argument("--processes", type=int, choices=(1, 2), default=1)
    kills.add_argument("--minutes", type=float, default=30.0)
    kills.add_argument("--kills", type=float, default=float("inf"), help="end after so many")
    kills.set_defaults(soak=lambda args: kill(args.processes, args.minutes, args.kills, args.seed))
    cases = soaks.add_parser("fuzz", help=fuzz.__doc__)
    cases.add_argument("cases", type=int, nargs="?", default=100_000)
    cases.set_defaults(soak=lambda args: fuzz(args.cases, args.seed))
    long = soaks.add_parser("memory", help=memory.__doc__)
    long.add_argument("updates", type=int, nargs="?", default=20_000)
    long.set_defaults(soak=lambda args: memory(args.updates))
    args = parser.parse_args()
    return args.soak(args)


if __name__ == "__main__":
    sys.exit(main())
