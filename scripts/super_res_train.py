"""Train a diffusion model that enlarges images, on a folder of large images."""

from typing import Any

import numpy as np
import torch as th
import torch.nn.functional as F

from improved_diffusion import dist_util
from improved_diffusion.commands import cli
from improved_diffusion.commands.training import (
    PREVIEW_IMAGES,
    open_images,
    parse_training_flags,
    train,
)
from improved_diffusion.image_datasets import BatchStream
from improved_diffusion.script_util import (
    args_to_dict,
    check_flags,
    sr_create_model_and_diffusion,
    sr_model_and_diffusion_defaults,
)
from improved_diffusion.train_util import Batch
from improved_diffusion.training.checkpoints import seed_everything


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


def main() -> None:
    defaults = sr_model_and_diffusion_defaults()
    args = parse_training_flags(__doc__, defaults)
    check_flags(vars(args))
    dist_util.setup_dist()
    seed_everything(args.seed)
    images = open_images(args, args.large_size)
    model, diffusion = sr_create_model_and_diffusion(**args_to_dict(args, defaults))
    data = WithLowRes(images, args.small_size)
    train("super_res_train", args, model, diffusion, images, data, preview_kwargs(data))


def preview_kwargs(data: WithLowRes) -> dict[str, th.Tensor]:
    """Conditions of the samples drawn on the way: images from all over the folder."""
    dataset = data.images.dataset
    indices = [i * len(dataset) // PREVIEW_IMAGES for i in range(PREVIEW_IMAGES)]
    large, conds = zip(*(dataset[i] for i in indices), strict=True)
    classes = [cond["y"] for cond in conds if "y" in cond]
    low_res = data.shrink(th.from_numpy(np.stack(large)))
    return {"low_res": low_res} | ({"y": th.tensor(np.array(classes))} if classes else {})


if __name__ == "__main__":
    cli.run(main)
