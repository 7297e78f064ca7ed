"""Train a diffusion model that enlarges images, on a folder of large images."""

from typing import Any

import numpy as np
import torch as th
import torch.nn.functional as F

from improved_diffusion.commands.cli import run
from improved_diffusion.commands.runs import prepare
from improved_diffusion.commands.training import PREVIEW_IMAGES, open_training_images, train
from improved_diffusion.image_datasets import BatchStream
from improved_diffusion.options.command_line import parse_options
from improved_diffusion.options.training import SuperResTraining
from improved_diffusion.script_util import build_diffusion, build_model
from improved_diffusion.train_util import Batch


def main() -> None:
    options = parse_options(SuperResTraining, __doc__)
    prepare(options)
    options, images = open_training_images(options)
    model, diffusion = build_model(options), build_diffusion(options)
    data = WithLowRes(images, options.small_size)
    train("super_res_train", options, model, diffusion, images, data, preview_kwargs(data))


class WithLowRes:
    """Batches of large images that carry their small versions as the condition ``low_res``."""

    def __init__(self, images: BatchStream, small_size: int):
        self.images = images
        self.small_size = small_size

    def __iter__(self) -> "WithLowRes":
        return self

    def __next__(self) -> Batch:
        large, cond = next(self.images)
        return large, {**cond, "low_res": self.shrink(large)}

    def shrink(self, large: th.Tensor) -> th.Tensor:
        """The small versions of images [N, C, H, W]."""
        return F.interpolate(large, self.small_size, mode="area")

    def state_dict(self) -> dict[str, Any]:
        return self.images.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images.load_state_dict(state)


def preview_kwargs(data: WithLowRes) -> dict[str, th.Tensor]:
    """Conditions of the samples drawn on the way: images from all over the folder."""
    dataset = data.images.dataset
    indices = [i * len(dataset) // PREVIEW_IMAGES for i in range(PREVIEW_IMAGES)]
    large, conds = zip(*(dataset[i] for i in indices), strict=True)
    classes = [cond["y"] for cond in conds if "y" in cond]
    low_res = data.shrink(th.from_numpy(np.stack(large)))
    return {"low_res": low_res} | ({"y": th.tensor(np.array(classes))} if classes else {})


if __name__ == "__main__":
    run(main)
