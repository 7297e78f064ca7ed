"""scripts/benchmark.py: every variant makes its step, and the table says what was measured."""

import importlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch as th

from improved_diffusion import logger, train_util
from improved_diffusion.errors import InputError
from improved_diffusion.system import cpu

SCRIPTS = Path(__file__).parents[2] / "scripts"
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
    monkeypatch.setattr(train_util, "update_ema", train_util.update_ema)
    monkeypatch.setattr(logger.Logger, "CURRENT", logger.Logger.CURRENT)
    return module


def parse(module, monkeypatch, **flags):
    words = [word for key, value in (TINY | flags).items() for word in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words])
    return module.parse_flags()


@pytest.mark.parametrize("task", ["training", "sampling"])
@pytest.mark.parametrize("class_cond", [False, True])
def test_every_variant_makes_its_step(task, class_cond, benchmark, monkeypatch):
    args = parse(benchmark, monkeypatch, class_cond=class_cond)

    def make_a_step(variant):
        made = benchmark.make_step(args, task, variant)()
        return made["sample"] if task == "sampling" else th.tensor(logger.getkvs().pop("loss"))

    for variant in benchmark.variants(args, task):
        with ThreadPoolExecutor(1) as thread:  # inference mode stays on for the thread's life
            made = thread.submit(make_a_step, variant).result()
        assert th.isfinite(made).all()
        assert task == "sampling" or 0.5 < made < 1.5


def test_compiled_variants_come_on_request(benchmark, monkeypatch):
    names = {
        compiled: [
            row.name
            for task in ("training", "sampling")
            for row in benchmark.variants(parse(benchmark, monkeypatch, compile=compiled), task)
        ]
        for compiled in (False, True)
    }
    added = ["bf16, compiled", "bf16, microbatches, compiled", "bf16, compiled"]
    assert [name for name in names[True] if "compiled" in name] == added
    assert [name for name in names[True] if "compiled" not in name] == names[False]


def test_a_products_operations_are_two_for_each_of_its_numbers(benchmark, monkeypatch):
    args = parse(benchmark, monkeypatch)
    one, two = (
        benchmark.count_gflop(parse(benchmark, monkeypatch, batch_size=n), "training")
        for n in (1, 2)
    )
    assert two == pytest.approx(2 * one)
    forward = benchmark.count_gflop(args, "sampling") / args.sample_batch
    assert 2.5 < one / forward <= 3, "backward takes twice the forward pass, but for the first"


class Pretended:
    """A worker whose steps take as long as its variant says."""

    def __init__(self, make, args, *rest, plain=False):
        self.milliseconds = []
        self.name = rest[1].name if rest else "product"
        assert plain == (self.name == "plain")

    def step(self):
        slow = {"plain": 400.0, "bf16": 100.0}.get(self.name, 200.0)
        self.milliseconds.append(slow + len(self.milliseconds))

    def close(self):
        return 123.0


def test_the_table_and_the_json_say_what_was_measured(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "Worker", Pretended)
    parse(benchmark, monkeypatch, rounds=3, json=tmp_path / "out.json")
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


def test_a_worker_is_a_process_of_its_own(benchmark):
    worker = benchmark.Worker(make_counter, 3)
    worker.step()
    worker.step()
    assert len(worker.milliseconds) == 2
    assert all(0 <= ms < 1000 for ms in worker.milliseconds)
    assert worker.close() > 1  # MB
    assert not worker.process.is_alive()


def make_counter(start):
    return lambda: start + 1


def test_a_place_that_is_none_is_refused_before_anything_is_timed(benchmark, monkeypatch):
    with pytest.raises(InputError, match=r"the folder of --json /none/x\.json does not exist"):
        parse(benchmark, monkeypatch, json="/none/x.json")


@pytest.mark.parametrize("before", [None, "", "one.so"])
def test_the_plain_variant_is_given_the_systems_allocator(before, benchmark, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    if before is not None:
        monkeypatch.setenv("LD_PRELOAD", before)
    with benchmark.system_allocator():
        assert os.environ["LD_PRELOAD"] == ""
    assert os.environ.get("LD_PRELOAD") == before
