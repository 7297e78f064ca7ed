"""Sample images from a trained model, into an .npz file and a picture."""

from argparse import Namespace
from collections.abc import Iterator

import torch as th

from improved_diffusion import cli, dist_util, logger, runs
from improved_diffusion.checkpointing import seed_everything
from improved_diffusion.sampling_script import (
    Labelled,
    check_counts,
    choose_sampler,
    collect,
    in_precision,
    load_trained,
    sample_batch,
    sampling_defaults,
    save_samples,
)
from improved_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)


def main() -> None:
    args = create_parser().parse_args()
    choose_sampler(args)
    check_counts(num_samples=args.num_samples, batch_size=args.batch_size)
    dist_util.setup_dist()
    seed_everything(args.seed)
    flags = args_to_dict(args, model_and_diffusion_defaults())
    model, diffusion = create_model_and_diffusion(**flags)
    load_trained(model, args.model_path)
    call = in_precision(model, args.precision)
    with runs.open_run("image_sample", args.log_dir) as folder:
        logger.log(f"Sampling {args.num_samples} images in {diffusion.num_timesteps} steps")
        images, labels = collect(batches(args, call, diffusion), args.num_samples)
        save_samples(folder, images, labels)


def create_parser() -> cli.Parser:
    parser = cli.Parser(description=__doc__)
    add_dict_to_argparser(parser, sampling_defaults() | model_and_diffusion_defaults())
    return parser


def batches(args: Namespace, model, diffusion) -> Iterator[Labelled]:
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    settings = {"sampler": args.sampler, "clip_denoised": args.clip_denoised}
    while True:
        kwargs, labels = {}, None
        if args.class_cond:
            kwargs["y"] = th.randint(args.num_classes, (args.batch_size,)).to(dist_util.dev())
            labels = dist_util.all_gather_cat(kwargs["y"]).cpu().numpy()
        yield sample_batch(diffusion, model, shape, kwargs, **settings), labels


if __name__ == "__main__":
    cli.run(main)
