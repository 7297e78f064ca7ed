"""Sample images from a trained model, into an .npz file and a picture."""

from argparse import Namespace
from collections.abc import Iterator

import torch as th

from improved_diffusion import cli, dist_util, logger, runs
from improved_diffusion.checkpointing import seed_everything
from improved_diffusion.sampling_script import (
    Labelled,
    choose_sampler,
    collect,
    describe,
    evaluating,
    load_trained,
    parse_flags_for_model,
    sample_batch,
    sampling_defaults,
    save_samples,
)
from improved_diffusion.script_util import (
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)


def main() -> None:
    model_defaults = model_and_diffusion_defaults()
    args = parse_flags_for_model(__doc__, sampling_defaults(), model_defaults)
    choose_sampler(args)
    dist_util.setup_dist()
    seed_everything(args.seed)
    model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_defaults))
    load_trained(model, args.model_path)
    with runs.open_run("image_sample", args.log_dir) as folder:
        describe(args.model_path, args.precision)
        logger.log(f"Sampling {args.num_samples} images in {diffusion.num_timesteps} steps")
        with evaluating(model, args.precision, args.compile) as call:
            images, labels = collect(batches(args, call, diffusion), args.num_samples)
        save_samples(folder, images, labels)


def batches(args: Namespace, model, diffusion) -> Iterator[Labelled]:
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    settings = {"sampler": args.sampler, "clip_denoised": args.clip_denoised}
    while True:
        kwargs, labels = {}, None
        if args.class_cond:
            classes = len(args.trained_classes or range(args.num_classes))
            kwargs["y"] = th.randint(classes, (args.batch_size,)).to(dist_util.dev())
            labels = dist_util.all_gather_cat(kwargs["y"]).cpu().numpy()
        yield sample_batch(diffusion, model, shape, kwargs, **settings), labels


if __name__ == "__main__":
    cli.run(main)
