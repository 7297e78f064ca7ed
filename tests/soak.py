"""Kill and continue tiny runs for a while, and count what is lost: ``make soak``.

usage: python tests/soak.py [MINUTES [PROCESSES]]     (default: 30 minutes of runs on one process)
"""

import collections
import random
import sys
import tempfile
import time
from pathlib import Path

import killing
from killing import VARIANTS


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    on_two = sys.argv[2:] == ["2"]
    finish = killing.finish_two if on_two else killing.finish
    run_with_kills = killing.run_two_with_kills if on_two else killing.run_with_kills
    end = time.monotonic() + 60 * minutes
    runs = kills = lost = doubled = differing = 0
    kinds = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = killing.make_images(root / "images", count=22 if on_two else 10)
        whole = {name: root / f"whole_{name}" for name in VARIANTS}
        for name, log_dir in whole.items():
            finish(images, log_dir, **VARIANTS[name])
        while time.monotonic() < end:
            name = list(VARIANTS)[runs % len(VARIANTS)]
            killed = root / f"killed_{runs}"
            kills += run_with_kills(images, killed, random.Random(runs), **VARIANTS[name])
            kinds.update(killing.deaths(killed))
            wanted = [row["step"] for row in killing.rows(whole[name])]
            found = [row["step"] for row in killing.rows(killed)]
            lost += len(set(wanted) - set(found))
            doubled += len(found) - len(set(found))
            differing += len(killing.differences(whole[name], killed))
            runs += 1
            print(
                f"{runs} runs, {kills} kills: {lost} rows lost, {doubled} rows doubled, "
                f"{differing} tensors or logs that differ",
                flush=True,
            )
        print("Killed at:", ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common()))
    return int(bool(lost or doubled or differing))


if __name__ == "__main__":
    sys.exit(main())
