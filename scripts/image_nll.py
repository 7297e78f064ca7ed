"""Evaluate the variational bound of a trained model on images, in bits per dimension."""

import os
from typing import Any

import numpy as np

from improved_diffusion import dist_util, logger
from improved_diffusion.commands.cli import run
from improved_diffusion.commands.runs import find_data_dir, open_run, prepare
from improved_diffusion.commands.sampling import evaluating
from improved_diffusion.commands.trained import (
    Trained,
    describe,
    load_trained,
    named,
    parse_for_model,
)
from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.bits_per_dim import (
    TERMS,
    BpdTable,
    estimate_bpd,
    strata_bounds,
)
from improved_diffusion.image_datasets import BatchStream, load_data
from improved_diffusion.logs.progress import progress_bar
from improved_diffusion.options.using import BoundOptions
from improved_diffusion.reports.bpd_report import RESULTS, save_table
from improved_diffusion.respace import SpacedDiffusion
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.script_util import build_diffusion, build_model
from improved_diffusion.system.files import atomic_write


def main() -> None:
    options, trained = parse_for_model(BoundOptions, __doc__)
    options = options.but(data_dir=find_data_dir(options.data_dir, "cifar_test"))
    diffusion = build_diffusion(options)
    strata_bounds(diffusion.num_timesteps, options.num_timesteps or diffusion.num_timesteps)
    prepare(options)
    model = load_trained(build_model(options), options.model_path, options.ema_correction)
    options, images = open_test_images(options, trained)
    with open_run("image_nll", options, results=RESULTS) as folder:
        describe(options, trained, model)
        where = os.path.abspath(options.data_dir)
        logger.log(f"Evaluating {options.num_samples} images of {where}")
        table = BpdTable(diffusion)
        try:
            with evaluating(model, options.precision, options.compile) as call:
                evaluate(options, call, diffusion, images, table)
        finally:
            if table.totals:
                save(folder, options, table, images)


def open_test_images(options: BoundOptions, trained: Trained) -> tuple[BoundOptions, BatchStream]:
    """The images in an order that ``--seed`` decides, each once; options ask for no more of them.

    In the order of their names the first ones would all be of one class.
    """
    images = load_data(
        data_dir=options.data_dir,
        batch_size=options.batch_size,
        image_size=options.image_size,
        class_cond=options.class_cond,
        labels=options.labels,
        seed=options.seed,
        in_channels=options.in_channels,
        drop_last=False,
        shard=dist_util.rank(),
        num_shards=dist_util.world_size(),
    )
    labels = images.source.labels
    if options.class_cond and labels is not None:
        if trained.names and trained.names != labels.classes:
            raise InputError(
                f"{options.data_dir} has the classes {named(labels.classes)}; the model was "
                f"trained on {named(trained.names)}: evaluate it on the same ones"
            )
        trained.labels_of(images.source)  # or there are more than it knows
    there = len(images.source) // images.num_shards * images.num_shards
    return options.but(num_samples=min(options.num_samples, there)), images


def evaluate(
    options: BoundOptions,
    model: Any,
    diffusion: SpacedDiffusion,
    images: BatchStream,
    table: BpdTable,
) -> None:
    """Fill ``table`` batch by batch, the ranks' images in turn."""
    timesteps = options.num_timesteps or diffusion.num_timesteps
    rank, ranks = dist_util.rank(), dist_util.world_size()
    rounds = -(-options.num_samples // (options.batch_size * ranks))
    with progress_bar(rounds * timesteps, "step") as bar:
        while len(table.totals) < options.num_samples:
            batch, cond = next(images)
            done = len(table.totals)
            share = slice(-(-(options.num_samples - done) // ranks))
            numbers = range(done + rank, done + len(batch[share]) * ranks, ranks)
            metrics = estimate_bpd(
                diffusion,
                model,
                batch[share].to(dist_util.dev()),
                timesteps,
                noise=ImageNoise(options.seed, numbers),
                clip_denoised=options.clip_denoised,
                model_kwargs={k: v[share].to(dist_util.dev()) for k, v in cond.items()},
                on_step=bar.update,
            )
            table.add(metrics, at_most=options.num_samples - done)
            error = f" ± {table.standard_error:.5f}" if len(table.totals) > 1 else ""
            logger.log(f"done {len(table.totals)} samples: bpd={table.mean:.5f}{error}")


def save(folder: str, options: BoundOptions, table: BpdTable, images: BatchStream) -> None:
    """Write the table, and if all timesteps are in it the reference's ``<name>_terms.npz`` too."""
    if dist_util.rank() > 0:
        return
    kept = ("model_path", "data_dir", "precision", "seed", "clip_denoised")
    about = {name: getattr(options, name) for name in kept}
    about["names of images, sha256"] = images.state_dict()["names"]
    logger.log(f"Saved the terms to {save_table(folder, table, about)}")
    for name in TERMS if table.counts.all() else ():
        with atomic_write(os.path.join(folder, f"{name}_terms.npz")) as file:
            np.savez(file, table.means(name)[::-1])  # from t = T - 1 down to 0


if __name__ == "__main__":
    run(main)
