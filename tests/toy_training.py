"""A training of two weights, and the rows of its log."""

import itertools

import torch as th
from tiny_runs import rows_of

from improved_diffusion import script_util
from improved_diffusion.train_util import TrainLoop
from improved_diffusion.training.state import seed_everything

TIME_COLUMNS = {"wall_time", "steps_per_second"}


class ToyModel(th.nn.Module):
    """Two weights: eps = scale x + shift."""

    def __init__(self):
        super().__init__()
        self.scale = th.nn.Parameter(th.tensor(0.5))
        self.shift = th.nn.Parameter(th.zeros(3, 1, 1))

    def forward(self, x, t):
        return self.scale * x + self.shift


def toy_data(batch_size=4, bad=()):
    """Endless batches of one image; those whose numbers are ``bad`` are not finite."""
    for number in itertools.count():
        batch = th.full((batch_size, 3, 4, 4), 0.25)
        yield (batch * float("nan") if number in bad else batch), {}


def make_diffusion(**changes):
    settings = {"steps": 8, "noise_schedule": "cosine", "rescale_timesteps": True}
    return script_util.create_gaussian_diffusion(**settings | changes)


def toy_loop(data=None, model=None, **changes):
    seed_everything(0)
    settings = {
        "model": model or ToyModel(),
        "diffusion": make_diffusion(),
        "data": data or toy_data(),
        "batch_size": 4,
        "microbatch": -1,
        "lr": 1e-2,
        "ema_rate": "0.9",
        "log_interval": 1,
        "save_interval": 10**6,
        "resume_checkpoint": "",
        "allow_slow_bf16": True,
    }
    return TrainLoop(**settings | changes)


def rows(folder):
    return rows_of(folder / "progress.csv")
