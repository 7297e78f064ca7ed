"""scripts/benchmark.py: every variant makes its step, and the table says what was measured."""

import importlib
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch as th
from in_process import SCRIPTS

from improved_diffusion import logger, script_util
from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import as_words
from improved_diffusion.system import cpu
from improved_diffusion.training.state import seed_everything
from improved_diffusion.unet import QKVAttention, ResBlock

TINY = {
    "image_size": 8,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "4",
    "diffusion_steps": 50,
    "batch_size": 4,
    "microbatch": 2,
    "sample_batch": 2,
}


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)  # for the benchmark's processes too
    module = importlib.import_module("benchmark")
    # What a variant changes for its own process must not outlast this test.
    monkeypatch.setattr(cpu, "configure_cpu", lambda *args, **kwargs: "a processor")
    monkeypatch.setattr(cpu, "has_native_bfloat16", lambda: True)
    monkeypatch.setattr(logger.Logger, "CURRENT", logger.Logger.CURRENT)
    return module


def tiny(module, **flags):
    return module.BenchmarkOptions(**TINY | flags)


@pytest.mark.parametrize("task", ["training", "sampling"])
@pytest.mark.parametrize("class_cond", [False, True])
def test_every_variant_makes_its_step(task, class_cond, benchmark):
    options = tiny(benchmark, class_cond=class_cond)

    def make_a_step(variant):
        made = next(benchmark.make_steps(options, task, variant))
        return made if task == "sampling" else th.tensor(logger.getkvs().pop("loss"))

    for variant in benchmark.variants(options, task):
        with ThreadPoolExecutor(1) as thread:  # inference mode stays on for the thread's life
            made = thread.submit(make_a_step, variant).result()
        assert th.isfinite(made).all()
        assert task == "sampling" or 0.5 < made < 1.5


def filled(options):
    """A model none of whose weights are zero, as they are in some layers at first."""
    th.manual_seed(0)
    model = script_util.build_model(options)
    for p in model.parameters():
        th.nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize(
    "flags",
    [
        {"patch_size": 2},
        {"use_scale_shift_norm": False},
        {"class_cond": True, "num_heads": 2},
    ],
)
def test_the_plain_model_computes_what_the_tuned_one_does(flags, benchmark):
    options = tiny(benchmark, **flags)
    tuned, plain = filled(options), benchmark.PlainUNet(filled(options))
    x, cond = benchmark.make_batch(options, 3)
    t = th.tensor([0, 20, 49])
    expected = tuned(x, t, **cond)
    assert expected.std() > 0.1
    th.testing.assert_close(plain(x, t, **cond), expected, rtol=1e-4, atol=1e-4)
    kinds = {type(module) for module in plain.modules()}
    assert kinds.isdisjoint({ResBlock, QKVAttention})


def test_the_plain_step_makes_the_update_of_the_tuned_one(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "build_model", filled)
    monkeypatch.setattr(benchmark, "LR", 0.01)
    monkeypatch.setattr(benchmark, "EMA_RATE", 0.5)
    options = tiny(benchmark)
    batch = benchmark.make_batch(options, options.batch_size)
    row = benchmark.Variant("fp32", microbatches=True)

    def update(make):
        logger.Logger.CURRENT = logger.Logger(dir=None, output_formats=[])
        loop = make(options, row)
        seed_everything(1)
        loop.run_step(*batch)
        return loop, logger.getkvs()

    (plain, said), (tuned, expected) = update(benchmark.plain_loop), update(benchmark.tuned_loop)
    for key in ("loss", "mse_q0", "grad_norm"):
        assert said[key] == pytest.approx(expected[key], rel=1e-4)
    each = (filled(options).parameters(), plain.params, tuned.model_params, plain.ema)
    before, after, other, average = map(th.nn.utils.parameters_to_vector, each)
    assert (after - before).abs().mean().item() == pytest.approx(0.01, rel=2e-2)
    # Not all are equal: Adam makes a whole step of a gradient that is nothing but rounding.
    assert (after - other).abs().mean() < 1e-5
    th.testing.assert_close(average, (before + after) / 2)


def names(module, **flags):
    options = tiny(module, **flags)
    tasks = ("training", "sampling")
    return [row.name for task in tasks for row in module.variants(options, task)]


def test_compiled_variants_come_on_request(benchmark):
    compiled = names(benchmark, compile=True)
    added = ["bf16, compiled", "bf16, microbatches, compiled", "bf16, compiled"]
    assert [name for name in compiled if "compiled" in name] == added
    assert [name for name in compiled if "compiled" not in name] == names(benchmark)


def test_bf16_is_left_out_where_it_is_slow(benchmark, monkeypatch):
    monkeypatch.setattr(cpu, "has_native_bfloat16", lambda: False)
    assert names(benchmark) == ["plain", "fp32", "fp32, microbatches", "plain", "fp32"]
    assert "fp32, compiled" in names(benchmark, compile=True)


def test_a_products_operations_are_two_for_each_of_its_numbers(benchmark):
    one, two = (benchmark.count_gflop(tiny(benchmark, batch_size=n), "training") for n in (1, 2))
    assert two == pytest.approx(2 * one)
    forward = benchmark.count_gflop(tiny(benchmark, sample_batch=1), "sampling")
    assert 2.5 < one / forward <= 3, "backward takes twice the forward pass, but for the first"


class Pretended:
    """A worker whose steps take as long as its variant says."""

    def __init__(self, make, args, *rest):
        self.milliseconds = []
        self.name = getattr(rest[-1], "name", "product")

    def step(self):
        slow = {"plain": 400.0, "bf16": 100.0}.get(self.name, 200.0)
        self.milliseconds.append(slow + len(self.milliseconds))

    def close(self):
        return 123.0


def test_the_table_and_the_json_say_what_was_measured(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "Worker", Pretended)
    flags = TINY | {"rounds": 3, "json": str(tmp_path / "out.json")}
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *as_words(flags)])
    benchmark.main()
    out = capsys.readouterr().out
    assert "| plain | 401 | 1.00 | 10.0 |" in out
    assert "| bf16 | 101 | 3.97 | 39.6 |" in out
    report = json.loads((tmp_path / "out.json").read_text())
    rows = {row["name"]: row for row in report["training"]["variants"]}
    gflop = report["training"]["gflop"]
    assert rows["bf16"]["gflop_per_second"] == pytest.approx(gflop / 0.101)
    peak = 2 * benchmark.MATRIX**3 / 1e9 / 0.201
    assert rows["bf16"]["share_of_matrix_peak"] == pytest.approx(gflop / 0.101 / peak)
    assert rows["bf16"]["peak_memory_mb"] == 123.0
    assert report["flags"] == tiny(benchmark, **flags).as_dict()


def test_the_json_must_be_a_file_in_a_folder_that_is_there(benchmark, tmp_path):
    with pytest.raises(InputError, match=r"--json must be a .json file .* got /none/x\.json"):
        tiny(benchmark, json="/none/x.json")
    (folder := tmp_path / "x.json").mkdir()
    with pytest.raises(InputError, match=r"--json must be a \.json file"):
        tiny(benchmark, json=str(folder))


def run_out_of_memory():
    raise MemoryError("2 GB are too much")
    yield


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)
    yield


def test_a_process_that_ends_is_told_in_one_line(benchmark, capfd):
    with pytest.raises(SystemExit) as ended:
        benchmark.Worker(run_out_of_memory)
    assert ended.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(
        "error: not enough memory, take a smaller batch or model: 2 GB are too much"
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_process_that_is_killed_is_told_in_one_line(benchmark, capfd):
    with pytest.raises(OSError, match="signal 9 ended a process that made steps"):
        benchmark.Worker(be_killed)
    assert capfd.readouterr().err == ""
