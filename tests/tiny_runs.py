"""Folders of images, and of runs whose tiny models say something; rows of a log."""

import csv
import json

import numpy as np
import torch as th
from PIL import Image

from improved_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults


def write_images(folder, count=10, size=32, names=("cat", "dog"), seed=0):
    """Write ``count`` images of noise, called ``<name>_<number>.png`` with the names in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{names[i % len(names)]}_{i:03d}.png")
    return folder


def noise_picture(width, height, mode="RGB"):
    """A picture of noise."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, channels))
    return Image.fromarray(pixels.astype(np.uint8).squeeze(), mode)


def make_model(std=0.1, **flags):
    """A model that says something, and its diffusion."""
    th.manual_seed(0)
    model, diffusion = create_model_and_diffusion(**model_and_diffusion_defaults() | flags)
    for p in model.parameters():
        th.nn.init.normal_(p, std=std)
    return model, diffusion


def save_run(folder, tiny, data=None, **flags):
    """A run's folder with an EMA that says something, and its model and diffusion."""
    flags = model_and_diffusion_defaults() | tiny | flags
    model, diffusion = make_model(**flags)
    folder.mkdir()
    for name in ("model000900.pt", "ema_0.5_000900.pt", "state000900.pt"):
        th.save(model.state_dict(), folder / name)
    (folder / "config.json").write_text(json.dumps({"flags": flags, "data": data or {}}))
    return model.eval(), diffusion


def rows_of(path):
    """The rows of a table as they stand in its file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
