"""Kill and continue tiny runs for a while, and count what is lost: ``make soak``.

usage: python tests/soak.py [MINUTES]     (default: 30)
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
    end = time.monotonic() + 60 * minutes
    runs = kills = lost = doubled = differing = 0
    kinds = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = killing.make_images(root / "images")
        whole = {name: root / f"whole_{name}" for name in VARIANTS}
        for name, log_dir in whole.items():
            killing.finish(images, log_dir, **VARIANTS[name])
        while time.monotonic() < end:
            name = list(VARIANTS)[runs % len(VARIANTS)]
            killed = root / f"killed_{runs}"
            kills += killing.run_with_kills(images, killed, random.Random(runs), **VARIANTS[name])
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
