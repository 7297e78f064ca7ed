"""Take the noise out of a picture, or a folder of them, with a trained model.

Pictures are neither scaled nor cut. Those of the size that the model was trained on come out best.
"""

import glob
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from improved_diffusion import dist_util, logger
from improved_diffusion.commands.cli import run
from improved_diffusion.commands.runs import open_run, prepare
from improved_diffusion.commands.sampling import choose_label, evaluating
from improved_diffusion.commands.trained import describe, load_trained, parse_for_model
from improved_diffusion.data.image_files import list_images
from improved_diffusion.data.image_grid import make_grid, save_png
from improved_diffusion.errors import InputError
from improved_diffusion.options.using import DenoisingOptions
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.sampling import denoising
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.script_util import build_diffusion, build_model

LARGEST = 4  # times the model's image size: attention's memory grows with the side's fourth power
EIGHT_BITS = 127.5  # steps of 8 bits in 1 of [-1, 1]


class Picture(NamedTuple):
    """A picture to clean, uint8 [H, W, C]; its clean twin, if known; what results are called."""

    stem: str
    noisy: np.ndarray
    clean: np.ndarray | None


def main() -> None:
    options, trained = parse_for_model(DenoisingOptions, __doc__)
    prepare(options, alone=True)
    label = choose_label(options, trained)
    diffusion, model = build_diffusion(options), build_model(options)
    multiple = model.side_multiple
    # All are read, and their noise looked at, before the first is cleaned.
    smallest = max(multiple, denoising.MASK)
    sizes = (model.in_channels, smallest, LARGEST * options.image_size)
    pictures = [read(*found, sizes) for found in find_pictures(options.input, options.clean)]
    sigmas = [choose_sigma(options.sigma, diffusion, picture.noisy) for picture in pictures]
    load_trained(model, options.model_path, options.ema_correction)
    stems = [glob.escape(picture.stem) for picture in pictures]
    results = [f"{stem}_{kind}.png" for stem in stems for kind in ("denoised", "compared")]
    with open_run("image_denoise", options, results=results) as folder:
        describe(options, trained, model)
        scores = []
        with evaluating(model, options.precision, options.compile) as call:
            for picture, sigma in zip(pictures, sigmas, strict=True):
                logger.log(f"{picture.stem}: noise of sigma {sigma * EIGHT_BITS:.1f} (of 255)")
                image = denoising.denoise(
                    diffusion,
                    call,
                    denoising.to_tensor(picture.noisy).to(dist_util.dev()),
                    sigma,
                    method=options.method,
                    model_kwargs={key: value.to(dist_util.dev()) for key, value in label.items()},
                    multiple=multiple,
                    # The same for each picture: it comes out the same in whatever folder it lies.
                    randn_like=ImageNoise(options.seed, [0]).randn_like,
                )
                score = save(folder, picture, denoising.to_picture(image))
                scores += [score] if score else []
        if len(scores) > 1:
            log_psnr(f"mean of {len(scores)}", *np.mean(scores, axis=0))
        logger.log(f"Saved {len(pictures)} x *_denoised.png and *_compared.png")


def save(folder: str, picture: Picture, cleaned: np.ndarray) -> tuple[float, float] | None:
    """Write a result, alone and beside what it came from; return the PSNR before and after."""
    stem = os.path.join(folder, picture.stem)
    save_png(f"{stem}_denoised.png", cleaned)
    row = [x for x in (picture.noisy, cleaned, picture.clean) if x is not None]
    headings = ("noisy", "denoised", "clean")[: len(row)]
    save_png(f"{stem}_compared.png", make_grid(np.stack(row), len(row), headings=headings))
    if picture.clean is None:
        return None
    before, after = (denoising.psnr(x, picture.clean) for x in (picture.noisy, cleaned))
    log_psnr(picture.stem, before, after)
    return before, after


def log_psnr(name: str, before: float, after: float) -> None:
    logger.log(f"{name}: PSNR {before:.2f} dB before, {after:.2f} dB after")


def read(stem: str, path: str, clean_path: str, sizes: tuple[int, int, int]) -> Picture:
    """:raises InputError: if a file cannot be used, or the two differ in size."""
    noisy = denoising.read_picture(path, *sizes)
    if not clean_path:
        return Picture(stem, noisy, None)
    clean = denoising.read_picture(clean_path, *sizes)
    if clean.shape != noisy.shape:
        raise InputError(f"{path} and {clean_path} differ in size; give pictures that match")
    return Picture(stem, noisy, clean)


def find_pictures(given: str, clean: str) -> Iterator[tuple[str, str, str]]:
    """The stem of each picture's results, its path, and that of its clean twin or ""."""
    if not given:
        raise InputError("no --input given; name a noisy picture, or a folder of them")
    if not os.path.isdir(given):
        yield os.path.splitext(os.path.basename(given))[0], given, clean
        return
    found: dict[str, str] = {}
    for name in list_images(given):
        stem = os.path.splitext(name)[0].replace("/", "_")
        if stem in found:
            raise InputError(f"{found[stem]} and {name} in {given} would both become {stem}")
        found[stem] = name
        yield stem, os.path.join(given, name), clean and os.path.join(clean, name)


def choose_sigma(given: float, diffusion: SpacedDiffusion, picture: np.ndarray) -> float:
    """The noise of a picture in [-1, 1], given or estimated, once the schedule is known to have it.

    :raises InputError: if the schedule has not.
    """
    sigma = given / EIGHT_BITS or denoising.estimate_sigma(denoising.to_tensor(picture)[0])
    denoising.matching_timestep(diffusion, sigma)
    return sigma


if __name__ == "__main__":
    run(main)
