"""Enlarge a batch of images with a trained super-resolution model."""

from collections.abc import Sequence

import numpy as np
import torch as th

from improved_diffusion.commands.cli import run
from improved_diffusion.commands.sampling import sample
from improved_diffusion.commands.trained import Trained, named, parse_for_model
from improved_diffusion.data.array_source import CLASS_NAMES
from improved_diffusion.errors import InputError
from improved_diffusion.options.using import SuperResSampling
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.sampling.samples import Condition
from improved_diffusion.system.archives import read_arrays

LARGEST = 2**32  # bytes of the small images


def main() -> None:
    options, trained = parse_for_model(SuperResSampling, __doc__)
    condition = small_condition(*load_base_samples(options, trained))
    sample("super_res_sample", options, trained, condition)


def load_base_samples(
    options: SuperResSampling, trained: Trained
) -> tuple[th.Tensor, th.Tensor | None]:
    """The small images as float32 [N, C, H, W] in [-1, 1], and their classes if they count."""
    path = options.base_samples
    if not path:
        raise InputError("no --base_samples given; name the .npz file that image_sample.py wrote")
    wanted = ("arr_0", "arr_1", CLASS_NAMES) if options.class_cond else ("arr_0",)
    arrays = read_arrays(path, wanted, LARGEST)
    names = [str(name) for name in np.ravel(arrays.pop(CLASS_NAMES, ()))]
    if len(arrays) <= options.class_cond:
        missing = "arr_1, the classes" if "arr_0" in arrays else "arr_0"
        raise InputError(f"{path} is no .npz of samples to start from: it has no {missing}")
    images, classes = arrays["arr_0"], arrays.get("arr_1")
    size, channels = options.small_size, options.in_channels
    if images.shape[1:] != (size, size, channels) or images.dtype != np.uint8 or not len(images):
        raise InputError(
            f"{path} holds {images.dtype} {images.shape}; --small_size {size} needs "
            f"uint8 (N, {size}, {size}, {channels})"
        )
    if names and trained.names and names != trained.names:
        raise InputError(
            f"{path} has the classes {named(names)}; the model was trained on "
            f"{named(trained.names)}: start from samples of the same ones"
        )
    count = trained.num_classes
    if classes is not None and not (
        classes.shape == images.shape[:1]
        and np.issubdtype(classes.dtype, np.integer)
        and np.isin(classes, range(count)).all()
    ):
        raise InputError(f"{path}: arr_1 must be one class of 0 to {count - 1} for each image")
    scaled = th.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return scaled, None if classes is None else th.from_numpy(classes.astype(np.int64))


def small_condition(small: th.Tensor, classes: th.Tensor | None) -> Condition:
    """The small images, over and over, and their classes if they count."""

    def condition(indices: Sequence[int], noise: ImageNoise) -> dict[str, th.Tensor]:
        rows = th.tensor(indices) % len(small)
        return {"low_res": small[rows]} | ({} if classes is None else {"y": classes[rows]})

    return condition


if __name__ == "__main__":
    run(main)
