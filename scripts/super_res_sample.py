"""Enlarge a batch of images with a trained super-resolution model."""

from collections.abc import Sequence

import torch as th

from improved_diffusion.commands.cli import run
from improved_diffusion.commands.sampling import sample
from improved_diffusion.commands.trained import Trained, parse_for_model
from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.image_sets import open_images
from improved_diffusion.options.using import SuperResSampling
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.sampling.samples import Condition


def main() -> None:
    options, trained = parse_for_model(SuperResSampling, __doc__)
    condition = small_condition(*load_base_samples(options, trained))
    sample("super_res_sample", options, trained, condition)


def load_base_samples(
    options: SuperResSampling, trained: Trained
) -> tuple[th.Tensor, th.Tensor | None]:
    """The small images as float32 [N, C, H, W] in [-1, 1], and their classes if they count."""
    if not options.base_samples:
        raise InputError("no --base_samples given; name the .npz of image_sample.py, or a folder")
    by = "auto" if options.class_cond else "none"
    images = open_images(options.base_samples, options.small_size, options.in_channels, by)
    numbers = range(min(len(images), options.num_samples))
    classes = trained.labels_of(images.source)[: len(numbers)] if options.class_cond else None
    pixels = th.from_numpy(images.read(numbers))
    labels = None if classes is None else th.from_numpy(classes)
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, labels


def small_condition(small: th.Tensor, classes: th.Tensor | None) -> Condition:
    """The small images, over and over, and their classes if they count."""

    def condition(indices: Sequence[int], noise: ImageNoise) -> dict[str, th.Tensor]:
        rows = th.tensor(indices) % len(small)
        return {"low_res": small[rows]} | ({} if classes is None else {"y": classes[rows]})

    return condition


if __name__ == "__main__":
    run(main)
