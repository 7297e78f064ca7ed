"""Fill what a mask marks of a picture with a trained model, several times, to choose from."""

from collections.abc import Sequence

import torch as th

from improved_diffusion.commands.cli import run
from improved_diffusion.commands.sampling import choose_label, sample
from improved_diffusion.commands.trained import parse_for_model
from improved_diffusion.options.using import InpaintingOptions
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.sampling.inpainting import read_inpainting


def main() -> None:
    options, trained = parse_for_model(InpaintingOptions, __doc__)
    label = choose_label(options, trained)
    jumps = options.jump_length, options.resamplings
    inpainting = read_inpainting(
        options.input, options.mask, options.in_channels, options.size, *jumps
    )

    def condition(indices: Sequence[int], noise: ImageNoise) -> dict[str, th.Tensor]:
        return {name: value.expand(len(indices)) for name, value in label.items()}

    sample("image_inpaint", options, trained, condition, inpainting)


if __name__ == "__main__":
    run(main)
