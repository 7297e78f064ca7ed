"""What is registered late is known everywhere, and takes no more settings than it has."""

import numpy as np
import pytest
import torch as th

from improved_diffusion.diffusion.loss_weights import LOSS_WEIGHTS
from improved_diffusion.diffusion.noise_schedules import NOISE_SCHEDULES, get_named_beta_schedule
from improved_diffusion.errors import InputError
from improved_diffusion.options.training import ImageTraining
from improved_diffusion.options.using import ImageSampling
from improved_diffusion.resample import (
    TIMESTEP_SAMPLERS,
    UniformSampler,
    create_named_schedule_sampler,
)
from improved_diffusion.sampling.samplers import SAMPLERS, Sampler
from improved_diffusion.script_util import build_diffusion


@pytest.fixture(autouse=True)
def tidy():
    """Registries as they were."""
    registries = NOISE_SCHEDULES, LOSS_WEIGHTS, TIMESTEP_SAMPLERS, SAMPLERS
    before = [dict(registry) for registry in registries]
    yield
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)


def test_a_schedule_and_a_weight_take_what_they_need():
    @NOISE_SCHEDULES.register("flat")
    def flat(num_steps):
        return np.full(num_steps, 0.01)

    @LOSS_WEIGHTS.register("of_gamma")
    def of_gamma(snr, prediction, gamma):
        return snr * gamma

    assert get_named_beta_schedule("flat", 3).tolist() == [0.01] * 3
    assert [NOISE_SCHEDULES.takes(name, "power") for name in ("flat", "polynomial")] == [
        False,
        True,
    ]
    flags = {"image_size": 32, "noise_schedule": "flat", "loss_weight": "of_gamma"}
    diffusion = build_diffusion(ImageTraining(**flags, min_snr_gamma=3.0))
    assert diffusion.loss_weight(th.ones(2), diffusion.prediction).tolist() == [3, 3]


def test_a_sampler_of_timesteps_takes_what_it_needs():
    @TIMESTEP_SAMPLERS.register("first")
    class First(UniformSampler):
        def weights(self):
            return np.eye(len(self._weights))[0]

    options = ImageTraining(image_size=32, schedule_sampler="first")
    diffusion = build_diffusion(options)
    t, _ = create_named_schedule_sampler("first", diffusion, 1.0, 2.0).sample(3, "cpu")
    assert t.tolist() == [0, 0, 0]


def test_a_sampler_is_known_to_the_flag():
    with pytest.raises(InputError, match=r"unknown sampler 'mine'; choose from ddpm, ddim, dpmpp$"):
        ImageSampling(sampler="mine")
    SAMPLERS["mine"] = Sampler("mine", "ours", SAMPLERS["ddpm"].make_step, usual_steps=7)
    assert ImageSampling(sampler="mine").spacing == "7"
    assert "mine" in ImageSampling.flags()["sampler"].full_help()
