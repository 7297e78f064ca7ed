"""One update of a tiny model on this rank's share of eight images, in one microbatch and in two.

usage: averaged_gradient.py FOLDER     (under torchrun, or alone); leaves there what came of them
"""

import sys
from pathlib import Path

import torch as th

from improved_diffusion import dist_util, logger
from improved_diffusion.resample import UniformSampler
from improved_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
from improved_diffusion.train_util import TrainLoop

IMAGES = 8
TINY = {"image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1"}
TINY |= {"attention_resolutions": "4", "diffusion_steps": 50}


class InOrder(UniformSampler):
    """Gives each image of the eight a timestep of its own."""

    def __init__(self, diffusion, first):
        super().__init__(diffusion)
        self.next = first

    def sample(self, batch_size, device):
        t = th.arange(self.next, self.next + batch_size) * 6
        self.next += batch_size
        return t, th.ones(batch_size)


def main(folder: Path) -> None:
    dist_util.setup_dist()
    th.randn_like = lambda x: (1000 * x).sin()  # noise that depends on the image alone
    logger.configure(str(folder / f"log{dist_util.rank()}"), format_strs=[])
    for microbatches in (1, 2):
        update(folder, microbatches)
    if dist_util.world_size() > 1:
        th.distributed.barrier()


def update(folder: Path, microbatches: int) -> None:
    share = IMAGES // dist_util.world_size()
    first = dist_util.rank() * share
    th.manual_seed(dist_util.rank())  # ranks must agree although they start apart
    model, diffusion = create_model_and_diffusion(**model_and_diffusion_defaults() | TINY)
    for p in model.parameters():
        th.nn.init.normal_(p, std=0.05)
    images = th.rand(IMAGES, 3, 8, 8, generator=th.Generator().manual_seed(1)) * 2 - 1
    loop = TrainLoop(
        model=model,
        diffusion=diffusion,
        data=iter(()),
        batch_size=share,
        microbatch=share // microbatches,
        lr=1e-3,
        ema_rate=0.9,
        log_interval=1,
        save_interval=1,
        resume_checkpoint="",
        schedule_sampler=InOrder(diffusion, first),
    )
    loop.run_step(images[first : first + share], {})
    params = dict(model.named_parameters())
    left = {
        "grads": dict(zip(params, loop.weights.views(loop.weights.grads), strict=True)),
        "params": {name: p.data for name, p in params.items()},
        "ema": dict(zip(params, loop.ema_params[0], strict=True)),
    }
    rank = f"rank{dist_util.rank()}of{dist_util.world_size()}"
    th.save(left, folder / f"{rank}_{microbatches}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
