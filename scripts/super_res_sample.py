"""Enlarge a batch of images with a trained super-resolution model."""

from collections.abc import Sequence

import torch as th

from improved_diffusion.commands.cli import run
from improved_diffusion.commands.sampling import sample
from improved_diffusion.commands.trained import Trained, named, parse_for_model
from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.image_sets import ImageSet, open_images
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
    classes = classes_of(images, trained)[: len(numbers)] if options.class_cond else None
    pixels = th.from_numpy(images.read(numbers))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, classes


def classes_of(images: ImageSet, trained: Trained) -> th.Tensor:
    """The class of each image, int64 [N].

    :raises InputError: if they have none, or others than the model was trained on.
    """
    path, labels = images.source.path, images.labels
    if labels is None:
        raise InputError(f"the images in {path} have no classes, and the model needs them")
    if labels.named and trained.names:
        names = [labels.classes[number] for number in labels.numbers]
        if unknown := set(names) - set(trained.names):
            raise InputError(
                f"{path} has images of class {min(unknown)}; the model was trained on "
                f"{named(trained.names)}"
            )
        return th.tensor([trained.names.index(name) for name in names])
    if labels.numbers.max() >= trained.num_classes:
        known = f"the model knows 0 to {trained.num_classes - 1}"
        raise InputError(f"{path} has images of class {labels.numbers.max()}; {known}")
    return th.from_numpy(labels.numbers)


def small_condition(small: th.Tensor, classes: th.Tensor | None) -> Condition:
    """The small images, over and over, and their classes if they count."""

    def condition(indices: Sequence[int], noise: ImageNoise) -> dict[str, th.Tensor]:
        rows = th.tensor(indices) % len(small)
        return {"low_res": small[rows]} | ({} if classes is None else {"y": classes[rows]})

    return condition


if __name__ == "__main__":
    run(main)
