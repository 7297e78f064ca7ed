"""Flags of the scripts that use a trained model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ..data.image_source import BY
from ..data.sources import KNOWN
from ..evaluation.features import NETWORKS
from ..sampling.denoising import METHODS
from ..sampling.interpolation import USUAL_STEPS
from ..sampling.samplers import SAMPLERS, Sampler
from .flags import flag, with_default
from .model import ImageModelOptions, ModelOptions, SuperResOptions
from .training import (
    CompileOptions,
    DataOptions,
    EmaOptions,
    GuidanceOptions,
    RunningOptions,
    ThreadOptions,
)


@dataclass(frozen=True, kw_only=True)
class TrainedOptions(ThreadOptions, EmaOptions):
    """The flag that names a trained model."""

    model_path: str = flag(
        "",
        "a model*.pt or ema_*.pt file, or a run's folder for its newest ema_*.pt, of several rates "
        "the highest that holds no more than a twentieth of the initial weights, or else the "
        "lowest; the model's flags come from config.json beside it, if there is one",
    )


@dataclass(frozen=True, kw_only=True)
class ResultOptions(RunningOptions):
    """Flags of what computes results once, in a folder of their own."""

    overwrite: bool = flag(
        False, "replace, as a whole, what an earlier call of this script left in log_dir"
    )


@dataclass(frozen=True, kw_only=True)
class UseOptions(TrainedOptions, ResultOptions, CompileOptions):
    """Flags of what samples or evaluates with a trained model."""


@dataclass(frozen=True, kw_only=True)
class GuideOptions(TrainedOptions, GuidanceOptions, ModelOptions):
    """The flag of what a trained model is guided by."""

    guide_model: str = flag(
        "",
        "a smaller or less trained model, to lead samples away from: a file or a run's folder; "
        "empty for the model itself without labels",
    )

    def check(self) -> Iterator[str]:
        if self.guide_model and self.guidance == 1:
            yield "--guide_model does nothing with --guidance 1; give a --guidance such as 2"
        if self.guidance != 1 and not (self.guide_model or self.class_cond):
            yield (
                "--guidance leads samples to their class, and the model has no classes; give a "
                "--guide_model to lead away from, or leave it out"
            )
        yield from super().check()


def _check_spacing(options: "SamplingOptions | InterpolationOptions") -> Iterator[str]:
    if options.sampling_steps and options.timestep_respacing:
        yield "--sampling_steps and --timestep_respacing both given; give one of them"
    if options.spacing == "1" and options.diffusion_steps > 1:
        yield (
            "a single step would be at the least noisy timestep, where no image can begin; give "
            "more --sampling_steps, or image_sample.py --sampler dpmpp"
        )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(UseOptions, GuideOptions):
    """Flags that the sampling scripts share."""

    USUAL_SAMPLER: ClassVar[str] = "ddpm"
    num_samples: int = flag(10000, "how many images", at_least=1)
    batch_size: int = flag(16, "images at a time", at_least=1)
    clip_denoised: bool = flag(True, "clip the predicted image to the range of pixels at each step")
    sampler: str = flag(
        "",
        ", ".join(f"{name} ({s.about}; {s.usual})" for name, s in SAMPLERS.items()),
        choices=SAMPLERS,
        special={
            "": "ddpm, with image_sample.py for what the run's preset recommends, with "
            "image_inpaint.py for dpmpp"
        },
    )
    use_ddim: bool = flag(False, "the same as --sampler ddim")
    sampling_steps: int = flag(
        0,
        "timesteps to sample in, spaced as suits the sampler; 0 for as many as it usually takes",
        at_least=0,
    )
    eta: str = flag(
        "",
        "noise that each step of ddim or dpmpp adds, from 0 (none) to 1 (the variance of the "
        "posterior, as ddpm with --sigma_small True); empty for what is usual",
    )
    save_png: bool = flag(False, "also write each sample as a picture of its own, to images/")
    show_process: bool = flag(
        False, "also draw how the first samples came about, from noise on: process.png"
    )
    save_gif: bool = flag(
        False, "also make a film of how the first samples come about, from noise on: process.gif"
    )

    @property
    def chosen_sampler(self) -> Sampler:
        """The sampler that all flags together ask for."""
        return SAMPLERS[self.sampler or ("ddim" if self.use_ddim else self.USUAL_SAMPLER)]

    @property
    def chosen_eta(self) -> float | None:
        """The noise of each step: what ``eta`` says, or is usual; None if it cannot be chosen."""
        return float(self.eta) if self.eta else self.chosen_sampler.usual_eta

    @property
    def spacing(self) -> str:
        """Which timesteps to sample in, as ``timestep_respacing`` has them."""
        usual = min(self.chosen_sampler.usual_steps, self.diffusion_steps)
        steps = self.sampling_steps or usual
        if self.timestep_respacing or not steps:
            return self.timestep_respacing
        return self.chosen_sampler.respacing.format(steps)

    def check(self) -> Iterator[str]:
        yield from _check_spacing(self)
        if self.use_ddim and self.sampler not in ("", "ddim"):
            yield f"--use_ddim True contradicts --sampler {self.sampler}; give one of them"
        yield from self._check_eta()
        yield from super().check()

    def _check_eta(self) -> Iterator[str]:
        if not self.eta:
            return
        if self.chosen_sampler.usual_eta is None:
            takers = (name for name, s in SAMPLERS.items() if s.usual_eta is not None)
            yield f"--eta is for --sampler {' and '.join(takers)}; leave it out"
            return
        try:
            eta = float(self.eta)
        except ValueError:
            eta = math.nan
        if not 0 <= eta <= 1:
            yield f"--eta must be a number from 0 to 1, got {self.eta!r}"


@dataclass(frozen=True, kw_only=True)
class ImageSampling(SamplingOptions, ImageModelOptions):
    """Flags of ``image_sample.py``."""

    classes: str = flag(
        "",
        "classes to sample in turn, by name or number, comma-separated, names with a comma in "
        "double quotes; empty: random",
    )


@dataclass(frozen=True, kw_only=True)
class SuperResSampling(SamplingOptions, SuperResOptions):
    """Flags of ``super_res_sample.py``."""

    base_samples: str = flag(
        "",
        f"small images to start from, such as the .npz that image_sample.py wrote: {KNOWN}; larger "
        "ones are scaled down",
    )


@dataclass(frozen=True, kw_only=True)
class BoundOptions(UseOptions, ImageModelOptions):
    """Flags of ``image_nll.py``."""

    data_dir: str = flag("", f"images: {KNOWN}; empty for datasets/cifar_test")
    labels: str = with_default(DataOptions, "labels", "auto")
    num_samples: int = with_default(SamplingOptions, "num_samples", 1000)
    batch_size: int = with_default(SamplingOptions, "batch_size", 1)
    clip_denoised: bool = with_default(SamplingOptions, "clip_denoised", True)
    num_timesteps: int = flag(
        0, "timesteps to estimate the bound of each image from; 0 for all", at_least=0
    )


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(ResultOptions):
    """Flags of ``image_eval.py``."""

    samples: str = flag(
        "", "what image_sample.py made: its folder, or its .npz; or any other images"
    )
    reference: str = flag(
        "",
        "real images that the model was not trained on, of any kind that training takes; empty for "
        "datasets/cifar_test",
    )
    train: str = flag(
        "",
        "the images that it was trained on, to find copies, and to see what figures real images "
        "have by the reference; empty for those of a part of the reference by the rest",
    )
    labels: str = flag(
        "auto",
        "what classes are taken from, as in training, to judge whether samples show the class that "
        "was asked for; none not to",
        choices=BY,
    )
    features: str = flag("lite0", "network that looks at the images", choices=NETWORKS)
    weights: str = flag("", "file of that network's weights, where no package brings them")


@dataclass(frozen=True, kw_only=True)
class LabelOptions(ImageModelOptions):
    """Flags of what a model makes of given pictures."""

    label: str = flag(
        "",
        "class of the pictures, by name or number, for a class-conditional model only; one that "
        "was trained with label_dropout can do without",
    )


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions(UseOptions, LabelOptions):
    """Flags of ``image_denoise.py``."""

    input: str = flag(
        "",
        "a noisy picture, or a folder of them; neither scaled nor cut, so sides other than the "
        "model's image_size are mirrored to what it can take, and come out less well",
    )
    clean: str = flag(
        "",
        "the known clean picture, or a folder of pictures of the same names, to print the PSNR "
        "before and after; empty for none",
    )
    sigma: float = flag(
        0.0, "standard deviation of the noise in steps of 0..255; 0 to estimate it", at_least=0
    )
    method: str = flag(
        "mean",
        "mean is the expected clean picture: the best PSNR, smooth; sample is one that is "
        "possible: sharper, a lower PSNR",
        choices=METHODS,
    )


@dataclass(frozen=True, kw_only=True)
class GuidedLabelOptions(GuideOptions, LabelOptions):
    """Flags of what is drawn from given pictures."""

    def check(self) -> Iterator[str]:
        if self.guidance != 1 and self.class_cond and not (self.label or self.guide_model):
            yield "--guidance leads to a class: give its --label, or a --guide_model"
        yield from super().check()


@dataclass(frozen=True, kw_only=True)
class InpaintingOptions(SamplingOptions, GuidedLabelOptions):
    """Flags of ``image_inpaint.py``."""

    USUAL_SAMPLER = "dpmpp"
    input: str = flag("", "a picture of the model's image_size")
    mask: str = flag(
        "", "a picture of the same size: what is white there is made, what is black there is kept"
    )
    jump_length: int = flag(
        5, "timesteps that the walk jumps up by, to join what is made to the rest", at_least=1
    )
    resamplings: int = flag(
        8, "how often each stretch of jump_length timesteps is walked; 1 is no jump", at_least=1
    )
    num_samples: int = with_default(SamplingOptions, "num_samples", 8)
    save_png: bool = with_default(SamplingOptions, "save_png", True)

    def check(self) -> Iterator[str]:
        for name in ("input", "mask"):
            if not getattr(self, name):
                yield f"no --{name} given; name a picture of {self.size} x {self.size} pixels"
        yield from super().check()


@dataclass(frozen=True, kw_only=True)
class InterpolationOptions(UseOptions, GuidedLabelOptions):
    """Flags of ``image_interpolate.py``."""

    first: str = flag(
        "",
        "where to begin: a picture of the model's image_size; or a number, for the image of that "
        "number that image_sample.py draws with --sampler ddim and the same seed (of a model with "
        "classes, with --classes of the --label)",
    )
    last: str = flag("", "where to end: another picture or number")
    num_samples: int = flag(24, "how many images, both ends included", at_least=2)
    batch_size: int = with_default(SamplingOptions, "batch_size", 16)
    clip_denoised: bool = with_default(SamplingOptions, "clip_denoised", True)
    sampling_steps: int = flag(
        0,
        f"timesteps of each way, to noise and back, evenly spaced; 0 for {USUAL_STEPS}",
        at_least=0,
    )

    @property
    def spacing(self) -> str:
        """Which timesteps to walk over, as ``timestep_respacing`` has them."""
        usual = min(USUAL_STEPS, self.diffusion_steps)
        return self.timestep_respacing or str(self.sampling_steps or usual)

    def check(self) -> Iterator[str]:
        yield from _check_spacing(self)
        for name in ("first", "last"):
            if not getattr(self, name):
                yield f"no --{name} given; name a picture, or give a number"
        ends: list[int | str] = []
        for name, end in (("first", self.first), ("last", self.last)):
            if end.isdecimal() and len(end) > 18:
                yield f"--{name} must have 18 digits at most, got {end[:20]}..."
            else:
                ends.append(int(end) if end.isdecimal() else end)
        if self.first and len(ends) == 2 and ends[0] == ends[1]:
            yield f"--first and --last are both {self.first}; give two that differ"
        yield from super().check()


@dataclass(frozen=True, kw_only=True)
class ExportOptions(TrainedOptions, ImageModelOptions):
    """Flags of ``export_diffusers.py``."""

    out_dir: str = flag("", "new folder to write, for diffusers' DDPMPipeline.from_pretrained")
