"""Sample images from a trained model, into an .npz file and a picture."""

from collections.abc import Sequence

import torch as th

from improved_diffusion.commands.cli import run
from improved_diffusion.commands.sampling import sample
from improved_diffusion.commands.trained import Trained, parse_for_model
from improved_diffusion.errors import InputError
from improved_diffusion.options.using import ImageSampling
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.sampling.samples import Condition


def main() -> None:
    options, trained = parse_for_model(ImageSampling, __doc__)
    sample("image_sample", options, trained, class_condition(options, trained))


def class_condition(options: ImageSampling, trained: Trained) -> Condition:
    """The class of each image: those of ``--classes`` in turn, or a random one.

    :raises InputError: if the model has no classes, or not those.
    """
    if options.classes and not options.class_cond:
        raise InputError("--classes given, but the model was trained without classes; leave it out")
    chosen = trained.class_numbers(options.classes)

    def condition(indices: Sequence[int], noise: ImageNoise) -> dict[str, th.Tensor]:
        if not options.class_cond:
            return {}
        if chosen:
            return {"y": th.tensor([chosen[i % len(chosen)] for i in indices])}
        return {"y": noise.randint(trained.num_classes)}

    return condition


if __name__ == "__main__":
    run(main)
