"""Sample images from a trained model, into an .npz file and a picture."""

from collections.abc import Sequence

import torch as th

from improved_diffusion.commands.cli import run
from improved_diffusion.commands.runs import open_run, prepare
from improved_diffusion.commands.sampling import load_guide, sample, spaced_diffusion
from improved_diffusion.commands.trained import (
    Trained,
    describe,
    load_trained,
    parse_for_model,
)
from improved_diffusion.errors import InputError
from improved_diffusion.options.using import ImageSampling
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.sampling.samples import RESULTS, Condition
from improved_diffusion.script_util import build_model


def main() -> None:
    options, trained = parse_for_model(ImageSampling, __doc__)
    condition = class_condition(options, trained)
    diffusion = spaced_diffusion(options)
    prepare(options)
    guide = load_guide(options, trained)
    model = load_trained(build_model(options), options.model_path, options.ema_correction)
    with open_run("image_sample", options, results=RESULTS) as folder:
        describe(options, trained, model)
        sample(options, trained, folder, model, diffusion, condition, guide)


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
