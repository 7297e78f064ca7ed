"""Named sets of flags for ``image_train.py``: the one place that a new preset needs."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Preset(NamedTuple):
    """Flags by name, which the command line may override, and what they are for.

    :ivar sampling: flags that ``image_sample.py`` takes for such a model, if not given others.
    """

    about: str
    flags: dict[str, Any]
    sampling: Mapping[str, Any] = MappingProxyType({})


KEPT: dict[str, Any] = {  # what a run of ours leaves behind
    "precision": "auto",
    "sample_interval": 1000,
    "save_interval": 1000,
    "keep_checkpoints": 1,
}
QUICK: dict[str, Any] = {  # what learns fast, in trials of results/README.md
    "class_cond": True,
    "num_classes": "auto",
    "label_dropout": 0.1,
    "noise_schedule": "cosine",
    "predict_v": True,
    "schedule_sampler": "lognormal",
    "optimizer": "muon",
    "adam_beta1": 0.95,
}
FAST: dict[str, Any] = {"sampler": "dpmpp", "precision": "auto"}
COURSE: dict[str, Any] = {
    "image_size": 32,
    "num_channels": 64,
    "num_res_blocks": 2,
    "diffusion_steps": 1000,
    "lr": 1e-4,
    "batch_size": 8,
    "microbatch": 4,
    "ema_rate": "0.999,0.9999",
    "max_steps": 20_000,
    **KEPT,
}
PRESETS: dict[str, Preset] = {
    "reference_cifar10": Preset(
        "the flags of the published CIFAR-10 model, which is unconditional and was trained on the "
        "hybrid objective for 500,000 updates",
        {
            "image_size": 32,
            "num_channels": 128,
            "num_res_blocks": 3,
            "learn_sigma": True,
            "dropout": 0.3,
            "diffusion_steps": 4000,
            "noise_schedule": "cosine",
            "lr": 1e-4,
            "batch_size": 128,
        },
    ),
    "course_linear": Preset(
        "the course project's run with the linear schedule, as in results/",
        {**COURSE, "noise_schedule": "linear"},
    ),
    "course_polynomial": Preset(
        "the course project's run with the polynomial schedule, as in results/",
        {**COURSE, "noise_schedule": "polynomial", "poly_power": 2.0},
    ),
    "cifar10_hour": Preset(
        "pictures of the ten classes of CIFAR-10 in an hour",
        {
            "image_size": 32,
            "num_channels": 64,
            "num_res_blocks": 1,
            **QUICK,
            "logsnr_mean": 2.4,
            "logsnr_std": 2.4,
            "lr": 1.6e-3,
            "warmup_steps": 100,
            "batch_size": 8,
            "ema_rate": "0.998",
            "time_budget": 60.0,
            "guidance": 4.0,
            "guidance_high": 3.0,
            **KEPT,
        },
        sampling=FAST,
    ),
    "digits_minutes": Preset(
        "scikit-learn's handwritten digits, legible after three minutes",
        {
            "image_size": 32,
            "in_channels": 1,
            "patch_size": 2,
            "num_channels": 32,
            "num_res_blocks": 1,
            "channel_mult": "1,2,2",
            "attention_resolutions": "4",
            **QUICK,
            "logsnr_mean": 1.0,
            "logsnr_std": 2.0,
            "lr": 2e-3,
            "warmup_steps": 50,
            "batch_size": 32,
            "ema_rate": "0.99",
            "time_budget": 3.0,
            "guidance": 2.0,
            **KEPT,
        },
        sampling=FAST,
    ),
}
# Recommended values that were chosen for the recommended value of another flag.
FOLLOWERS = {"guidance_low": "guidance", "guidance_high": "guidance", "sampler": "use_ddim"}


def without_followers(flags: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Recommended flags, but for those that go with a flag which is given."""
    return {name: value for name, value in flags.items() if FOLLOWERS.get(name) not in given}
