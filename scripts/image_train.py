"""Train a diffusion model on a folder of images."""

from improved_diffusion import dist_util
from improved_diffusion.commands import cli
from improved_diffusion.commands.training import open_images, parse_training_flags, train
from improved_diffusion.script_util import (
    args_to_dict,
    check_flags,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from improved_diffusion.training.checkpoints import seed_everything


def main() -> None:
    defaults = model_and_diffusion_defaults()
    args = parse_training_flags(__doc__, defaults)
    check_flags(vars(args))
    dist_util.setup_dist()
    seed_everything(args.seed)
    images = open_images(args, args.image_size)
    model, diffusion = create_model_and_diffusion(**args_to_dict(args, defaults))
    train("image_train", args, model, diffusion, images, data=images)


if __name__ == "__main__":
    cli.run(main)
