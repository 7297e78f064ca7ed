"""The training loop: batches in; updates, log lines and checkpoints out."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch as th
import torch.distributed as dist

from . import dist_util, logger
from .errors import DivergedError, InputError
from .gaussian_diffusion import GaussianDiffusion
from .logs.formats import cut_csv, cut_json
from .logs.progress import progress_bar
from .models.architecture import check_fit
from .nn import update_ema
from .options.train_options import check_training_numbers, parse_ema_rates
from .reports.run_workbook import export_workbook
from .resample import LossAwareSampler, ScheduleSampler, UniformSampler
from .system import allocator, cpu
from .system.compiling import Compiled
from .system.precision import Precision
from .training import checkpoints
from .training.checkpoints import parse_resume_step_from_filename
from .training.master_weights import MasterWeights
from .training.previews import Preview, newest_picture
from .training.stopping import StopSignals

__all__ = [
    "TrainLoop",
    "find_ema_checkpoint",
    "find_resume_checkpoint",
    "get_blob_logdir",
    "log_loss_dict",
    "parse_resume_step_from_filename",
]

Batch = tuple[th.Tensor, dict[str, th.Tensor]]


class TrainLoop:
    """Trains a model on batches, with AdamW, several EMAs, a log and checkpoints.

    The arguments up to ``lr_anneal_steps`` are the reference's.

    :param model: its parameters become views of larger tensors. In bf16 and fp16 a copy of it
        computes, which follows its weights and its mode, but not hooks and layers that come later.
    :param data: iterator of ``(images [N, C, H, W], cond)``; its ``state_dict`` and
        ``load_state_dict``, if it has them, make resuming exact.
    :param batch_size: images of an update on this rank.
    :param microbatch: images to hold activations of at a time; -1 for the whole batch. Gradients
        of microbatches are summed, as in the reference.
    :param ema_rate: a rate, or several as a comma-separated string.
    :param log_interval: updates between two log lines, each the mean over them.
    :param save_interval: updates between two checkpoints.
    :param resume_checkpoint: path of a ``modelNNNNNN.pt`` to go on from, or "".
    :param lr_anneal_steps: lower the learning rate linearly to 0 over so many updates, and stop.
    :param max_steps: stop after so many updates in all; 0 goes on without end.
    :param precision: fp32, bf16 or fp16; ``use_fp16`` is short for the last.
    :param keep_checkpoints: how many of the newest checkpoints to keep; 0 keeps all.
    :param max_skipped: stop after so many updates in a row that were not finite.
    :param compile: run the model through ``torch.compile``.
    :param preview: draws samples every ``sample_interval`` updates; 0 for never.
    :param flags: plain values to keep in the checkpoint, for whoever resumes it.
    :raises InputError: for numbers out of range, or a checkpoint that does not fit.
    """

    def __init__(
        self,
        *,
        model: th.nn.Module,
        diffusion: GaussianDiffusion,
        data: Iterator[Batch],
        batch_size: int,
        microbatch: int,
        lr: float,
        ema_rate: float | str,
        log_interval: int,
        save_interval: int,
        resume_checkpoint: str,
        use_fp16: bool = False,
        fp16_scale_growth: float = 1e-3,
        schedule_sampler: ScheduleSampler | None = None,
        weight_decay: float = 0.0,
        lr_anneal_steps: int = 0,
        max_steps: int = 0,
        precision: str = "fp32",
        keep_checkpoints: int = 0,
        max_skipped: int = 20,
        compile: bool = False,
        preview: Preview | None = None,
        sample_interval: int = 0,
        flags: dict[str, Any] | None = None,
    ):
        check_training_numbers(
            batch_size=batch_size,
            microbatch=microbatch,
            log_interval=log_interval,
            save_interval=save_interval,
            lr=lr,
            weight_decay=weight_decay,
            lr_anneal_steps=lr_anneal_steps,
            max_steps=max_steps,
            keep_checkpoints=keep_checkpoints,
            max_skipped=max_skipped,
            sample_interval=sample_interval,
        )
        self.model = model
        self.diffusion = diffusion
        self.data = data
        self.batch_size = batch_size
        self.microbatch = microbatch if microbatch > 0 else batch_size
        self.lr = lr
        self.ema_rate = parse_ema_rates(ema_rate)
        self.log_interval = log_interval
        self.save_interval = save_interval
        self.resume_checkpoint = find_resume_checkpoint() or resume_checkpoint
        self.schedule_sampler = schedule_sampler or UniformSampler(diffusion)
        self.weight_decay = weight_decay
        self.lr_anneal_steps = lr_anneal_steps
        self.max_steps = max_steps
        self.keep_checkpoints = keep_checkpoints
        self.max_skipped = max_skipped
        self.preview = preview
        self.sample_interval = sample_interval if preview else 0
        self.flags = flags or {}

        self.step = 0  # updates of this process; resume_step are those of earlier ones
        self.resume_step = 0
        self.global_batch = batch_size * dist_util.world_size()
        self.skipped = self.skipped_in_a_row = 0
        self.last_row_step = -1
        self.last_saved: int | None = None
        self._seconds_before = self._last_row_seconds = 0.0
        self._started = time.monotonic()

        device = dist_util.dev()
        self.precision = Precision("fp16" if use_fp16 else precision, device, fp16_scale_growth)
        self.model_params = list(model.parameters())
        self.weights = MasterWeights(model, self.precision.dtype)
        self.opt = self.weights.adamw(
            lr=lr, weight_decay=weight_decay, fused=device.type in ("cpu", "cuda")
        )
        dist_util.sync_params(self.model_params)
        with dist_util.agreeing():
            self._load_model()
            self.emas = [self.weights.copies() for _ in self.ema_rate]
            self.ema_params = [self.weights.by_param(ema) for ema in self.emas]
            self._load_companions()
            self._cut_log(self.last_row_step + 1)
        working = self.weights.working
        self.working = Compiled(working) if compile else working

    @property
    def updates(self) -> int:
        """Finished updates, those before the last resume included."""
        return self.step + self.resume_step

    # -- the loop ------------------------------------------------------------------------------

    def run_loop(self) -> None:
        """Train until ``max_steps`` or ``lr_anneal_steps``, or until asked to stop.

        SIGINT and SIGTERM let the update in hand finish; then everything is saved.

        :raises SystemExit: with 128 plus the signal's number, after such a signal.
        :raises DivergedError: after ``max_skipped`` updates in a row that were not finite.
        """
        self._started = time.monotonic()
        progress = progress_bar(self.last_update, "step", self.updates, lines=False)
        with StopSignals() as stop, progress as bar:
            while not self._finished() and not dist_util.any_rank(stop.received):
                batch, cond = self._next_batch()
                self.run_step(batch, cond)
                self.step += 1
                self._report(bar)
                if self.sample_interval and self.updates % self.sample_interval == 0:
                    self._draw_samples()
                if self.updates % self.save_interval == 0:
                    self.save()
                    if os.environ.get("DIFFUSION_TRAINING_TEST", ""):
                        return
            if self.last_saved != self.updates:
                self.save()
            self._remove_older_checkpoints()  # also what a killed run removed by half
            self._dump_unfinished_line()
            self._export_results()
        if dist_util.world_size() > 1:
            dist.barrier()  # none leaves while another still needs it
        logger.log(
            f"Made {self.step} updates in {self._seconds() - self._seconds_before:.0f} s; "
            f"peak memory {cpu.peak_memory() / 1e6:.0f} MB"
        )
        if signal_number := dist_util.any_rank(stop.received):
            raise SystemExit(128 + signal_number)

    def _next_batch(self) -> Batch:
        position = self.data.state_dict() if hasattr(self.data, "state_dict") else None
        try:
            with dist_util.agreeing():
                return next(self.data)
        except InputError as error:  # an image that cannot be read must not cost hours of training
            if position is not None:
                self.data.load_state_dict(position)  # of a rank whose batch was whole, but unused
            if self.updates and self.last_saved != self.updates:
                self.save()
            said = InputError(f"{error}; {self.updates} updates are saved")
            raise dist_util.of_all_ranks(said) from error

    @property
    def last_update(self) -> int | None:
        """After how many updates the run ends; None for never."""
        return min(filter(None, (self.max_steps, self.lr_anneal_steps)), default=None)

    def _finished(self) -> bool:
        return self.last_update is not None and self.updates >= self.last_update

    def run_step(self, batch: th.Tensor, cond: dict[str, th.Tensor]) -> None:
        """Make one update from a batch, and add it to the log line in hand."""
        self.forward_backward(batch, cond)
        self._update()
        self.log_step()

    def forward_backward(self, batch: th.Tensor, cond: dict[str, th.Tensor]) -> None:
        """Sum the gradients of the batch's microbatches into ``grad``."""
        self.weights.zero_grad()
        self.weights.refresh()
        device = dist_util.dev()
        with self.precision.autocast():
            for start in range(0, batch.shape[0], self.microbatch):
                part = slice(start, start + self.microbatch)
                self._microbatch(
                    batch[part].to(device), {k: v[part].to(device) for k, v in cond.items()}
                )
                self.weights.gather()
        self.weights.average_over_ranks()

    def _microbatch(self, images: th.Tensor, cond: dict[str, th.Tensor]) -> None:
        t, weights = self.schedule_sampler.sample(images.shape[0], images.device)
        losses = self.diffusion.training_losses(self.working, images, t, model_kwargs=cond)
        if isinstance(self.schedule_sampler, LossAwareSampler):
            self._inform_sampler(t, losses["loss"].detach())
        log_loss_dict(self.diffusion, t, {k: v * weights for k, v in losses.items()})
        loss = (losses["loss"] * weights).mean()
        with th.autocast(images.device.type, enabled=False):
            (loss * self.precision.loss_scale).backward()

    def _inform_sampler(self, t: th.Tensor, losses: th.Tensor) -> None:
        finite = th.isfinite(losses)  # one infinite loss would draw that timestep for ever
        self.schedule_sampler.update_with_local_losses(t[finite], losses[finite])

    def _update(self) -> None:
        scale = self.precision.loss_scale
        grad_norm = self.weights.grad_norm()
        if not self.precision.accept(self.weights.grads, grad_norm):
            self._skip_update()
            return
        self.skipped_in_a_row = 0
        logger.logkv_mean("grad_norm", grad_norm / scale)
        self._anneal_lr()
        self.opt.step()
        for rate, ema in zip(self.ema_rate, self.emas, strict=True):
            update_ema(ema, self.weights.tensors, rate=rate)

    def _skip_update(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.precision.scales_loss:
            logger.log(f"Gradient overflow: lg_loss_scale is {self.precision.lg_loss_scale} now")
        else:
            logger.warn(f"The update of step {self.updates} is not finite and was skipped")
        if self.skipped_in_a_row >= self.max_skipped:
            self.log_step()
            self._dump_unfinished_line()
            raise dist_util.of_all_ranks(DivergedError(self._divergence()))

    def _divergence(self) -> str:
        folder = get_blob_logdir()
        good = checkpoints.newest_checkpoint(folder) or self.resume_checkpoint
        return (
            f"training diverged: {self.skipped_in_a_row} updates in a row were not finite, up to "
            f"step {self.updates} at learning rate {self.opt.param_groups[0]['lr']:g}; last good "
            f"checkpoint: {good or 'none was saved yet'}; try a lower --lr"
        )

    def _anneal_lr(self) -> None:
        if not self.lr_anneal_steps:
            return
        for group in self.opt.param_groups:
            group["lr"] = self.lr * (1 - self.updates / self.lr_anneal_steps)

    # -- the log -------------------------------------------------------------------------------

    def log_step(self) -> None:
        """Put the step, the images seen and the loss scale into the log line in hand."""
        logger.logkv("step", self.updates)
        logger.logkv("samples", (self.updates + 1) * self.global_batch)
        if self.precision.scales_loss:
            logger.logkv("lg_loss_scale", self.precision.lg_loss_scale)
        if self.skipped:
            logger.logkv("skipped_updates", self.skipped)

    def _report(self, bar: Any) -> None:
        bar.update()
        bar.set_postfix_str(f"loss {logger.getkvs().get('loss', float('nan')):.4f}", False)
        if (self.updates - 1) % self.log_interval == 0:
            self._dump_line()
            self.last_row_step = self.updates - 1

    def _dump_line(self) -> None:
        seconds = self._seconds()
        updates = self.updates - 1 - self.last_row_step
        logger.logkv("wall_time", round(seconds, 3))
        logger.logkv("steps_per_second", round(updates / (seconds - self._last_row_seconds), 4))
        with dist_util.agreeing():
            logger.dumpkvs()
        self._last_row_seconds = seconds

    def _dump_unfinished_line(self) -> None:
        """Write the last few updates' means too; a resumed run replaces them by a full line."""
        if logger.getkvs():
            self._dump_line()

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _draw_samples(self) -> None:
        if dist_util.rank() != 0 or not (folder := logger.get_dir()):
            return
        with _survived("samples"):
            emas = zip(self.ema_rate, self.ema_params, strict=True)
            weights = {rate: self._named(params) for rate, params in emas}
            cast = self.precision.autocast()
            self.preview.draw(folder, self.updates, self.model, weights, cast)

    # -- checkpoints ---------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint and the workbook; only rank 0 writes.

        :raises OSError: on every rank, if it cannot be written.
        """
        ranks = self._gather_rank_states()
        self.weights.zero_grad()
        allocator.give_back_memory()  # the workbook is written while no activations are held
        with dist_util.agreeing():
            if dist_util.rank() == 0:
                logger.log(f"Saving checkpoint {self.updates:06d}")
                parts = self._checkpoint(ranks)
                checkpoints.save_checkpoint(get_blob_logdir(), self.updates, parts)
        self.last_saved = self.updates
        self._remove_older_checkpoints()
        self._export_results()

    def _remove_older_checkpoints(self) -> None:
        with dist_util.agreeing():
            if dist_util.rank() == 0:
                checkpoints.remove_older_checkpoints(get_blob_logdir(), self.keep_checkpoints)

    def _checkpoint(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        emas = zip(self.ema_rate, self.ema_params, strict=True)
        return {
            "model": self.model.state_dict(),
            **{f"ema_{rate}_": self._as_state_dict(params) for rate, params in emas},
            "opt": self.opt.state_dict(),
            "state": {
                "version": checkpoints.STATE_VERSION,
                "updates": self.updates,
                "last_row_step": self.last_row_step,
                "skipped": [self.skipped, self.skipped_in_a_row],
                "seconds": [self._seconds(), self._last_row_seconds],
                "precision": self.precision.state_dict(),
                "flags": self.flags,
                "ranks": ranks,
            },
        }

    def _gather_rank_states(self) -> list[dict[str, Any]]:
        mine = {
            "random": checkpoints.random_state(),
            "sampler": self.schedule_sampler.state_dict(),
            "data": self.data.state_dict() if hasattr(self.data, "state_dict") else None,
            "log_line": logger.get_current().state_dict(),
        }
        if dist_util.world_size() == 1:
            return [mine]
        ranks: list[Any] = [None] * dist_util.world_size()
        dist.all_gather_object(ranks, mine)
        return ranks

    def _as_state_dict(self, params: Iterable[th.Tensor]) -> dict[str, th.Tensor]:
        """The model's ``state_dict`` with other values for its parameters."""
        return {**self.model.state_dict(), **self._named(params)}

    def _named(self, params: Iterable[th.Tensor]) -> dict[str, th.Tensor]:
        names = (name for name, _ in self.model.named_parameters())
        return dict(zip(names, params, strict=True))

    def _export_results(self) -> None:
        folder = logger.get_dir()
        progress = os.path.join(folder, "progress.csv") if folder else ""
        if dist_util.rank() == 0 and os.path.exists(progress) and os.path.getsize(progress):
            with _survived("workbook"):
                workbook = os.path.join(folder, "results.xlsx")
                export_workbook(progress, workbook, picture=newest_picture(folder))

    def _load_model(self) -> None:
        if not self.resume_checkpoint:
            return
        path = self.resume_checkpoint
        self.resume_step = parse_resume_step_from_filename(path)
        self.last_row_step = self.resume_step - 1
        logger.log(f"Loading model from {path}")
        checkpoints.load_into(self.model, path)

    def _load_companions(self) -> None:
        """Load what lies beside the model's file; say in one line what does not."""
        if not self.resume_checkpoint:
            return
        missing = []
        for i, rate in enumerate(self.ema_rate):
            if not self._load_ema(i, rate):
                missing.append(f"ema_{rate} (starts as a copy of the model)")
        if not self._load_optimizer():
            missing.append("opt (its moments start at zero)")
        if not self._load_state():
            missing.append("state (random numbers, sampler and data start anew)")
        if missing:
            logger.warn(f"Not beside {self.resume_checkpoint}: {'; '.join(missing)}")
        if checkpoints.lies_in(self.resume_checkpoint, get_blob_logdir()):
            self.last_saved = self.updates

    @th.no_grad()  # published averages are parameters
    def _load_ema(self, i: int, rate: float) -> bool:
        path = find_ema_checkpoint(self.resume_checkpoint, self.resume_step, rate)
        if not path:
            return False
        state = checkpoints.load_model_file(path)
        check_fit(self.model, state, path)
        for name, average in self._named(self.ema_params[i]).items():
            average.copy_(state[name])
        return True

    def _load_optimizer(self) -> bool:
        """Load the optimizer's file, if it is for these weights; False if there is none."""
        path = checkpoints.companion(self.resume_checkpoint, "opt", self.resume_step)
        if not path:
            return False
        fresh = self.opt.state_dict()["param_groups"]
        state = checkpoints.load_optimizer_file(path)
        # Published fp16 runs keep one flat tensor.
        if not checkpoints.is_for(self.model_params, state):
            logger.warn(f"{path} is for another layout of the weights; its moments start at zero")
            return True
        # The settings are this run's; parameters' numbers are the checkpoint's.
        groups = zip(fresh, state["param_groups"], strict=True)
        state["param_groups"] = [{**new, "params": old["params"]} for new, old in groups]
        self.opt.load_state_dict(state)
        return True

    def _load_state(self) -> bool:
        path = checkpoints.companion(self.resume_checkpoint, "state", self.resume_step)
        if not path:
            return False
        state = checkpoints.load_state_file(path)
        if len(state["ranks"]) != dist_util.world_size():
            raise InputError(
                f"{path} is of a run of {len(state['ranks'])} processes, this one has "
                f"{dist_util.world_size()}; start as many, or move the state file away"
            )
        self.last_row_step = state["last_row_step"]
        self.skipped, self.skipped_in_a_row = state["skipped"]
        self._seconds_before, self._last_row_seconds = state["seconds"]
        self.precision.load_state_dict(state["precision"])
        mine = state["ranks"][dist_util.rank()]
        logger.get_current().load_state_dict(mine["log_line"])
        self.schedule_sampler.load_state_dict(mine["sampler"])
        if mine["data"] is not None and hasattr(self.data, "load_state_dict"):
            self.data.load_state_dict(mine["data"])
        checkpoints.restore_random_state(mine["random"])
        return True

    def _cut_log(self, step: int) -> None:
        """Remove the log's rows of updates that this run is going to make."""
        folder = logger.get_dir()
        if folder and dist_util.rank() == 0:
            cut_csv(os.path.join(folder, "progress.csv"), step)
            cut_json(os.path.join(folder, "progress.json"), step)


@contextlib.contextmanager
def _survived(what: str) -> Iterator[None]:
    """Make what the run can do without; when that fails it is said, and the training goes on."""
    try:
        yield
    except (InputError, OSError) as error:
        logger.warn(f"No {what} this time: {error}")


def get_blob_logdir() -> str:
    """Where checkpoints go: ``$DIFFUSION_BLOB_LOGDIR``, else the log directory."""
    return os.environ.get("DIFFUSION_BLOB_LOGDIR", "") or logger.get_dir() or "."


def find_resume_checkpoint() -> str | None:
    """A checkpoint to resume although none was asked for; a hook that finds none by itself."""
    return None


def find_ema_checkpoint(main_checkpoint: str, step: int, rate: float) -> str | None:
    """Path of the EMA of that rate beside a model's file, if it is there."""
    if not main_checkpoint:
        return None
    return checkpoints.companion(main_checkpoint, f"ema_{rate}_", step)


def log_loss_dict(
    diffusion: GaussianDiffusion, ts: th.Tensor, losses: dict[str, th.Tensor]
) -> None:
    """Log the mean of each loss, and its mean in each quarter of the timesteps.

    :param ts: timesteps, int64 [N]; ``_q0`` is the quarter with the least noise.
    :param losses: one value for each image, [N] each.
    """
    quarters = [int(4 * t / diffusion.num_timesteps) for t in ts.tolist()]
    for key, values in losses.items():
        values = values.detach()
        logger.logkv_mean(key, values.mean().item())
        for quarter, value in zip(quarters, values.tolist(), strict=True):
            logger.logkv_mean(f"{key}_q{quarter}", value)
