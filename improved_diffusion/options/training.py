"""Flags of how a script runs, and those of a training."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch as th

from .. import dist_util
from ..data.image_source import BY
from ..data.sources import KNOWN
from ..diffusion.guidance import Guidance
from ..errors import InputError
from ..resample import LOGSNR_MEAN, LOGSNR_STD, TIMESTEP_SAMPLERS, density_named
from ..system.precision import DTYPES, check_precision, fastest_precision
from .flags import Options, complaint, flag, setting
from .model import ImageModelOptions, ModelOptions, SuperResOptions
from .presets import PRESETS

MOST_THREADS = 4096  # beyond any machine: a slip of the pen
EVAL_SAMPLES = 256
# How the learning rate falls: its share after the share u of the fall, u in [0, 1].
LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "linear": lambda u: 1 - u,
    "cosine": lambda u: (1 + math.cos(math.pi * u)) / 2,  # Loshchilov & Hutter 2017, 1608.03983
}


@dataclass(frozen=True, kw_only=True)
class ThreadOptions(Options):
    """The flag of every script that uses a model."""

    num_threads: int = setting(
        0,
        "threads to compute with; 0 for OMP_NUM_THREADS, or else one a processor",
        at_least=0,
        at_most=MOST_THREADS,
    )


@dataclass(frozen=True, kw_only=True)
class EmaOptions(Options):
    """The flag of every script that computes with an average of weights."""

    ema_correction: bool = setting(
        True,
        "take the initial weights out of an EMA that is used, if model000000.pt has kept them; the "
        "files ema_*.pt hold them in any case",
    )


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(Options):
    """Flags of which numbers to compute in."""

    precision: str = setting(
        "fp32",
        "arithmetic of the model; fp16 needs a GPU; auto takes bf16 where the processor has it, "
        "or else fp32",
        choices=("auto", *DTYPES),
    )
    allow_slow_bf16: bool = setting(
        False, "let bf16 compute on a CPU without native bfloat16, 10 to 80 times slower than fp32"
    )

    @property
    def number_format(self) -> str:
        """The precision that all flags together ask for: one of ``DTYPES``."""
        return self.precision

    def find_device(self) -> th.device:
        """What computes."""
        return dist_util.dev()

    def __post_init__(self) -> None:
        if self.precision == "auto":
            object.__setattr__(self, "precision", fastest_precision())
        super().__post_init__()

    def check(self) -> Iterator[str]:
        yield from super().check()
        yield from complaint(self._check_precision)

    def _check_precision(self) -> None:
        check_precision(self.number_format, self.find_device(), self.allow_slow_bf16)


@dataclass(frozen=True, kw_only=True)
class RunningOptions(ThreadOptions, PrecisionOptions):
    """Flags of every script that computes in a run's folder."""

    log_dir: str = setting(
        "", "folder of the run's files; empty for OPENAI_LOGDIR, or else runs/<script>-<date-time>"
    )
    seed: int = flag(0, "seed of all random numbers", at_least=0, below=2**63)
    device: str = setting(
        "auto",
        "what computes; auto takes a CUDA GPU if there is one, or else the CPU",
        choices=dist_util.DEVICES,
    )

    def find_device(self) -> th.device:
        return dist_util.find_device(self.device)


@dataclass(frozen=True, kw_only=True)
class CompileOptions(Options):
    """The flag of every script that calls a diffusion model many times."""

    compile: bool = setting(
        False, "run the model through torch.compile: minutes of compiling, then faster steps"
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Flags of the images to train on."""

    data_dir: str = setting("", f"images: {KNOWN}; empty for datasets/cifar_train")
    labels: str = setting(
        "auto",
        "what classes are taken from: the name of a file, before its first _; its folder; or auto, "
        "what the data say themselves, or else the folder if all lie in folders one deep, or else "
        "the name",
        choices=BY,
    )
    random_flip: bool = flag(False, "mirror each image left to right with probability 1/2")
    on_bad_image: str = setting(
        "error", "what to do with a file that cannot be read", choices=("error", "skip")
    )
    num_workers: int = setting(
        0, "threads that read images ahead; 0 reads them between updates", at_least=0
    )


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions(Options):
    """Flags of how samples are guided; those drawn while training, too."""

    guidance: float = setting(
        1.0,
        "scale s of guidance, worse + s (model - worse), where worse is the model without a class, "
        "or --guide_model; 1 for no guidance",
        at_least=0,
    )
    guidance_low: float = setting(
        0.0, "guide only where sigma, the noise beside an image in [-1, 1], is above", at_least=0
    )
    guidance_high: float = setting(
        0.0, "guide only where sigma is at most this; 0 for no limit", at_least=0
    )

    @property
    def chosen_guidance(self) -> Guidance:
        """What the flags ask for."""
        return Guidance(self.guidance, self.guidance_low, self.guidance_high or math.inf)

    def check(self) -> Iterator[str]:
        yield from super().check()
        if self.guidance == 1 and (self.guidance_low or self.guidance_high):
            yield "--guidance_low and --guidance_high are for --guidance other than 1; give that"
        yield from complaint(lambda: self.chosen_guidance)


@dataclass(frozen=True, kw_only=True)
class LoopOptions(PrecisionOptions, CompileOptions, EmaOptions):
    """Flags that the training loop itself uses."""

    lr: float = setting(1e-4, "learning rate", at_least=0)
    optimizer: str = setting(
        "adamw",
        "muon makes the updates of convolutions orthogonal, with adam_beta1 as its momentum; "
        "other weights are AdamW's",
        choices=("adamw", "muon"),
    )
    weight_decay: float = setting(0.0, "decoupled weight decay", at_least=0)
    adam_beta1: float = setting(0.9, "decay of AdamW's mean gradient", at_least=0, below=1)
    adam_beta2: float = setting(0.999, "decay of AdamW's mean square", at_least=0, below=1)
    grad_clip: float = setting(
        0.0, "largest norm of a gradient, to which a longer one is scaled; 0 for none", at_least=0
    )
    warmup_steps: int = setting(
        0, "updates over which the learning rate rises evenly at first; 0 for none", at_least=0
    )
    lr_schedule: str = setting(
        "linear", "how the learning rate falls over lr_anneal_steps", choices=LR_SCHEDULES
    )
    lr_hold_steps: int = setting(
        0, "updates of lr_anneal_steps before the learning rate begins to fall", at_least=0
    )
    lr_anneal_steps: int = setting(
        0,
        "updates over which the learning rate falls to 0, and training ends; 0 for neither",
        at_least=0,
    )
    time_budget: float = setting(
        0.0,
        "minutes of training, in place of lr_anneal_steps: how many updates they have room for is "
        "measured over the first and then fixed; 0 for no such end",
        at_least=0,
    )
    lr_hold_share: float = setting(
        0.5,
        "share of the updates of a time_budget before the learning rate begins to fall",
        at_least=0,
        below=1,
    )
    batch_size: int = flag(1, "images at a time", at_least=1)
    microbatch: int = flag(
        -1,
        "images whose activations are held at a time while training",
        at_least=1,
        special={-1: "batch_size", 0: "batch_size, too"},
    )
    ema_rate: str = setting(
        "0.9999", "rates of the moving averages of the weights, comma-separated"
    )
    log_interval: int = setting(10, "updates between two lines of the log", at_least=1)
    save_interval: int = setting(10000, "updates between two checkpoints", at_least=1)
    sample_interval: int = setting(
        0, "updates between two grids of samples drawn to samples/; 0 for none", at_least=0
    )
    save_gif: bool = setting(False, "also make a film of these grids, anew with each: progress.gif")
    resume_checkpoint: str = setting(
        "",
        "a modelNNNNNN.pt to go on from, or auto for the newest in log_dir; an older one of a run "
        "goes on in another log_dir only, so that what followed it is not lost",
    )
    use_fp16: bool = setting(False, "the same as --precision fp16")
    fp16_scale_growth: float = setting(
        1e-3, "growth of the base-2 logarithm of fp16's loss scale with each update"
    )
    max_steps: int = setting(0, "updates to make in all; 0 for no end", at_least=0)
    max_skipped: int = setting(
        20, "updates in a row that may be skipped as not finite before the run gives up", at_least=1
    )
    keep_checkpoints: int = setting(
        0,
        "checkpoints to keep, newest first; older ones and what is left of them are removed; "
        "0 for all",
        at_least=0,
    )

    @property
    def number_format(self) -> str:
        return "fp16" if self.use_fp16 else self.precision

    @property
    def ema_rates(self) -> list[float]:
        """The rates of ``ema_rate``, each in [0, 1).

        :raises InputError: if one is no such number.
        """
        try:
            rates = [float(part) for part in self.ema_rate.split(",")]
        except ValueError:
            raise InputError(
                f"ema_rate must be numbers such as 0.999,0.9999, got {self.ema_rate!r}"
            ) from None
        wrong = [rate for rate in rates if not 0 <= rate < 1]
        if wrong:
            raise InputError(f"ema_rate must lie in [0, 1), got {wrong[0]}")
        return rates

    @property
    def last_update(self) -> int | None:
        """After how many updates the training ends; None for never."""
        return min(filter(None, (self.max_steps, self.lr_anneal_steps)), default=None)

    @property
    def changes_lr(self) -> bool:
        """Whether the learning rate is not the same all along."""
        falls = self.lr_anneal_steps or (self.time_budget and self.lr_schedule != "constant")
        return bool(self.warmup_steps or falls)

    def planned(self, updates: int) -> "LoopOptions":
        """The same options with so many updates in place of the time budget.

        The warm-up takes half of them at most: a slow machine has few.
        """
        warmup = min(self.warmup_steps, updates // 2)
        if self.lr_schedule == "constant":
            most = min(filter(None, (self.max_steps, updates)))
            return self.but(time_budget=0.0, warmup_steps=warmup, max_steps=most)
        hold = int(updates * self.lr_hold_share)
        fall = {"lr_anneal_steps": updates, "lr_hold_steps": hold}
        return self.but(time_budget=0.0, warmup_steps=warmup, **fall)

    def lr_factor(self, updates: int) -> float:
        """What to multiply ``lr`` by in the update that comes after so many.

        The rise of the warm-up, (updates + 1) / warmup_steps at most 1, times the fall.
        """
        rise = min(1.0, (updates + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if not self.lr_anneal_steps:
            return rise
        over = max(0, updates - self.lr_hold_steps) / (self.lr_anneal_steps - self.lr_hold_steps)
        return rise * LR_SCHEDULES[self.lr_schedule](over)

    def _check_learning_rate(self) -> Iterator[str]:
        end = self.lr_anneal_steps
        if end and self.lr_schedule == "constant":
            yield (
                f"--lr_schedule constant contradicts --lr_anneal_steps {end}, over which the rate "
                "falls; give one of them (--max_steps ends a run, too)"
            )
        if self.time_budget:
            for name in ("lr_anneal_steps", "lr_hold_steps"):
                if getattr(self, name):
                    yield (
                        f"--time_budget says itself when the learning rate falls: leave --{name} "
                        "out (see --lr_hold_share)"
                    )
        elif not end and self.lr_schedule not in ("constant", "linear"):  # linear by default
            yield (
                f"--lr_schedule {self.lr_schedule} needs --lr_anneal_steps, the updates over which "
                "it falls"
            )
        if self.lr_hold_steps and not self.lr_hold_steps < end:
            yield f"lr_hold_steps must be below lr_anneal_steps, {end}, got {self.lr_hold_steps}"
        if end and self.warmup_steps > end:
            yield f"warmup_steps must be at most lr_anneal_steps, {end}, got {self.warmup_steps}"

    def check(self) -> Iterator[str]:
        yield from self._check_learning_rate()
        if self.use_fp16 and self.precision == "bf16":
            yield "--use_fp16 True contradicts --precision bf16; give one of them"
        if self.save_gif and not self.sample_interval:
            yield "--save_gif makes a film of the grids of --sample_interval; give that, too"
        yield from complaint(lambda: self.ema_rates)
        yield from super().check()


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(LoopOptions, RunningOptions, DataOptions, GuidanceOptions, ModelOptions):
    """Flags that the training scripts share."""

    schedule_sampler: str = flag(
        "uniform",
        "which timesteps to train on; "
        f"{' and '.join(filter(density_named, TIMESTEP_SAMPLERS))} are densities of log-SNRs and "
        "change the objective",
        choices=TIMESTEP_SAMPLERS,
    )
    logsnr_mean: float = flag(LOGSNR_MEAN, "mean of a density of log-SNRs")
    logsnr_std: float = flag(LOGSNR_STD, "standard deviation of a density of log-SNRs", above=0)

    def check(self) -> Iterator[str]:
        problems = list(super().check())
        yield from problems
        if self.guidance != 1 and not self.label_dropout:
            yield "--guidance needs a model that learns without labels, too: give --label_dropout"
        density = density_named(self.schedule_sampler)
        if density and self.use_kl:
            yield (
                f"--schedule_sampler {self.schedule_sampler} changes what each timestep counts, so "
                "--use_kl True would train on no bound; take uniform or loss-second-moment"
            )
        if density and not problems:  # without a schedule there is nothing to hold it against
            normal = self.logsnr_mean, self.logsnr_std
            yield from complaint(lambda: density.masses(self.alphas_cumprod, *normal))


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Options):
    """Flags of how samples are judged while training."""

    eval_interval: int = setting(
        0,
        "updates between two times that samples are drawn and judged: kid in the log; 0 for never",
        at_least=0,
    )
    eval_samples: int = setting(EVAL_SAMPLES, "how many samples to judge each time", at_least=50)
    eval_dir: str = setting(
        "",
        "real images to judge them by, not those of data_dir but of the same kinds; empty for "
        "datasets/cifar_test",
    )

    def check(self) -> Iterator[str]:
        if self.eval_dir and not self.eval_interval:
            yield "--eval_dir has the images that --eval_interval judges samples by; give that, too"
        if self.eval_samples != EVAL_SAMPLES and not self.eval_interval:
            yield "--eval_samples is how many --eval_interval judges; give that, too"
        yield from super().check()


@dataclass(frozen=True, kw_only=True)
class ImageTraining(TrainingOptions, EvalOptions, ImageModelOptions):
    """Flags of ``image_train.py``."""

    preset: str = setting(
        "",
        "flags to begin with, which others on the command line override: "
        f"{'; '.join(f'{name}: {preset.about}' for name, preset in PRESETS.items())}",
        choices=PRESETS,
        special={"": "none"},
    )


@dataclass(frozen=True, kw_only=True)
class SuperResTraining(TrainingOptions, SuperResOptions):
    """Flags of ``super_res_train.py``."""
