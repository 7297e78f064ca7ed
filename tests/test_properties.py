"""Properties that hold for any input: of timestep spacing, of command lines."""

import argparse

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="needs the extra 'test'")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from improved_diffusion.errors import InputError  # noqa: E402
from improved_diffusion.options.command_line import Parser  # noqa: E402
from improved_diffusion.respace import space_timesteps  # noqa: E402
from improved_diffusion.script_util import add_dict_to_argparser  # noqa: E402

quick = settings(max_examples=60, deadline=None)


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
@given(text=st.text(max_size=12))
def test_any_respacing_is_had_or_refused(text):
    try:
        assert space_timesteps(100, text) <= set(range(100))
    except InputError as error:
        assert "\n" not in str(error)


@quick
@given(words=st.lists(st.text("-ab=1 ", min_size=1), max_size=4))
def test_any_command_line_is_parsed_or_refused_in_one_line(words):
    parser = Parser("test", add_help=False)
    add_dict_to_argparser(parser, {"a": 1, "b": True})
    try:
        assert isinstance(parser.parse_args(words), argparse.Namespace)
    except InputError as error:
        assert str(error).strip()
