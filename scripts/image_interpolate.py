"""Go from one picture to another through their noise, with a trained model: a strip and a film."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th

from improved_diffusion import dist_util, logger
from improved_diffusion.commands.cli import run
from improved_diffusion.commands.runs import open_run, prepare
from improved_diffusion.commands.sampling import (
    choose_label,
    guided,
    load_guide,
    spaced_diffusion,
)
from improved_diffusion.commands.trained import describe, load_trained, parse_for_model
from improved_diffusion.data.image_grid import evenly, make_frame, make_grid, save_gif, save_png
from improved_diffusion.errors import InputError
from improved_diffusion.gaussian_diffusion import Model
from improved_diffusion.logs.progress import progress_bar
from improved_diffusion.options.using import InterpolationOptions
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.sampling import interpolation
from improved_diffusion.sampling.denoising import psnr, read_picture, to_picture, to_tensor
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.sampling.samplers import draw
from improved_diffusion.script_util import build_model

STRIP, FILM = "strip.png", "interpolation.gif"
STRIP_IMAGES = 12

Label = dict[str, th.Tensor]


def main() -> None:
    options, trained = parse_for_model(InterpolationOptions, __doc__)
    label = choose_label(options, trained)
    diffusion = spaced_diffusion(options)
    pictures = read_ends(options)
    prepare(options, alone=True)
    label = {name: value.to(dist_util.dev()) for name, value in label.items()}
    guide = load_guide(options, trained)
    model = load_trained(build_model(options), options.model_path, options.ema_correction)
    with open_run("image_interpolate", options, results=(STRIP, FILM)) as folder:
        describe(options, trained, model)
        logger.log(
            f"{options.num_samples} images from {options.first} to {options.last}, "
            f"{diffusion.num_timesteps} steps of ddim"
        )
        with guided(options, trained, model, diffusion, guide) as call:
            images = interpolate(options, diffusion, call, pictures, label)
        for path, image in ((options.first, images[0]), (options.last, images[-1])):
            if path in pictures:
                found = psnr(image, pictures[path])
                logger.log(f"{path}: PSNR {found:.2f} dB after the way to noise and back")
        save(folder, images)


def read_ends(options: InterpolationOptions) -> dict[str, np.ndarray]:
    """The pictures among the ends, by their path: uint8 [H, W, C].

    :raises InputError: if one cannot be used, or both show the same.
    """
    size = options.size
    first, last = options.first, options.last
    pictures = {
        path: read_picture(path, options.in_channels, size, size)
        for path in (first, last)
        if not path.isdecimal()
    }
    if len(pictures) == 2 and np.array_equal(pictures[first], pictures[last]):
        raise InputError(f"{first} and {last} show the same; give two pictures that differ")
    return pictures


def interpolate(
    options: InterpolationOptions,
    diffusion: SpacedDiffusion,
    model: Model,
    pictures: dict[str, np.ndarray],
    label: Label,
) -> list[np.ndarray]:
    """The images from one end to the other, uint8 [H, W, C] each."""
    count, size = options.num_samples, options.batch_size
    batches = [range(count)[start : start + size] for start in range(0, count, size)]
    steps = diffusion.num_timesteps * len(batches) + (diffusion.num_timesteps - 1) * len(pictures)
    settings: dict[str, Any] = {"clip_denoised": options.clip_denoised}
    with progress_bar(steps, "step") as bar:
        settings["callback"] = lambda _: bar.update()

        def noise_of(end: str) -> th.Tensor:
            if end not in pictures:
                empty = th.empty(1, options.in_channels, options.size, options.size)
                return ImageNoise(options.seed, [int(end)]).randn_like(empty).to(dist_util.dev())
            x_start = to_tensor(pictures[end]).to(dist_util.dev())
            return interpolation.invert(diffusion, model, x_start, model_kwargs=label, **settings)

        def drawn() -> Iterator[th.Tensor]:
            noise = interpolation.arc(noise_of(options.first)[0], noise_of(options.last)[0], count)
            for batch in batches:
                part = noise[batch.start : batch.stop]  # [n, C, H, W]
                kwargs = {name: value.expand(len(part)) for name, value in label.items()}
                yield from draw(
                    "ddim",
                    diffusion,
                    model,
                    tuple(part.shape),
                    noise=part,
                    eta=0.0,
                    model_kwargs=kwargs,
                    **settings,
                )

        return [to_picture(image[None]) for image in drawn()]


def save(folder: str, images: list[np.ndarray]) -> None:
    """Write some of the images as a strip, and all as a film to and fro."""
    strip = [images[i] for i in evenly(len(images), STRIP_IMAGES)]
    save_png(os.path.join(folder, STRIP), make_grid(np.stack(strip), columns=len(strip)))
    frames = [make_frame(image[None]) for image in [*images, *images[-2:0:-1]]]
    save_gif(os.path.join(folder, FILM), frames, held=(0, len(images) - 1))
    logger.log(f"Saved {STRIP}, {len(strip)} of the images, and {FILM}, all of them")


if __name__ == "__main__":
    run(main)
