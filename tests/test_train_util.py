import itertools
import math
import os
import signal

import numpy as np
import pytest
import torch as th
from toy_training import TIME_COLUMNS, ToyModel, make_diffusion, rows, toy_data, toy_loop

from improved_diffusion import logger, train_util
from improved_diffusion.errors import DivergedError, InputError
from improved_diffusion.resample import LossSecondMomentResampler
from improved_diffusion.train_util import (
    find_ema_checkpoint,
    get_blob_logdir,
    log_loss_dict,
)
from improved_diffusion.training import checkpoints
from improved_diffusion.training.state import seed_everything

# --- one update


def test_a_flag_that_the_loop_does_not_use_is_refused(silent_log):
    with pytest.raises(TypeError, match="random_flip"):
        toy_loop(random_flip=True)


def test_a_model_in_eval_mode_is_trained_in_training_mode(silent_log, tmp_path):
    modes = []

    class Watched(ToyModel):
        def forward(self, x, t):
            modes.append(self.training)
            return super().forward(x, t)

    toy_loop(model=Watched().eval(), max_steps=2).run_loop()
    assert modes == [True, True]


def test_another_run_in_the_folder_of_one_is_refused(tmp_path):
    logger.configure(str(tmp_path), ["csv"])
    toy_loop(max_steps=3, save_interval=3).run_loop()
    before = (tmp_path / "progress.csv").read_bytes()
    with pytest.raises(InputError, match=r"already holds a run, up to model000003\.pt"):
        toy_loop(max_steps=2)
    assert (tmp_path / "progress.csv").read_bytes() == before
    going_on = toy_loop(max_steps=4, resume_checkpoint=tmp_path / "model000003.pt")
    going_on.run_loop()
    assert going_on.updates == 4


def test_numbers_of_numpy_leave_checkpoints_that_can_be_loaded(silent_log):
    settings = {"lr": np.float64(1e-2), "weight_decay": np.float32(0.1), "batch_size": np.int64(4)}
    toy_loop(max_steps=2, **settings).run_loop()
    going_on = toy_loop(max_steps=3, resume_checkpoint=silent_log / "model000002.pt", **settings)
    going_on.run_loop()
    assert going_on.updates == 3


def test_initial_weights_follow_a_run_whose_next_batch_fails(tmp_path):
    with logger.scoped_configure(dir=tmp_path / "a", format_strs=[]):
        toy_loop(max_steps=2).run_loop()
    begun = {"resume_checkpoint": tmp_path / "a" / "model000002.pt"}
    with (
        logger.scoped_configure(dir=tmp_path / "b", format_strs=[]),
        pytest.raises(InputError, match="2 updates are saved"),
    ):
        toy_loop(data=iter(()), max_steps=3, **begun).run_loop()
    for name in ("model000000.pt", "model000002.pt"):
        assert (tmp_path / "b" / name).exists()


@pytest.mark.parametrize("microbatch", [-1, 0, 1, 3, 4])
def test_gradients_of_microbatches_are_summed(microbatch, silent_log):
    loop = toy_loop(microbatch=microbatch)
    batch, cond = next(loop.data)
    seed_everything(5)
    loop.forward_backward(batch, cond)
    got = loop.weights.views(loop.weights.grads)

    seed_everything(5)
    total = 0.0
    for part in batch.split(microbatch if microbatch > 0 else len(batch)):
        t, weights = loop.schedule_sampler.sample(len(part), "cpu")
        losses = loop.diffusion.training_losses(loop.model, part, t)
        total = total + (losses["loss"] * weights).mean()
    for mine, wanted in zip(got, th.autograd.grad(total, loop.model_params), strict=True):
        th.testing.assert_close(mine, wanted)


def test_labels_go_with_their_microbatch(silent_log):
    seen = []

    class Conditional(ToyModel):
        def forward(self, x, t, y):
            seen.append(y.tolist())
            return super().forward(x, t)

    loop = toy_loop(model=Conditional(), microbatch=3)
    loop.run_step(th.zeros(4, 3, 4, 4), {"y": th.tensor([3, 1, 4, 1])})
    assert seen == [[3, 1, 4], [1]]


def test_several_emas_follow_their_rates(silent_log):
    loop = toy_loop(ema_rate="0,0.5,0.9")
    averages = [[p.detach().clone() for p in loop.model_params] for _ in loop.ema_rate]
    for _ in range(3):
        loop.run_step(*next(loop.data))
        for rate, average in zip((0, 0.5, 0.9), averages, strict=True):
            for a, p in zip(average, loop.model_params, strict=True):
                a.copy_(rate * a + (1 - rate) * p.detach())
    for got, wanted in zip(loop.ema_params, averages, strict=True):
        th.testing.assert_close([p.data for p in got], wanted)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_of_others_do_not_count(precision, silent_log):
    loops = [toy_loop(precision=precision) for _ in range(2)]
    for loop, disturbed in zip(loops, (False, True), strict=True):
        seed_everything(3)
        for _ in range(2):
            if disturbed:
                for p in (*loop.model.parameters(), *loop.weights.working.parameters()):
                    p.grad = th.ones_like(p)
            loop.run_step(th.ones(4, 3, 4, 4), {})
    for a, b in zip(*(loop.model_params for loop in loops), strict=True):
        assert th.equal(a, b)


def test_the_copy_that_computes_follows_the_models_mode(silent_log):
    loop = toy_loop(precision="bf16")
    loop.model.eval()
    loop.run_step(th.zeros(4, 3, 4, 4), {})
    assert not loop.weights.working.training


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"lr_anneal_steps": 4}, [0.4, 0.3, 0.2, 0.1]),
        ({"warmup_steps": 4}, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4]),
        ({"warmup_steps": 1}, [0.4] * 8),
        ({"lr_schedule": "constant"}, [0.4] * 8),
        (
            {"lr_anneal_steps": 8, "lr_schedule": "cosine"},
            [0.2 * (1 + math.cos(math.pi * n / 8)) for n in range(8)],
        ),
        (
            {"lr_anneal_steps": 8, "lr_hold_steps": 4},
            [0.4, 0.4, 0.4, 0.4, 0.4, 0.3, 0.2, 0.1],
        ),
        (
            {"lr_anneal_steps": 8, "warmup_steps": 2},
            [0.5 * 0.4, *(0.4 * (8 - n) / 8 for n in range(1, 8))],
        ),
        (
            {"lr_anneal_steps": 8, "warmup_steps": 2, "lr_hold_steps": 6, "lr_schedule": "cosine"},
            [0.2, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.2],
        ),
    ],
)
def test_the_learning_rate_rises_and_falls(flags, wanted, silent_log):
    loop = toy_loop(lr=0.4, max_steps=8, **flags)
    used = []
    step = loop.opt.step
    loop.opt.step = lambda: (used.append(loop.opt.param_groups[0]["lr"]), step())
    loop.run_loop()
    assert used == pytest.approx(wanted)
    logged = [float(row["lr"]) for row in rows(silent_log) if "lr" in row]
    assert logged == ([] if len(set(wanted)) == 1 and not loop.options.warmup_steps else used)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_long_gradient_is_shortened_and_logged_as_it_was(precision, silent_log):
    grads = {}
    for clip in (0.0, 0.01, 1e6):
        loop = toy_loop(grad_clip=clip, precision=precision)
        loop.run_step(*next(loop.data))
        grads[clip] = th.cat(loop.weights.grads).clone()
        norm = logger.dumpkvs()["grad_norm"]
        assert norm == pytest.approx(grads[0.0].norm().item(), rel=1e-5)
        assert norm > 0.05
    assert th.equal(grads[1e6], grads[0.0])
    assert grads[0.01].norm().item() == pytest.approx(0.01, rel=1e-5)
    th.testing.assert_close(grads[0.01], grads[0.0] * (0.01 / grads[0.0].norm()))


def test_training_lowers_the_loss(silent_log):
    loop = toy_loop(lr=0.05, max_steps=100, log_interval=20)
    loop.run_loop()
    losses = [float(row["loss"]) for row in rows(silent_log)]
    assert losses[-1] < 0.7 * losses[0]


# --- the log


def test_a_line_holds_the_means_since_the_last(silent_log):
    loop = toy_loop(max_steps=7, log_interval=3)
    loop.run_loop()
    log = rows(silent_log)
    assert [row["step"] for row in log] == ["0", "3", "6"]
    assert [row["samples"] for row in log] == ["4", "16", "28"]
    assert log[0].keys() >= TIME_COLUMNS
    with logger.scoped_configure(dir=silent_log / "each", format_strs=["csv"]):
        toy_loop(max_steps=7, log_interval=1).run_loop()
    each = rows(silent_log / "each")
    for row, updates in zip(log, (each[:1], each[1:4], each[4:]), strict=True):
        for name in ("loss", "mse", "grad_norm"):
            mean = np.mean([float(update[name]) for update in updates])
            assert float(row[name]) == pytest.approx(mean, rel=1e-6)


def test_losses_are_logged_by_quarter_of_the_timesteps(silent_log):
    t = th.tensor([0, 1, 3, 7])
    log_loss_dict(make_diffusion(), t, {"mse": th.tensor([1.0, 2.0, 3.0, 4.0])})
    line = logger.dumpkvs()
    assert line == {"mse": 2.5, "mse_q0": 1.5, "mse_q1": 3.0, "mse_q3": 4.0}


def test_the_importance_sampler_hears_of_unweighted_losses(silent_log):
    heard = []

    class Sampler(LossSecondMomentResampler):
        def weights(self):
            return np.arange(1.0, 9.0)

        def update_with_all_losses(self, ts, losses):
            heard.extend(zip(ts, losses, strict=True))

    loop = toy_loop(schedule_sampler=Sampler(make_diffusion()))
    loop.run_step(*next(loop.data))
    line = logger.getkvs()
    assert len(heard) == 4
    p = np.arange(1.0, 9.0) / 36
    weighted = [loss / (8 * p[t]) for t, loss in heard]
    assert line["loss"] == pytest.approx(np.mean(weighted), rel=1e-5)


# --- updates that are not finite


def test_an_update_that_is_not_finite_is_skipped_and_counted(silent_log):
    loop = toy_loop(data=toy_data(bad={1, 2}))
    for number in range(4):
        before = loop.model.scale.item()
        loop.run_step(*next(loop.data))
        loop.step += 1
        changed = loop.model.scale.item() != before
        assert changed == (number not in {1, 2})
        assert logger.dumpkvs().get("skipped_updates") == (min(number, 2) or None)
    assert all(th.isfinite(p).all() for ema in loop.ema_params for p in ema)


def test_too_many_in_a_row_end_the_run(silent_log):
    loop = toy_loop(data=toy_data(bad=range(2, 100)), max_skipped=3, save_interval=2)
    with pytest.raises(DivergedError) as raised:
        loop.run_loop()
    said = str(raised.value)
    assert "3 updates in a row" in said
    assert "step 4" in said
    assert "learning rate 0.01" in said
    assert str(silent_log / "model000004.pt") in said
    weights = th.load(silent_log / "model000004.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


def test_a_good_update_between_makes_the_count_begin_anew(silent_log):
    loop = toy_loop(data=toy_data(bad={0, 1, 3, 4, 6}), max_skipped=3, max_steps=8)
    loop.run_loop()
    assert loop.state.skipped[0] == 5


def test_losses_that_are_not_finite_do_not_reach_the_sampler(silent_log):
    sampler = LossSecondMomentResampler(make_diffusion(), history_per_term=1)
    loop = toy_loop(data=toy_data(bad={0}), schedule_sampler=sampler)
    loop.run_step(*next(loop.data))
    assert np.isfinite(sampler.weights()).all()
    assert sampler.state_dict()["loss_counts"].sum() == 0


# --- files


def test_files_of_a_checkpoint(silent_log):
    loop = toy_loop(ema_rate="0.9,0.99", max_steps=5, save_interval=2)
    loop.run_loop()
    saved = sorted(path.name for path in silent_log.glob("*.pt"))
    kinds = ("ema_0.99_", "ema_0.9_", "model", "opt", "state")
    wanted = [f"{kind}{step:06d}.pt" for kind in kinds for step in (2, 4, 5)]
    assert saved == sorted([*wanted, "model000000.pt"])  # the last: what the EMAs began with
    assert (silent_log / "results.xlsx").exists()
    written = {"model": loop.model_params, "ema_0.9_": loop.ema_params[0]}
    for kind, params in written.items():
        weights = th.load(silent_log / f"{kind}000005.pt", weights_only=True)
        assert list(weights) == list(loop.model.state_dict())
        assert all(th.equal(a, b) for a, b in zip(weights.values(), params, strict=True))


def test_the_tensors_of_a_file_share_no_memory(silent_log):
    loop = toy_loop(max_steps=1)
    loop.run_loop()
    for kind in ("model", "ema_0.9_"):
        content = th.load(silent_log / f"{kind}000001.pt", weights_only=True)
        assert len(content) == len(loop.model_params)
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in content.values())
    model = th.load(silent_log / "model000001.pt", weights_only=True)
    assert model._metadata == loop.model.state_dict()._metadata


def test_older_checkpoints_go_if_asked(silent_log):
    toy_loop(max_steps=6, save_interval=2, keep_checkpoints=1).run_loop()
    left = sorted(path.name for path in silent_log.glob("*.pt"))
    kept = ["ema_0.9_000006.pt", "model000000.pt", "model000006.pt", "opt000006.pt"]
    assert left == [*kept, "state000006.pt"]


def test_checkpoints_go_where_the_environment_says(silent_log, tmp_path, monkeypatch):
    (tmp_path / "blobs").mkdir()
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(tmp_path / "blobs"))
    assert get_blob_logdir() == str(tmp_path / "blobs")
    toy_loop(max_steps=1).run_loop()
    assert (tmp_path / "blobs" / "state000001.pt").exists()
    assert not list(silent_log.glob("*.pt"))


def test_the_environment_ends_a_test_run_after_the_first_save(silent_log, monkeypatch):
    monkeypatch.setenv("DIFFUSION_TRAINING_TEST", "1")
    loop = toy_loop(save_interval=3)
    loop.run_loop()
    assert loop.updates == 3


def test_find_ema_checkpoint(silent_log):
    toy_loop(max_steps=2, ema_rate="0.99").run_loop()
    main = str(silent_log / "model000002.pt")
    assert find_ema_checkpoint(main, 2, 0.99) == str(silent_log / "ema_0.99_000002.pt")
    assert find_ema_checkpoint(main, 2, 0.5) is None
    assert find_ema_checkpoint("", 2, 0.99) is None


# --- EMAs and the initial weights


def average_by_hand(history, rate):
    """The weighted mean of the weights after each update, the later the heavier."""
    weights = [rate ** (len(history) - 1 - i) for i in range(len(history))]
    return sum(w * h for w, h in zip(weights, history, strict=True)) / sum(weights)


def corrected(folder, step, rate="0.9"):
    share, path = checkpoints.initial_part(str(folder / f"ema_{rate}_{step:06d}.pt"))
    average = th.load(folder / f"ema_{rate}_{step:06d}.pt", weights_only=True)
    initial = th.load(path, weights_only=True)
    return checkpoints.without_initial(average, initial, share)["scale"].item()


def test_an_ema_without_its_initial_weights_is_the_mean_of_all_after_them(run_in, tmp_path):
    """Through updates that are skipped, and a run that goes on, there and in another folder."""
    history = []

    def loop_of(data, **settings):
        loop = toy_loop(data=data, model=ToyModel(), **settings)
        step = loop.opt.step

        def recorded():
            step()
            history.append(loop.model.scale.item())

        loop.opt.step = recorded
        return loop

    run_in("run", lambda _: loop_of(toy_data(bad={2}), max_steps=4))
    initial = th.load(tmp_path / "run" / "model000000.pt", weights_only=True)
    assert initial["scale"] == 0.5
    assert corrected(tmp_path / "run", 4) == pytest.approx(average_by_hand(history, 0.9), abs=1e-6)
    for folder, before, now in (("run", 4, 7), ("other", 7, 9)):
        path = str(tmp_path / "run" / f"model{before:06d}.pt")
        settings = {"resume_checkpoint": path, "max_steps": now}
        run_in(folder, lambda _, settings=settings: loop_of(toy_data(), **settings))
        wanted = average_by_hand(history, 0.9)
        assert corrected(tmp_path / folder, now) == pytest.approx(wanted, abs=1e-6)
    assert len(history) == 8
    kept = (tmp_path / name / "model000000.pt" for name in ("run", "other"))
    assert len({path.read_bytes() for path in kept}) == 1


def test_an_ema_that_began_later_holds_other_weights(run_in, tmp_path):
    run_in("run", lambda _: toy_loop(max_steps=2))
    path = str(tmp_path / "run" / "model000002.pt")
    settings = {"resume_checkpoint": path, "ema_rate": "0.9,0.5"}
    run_in("run", lambda _: toy_loop(max_steps=4, **settings))
    young = str(tmp_path / "run" / "ema_0.5_000004.pt")
    assert checkpoints.initial_part(young) == (0, None)
    old = str(tmp_path / "run" / "ema_0.9_000004.pt")
    assert checkpoints.initial_part(old).share == pytest.approx(0.9**4)


def test_initial_weights_outlast_checkpoints_that_are_links(run_in, tmp_path):
    run_in("run", lambda _: toy_loop(max_steps=2))
    (linked := tmp_path / "linked").mkdir()
    for path in (tmp_path / "run").glob("*.pt"):
        (linked / path.name).symlink_to(path)
    settings = {"resume_checkpoint": str(linked / "model000002.pt"), "max_steps": 4}
    run_in("linked", lambda _: toy_loop(**settings))
    kept = checkpoints.initial_part(str(linked / "ema_0.9_000004.pt"))
    assert kept == (pytest.approx(0.9**4), str(linked / "model000000.pt"))


@pytest.mark.parametrize("settings", [{"ema_correction": False}, {"ema_rate": "0"}])
def test_initial_weights_are_kept_for_a_use_only(settings, silent_log):
    (silent_log / "model000000.pt").write_bytes(b"of a run that was killed early")
    toy_loop(max_steps=2, **settings).run_loop()
    assert not (silent_log / "model000000.pt").exists()


def test_a_run_without_an_update_keeps_nothing(silent_log):
    loop = toy_loop(data=iter(()))
    with pytest.raises(InputError, match="the data ended"):
        loop.run_loop()
    assert not list(silent_log.glob("*.pt"))


def test_data_that_end_cost_no_update(silent_log):
    loop = toy_loop(data=itertools.islice(toy_data(), 3), save_interval=2)
    with pytest.raises(InputError, match=r"the data ended.*; 3 updates are saved"):
        loop.run_loop()
    assert checkpoints.complete_steps(str(silent_log)) == [2, 3]


def test_initial_weights_are_no_checkpoint(silent_log):
    (silent_log / "state000000.pt").write_bytes(b"of a torn one")
    toy_loop(max_steps=1).run_loop()
    assert checkpoints.complete_steps(str(silent_log)) == [1]
    assert not (silent_log / "state000000.pt").exists()


class Recorder:
    """Keeps the averages that samples are drawn from."""

    def __init__(self):
        self.drawn = []

    def draw(self, folder, step, model, average):
        self.drawn.append((step, average))


def test_samples_on_the_way_are_of_corrected_averages(silent_log):
    recorder, history = Recorder(), []
    loop = toy_loop(max_steps=3, sample_interval=1, preview=recorder)
    step = loop.opt.step
    loop.opt.step = lambda: (step(), history.append(loop.model.scale.item()))
    loop.run_loop()
    assert [step for step, _ in recorder.drawn] == [1, 2, 3]
    for n, average in recorder.drawn:
        assert (average.corrected, average.share) == (True, 0)
        assert "its initial weights taken out" in str(average)
        value = average.weights["scale"].item()
        assert value == pytest.approx(average_by_hand(history[:n], 0.9), abs=1e-6)


@pytest.mark.parametrize(("updates", "rate"), [(2, 0.5), (6, 0.5), (12, 0.75)])
def test_samples_are_of_the_highest_settled_average(silent_log, updates, rate):
    recorder = Recorder()
    settings = {"ema_rate": "0.5,0.75,0.9999", "ema_correction": False}
    toy_loop(max_steps=updates, sample_interval=updates, preview=recorder, **settings).run_loop()
    ((_, average),) = recorder.drawn
    assert average.rate == rate
    assert average.share == rate**updates
    assert ("of its initial weights" in str(average)) == (updates == 2)


# --- a budget of time


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def batches(self, *seconds):
        """Batches of which each takes so many seconds, all later ones the last number of them."""
        for number, batch in enumerate(toy_data()):
            self.now += seconds[min(number, len(seconds) - 1)]
            yield batch

    def slow_down(self, owner, **seconds):
        """Have methods of an object take so many seconds."""
        for name, more in seconds.items():
            setattr(owner, name, self._slower(getattr(owner, name), more))

    def _slower(self, method, seconds):
        def slower(*args):
            method(*args)
            self.now += seconds

        return slower


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(train_util, "time", made)
    return made


SLOW_AT_FIRST = (*[10.0] * 5, 2.0)  # measured are 20 updates of 2 seconds


def test_a_time_budget_becomes_a_number_of_updates_that_ends_the_schedule(silent_log, clock):
    recorder = Recorder()
    loop = toy_loop(
        data=clock.batches(*SLOW_AT_FIRST),
        lr=0.4,
        time_budget=10.0,
        warmup_steps=4,
        sample_interval=50,
        save_interval=100,
        preview=recorder,
    )
    clock.slow_down(loop, save=3.0)
    clock.slow_down(loop.samples, draw=5.0)
    loop.run_loop()
    # 600 - 5 * 10 - 20 * 2 - 3 - 5 - 2 * 3 seconds are left after that, of 2.13 an update.
    assert loop.updates == 25 + 232
    assert 1595 < clock.now <= 1600
    assert [step for step, _ in recorder.drawn] == [25, 50, 100, 150, 200, 250]
    assert checkpoints.complete_steps(str(silent_log)) == [25, 100, 200, 257]
    rates = [float(row["lr"]) for row in rows(silent_log)]
    hold, fall = 128, 129
    wanted = [0.1, 0.2, 0.3, *[0.4] * (hold - 3), *(0.4 * (1 - n / fall) for n in range(fall))]
    assert rates == pytest.approx(wanted)


class SlowExaminer:
    """Takes ten seconds of a clock for figures that nobody reads."""

    interval = 5

    def __init__(self, clock):
        self.clock = clock

    def examine(self, *_):
        self.clock.now += 10.0
        raise InputError("nothing to see")  # which costs no more than its time


def test_an_examination_is_counted_once_in_a_time_budget(silent_log, clock):
    loop = toy_loop(data=clock.batches(1.0), time_budget=10.0)
    loop.samples.examiner = SlowExaminer(clock)
    loop.run_loop()
    # 600 seconds: five updates take 5, and an examination 10.
    assert loop.updates == pytest.approx(200, abs=5)
    assert 1570 < clock.now <= 1600


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"lr_schedule": "constant"}, None),
        ({"lr_schedule": "cosine", "lr_hold_share": 0.0}, (0.2, 0.0586)),
        ({"lr_schedule": "linear", "lr_hold_share": 0.5}, (0.4, 0.2)),
    ],
)
def test_how_the_rate_falls_in_a_time_budget(flags, wanted, silent_log, clock):
    loop = toy_loop(data=clock.batches(1.0), lr=0.4, time_budget=100 / 60, **flags)
    loop.run_loop()
    assert loop.updates == 100
    found = [float(row["lr"]) for row in rows(silent_log) if row.get("lr")]
    assert [found[50], found[75]] == pytest.approx(wanted, rel=0.05) if wanted else found == []


def test_a_run_that_goes_on_keeps_the_number_of_updates(run_in, tmp_path, clock):
    def part(seconds, **settings):
        path = str(tmp_path / "run" / f"model{settings['start']:06d}.pt")
        resume = path if settings.pop("start") else ""
        data = clock.batches(seconds)
        settings = {"time_budget": 100 / 60, "resume_checkpoint": resume} | settings
        return run_in("run", lambda _: toy_loop(data=data, **settings))

    part(1.0, start=0, max_steps=10)  # ends before the number is fixed
    loop = part(0.5, start=10, max_steps=40)  # so it measures again: 10 + 12.5 are over, 77.5 left
    assert loop.options.lr_anneal_steps == loop.state.planned["1.66667"] == 35 + 155
    loop = part(2.0, start=40)
    assert loop.updates == 190
    assert len(rows(tmp_path / "run")) == 190
    assert [float(row["lr"]) for row in rows(tmp_path / "run")][94:97:2] == [0.01, 0.01 * 94 / 95]


def test_another_budget_is_measured_anew(run_in, tmp_path, clock):
    run_in("run", lambda _: toy_loop(data=clock.batches(1.0), time_budget=1.0, max_steps=40))
    path = str(tmp_path / "run" / "model000040.pt")
    settings = {"resume_checkpoint": path, "time_budget": 2.0}
    loop = run_in("run", lambda _: toy_loop(data=clock.batches(1.0), **settings))
    assert loop.updates == 120
    assert loop.state.planned == {"1": 60, "2": 120}


def test_a_budget_that_is_spent_costs_nothing_of_what_was_trained_in_it(run_in, tmp_path, clock):
    run_in("run", lambda _: toy_loop(data=clock.batches(1.0), time_budget=10.0))
    before = sorted(os.listdir(tmp_path / "run"))
    path = str(tmp_path / "run" / "model000600.pt")
    # Measuring takes a twentieth, which another limit does not change.
    for minutes, most in ((9.0, 0), (10.4, 0), (10.4, 100_000)):
        settings = {"resume_checkpoint": path, "time_budget": minutes, "keep_checkpoints": 1}
        settings |= {"max_steps": most}
        with pytest.raises(InputError, match=r"too short .* 600 seconds of it are over"):
            run_in("run", lambda _, kept=settings: toy_loop(data=clock.batches(1.0), **kept))
        assert sorted(os.listdir(tmp_path / "run")) == before


def test_a_budget_without_room_for_an_update_leaves_no_plan(silent_log, clock):
    loop = toy_loop(data=clock.batches(1.0), time_budget=1.0)
    clock.slow_down(loop, save=100.0)
    with pytest.raises(InputError, match="no room for another update"):
        loop.run_loop()
    assert checkpoints.load_state_file(str(silent_log / "state000025.pt")).planned == {}


def test_an_older_checkpoint_that_cannot_be_removed_stops_nothing(silent_log, monkeypatch):
    remove, warned = checkpoints.remove_file, []

    def refuse(path):
        if "000001" in path:
            raise PermissionError("another program has it open")
        remove(path)

    monkeypatch.setattr(checkpoints, "remove_file", refuse)
    monkeypatch.setattr(logger, "warn", lambda *said: warned.extend(said))
    toy_loop(max_steps=4, save_interval=1, keep_checkpoints=1).run_loop()
    assert checkpoints.complete_steps(str(silent_log)) == [1, 4]
    assert "Cannot remove the older checkpoint 000001 yet: another program has it open" in warned


def test_a_budget_that_is_too_short_ends_the_run(silent_log, clock):
    loop = toy_loop(data=clock.batches(10.0), time_budget=1.0)
    with pytest.raises(InputError, match=r"time_budget 1 is too short.*; 6 updates are saved"):
        loop.run_loop()
    assert (silent_log / "state000006.pt").exists()


def test_a_budget_that_another_limit_ends_needs_no_room_for_the_measuring(silent_log, clock):
    loop = toy_loop(data=clock.batches(10.0), time_budget=2.0, max_steps=10)
    loop.run_loop()
    assert loop.updates == 10


def test_a_table_that_was_edited_meanwhile_costs_no_update(silent_log):
    def edit_after(batches, count):
        for number, batch in enumerate(batches):
            if number == count:
                path = silent_log / "progress.csv"
                path.write_text(path.read_text().replace(",", ";"))
                logger.logkv("remark", 1.0)  # a new column, for which the table is read again
            yield batch

    loop = toy_loop(data=edit_after(toy_data(), 3), max_steps=9)
    with pytest.raises(InputError, match=r"progress\.csv.*; 4 updates are saved"):
        loop.run_loop()
    assert (silent_log / "state000004.pt").exists()


def test_a_warm_up_takes_half_of_a_budget_at_most(silent_log, clock):
    loop = toy_loop(data=clock.batches(1.0), time_budget=1.0, warmup_steps=61)
    loop.run_loop()
    assert loop.updates == 60
    assert loop.options.warmup_steps == 30


# --- going on


@pytest.fixture
def run_in(tmp_path):
    """Run a loop with a log of its own, as a process would."""

    def run(name, make):
        with logger.scoped_configure(dir=tmp_path / name, format_strs=["csv"]):
            loop = make(tmp_path / name)
            loop.run_loop()
        return loop

    return run


@pytest.mark.parametrize("missing", ["ema_0.9_", "opt", "state"])
def test_what_is_not_beside_a_checkpoint_is_said(missing, run_in, tmp_path, capsys):
    run_in("run", lambda _: toy_loop(max_steps=2))
    path = tmp_path / "run" / f"{missing}000002.pt"
    path.unlink()
    with logger.scoped_configure(dir=tmp_path / "other", format_strs=["line"]):
        loop = toy_loop(resume_checkpoint=str(tmp_path / "run" / "model000002.pt"), max_steps=3)
        said = [line for line in capsys.readouterr().out.splitlines() if "Not beside" in line]
        assert len(said) == 1
        assert missing.rstrip("_") in said[0]
        loop.run_loop()
    assert loop.updates == 3


@pytest.mark.parametrize("kind", ["one flat tensor", "two groups", "other shapes"])
def test_an_optimizer_of_another_layout_is_said_once_and_truly(kind, run_in, tmp_path, capsys):
    run_in("run", lambda _: toy_loop(max_steps=2))
    path = tmp_path / "run" / "opt000002.pt"
    state = th.load(path, weights_only=True)
    if kind == "two groups":
        state["param_groups"] = [{**state["param_groups"][0], "params": [i]} for i in (0, 1)]
    elif kind == "one flat tensor":
        state["param_groups"][0]["params"] = [0]
    else:
        state["state"][0]["exp_avg"] = th.zeros(7)
    th.save(state, path)
    with logger.scoped_configure(dir=tmp_path / "other", format_strs=["line"]):
        loop = toy_loop(resume_checkpoint=str(tmp_path / "run" / "model000002.pt"), max_steps=3)
        said = capsys.readouterr().out
        loop.run_loop()
    assert said.count(f"{path} is for another layout of the weights; its moments start at") == 1
    assert "Not beside" not in said
    assert loop.opt.state_dict()["state"][0]["step"] == 1


@pytest.mark.parametrize("content", [{"state": {}, "param_groups": [{}]}, {"param_groups": 3}])
def test_what_is_no_optimizer_is_named(content, run_in, tmp_path, silent_log):
    run_in("run", lambda _: toy_loop(max_steps=2))
    th.save(content, tmp_path / "run" / "opt000002.pt")
    with pytest.raises(InputError, match=r"opt000002\.pt is no optimizer's file"):
        toy_loop(resume_checkpoint=str(tmp_path / "run" / "model000002.pt"))


@pytest.mark.parametrize("missing", ["nothing", "ema_0.9_", "opt", "state"])
def test_a_checkpoint_is_not_written_again_where_it_is(missing, run_in, tmp_path):
    """A run that makes no update has nothing to add to it, and could only lose it."""
    run_in("run", lambda _: toy_loop(max_steps=2))
    (tmp_path / "run" / f"{missing}000002.pt").unlink(missing_ok=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")}
    path = str(tmp_path / "run" / "model000002.pt")
    run_in("run", lambda _: toy_loop(resume_checkpoint=path, max_steps=2))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")} == before
    run_in("new", lambda _: toy_loop(resume_checkpoint=path, max_steps=2))
    assert (tmp_path / "new" / "state000002.pt").exists()


def test_a_run_at_its_end_removes_what_a_killed_one_removed_by_half(run_in, tmp_path):
    run_in("run", lambda _: toy_loop(save_interval=1, max_steps=2))
    (tmp_path / "run" / "state000001.pt").unlink()
    path = str(tmp_path / "run" / "model000002.pt")
    run_in("run", lambda _: toy_loop(resume_checkpoint=path, max_steps=2, keep_checkpoints=1))
    assert not list((tmp_path / "run").glob("*000001.pt"))
    assert len(list((tmp_path / "run").glob("*000002.pt"))) == 4


def test_published_averages_are_parameters(run_in, tmp_path, silent_log):
    first = run_in("run", lambda _: toy_loop(max_steps=2))
    path = tmp_path / "run" / "ema_0.9_000002.pt"
    average = {name: v + 1 for name, v in th.load(path, weights_only=True).items()}
    th.save({name: th.nn.Parameter(value) for name, value in average.items()}, path)
    loop = toy_loop(resume_checkpoint=str(tmp_path / "run" / "model000002.pt"))
    assert all(map(th.equal, loop.ema_params[0], average.values()))
    assert not any(p.requires_grad for p in loop.ema_params[0])
    assert first.updates == loop.updates == 2


def test_a_model_alone_is_enough_to_go_on(run_in, tmp_path, silent_log):
    first = run_in("run", lambda _: toy_loop(max_steps=2))
    path = tmp_path / "model000100.pt"
    th.save(first.model.state_dict(), path)
    loop = toy_loop(resume_checkpoint=str(path))
    assert loop.updates == 100
    assert loop.model.scale.item() == first.model.scale.item()
    assert all(th.equal(a, b) for a, b in zip(loop.ema_params[0], loop.model_params, strict=True))


def test_changed_settings_hold_after_going_on(run_in, tmp_path, silent_log):
    run_in("run", lambda _: toy_loop(max_steps=2, lr=0.5))
    path = str(tmp_path / "run" / "model000002.pt")
    changes = {"lr": 0.25, "weight_decay": 0.125, "adam_beta1": 0.5, "adam_beta2": 0.75}
    group = toy_loop(resume_checkpoint=path, **changes).opt.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.25, 0.125, (0.5, 0.75))


# --- settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"sample_interval": 5}, "sample_interval needs a preview"),
        ({"schedule_sampler": "lognormal"}, "must be a ScheduleSampler, got 'lognormal'"),
        ({"microbatch": -2}, "microbatch must be at least 1 or -1"),
        ({"log_interval": 0}, "log_interval"),
        ({"save_interval": 0}, "save_interval"),
        ({"lr": -1.0}, "lr must be"),
        ({"lr": float("nan")}, "lr must be"),
        ({"ema_rate": "0.9,x"}, "ema_rate must be numbers"),
        ({"ema_rate": "1.5"}, r"ema_rate must lie in \[0, 1\)"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"batch_size": 0, "lr": -1.0}, "lr.*; batch_size"),
        ({"grad_clip": -1.0}, "grad_clip must be at least 0"),
        ({"adam_beta1": 1.0}, "adam_beta1 must be at least 0 and below 1"),
        ({"adam_beta2": -0.1}, "adam_beta2 must be at least 0 and below 1"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"lr_schedule": "step"}, "unknown lr_schedule 'step'; choose from constant, linear"),
        ({"lr_schedule": "cosine"}, "--lr_schedule cosine needs --lr_anneal_steps"),
        ({"lr_schedule": "constant", "lr_anneal_steps": 9}, "contradicts --lr_anneal_steps 9"),
        ({"lr_anneal_steps": 9, "lr_hold_steps": 9}, "lr_hold_steps must be below .*, 9, got 9"),
        ({"lr_hold_steps": 3}, "lr_hold_steps must be below lr_anneal_steps, 0, got 3"),
        ({"lr_anneal_steps": 9, "warmup_steps": 10}, "warmup_steps must be at most .*, 9, got 10"),
        ({"time_budget": -1.0}, "time_budget must be at least 0"),
        ({"time_budget": 1.0, "lr_anneal_steps": 9}, "falls: leave --lr_anneal_steps out"),
        ({"time_budget": 1.0, "lr_hold_steps": 9}, "falls: leave --lr_hold_steps out"),
        ({"lr_hold_share": 1.0}, "lr_hold_share must be at least 0 and below 1"),
    ],
)
def test_settings_that_cannot_work(changes, said, silent_log):
    with pytest.raises(InputError, match=said):
        toy_loop(**changes)


# --- signals


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="os.kill ends a process of Windows")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_run_after_the_step_and_saves(name, silent_log, capfd):
    number = getattr(signal, name)

    def data():
        for i, item in enumerate(toy_data()):
            if i == 2:
                os.kill(os.getpid(), number)
            yield item

    loop = toy_loop(data=data())
    with pytest.raises(SystemExit) as raised:
        loop.run_loop()
    assert raised.value.code == 128 + number
    assert loop.updates == 3
    assert (silent_log / "state000003.pt").exists()
    assert (silent_log / "results.xlsx").exists()
    said = f"{name}: finishing this step" in capfd.readouterr().err
    assert said == (name != "SIGHUP")  # whose terminal is closed
