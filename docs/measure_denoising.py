"""Measure how well a model takes noise out of test images, and draw denoising.png.

Prints the table of docs/denoising.md: PSNR in dB of forty images with white noise of three
strengths, which is estimated from each picture as image_denoise.py does it. The picture shows one
image of each class.
"""

from pathlib import Path

import numpy as np
import torch as th
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from improved_diffusion.commands.cli import check_out, run
from improved_diffusion.commands.trained import load_run
from improved_diffusion.data.image_grid import make_grid, save_png
from improved_diffusion.dist_util import dev
from improved_diffusion.nn import NO_LABEL
from improved_diffusion.options.command_line import Parser
from improved_diffusion.sampling.denoising import (
    denoise,
    estimate_sigma,
    psnr,
    read_picture,
    to_picture,
    to_tensor,
)

COUNT, SIZE = 40, 32
NOISES, SHOWN = (10, 25, 50), 25
RADII = [0.05 * n for n in range(4, 32)]  # of the blur to compare with
MARGIN = 100  # pixels of the picture, for what its rows are


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("folder", metavar="TEST_FOLDER")
    parser.add_argument("out", metavar="PICTURE.png")
    args = parser.parse_args()
    check_out(args.out, ".png")
    measure(args.run, args.folder, args.out)


def measure(model_path: str, folder: str, out: str) -> None:
    model, diffusion, options, _ = load_run(model_path)
    label = {"y": th.tensor([NO_LABEL], device=dev())} if options.class_cond else {}
    names = sorted(path.name for path in Path(folder).iterdir())
    chosen = np.random.default_rng(0).choice(names, COUNT, replace=False)
    clean = [read_picture(str(Path(folder, name)), 3, SIZE, SIZE) for name in chosen]
    print("| noise | as given | blurred | denoised | estimated, mean (range) |")
    for noise in NOISES:
        rng = np.random.default_rng(noise)
        noisy = [to_8_bits(image + noise * rng.standard_normal(image.shape)) for image in clean]
        sigmas = [estimate_sigma(to_tensor(image)[0]) for image in noisy]
        cleaned = [
            to_picture(
                denoise(diffusion, model, to_tensor(image).to(dev()), sigma, model_kwargs=label)
            )
            for image, sigma in zip(noisy, sigmas, strict=True)
        ]
        scores = scores_of(cleaned, clean)
        error = np.std(scores, ddof=1) / COUNT**0.5
        blurs = [scores_of([blurred(image, r) for image in noisy], clean).mean() for r in RADII]
        found = np.array(sigmas) * 127.5
        print(
            f"| {noise} | {scores_of(noisy, clean).mean():.1f} | {max(blurs):.1f} "
            f"| {scores.mean():.1f} ± {error:.1f} "
            f"| {found.mean():.1f} ({found.min():.1f} to {found.max():.1f}) |",
            flush=True,
        )
        if noise == SHOWN:
            first = {name.split("_")[0]: i for i, name in reversed([*enumerate(chosen)])}
            columns = [i for _, i in sorted(first.items())]
            draw(out, [[images[i] for i in columns] for images in (noisy, cleaned, clean)])


def to_8_bits(image: np.ndarray) -> np.ndarray:
    return image.round().clip(0, 255).astype(np.uint8)


def scores_of(images: list[np.ndarray], clean: list[np.ndarray]) -> np.ndarray:
    return np.array([psnr(image, true) for image, true in zip(images, clean, strict=True)])


def blurred(image: np.ndarray, radius: float) -> np.ndarray:
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def draw(out: str, rows: list[list[np.ndarray]]) -> None:
    grid = make_grid(np.concatenate([np.stack(row) for row in rows]), len(rows[0]), scale=3)
    picture = Image.new("RGB", (grid.shape[1] + MARGIN, grid.shape[0]), "white")
    picture.paste(Image.fromarray(grid), (MARGIN, 0))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for number, text in enumerate((f"noise of {SHOWN}", "denoised", "original")):
        middle = grid.shape[0] * (number + 0.5) / len(rows)
        pen.text((MARGIN - 8, middle), text, "black", font, anchor="rm")
    save_png(out, np.array(picture))


if __name__ == "__main__":
    run(main)
