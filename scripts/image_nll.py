"""Evaluate the variational bound of a trained model on images, in bits per dimension."""

import os
from argparse import Namespace

import numpy as np

from improved_diffusion import dist_util, logger
from improved_diffusion.commands import cli, runs
from improved_diffusion.commands.sampling import (
    describe,
    evaluating,
    listed,
    load_trained,
    parse_flags_for_model,
)
from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.bits_per_dim import (
    TERMS,
    BpdTable,
    estimate_bpd,
    save_table,
    strata_bounds,
)
from improved_diffusion.image_datasets import BatchStream, load_data
from improved_diffusion.logs.progress import progress_bar
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.script_util import (
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)
from improved_diffusion.system.files import atomic_write
from improved_diffusion.training.checkpoints import seed_everything

DEFAULTS = {
    "data_dir": "",
    "clip_denoised": True,
    "num_samples": 1000,
    "batch_size": 1,
    "model_path": "",
    "num_timesteps": 0,
    "seed": 0,
    "log_dir": "",
    "precision": "fp32",
    "compile": False,
    "num_threads": 0,
}


def main() -> None:
    model_defaults = model_and_diffusion_defaults()
    args = parse_flags_for_model(__doc__, DEFAULTS, model_defaults)
    data_dir = runs.find_data_dir(args.data_dir, "cifar_test")
    dist_util.setup_dist()
    seed_everything(args.seed)
    model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_defaults))
    strata_bounds(diffusion.num_timesteps, args.num_timesteps or diffusion.num_timesteps)
    load_trained(model, args.model_path)
    images = open_test_images(args, data_dir)
    with runs.open_run("image_nll", args.log_dir) as folder:
        describe(args, model)
        logger.log(f"Evaluating {args.num_samples} images of {os.path.abspath(data_dir)}")
        table = BpdTable(diffusion)
        try:
            with evaluating(model, args.precision, args.compile) as call:
                evaluate(args, call, diffusion, images, table)
        finally:
            if table.totals:
                save(folder, args, table, images)


def open_test_images(args: Namespace, data_dir: str) -> BatchStream:
    """The images in an order that ``--seed`` decides, each once; asks for no more than there are.

    In the order of their names the first ones would all be of one class.
    """
    images = load_data(
        data_dir=data_dir,
        batch_size=args.batch_size,
        image_size=args.image_size,
        class_cond=args.class_cond,
        seed=args.seed,
        in_channels=args.in_channels,
        drop_last=False,
        shard=dist_util.rank(),
        num_shards=dist_util.world_size(),
    )
    data = images.summary()
    trained_on = args.trained_on.get("classes")
    if args.class_cond and trained_on not in (None, data["classes"]):
        raise InputError(
            f"{data_dir} has the classes {listed(data['classes'])}; the model was trained on "
            f"{listed(trained_on)}: evaluate it on the same ones"
        )
    args.num_samples = min(
        args.num_samples, data["images"] // images.num_shards * images.num_shards
    )
    return images


def evaluate(args: Namespace, model, diffusion, images: BatchStream, table: BpdTable) -> None:
    """Fill the table, and log the mean as it goes."""
    timesteps = args.num_timesteps or diffusion.num_timesteps
    rank, ranks = dist_util.rank(), dist_util.world_size()
    batches = -(-args.num_samples // (args.batch_size * ranks))
    with progress_bar(batches * timesteps, "step") as bar:
        while len(table.totals) < args.num_samples:
            batch, cond = next(images)
            done = len(table.totals)
            share = slice(-(-(args.num_samples - done) // ranks))
            numbers = range(done + rank, done + len(batch[share]) * ranks, ranks)
            metrics = estimate_bpd(
                diffusion,
                model,
                batch[share].to(dist_util.dev()),
                timesteps,
                noise=ImageNoise(args.seed, numbers),
                clip_denoised=args.clip_denoised,
                model_kwargs={k: v[share].to(dist_util.dev()) for k, v in cond.items()},
                on_step=bar.update,
            )
            table.add(metrics, at_most=args.num_samples - done)
            error = f" ± {table.standard_error:.5f}" if len(table.totals) > 1 else ""
            logger.log(f"done {len(table.totals)} samples: bpd={table.mean:.5f}{error}")


def save(folder: str, args: Namespace, table: BpdTable, images: BatchStream) -> None:
    """Write the table, and if all timesteps are in it the reference's ``<name>_terms.npz`` too."""
    if dist_util.rank() > 0:
        return
    about = args_to_dict(args, ("model_path", "data_dir", "precision", "seed", "clip_denoised"))
    about["names of images, sha256"] = images.state_dict()["names"]
    logger.log(f"Saved the terms to {save_table(folder, table, about)}")
    for name in TERMS if table.counts.all() else ():
        with atomic_write(os.path.join(folder, f"{name}_terms.npz")) as file:
            np.savez(file, table.means(name)[::-1])  # from t = T - 1 down to 0


if __name__ == "__main__":
    cli.run(main)
