"""Fill what a mask marks of a picture with a trained model, several times, to choose from."""

from collections.abc import Sequence

import torch as th

from improved_diffusion.commands.cli import run
from improved_diffusion.commands.runs import open_run, prepare
from improved_diffusion.commands.sampling import (
    choose_label,
    load_guide,
    sample,
    spaced_diffusion,
)
from improved_diffusion.commands.trained import describe, load_trained, parse_for_model
from improved_diffusion.options.using import InpaintingOptions
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.sampling.inpainting import read_inpainting
from improved_diffusion.sampling.samples import RESULTS
from improved_diffusion.script_util import build_model


def main() -> None:
    options, trained = parse_for_model(InpaintingOptions, __doc__)
    label = choose_label(options, trained)
    diffusion = spaced_diffusion(options)
    jumps = options.jump_length, options.resamplings
    inpainting = read_inpainting(
        options.input, options.mask, options.in_channels, options.size, *jumps
    )
    inpainting.descents(diffusion.num_timesteps)  # jumps that are too long are refused here
    prepare(options)
    guide = load_guide(options, trained)
    model = load_trained(build_model(options), options.model_path, options.ema_correction)

    def condition(indices: Sequence[int], noise: ImageNoise) -> dict[str, th.Tensor]:
        return {name: value.expand(len(indices)) for name, value in label.items()}

    with open_run("image_inpaint", options, results=RESULTS) as folder:
        describe(options, trained, model)
        sample(options, trained, folder, model, diffusion, condition, guide, inpainting)


if __name__ == "__main__":
    run(main)
