"""Train in fp32 and in bf16 with one seed, and compare where the loss ends.

usage: python tests/compare_precision.py DATA_DIR [STEPS]     (default: 300 steps)

Exits with status 1 if the smoothed losses of the last step differ by more than 3 %.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "--image_size 32 --num_channels 64 --num_res_blocks 2 --diffusion_steps 1000 --lr 1e-4 "
    "--batch_size 8 --log_interval 1 --seed 1"
).split()
SMOOTHING = 0.98  # the mean of about the last 50 steps
TOLERANCE = 0.03


def smoothed_loss(log_dir: Path) -> float:
    with open(log_dir / "progress.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    mean = losses[0]
    for loss in losses[1:]:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
    return mean


def main() -> int:
    data_dir, steps = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "300"
    ends = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("fp32", "bf16"):
            log_dir = Path(folder, precision)
            subprocess.run(
                [sys.executable, ROOT / "scripts" / "image_train.py", *FLAGS]
                + ["--data_dir", data_dir, "--max_steps", steps, "--log_dir", log_dir]
                + ["--precision", precision],
                stdout=subprocess.DEVNULL,
                check=True,
            )
            ends[precision] = smoothed_loss(log_dir)
            print(f"{precision}: smoothed loss {ends[precision]:.5f} after {steps} steps")
    difference = ends["bf16"] / ends["fp32"] - 1
    print(f"bf16 against fp32: {difference:+.2%}")
    return int(abs(difference) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
