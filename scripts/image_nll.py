"""Evaluate the variational bound of a trained model on images, in bits per dimension."""

import os
import sys
from argparse import Namespace

import numpy as np

from improved_diffusion import cli, dist_util, logger, runs
from improved_diffusion.checkpointing import seed_everything
from improved_diffusion.errors import InputError
from improved_diffusion.files import atomic_write
from improved_diffusion.image_datasets import BatchStream, load_data
from improved_diffusion.sampling_script import (
    describe,
    evaluating,
    load_trained,
    parse_flags_for_model,
)
from improved_diffusion.script_util import (
    args_to_dict,
    create_model_and_diffusion,
    model_and_diffusion_defaults,
)

DEFAULTS = {
    "data_dir": "",
    "clip_denoised": True,
    "num_samples": 1000,
    "batch_size": 1,
    "model_path": "",
    "seed": 0,
    "log_dir": "",
    "precision": "fp32",
    "compile": False,
    "num_threads": 0,
}
TERMS = ("vb", "mse", "xstart_mse")


def main() -> None:
    model_defaults = model_and_diffusion_defaults()
    args = parse_flags_for_model(__doc__, DEFAULTS, model_defaults)
    data_dir = runs.find_data_dir(args.data_dir, "cifar_test")
    dist_util.setup_dist()
    seed_everything(args.seed)
    model, diffusion = create_model_and_diffusion(**args_to_dict(args, model_defaults))
    load_trained(model, args.model_path)
    images = load_data(
        data_dir=data_dir,
        batch_size=args.batch_size,
        image_size=args.image_size,
        class_cond=args.class_cond,
        deterministic=True,
        shard=dist_util.rank(),
        num_shards=dist_util.world_size(),
    )
    classes = images.summary()["classes"]
    if args.class_cond and args.trained_classes not in (None, classes):
        raise InputError(
            f"{data_dir} has the classes {classes}, the model was trained on "
            f"{args.trained_classes}; evaluate it on the same ones"
        )
    with runs.open_run("image_nll", args.log_dir) as folder:
        describe(args.model_path, args.precision)
        logger.log(f"Evaluating {args.num_samples} images of {os.path.abspath(data_dir)}")
        with evaluating(model, args.precision, args.compile) as call:
            terms = evaluate(args, call, diffusion, images)
        save_terms(folder, terms)


def evaluate(args: Namespace, model, diffusion, images: BatchStream) -> dict[str, np.ndarray]:
    """Log the mean bits/dim as it goes; return each term's mean over the images, by timestep."""
    bits: list[float] = []
    terms: dict[str, list[np.ndarray]] = {name: [] for name in TERMS}
    done = 0
    while done < args.num_samples:
        batch, cond = next(images)
        metrics = diffusion.calc_bpd_loop(
            model,
            batch.to(dist_util.dev()),
            clip_denoised=args.clip_denoised,
            model_kwargs={k: v.to(dist_util.dev()) for k, v in cond.items()},
            progress=dist_util.rank() == 0 and sys.stderr.isatty(),
        )
        for name in TERMS:
            terms[name].append(dist_util.mean_over_ranks(metrics[name].mean(dim=0)).cpu().numpy())
        bits.append(float(dist_util.mean_over_ranks(metrics["total_bpd"].mean())))
        done += len(batch) * dist_util.world_size()
        logger.log(f"done {done} samples: bpd={np.mean(bits):.5f}")
    return {name: np.mean(np.stack(rows), axis=0) for name, rows in terms.items()}


def save_terms(folder: str, terms: dict[str, np.ndarray]) -> None:
    """Write each term as ``<name>_terms.npz``, from t = T - 1 down to 0."""
    if dist_util.rank() > 0:
        return
    for name, values in terms.items():
        path = os.path.join(folder, f"{name}_terms.npz")
        with atomic_write(path) as file:
            np.savez(file, values)
        logger.log(f"Saved the {name} terms to {path}")


if __name__ == "__main__":
    cli.run(main)
