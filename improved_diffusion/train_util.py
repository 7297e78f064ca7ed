"""The training loop: batches in; updates, log lines and checkpoints out."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch as th
import torch.distributed as dist

from . import dist_util, logger
from .errors import DivergedError, InputError, LostRankError
from .gaussian_diffusion import GaussianDiffusion
from .logs.progress import progress_bar
from .options.training import LoopOptions
from .resample import LossAwareSampler, ScheduleSampler, UniformSampler
from .system import allocator, cpu
from .system.compiling import Compiled
from .system.precision import Precision
from .training import checkpoints, log_rows, lost_rank
from .training.averages import Average, Averages
from .training.budget import Pace
from .training.checkpoints import Part, parse_resume_step_from_filename
from .training.master_weights import MasterWeights
from .training.previews import Examiner, Preview, SamplesOnTheWay
from .training.state import RankState, TrainState
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
    """Trains a model on batches, with AdamW or Muon, several EMAs, a log and checkpoints.

    The arguments up to ``lr_anneal_steps`` are the reference's.

    :param model: moves to :func:`.dist_util.dev`, and its parameters become views of larger
        tensors. In bf16 and fp16 a copy of it computes, which follows its weights and its mode,
        but not hooks and layers that come later.
    :param diffusion: the process to train on, whose ``training_losses`` are minimised.
    :param data: endless iterator of ``(images [N, C, H, W] in [-1, 1], cond)``; its ``state_dict``
        and ``load_state_dict``, if it has them, make resuming exact.
    :param batch_size: images of an update on this rank.
    :param microbatch: images to hold activations of at a time; -1 or 0 for the whole batch.
        Gradients of microbatches are summed, as in the reference.
    :param lr: learning rate, at its highest where it changes.
    :param ema_rate: a rate, or several as a comma-separated string.
    :param log_interval: updates between two log lines, each the mean over them.
    :param save_interval: updates between two checkpoints.
    :param resume_checkpoint: path of a ``modelNNNNNN.pt`` to go on from, or "". Where the folder
        of checkpoints holds a run it must be the newest of them.
    :param use_fp16: the same as ``precision="fp16"``; needs a GPU.
    :param fp16_scale_growth: what fp16's log2 of the loss scale grows by with each update.
    :param schedule_sampler: which timesteps to train on; uniform by default.
    :param weight_decay: AdamW's, decoupled from the gradient.
    :param lr_anneal_steps: lower the learning rate to 0 over so many updates, linearly unless
        ``lr_schedule`` says otherwise, and stop.
    :param preview: draws samples every ``sample_interval`` updates.
    :param examiner: judges samples every so many updates.
    :param flags: plain values to keep in the checkpoint, for whoever resumes it.
    :param ours: further flags of :class:`.options.training.LoopOptions`. Those of data, seed,
        threads, device, folder and guidance are the scripts'.
    :raises InputError: for numbers out of range, a checkpoint that does not fit, or a folder with
        another run.
    :raises TypeError: for a flag that the loop does not use.
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
        resume_checkpoint: str | os.PathLike,
        use_fp16: bool = False,
        fp16_scale_growth: float = 1e-3,
        schedule_sampler: ScheduleSampler | None = None,
        weight_decay: float = 0.0,
        lr_anneal_steps: int = 0,
        preview: Preview | None = None,
        examiner: Examiner | None = None,
        flags: dict[str, Any] | None = None,
        **ours: Any,
    ):
        given = {name: value for name, value in locals().items() if name in LoopOptions.flags()}
        given |= {"ema_rate": str(ema_rate), "resume_checkpoint": os.fspath(resume_checkpoint)}
        self.options = self._given = options = LoopOptions(**given, **ours)
        self.model = model
        self.diffusion = diffusion
        self.data = data
        self.schedule_sampler = schedule_sampler or UniformSampler(diffusion)
        if not isinstance(self.schedule_sampler, ScheduleSampler):
            raise InputError(
                f"schedule_sampler must be a ScheduleSampler, got {schedule_sampler!r}; "
                "resample.create_named_schedule_sampler makes one by its name"
            )
        if options.sample_interval and preview is None:
            raise InputError("sample_interval needs a preview, which draws the samples")
        self.lr = options.lr
        self.batch_size = options.batch_size
        self.microbatch = options.microbatch if options.microbatch > 0 else options.batch_size
        self.global_batch = options.batch_size * dist_util.world_size()
        self.ema_rate = options.ema_rates
        self.resume_checkpoint = find_resume_checkpoint() or options.resume_checkpoint

        device = dist_util.dev()
        model.to(device)
        self.precision = Precision(options.number_format, device, options.fp16_scale_growth)
        self.model_params = list(model.parameters())
        self.weights = MasterWeights(model, self.precision.dtype)
        self.opt = self.weights.optimizer(
            options.optimizer,
            lr=options.lr,
            betas=(options.adam_beta1, options.adam_beta2),
            weight_decay=options.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        dist_util.sync_params(self.model_params)
        self.averages = Averages(self.weights, self.ema_rate, options.ema_correction)
        self.ema_params = self.averages.params
        self.samples = SamplesOnTheWay(
            options, model, self.precision, preview, examiner, self._average_to_draw_from
        )

        averaged = {str(rate): 0 for rate in self.ema_rate}
        self.state = TrainState(flags=flags or {}, averaged=averaged)
        self._pace = Pace(options.time_budget)
        self.resume_step = 0  # updates of earlier processes; step has those of this one
        self.last_saved: int | None = None
        self._initial_kept = False
        self._gathered: TrainState | None = None  # what all ranks knew after an update
        with dist_util.agreeing():
            keep = options.keep_checkpoints
            checkpoints.check_continues(get_blob_logdir(), self.resume_checkpoint, keep)
            if self.resume_checkpoint:
                self._resume(self.resume_checkpoint)
            log_rows.cut_log(self.state.last_row_step + 1)
        self._started = time.monotonic()
        if self.options.time_budget and not self._is_over:
            self._is_measured()  # a budget that is spent must not cost what was trained in it
        working = self.weights.working
        self.working = Compiled(working, logger.log) if options.compile else working

    @property
    def updates(self) -> int:
        """Finished updates, those before the last resume included."""
        return self.state.updates

    @property
    def step(self) -> int:
        """Finished updates of this process."""
        return self.state.updates - self.resume_step

    @step.setter
    def step(self, step: int) -> None:
        self.state.updates = step + self.resume_step

    # -- going on ------------------------------------------------------------------------------

    def _resume(self, path: str) -> None:
        """Load a checkpoint; say in one line what is not beside the model's file."""
        self.resume_step = self.state.updates = parse_resume_step_from_filename(path)
        self.state.averaged = {}  # unless its state says otherwise
        self.state.last_row_step = self.resume_step - 1
        logger.log(f"Loading model from {path}")
        if missing := checkpoints.load_parts(path, self.resume_step, self._parts()):
            logger.warn(f"Not beside {path}: {'; '.join(missing)}")
        if checkpoints.lies_in(path, get_blob_logdir()):
            self.last_saved = self.updates

    def _parts(self) -> list[Part]:
        """The files of a checkpoint, in the order in which they are loaded."""
        load_optimizer = partial(checkpoints.load_into_optimizer, self.opt, self.model_params)
        return [
            Part("model", self.model.state_dict, self._load_model, ""),
            *self.averages.parts(),
            Part("opt", self.opt.state_dict, load_optimizer, "its moments start at zero"),
            Part(
                "state",
                self.state.as_file,
                self._load_state,
                "random numbers, sampler and data start anew",
            ),
        ]

    def _load_model(self, path: str) -> None:
        checkpoints.load_into(self.model, path)
        self.averages.start_from_model()

    def _load_state(self, path: str) -> None:
        saved = checkpoints.load_state_file(path)
        mine = saved.of_this_rank(path)
        averaged = {rate: n for rate, n in saved.averaged.items() if rate in self.averages.loaded}
        flags = self.state.flags
        self.state = replace(saved, updates=self.resume_step, flags=flags, averaged=averaged)
        if planned := saved.planned.get(self._pace.name):
            self._follow(planned)
            self._pace.say(planned)
        self.precision.load_state_dict(saved.precision)
        mine.restore(self.schedule_sampler, self.data, path)

    # -- the loop ------------------------------------------------------------------------------

    def run_loop(self) -> None:
        """Train until ``max_steps`` or ``lr_anneal_steps``, or until asked to stop.

        SIGINT, SIGTERM and SIGHUP let the update in hand finish; then everything is saved.

        :raises SystemExit: with 128 plus the signal's number, after such a signal.
        :raises LostRankError: if another rank was killed; what this one has is saved.
        :raises DivergedError: after ``max_skipped`` updates in a row that were not finite.
        :raises InputError: if the data end or hold an image that cannot be read, the time budget is
            too short, or the log's table was changed meanwhile; what was trained is saved.
        :raises OSError: if a checkpoint or the log cannot be written.
        """
        self.model.train()
        last, before = self.options.last_update, self.state.seconds[0]
        self._started = time.monotonic()
        bar_of_steps = progress_bar(last, "step", self.updates, lines=False)
        with StopSignals() as stop, bar_of_steps as bar:
            try:
                self._make_updates(stop, bar)
            except RuntimeError as error:
                if not dist_util.is_of_a_lost_rank(error):
                    raise
                raise self._save_what_a_lost_rank_leaves() from error
        if os.environ.get("DIFFUSION_TRAINING_TEST", "") and self.last_saved:
            return
        if dist_util.world_size() > 1:
            dist.barrier()  # none leaves while another still needs it
        peak = cpu.peak_memory()
        logger.log(
            f"Made {self.step} updates in {self._seconds() - before:.0f} s"
            + (f"; peak memory {peak / 1e6:.0f} MB" if peak else "")
        )
        if signal_number := dist_util.any_rank(stop.received):
            raise SystemExit(128 + signal_number)

    def _make_updates(self, stop: StopSignals, bar: Any) -> None:
        self._write_row_if_due()  # of an update after which a rank was lost
        while not self._is_over:
            if dist_util.any_rank(stop.received):
                break
            began = time.monotonic()
            batch, cond = self._next_batch()
            self._keep_initial_weights()
            loss = self.run_step(batch, cond)
            self.step += 1
            took = time.monotonic() - began
            # What is found goes into the line in hand.
            self.samples.examine_if_due(self.updates)
            began = time.monotonic() - took  # an examination is no part of an update
            if dist_util.world_size() > 1:
                self._gather_ranks()
            bar.update()
            bar.set_postfix_str(f"loss {loss:.4f}", False)
            self._write_row_if_due()
            if self.options.time_budget:
                self._plan_if_measured(time.monotonic() - began)
                bar.total = self.options.last_update
            self.samples.draw_if_due(self.updates)
            if self.updates % self.options.save_interval == 0:
                self.save()
                if os.environ.get("DIFFUSION_TRAINING_TEST", ""):
                    return
        if self.last_saved != self.updates:
            self.save()
        self._remove_older_checkpoints()  # also what a killed run removed by half
        log_rows.write_unfinished_row(self.state, self._seconds())
        log_rows.export_results()

    @property
    def _is_over(self) -> bool:
        last = self.options.last_update
        return last is not None and self.updates >= last

    def _keep_initial_weights(self) -> None:
        """Keep what the run began with, before the first update or checkpoint of this process."""
        if not self._initial_kept:
            begun = self.resume_checkpoint
            self.averages.keep_initial_weights(self.state, get_blob_logdir(), begun)
        self._initial_kept = True

    def _plan_if_measured(self, seconds: float) -> None:
        """Fix how many updates the time budget has room for, once their speed is known.

        :param seconds: that the last update took.
        :raises InputError: if the budget is too short for that; what was trained is saved.
        """
        self._pace.add(seconds)
        try:
            if not self._is_measured():
                return
            self._plan([], last=0.0)  # no checkpoint from here on is without a number
            saving = self._seconds_of(self.save)
            pauses = [(self.options.save_interval, saving)]
            for every, make in self.samples.pauses(self.updates):
                pauses.append((every, self._seconds_of(make)))
            self._plan(pauses, last=2 * saving)
        except InputError as error:
            if self.state.planned.pop(self._pace.name, None):
                self.last_saved = None  # nor must a checkpoint have what there is no room for
            raise self._once_saved(error) from error
        self._pace.say(self.state.planned[self._pace.name])
        self.save()  # with the number, which a run that goes on from here keeps

    def _is_measured(self) -> bool:
        """Whether the speed of updates is known, by rank 0's clock; see :meth:`.Pace.is_known`."""
        last = self.options.max_steps
        left = last - self.updates if last else None
        before = self.state.seconds[0] / self.updates if self.updates else 0.0
        return dist_util.by_rank_0(lambda: self._pace.is_known(self._seconds(), left, before))

    def _plan(self, pauses: list[tuple[int, float]], last: float) -> None:
        """Fix the number of updates for all ranks, by rank 0's clock; see :meth:`.Pace.fitting`."""
        fitting = dist_util.by_rank_0(lambda: self._pace.fitting(self._seconds(), pauses, last))
        with dist_util.agreeing():
            self._follow(self.updates + fitting)

    def _seconds_of(self, make: Callable[[], None]) -> float:
        """How long something takes, done once."""
        before = self._seconds()
        make()
        return self._seconds() - before

    def _follow(self, updates: int) -> None:
        """Take so many updates for the time budget."""
        self.options = self._given.planned(updates)
        self.state.planned[self._pace.name] = updates

    def _next_batch(self) -> Batch:
        resumable: Any = self.data if hasattr(self.data, "state_dict") else None
        position = resumable.state_dict() if resumable else None
        try:
            with dist_util.agreeing():
                if (batch := next(self.data, None)) is None:
                    raise InputError("the data ended; give TrainLoop batches without end")
                return batch
        except (InputError, OSError) as error:  # an image must not cost hours of training
            if resumable:
                resumable.load_state_dict(position)  # of a rank whose batch was whole, but unused
            raise self._once_saved(error) from error

    def _once_saved(self, error: InputError | OSError) -> Exception:
        """Save what there is before an error ends the run; the error, with what came of that."""
        saved = f"{self.updates} updates are saved"
        try:
            if self.updates and self.last_saved != self.updates:
                self.save()
        except OSError as failed:
            saved = f"and no checkpoint could be written ({failed})"
        kind = InputError if isinstance(error, InputError) else OSError
        return dist_util.of_all_ranks(kind(f"{error}; {saved}"))

    # -- an update -----------------------------------------------------------------------------

    def run_step(self, batch: th.Tensor, cond: dict[str, th.Tensor]) -> float:
        """Make one update from a batch, and add it to the log line in hand.

        :return: the mean loss of the batch on this rank.
        """
        loss = self.forward_backward(batch, cond)
        self._update()
        self.log_step()
        return loss

    def forward_backward(self, batch: th.Tensor, cond: dict[str, th.Tensor]) -> float:
        """Sum the gradients of the batch's microbatches into ``grad``; return the mean loss."""
        self.weights.zero_grad()
        self.weights.refresh()
        device = dist_util.dev()
        total = 0.0
        with self.precision.autocast():
            for start in range(0, batch.shape[0], self.microbatch):
                images = batch[start : start + self.microbatch].to(device)
                rows = {k: v[start : start + self.microbatch].to(device) for k, v in cond.items()}
                total += self._microbatch(images, rows) * len(images)
                self.weights.gather()
        self.weights.average_over_ranks()
        return total / batch.shape[0]

    def _microbatch(self, images: th.Tensor, cond: dict[str, th.Tensor]) -> float:
        t, weights = self.schedule_sampler.sample(images.shape[0], images.device)
        losses = self.diffusion.training_losses(self.working, images, t, model_kwargs=cond)
        if isinstance(self.schedule_sampler, LossAwareSampler):
            values = losses["loss"].detach()
            finite = th.isfinite(values)  # one infinite loss would draw that timestep for ever
            self.schedule_sampler.update_with_local_losses(t[finite], values[finite])
        log_loss_dict(self.diffusion, t, {k: v * weights for k, v in losses.items()})
        loss = (losses["loss"] * weights).mean()
        with th.autocast(images.device.type, enabled=False):
            (loss * self.precision.loss_scale).backward()
        return float(loss.detach())

    def _update(self) -> None:
        scale = self.precision.loss_scale
        grad_norm = self.weights.grad_norm()
        if not self.precision.accept(self.weights.grads, grad_norm):
            self._skip_update()
            return
        self.state.skipped[1] = 0
        logger.logkv_mean("grad_norm", grad_norm / scale)
        self.weights.clip(grad_norm / scale, self.options.grad_clip)
        self._anneal_lr()
        self.opt.step()
        self.averages.update()
        self.state.averaged = {rate: count + 1 for rate, count in self.state.averaged.items()}

    def _skip_update(self) -> None:
        self.state.skipped = [number + 1 for number in self.state.skipped]
        if self.precision.scales_loss:
            logger.log(f"Gradient overflow: lg_loss_scale is {self.precision.lg_loss_scale} now")
        else:
            logger.warn(f"The update of step {self.updates} is not finite and was skipped")
        if self.state.skipped[1] >= self.options.max_skipped:
            self.log_step()
            log_rows.write_unfinished_row(self.state, self._seconds())
            raise dist_util.of_all_ranks(DivergedError(self._divergence()))

    def _divergence(self) -> str:
        folder = get_blob_logdir()
        good = checkpoints.newest_checkpoint(folder) or self.resume_checkpoint
        return (
            f"training diverged: {self.state.skipped[1]} updates in a row were not finite, up to "
            f"step {self.updates} at learning rate {self.opt.param_groups[0]['lr']:g}; last good "
            f"checkpoint: {good or 'none was saved yet'}; try a lower --lr"
        )

    def _anneal_lr(self) -> None:
        if not self.options.changes_lr:
            return
        for group in self.opt.param_groups:
            group["lr"] = self.lr * self.options.lr_factor(self.updates)

    # -- the log -------------------------------------------------------------------------------

    def log_step(self) -> None:
        """Put the step, the images seen, the rate and the loss scale into the line in hand."""
        logger.logkv("step", self.updates)
        logger.logkv("samples", (self.updates + 1) * self.global_batch)
        if self.options.changes_lr:
            logger.logkv("lr", self.opt.param_groups[0]["lr"])
        if self.precision.scales_loss:
            logger.logkv("lg_loss_scale", self.precision.lg_loss_scale)
        if self.state.skipped[0]:
            logger.logkv("skipped_updates", self.state.skipped[0])

    def _write_row_if_due(self) -> None:
        try:
            due = log_rows.write_row_if_due(self.state, self.options.log_interval, self._seconds())
        except (InputError, OSError) as error:  # a full disk, or a table that another program has
            if dist_util.world_size() > 1:  # the others' part of the row is gone
                raise
            raise self._once_saved(error) from error
        if due:
            self.last_saved = None  # what a lost rank left knows nothing of this row

    def _seconds(self) -> float:
        """Seconds of training, those of earlier processes included."""
        return self.state.seconds[0] + time.monotonic() - self._started

    def _average_to_draw_from(self) -> Average:
        return self.averages.best(self.state, get_blob_logdir())

    # -- checkpoints ---------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint and the workbook; only rank 0 writes.

        :raises OSError: on every rank, if it cannot be written.
        """
        self._keep_initial_weights()
        self._gather_ranks()
        self.state.precision = self.precision.state_dict()
        self.state.seconds[0], self._started = self._seconds(), time.monotonic()
        self.weights.zero_grad()
        allocator.give_back_memory()  # the workbook is written while no activations are held
        with dist_util.agreeing():
            if dist_util.rank() == 0:
                logger.log(f"Saving checkpoint {self.updates:06d}")
                checkpoints.save_parts(get_blob_logdir(), self.updates, self._parts())
        self.last_saved = self.updates
        self._remove_older_checkpoints()
        log_rows.export_results()

    def _gather_ranks(self) -> None:
        """Know what each rank is to go on with after the update that is finished."""
        self.state.ranks = dist_util.all_gather(RankState.now(self.schedule_sampler, self.data))
        seconds = [self._seconds(), self.state.seconds[1]]
        self._gathered = replace(self.state, seconds=seconds)

    def _save_what_a_lost_rank_leaves(self) -> LostRankError:
        """Save the last finished update without the help of a rank that is gone.

        Collectives come before the weights are changed, so these are whole.
        """
        gone = "another process of this run is gone"
        if self.step == 0:
            return LostRankError(f"{gone} before an update was finished; there is nothing to save")
        gathered = self._gathered
        is_whole = gathered is not None and gathered.updates == self.updates
        if gathered and is_whole:
            # Neither a row that came after that, which the log may lack, nor the wait counts.
            self.state = replace(gathered, precision=self.precision.state_dict())
        said = lost_rank.save_alone(get_blob_logdir(), self.updates, self._parts(), is_whole)
        return LostRankError(f"{gone}; {said}")

    def _remove_older_checkpoints(self) -> None:
        with dist_util.agreeing():
            if dist_util.rank() == 0:
                keep = self.options.keep_checkpoints
                checkpoints.remove_older_checkpoints(get_blob_logdir(), keep)


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
