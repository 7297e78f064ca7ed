"""Flags that make a network and its diffusion."""

import argparse
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ..diffusion.loss_weights import LOSS_WEIGHTS, MIN_SNR_GAMMA
from ..diffusion.noise_schedules import (
    MOST_STEPS,
    NOISE_SCHEDULES,
    checked_betas,
    get_named_beta_schedule,
)
from ..errors import InputError
from ..models.architecture import IMAGE_CHANNELS
from ..nn import NORM_GROUPS
from ..respace import respaced_timesteps
from .flags import Options, complaint, flag

NUM_CLASSES = 1000
AUTO = "auto"  # as many classes as the images have


def count_or_auto(text: str) -> int | str:
    """A whole number, or the word ``auto``."""
    try:
        return AUTO if text == AUTO else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or {AUTO}, got {text!r}") from None


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(Options):
    """Flags of the diffusion process."""

    diffusion_steps: int = flag(
        1000, "timesteps of the diffusion", at_least=1, at_most=MOST_STEPS, in_weights=False
    )
    noise_schedule: str = flag(
        "linear", "noise schedule", choices=NOISE_SCHEDULES, in_weights=False
    )
    poly_power: float = flag(
        2.0,
        "power of the polynomial schedule; 1 is the linear one, more holds noise back",
        above=0,
        in_weights=False,
    )
    timestep_respacing: str = flag(
        "",
        "timesteps to use, such as 250, 10,15,20 (of equal parts), ddim50 (a whole stride apart) "
        "or logsnr20 (evenly in log SNR); empty for all",
        in_use="not adopted",  # how a model was trained does not say how to sample
    )
    learn_sigma: bool = flag(False, "let the model learn the variances")
    sigma_small: bool = flag(
        False,
        "use the posterior's variance rather than beta, where it is not learned",
        in_use="free",
    )
    use_kl: bool = flag(False, "train on the variational bound", in_use="free")
    predict_xstart: bool = flag(False, "predict the image rather than the noise", in_weights=False)
    predict_v: bool = flag(
        False,
        "predict v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) image",
        in_weights=False,
    )
    rescale_timesteps: bool = flag(
        True, "show the model timesteps scaled to 0..1000", in_weights=False
    )
    rescale_learned_sigmas: bool = flag(
        True, "scale the bound's share of the loss by diffusion_steps / 1000", in_use="free"
    )
    loss_weight: str = flag(
        "uniform",
        "weight of the squared error of each noise level",
        choices=LOSS_WEIGHTS,
        in_use="free",
    )
    min_snr_gamma: float = flag(
        MIN_SNR_GAMMA,
        "gamma of min_snr, which weighs an error of the image by min(SNR, gamma)",
        above=0,
        in_use="free",
    )

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """alpha_bar of the timesteps to use, float64 [T].

        :raises InputError: if the schedule or the respacing cannot be had, or leaves no image.
        """
        betas = checked_betas(
            get_named_beta_schedule(self.noise_schedule, self.diffusion_steps, self.poly_power)
        )
        if not np.prod(1 - betas):
            raise InputError(
                f"noise_schedule {self.noise_schedule} in {self.diffusion_steps} diffusion_steps "
                "leaves nothing of the image (a beta reaches 1); give more diffusion_steps"
            )
        kept = respaced_timesteps(betas, self.timestep_respacing)
        return np.cumprod(1 - betas)[sorted(kept)]

    def check(self) -> Iterator[str]:
        yield from super().check()
        for name in ("use_kl", "predict_xstart"):
            if self.predict_v and getattr(self, name):
                yield f"--predict_v True contradicts --{name} True; give one of them"
        if self.use_kl and self.loss_weight != "uniform":
            yield (
                f"--loss_weight {self.loss_weight} weighs the squared error, which --use_kl True "
                "does not train on; give one of them"
            )
        yield from complaint(lambda: self.alphas_cumprod)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(DiffusionOptions):
    """Flags that every UNet shares, with those of its diffusion."""

    num_channels: int = flag(
        128, f"channels of the first level; a multiple of {NORM_GROUPS}", at_least=1
    )
    num_res_blocks: int = flag(2, "residual blocks of each level", at_least=1)
    num_heads: int = flag(4, "attention heads", at_least=1, in_weights=False)
    num_heads_upsample: int = flag(
        -1,
        "attention heads on the way up",
        at_least=1,
        special={-1: "as many as num_heads"},
        in_weights=False,
    )
    attention_resolutions: str = flag("16,8", "heights at which attention sits, comma-separated")
    channel_mult: str = flag(
        "",
        "channels of each level as multiples of num_channels, such as 1,2,2,2; empty for those "
        "that go with the image size",
    )
    dropout: float = flag(
        0.0,
        "probability of dropping an activation while training",
        at_least=0,
        below=1,
        in_use="free",
    )
    class_cond: bool = flag(False, "condition on the images' classes, see labels")
    num_classes: int | str = flag(
        NUM_CLASSES,
        "classes of a class-conditional model, or auto for as many as the images have",
        parse=count_or_auto,
    )
    label_dropout: float = flag(
        0.0,
        "probability of leaving out an image's label while training, so that samples can be guided",
        at_least=0,
        below=1,
        in_weights=False,
    )
    in_channels: int = flag(3, "channels of the images: 1 (grey), 3 (colour) or 4 (with alpha)")
    patch_size: int = flag(
        1,
        "side of the squares of pixels that become channels: with 2, the UNet works at half the "
        "image's height, and channel_mult and attention_resolutions are for that height",
        at_least=1,
    )
    use_checkpoint: bool = flag(
        False,
        "recompute activations in the backward pass: less memory, more time, the same numbers",
        on_resume="may change",
        in_use="free",
    )
    use_scale_shift_norm: bool = flag(
        True, "let the timestep scale and shift the normalised activations"
    )

    SIZE: ClassVar[str]  # name of the flag that is the image size of the UNet
    WHAT: ClassVar[str]  # which models these are, for messages
    SCRIPTS: ClassVar[str]  # how the names of scripts for them begin
    # Heights of the first level whose channel_mult may be left out, with what it is then.
    CHANNEL_MULTS: ClassVar[dict[int, tuple[int, ...]]] = {
        256: (1, 1, 2, 2, 4, 4),
        64: (1, 2, 3, 4),
        32: (1, 2, 2, 2),
    }

    @property
    def size(self) -> int:
        """Height and width of the images to make."""
        return int(getattr(self, self.SIZE))

    @property
    def height(self) -> int:
        """Height of the UNet's first level, in patches."""
        return self.size // self.patch_size

    @property
    def class_count(self) -> int | None:
        """How many classes the network knows; None for a network without.

        :raises InputError: while ``num_classes`` is ``auto``.
        """
        if not self.class_cond:
            return None
        if isinstance(self.num_classes, str):
            raise InputError(f"num_classes is {AUTO}: give the number of classes")
        return self.num_classes

    @property
    def levels(self) -> "Levels":
        """The UNet's levels, of flags that work."""
        mult = self._mult()
        assert mult is not None
        heights = self._attention() or ()
        return Levels(mult, tuple(self.height // height for height in heights))

    def _attention(self) -> tuple[int, ...] | None:
        parts = self.attention_resolutions.split(",")
        return parse_numbers(",".join(part for part in parts if part.strip()))

    def _mult(self) -> tuple[int, ...] | None:
        """The channel multiples; None where the flag is no such list, or has no default here."""
        if self.channel_mult:
            return parse_numbers(self.channel_mult)
        return self.CHANNEL_MULTS.get(self.height)

    def check(self) -> Iterator[str]:
        yield from self._check_network()
        yield from super().check()

    def _check_network(self) -> Iterator[str]:
        if self.in_channels not in IMAGE_CHANNELS:
            channels = self.in_channels
            yield f"in_channels must be 1 (grey), 3 (colour) or 4 (with alpha), got {channels}"
        if isinstance(self.num_classes, str) and self.num_classes != AUTO:
            yield f"num_classes must be a number or {AUTO}, got {self.num_classes!r}"
        elif self.class_cond and self.num_classes != AUTO and int(self.num_classes) < 1:
            yield f"num_classes must be at least 1, got {self.num_classes}"
        if self.label_dropout and not self.class_cond:
            yield "--label_dropout is for a model with classes; give --class_cond True, too"
        if self.num_channels % NORM_GROUPS:
            yield (
                f"num_channels must be a multiple of {NORM_GROUPS}, the groups of the group norm, "
                f"got {self.num_channels}"
            )
        if self.size % self.patch_size:
            p = self.patch_size
            yield f"{self.SIZE} must be a multiple of patch_size, {p}, got {self.size}"
            return
        mult = self._mult()
        if mult is None:
            yield self._missing_mult()
            return
        factor = 2 ** (len(mult) - 1)
        if self.height % factor:
            yield (
                f"{self._height_name} must be a multiple of {factor} with channel_mult "
                f"{listed(mult)}, got {self.height}"
            )
            return
        heights = [self.height // 2**level for level in range(len(mult))]
        attention = self._attention()
        attending = [m for m, h in zip(mult, heights, strict=True) if h in (attention or ())]
        for name, own in (("num_heads", [*attending, mult[-1]]), ("num_heads_upsample", attending)):
            heads = getattr(self, name)
            if heads != -1 and any(self.num_channels * m % heads for m in own):
                yield (
                    f"{name} must divide the channels of the levels with attention, "
                    f"{self.num_channels} x ({listed(sorted(set(own)))}), got {heads}"
                )
        if attention is None or not set(attention) <= set(heights):
            patches = f" and patch_size {self.patch_size}" if self.patch_size > 1 else ""
            yield (
                f"attention_resolutions must be among the heights that occur at image size "
                f"{self.size}{patches}: {listed(heights)}, got {self.attention_resolutions!r}"
            )

    @property
    def _height_name(self) -> str:
        return self.SIZE if self.patch_size == 1 else f"{self.SIZE} / patch_size"

    def _missing_mult(self) -> str:
        if self.channel_mult:
            return f"channel_mult must be whole numbers such as 1,2,2, got {self.channel_mult!r}"
        sizes = listed(sorted(self.CHANNEL_MULTS))
        return (
            f"channel_mult has a default for {self._height_name} {sizes} only; for {self.height} "
            f"give one number a level, such as {listed(suggested_mult(self.height))}"
        )


@dataclass(frozen=True, kw_only=True)
class ImageModelOptions(ModelOptions):
    """Flags of a model that makes images, and of its diffusion."""

    SIZE = "image_size"
    WHAT, SCRIPTS = "a model that makes images", "image_"
    image_size: int = flag(
        64, "height and width of the images in pixels", at_least=1, in_weights=False
    )


@dataclass(frozen=True, kw_only=True)
class SuperResOptions(ModelOptions):
    """Flags of a model that enlarges images, and of its diffusion."""

    SIZE = "large_size"
    CHANNEL_MULTS: ClassVar = {size: ModelOptions.CHANNEL_MULTS[size] for size in (256, 64)}
    WHAT, SCRIPTS = "a model that enlarges images", "super_res_"
    large_size: int = flag(
        256, "height and width of the images to make", at_least=1, in_weights=False
    )
    small_size: int = flag(64, "height and width of the images to start from", at_least=1)

    def check(self) -> Iterator[str]:
        yield from super().check()
        if self.small_size > self.large_size:
            most = self.large_size
            yield f"small_size must be at most {most} (large_size), got {self.small_size}"


class Levels(NamedTuple):
    """A UNet's levels: the multiple of ``num_channels`` that each has, and where attention sits."""

    channel_mult: tuple[int, ...]
    attention_factors: tuple[int, ...]  # how much lower than the first level


def parse_numbers(text: str) -> tuple[int, ...] | None:
    """The numbers of ``"1,2,2"``, 1 to 999,999,999, none of ``""``; None for another form."""
    number = " *[1-9][0-9]{0,8} *"
    if not re.fullmatch(f"({number}(,{number})*)?", text):
        return None
    return tuple(map(int, text.split(","))) if text.strip() else ()


def suggested_mult(height: int) -> tuple[int, ...]:
    """Channel multiples for a height without defaults: as many levels as halve it evenly."""
    levels = 1
    while levels < 4 and height % 2**levels == 0 and height >= 4 * 2**levels:
        levels += 1
    return (1, *[2] * (levels - 1))


def listed(numbers: Iterable[int]) -> str:
    """Numbers as a flag has them."""
    return ",".join(map(str, numbers))
