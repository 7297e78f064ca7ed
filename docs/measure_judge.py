"""Measure how the judge's figures depend on the number of samples, for docs/evaluation.md.

Training images stand in for samples of a perfect model: parts of them of several sizes are judged
by the test images, as image_eval.py does it. Prints a table.
"""

import numpy as np

from improved_diffusion.commands.cli import run
from improved_diffusion.evaluation.features import Extractor
from improved_diffusion.evaluation.image_sets import open_images
from improved_diffusion.evaluation.judge import kept_features
from improved_diffusion.evaluation.quality import (
    Probe,
    Reference,
    frechet_figures,
    kernel_distance,
    mean_figure,
)
from improved_diffusion.options.command_line import Parser

COUNTS = (100, 250, 500, 1000, 2500, 5000)
REPEATS = 5


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("train", metavar="TRAIN_FOLDER")
    parser.add_argument("test", metavar="TEST_FOLDER")
    parser.add_argument("--precision", default="fp32", help="of the features: fp32 or bf16")
    args = parser.parse_args()
    extractor = Extractor("lite0", precision=args.precision)
    train, test = open_images(args.train), open_images(args.test)
    known, real = (kept_features(extractor, images, ".") for images in (train, test))
    reference = Reference(real)
    if train.labels is not None and test.labels is not None:
        for count in (5000, len(known)):
            some = np.random.default_rng(0).permutation(len(known))[:count]
            probe = Probe(known[some], train.labels.numbers[some])
            right = mean_figure(probe.recognised(real, test.labels.numbers))
            print(f"probe of {count} images: {right.value:.4f} ± {right.error:.4f} right")
    print("| images | KID | spread | error | Fréchet | spread | error | extrapolated |")
    for count in COUNTS:
        rows = []
        for seed in range(REPEATS):
            some = known[np.random.default_rng(seed).permutation(len(known))[:count]]
            kid = kernel_distance(some, reference).figure
            near, far = frechet_figures(some, reference)
            rows.append((*kid, *near, *far))
        mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
        print(
            f"| {count} | {mean[0]:.5f} | {spread[0]:.5f} | {mean[1]:.5f} "
            f"| {mean[2]:.2f} | {spread[2]:.2f} | {mean[3]:.2f} "
            f"| {mean[4]:.2f} ± {spread[4]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    run(main)
