"""Properties that hold for any input: of the CSV, of timestep spacing, of flags."""

import argparse
import csv

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="needs the extra 'test'")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from improved_diffusion.commands.cli import Parser  # noqa: E402
from improved_diffusion.diffusion.noise_schedules import get_named_beta_schedule  # noqa: E402
from improved_diffusion.errors import InputError  # noqa: E402
from improved_diffusion.logs.formats import CSVOutputFormat, cut_csv, read_csv  # noqa: E402
from improved_diffusion.respace import log_snr_timesteps, respaced_timesteps, space_timesteps  # noqa: E402
from improved_diffusion.script_util import add_dict_to_argparser, args_to_dict  # noqa: E402

quick = settings(max_examples=60, deadline=None)
names = st.sampled_from(["loss", "mse", "grad_norm", "vb_q0", 'odd "name", with comma', "Ü"])
# Training flushes subnormal numbers, and so may the process that tests it.
numbers = st.floats(allow_nan=False, allow_subnormal=False) | st.integers(-(10**12), 10**12)
lines = st.lists(st.dictionaries(names, numbers, min_size=1), min_size=1, max_size=8)


def numbered(rows):
    return [{"step": i, **row} for i, row in enumerate(rows)]


def written(path, rows):
    writer = CSVOutputFormat(path)
    for row in rows:
        writer.writekvs(row)
    return writer


def values(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def as_floats(rows):
    return [{key: float(value) for key, value in row.items()} for row in rows]


@quick
@given(rows=lines)
def test_whatever_is_logged_is_read_back_bit_for_bit(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "progress.csv"
    written(path, numbered(rows))
    assert values(path) == as_floats(numbered(rows))


@quick
@given(rows=lines, more=lines)
def test_a_second_run_appends_whatever_its_columns(rows, more, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "progress.csv"
    both = numbered(rows + more)
    written(path, both[: len(rows)])
    written(path, both[len(rows) :])
    assert values(path) == as_floats(both)


@quick
@given(rows=lines, data=st.data())
def test_a_file_torn_anywhere_loses_no_finished_row(rows, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "progress.csv"
    written(path, numbered(rows))
    whole = path.read_bytes()
    finished = whole.rfind(b"\n", 0, len(whole) - 1) + 1  # all rows but the last
    path.write_bytes(whole[: data.draw(st.integers(finished, len(whole) - 1))])
    written(path, [{"step": 99, "loss": 0.5}])
    found = values(path)
    assert found[:-1] == as_floats(numbered(rows))[:-1]
    assert found[-1] == {"step": 99.0, "loss": 0.5}


@quick
@given(rows=lines, step=st.integers(0, 9))
def test_cutting_keeps_exactly_the_rows_before(rows, step, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "progress.csv"
    written(path, numbered(rows))
    removed = cut_csv(path, step)
    assert values(path) == as_floats(numbered(rows)[:step])
    assert removed == max(0, len(rows) - step)
    if removed:
        assert values(path.with_name("progress.csv.bak")) == as_floats(numbered(rows)[step:])
    assert not read_csv(path).torn


@quick
@given(
    steps=st.integers(1, 2000),
    counts=st.lists(st.integers(-1, 60), min_size=1, max_size=4),
)
def test_spaced_timesteps_are_as_many_as_asked_for_or_refused(steps, counts):
    sections = [steps // len(counts) + (i < steps % len(counts)) for i in range(len(counts))]
    possible = all(1 <= n <= size for n, size in zip(counts, sections, strict=True))
    if not possible:
        with pytest.raises(InputError):
            space_timesteps(steps, counts)
        return
    chosen = space_timesteps(steps, counts)
    assert chosen <= set(range(steps))
    start = 0
    for count, size in zip(counts, sections, strict=True):
        assert len(chosen & set(range(start, start + size))) == count
        start += size
    assert space_timesteps(steps, ",".join(map(str, counts))) == chosen


@quick
@given(steps=st.integers(20, 1500), data=st.data())
def test_log_snr_timesteps_hold_both_ends(steps, data):
    count = data.draw(st.integers(2, steps))
    betas = get_named_beta_schedule("cosine", steps)
    chosen = log_snr_timesteps(betas, count)
    assert len(chosen) == count
    assert {0, steps - 1} <= chosen <= set(range(steps))
    assert respaced_timesteps(betas, f"logsnr{count}") == chosen


@quick
@given(text=st.text(max_size=12))
def test_any_respacing_is_had_or_refused(text):
    try:
        assert space_timesteps(100, text) <= set(range(100))
    except InputError as error:
        assert "\n" not in str(error)


flags = st.dictionaries(
    st.sampled_from(["alpha", "beta", "gamma"]),
    st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_subnormal=False)
    | st.text("abc,1"),
    min_size=1,
)


@quick
@given(defaults=flags, data=st.data())
def test_flags_take_back_what_they_print(defaults, data):
    parser = Parser("test")
    add_dict_to_argparser(parser, defaults)
    chosen = data.draw(st.sets(st.sampled_from(sorted(defaults))))
    argv = [f"--{name}={defaults[name]}" for name in chosen]
    assert args_to_dict(parser.parse_args(argv), defaults) == defaults


@quick
@given(words=st.lists(st.text("-ab=1 ", min_size=1), max_size=4))
def test_any_command_line_is_parsed_or_refused_in_one_line(words):
    parser = Parser("test", add_help=False)
    add_dict_to_argparser(parser, {"a": 1, "b": True})
    try:
        assert isinstance(parser.parse_args(words), argparse.Namespace)
    except InputError as error:
        assert str(error).strip()
