"""Sample images from a trained model, into an .npz file and a picture."""

from argparse import Namespace
from collections.abc import Sequence

import torch as th

from improved_diffusion import dist_util
from improved_diffusion.commands import cli, runs
from improved_diffusion.commands.sampling import (
    choose_sampler,
    class_numbers,
    count_classes,
    describe,
    load_trained,
    parse_flags_for_model,
    sample,
    sampling_defaults,
)
from improved_diffusion.errors import InputError
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.sampling.samples import Condition
from improved_diffusion.script_util import (
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from improved_diffusion.training.checkpoints import seed_everything


def main() -> None:
    model_defaults = model_and_diffusion_defaults()
    args = parse_flags_for_model(__doc__, sampling_defaults() | {"classes": ""}, model_defaults)
    choose_sampler(args)
    condition = class_condition(args)
    dist_util.setup_dist()
    seed_everything(args.seed)
    model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_defaults))
    load_trained(model, args.model_path)
    with runs.open_run("image_sample", args.log_dir) as folder:
        describe(args, model)
        sample(args, folder, model, diffusion, args.image_size, condition)


def class_condition(args: Namespace) -> Condition:
    """The class of each image: those of ``--classes`` in turn, or a random one.

    :raises InputError: if the model has no classes, or not those.
    """
    if args.classes and not args.class_cond:
        raise InputError("--classes given, but the model was trained without classes; leave it out")
    chosen = class_numbers(args, args.classes)
    count = count_classes(args)

    def condition(indices: Sequence[int], noise: ImageNoise) -> dict[str, th.Tensor]:
        if not args.class_cond:
            return {}
        if chosen:
            return {"y": th.tensor([chosen[i % len(chosen)] for i in indices])}
        return {"y": noise.randint(count)}

    return condition


if __name__ == "__main__":
    cli.run(main)
