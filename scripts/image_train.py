"""Train a diffusion model on a folder of images."""

from improved_diffusion.commands.cli import run
from improved_diffusion.commands.runs import prepare
from improved_diffusion.commands.training import open_training_images, train
from improved_diffusion.options.command_line import parse_options
from improved_diffusion.options.training import ImageTraining
from improved_diffusion.script_util import build_diffusion, build_model


def main() -> None:
    options = parse_options(ImageTraining, __doc__)
    prepare(options)
    options, images = open_training_images(options)
    model, diffusion = build_model(options), build_diffusion(options)
    train("image_train", options, model, diffusion, images, data=images)


if __name__ == "__main__":
    run(main)
