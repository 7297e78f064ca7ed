"""Flags declared once: their rules, and the command line that follows from them."""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from improved_diffusion.errors import InputError
from improved_diffusion.options.command_line import (
    Parser,
    parse_options,
    parse_values,
    str2bool,
)
from improved_diffusion.options.flags import Options, flag, with_default
from improved_diffusion.options.training import ImageTraining
from improved_diffusion.script_util import add_dict_to_argparser


@dataclass(frozen=True, kw_only=True)
class Shape(Options):
    sides: int = flag(3, "how many sides", at_least=3)
    size: float = flag(1.0, "length of 100 % of a side", above=0, below=10, special={-1: "any"})


@dataclass(frozen=True, kw_only=True)
class Painted(Shape):
    colour: str = flag("red", "paint", choices={"red": 1, "blue": 2}, on_resume="may change")
    filled: bool = flag(True, "inside too")
    sides: int = with_default(Shape, "sides", 4)

    def check(self):
        if self.colour == "blue" and not self.filled:
            yield "blue must be filled"
        yield from super().check()


def test_a_flag_is_declared_once_and_known_everywhere():
    assert Painted.defaults() == {"sides": 4, "size": 1.0, "colour": "red", "filled": True}
    assert Painted().as_dict() == Painted.defaults()
    assert Painted.flags()["sides"] is Shape.flags()["sides"]
    assert Painted.flags()["colour"].on_resume == "may change"
    assert Painted.types()["size"] is float


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sides": 2}, "^sides must be at least 3, got 2$"),
        ({"size": 0.0}, r"^size must be above 0 and below 10 or -1 \(any\), got 0.0$"),
        ({"size": float("nan")}, "got nan"),
        ({"size": float("inf")}, "got inf"),
        ({"colour": "green"}, "^unknown colour 'green'; choose from red, blue$"),
        ({"colour": "blue", "filled": False}, "^blue must be filled$"),
        ({"sides": 1, "colour": "x"}, "^sides must be .*; unknown colour"),
    ],
)
def test_values_that_cannot_work(values, said):
    with pytest.raises(InputError, match=said):
        Painted(**values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sides": 4.5}, "^sides must be a whole number, got 4.5$"),
        ({"sides": True}, "^sides must be a whole number, got True$"),
        ({"size": "3"}, "^size must be a number, got '3'$"),
        ({"size": None}, "^size must be a number, got None$"),
        ({"filled": "False"}, "^filled must be True or False, got 'False'$"),
        ({"filled": 2}, "^filled must be True or False, got 2$"),
        ({"colour": 3, "sides": "4"}, "^sides must be .*; colour must be text, got 3$"),
    ],
)
def test_values_of_another_type(values, said):
    with pytest.raises(InputError, match=said):
        Painted(**values)


def test_values_become_the_type_of_the_annotation():
    made = Painted(sides=np.int64(5), size=2, colour=np.str_("blue"), filled=np.bool_(True))
    assert made == Painted(sides=5, size=2.0, colour="blue", filled=True)
    assert [type(value) for value in made.as_dict().values()] == [int, float, str, bool]
    assert Painted(filled=1).filled is True
    assert ImageTraining(data_dir=Path("photos")).data_dir == "photos"


def test_special_values_are_out_of_bounds():
    assert Painted(size=-1).size == -1


def test_options_are_frozen_and_changed_ones_are_checked():
    options = Painted(sides=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.sides = 6
    assert options.but(sides=6).sides == 6
    with pytest.raises(InputError, match="at least 3"):
        options.but(sides=0)
    assert options.of(Shape) == Shape(sides=5)


# -- the command line ----------------------------------------------------------------------------


def test_words_become_options():
    options = parse_options(Painted, "Draw.", ["--sides", "7", "--filled", "no", "--size=-1"])
    assert options == Painted(sides=7, filled=False, size=-1.0)


@pytest.mark.parametrize(
    ("words", "given"),
    [([], set()), (["--sides", "4"], {"sides"}), (["--filled=no", "--size=2"], {"filled", "size"})],
)
def test_flags_given_are_told_from_defaults(words, given):
    values, found = parse_values(Painted, "Draw.", words)
    assert found == given
    assert values.keys() == Painted.defaults().keys()


def test_help_shows_defaults_choices_and_special_values(capsys):
    with pytest.raises(SystemExit) as raised:
        parse_options(Painted, "Draw.", ["--help"])
    assert raised.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "how many sides (default: 4)" in text
    assert "paint; one of red, blue (default: red)" in text
    assert "100 % of a side; -1 for any (default: 1.0)" in text


@pytest.mark.parametrize(
    "words", [["--sides", "x"], ["--side", "3"], ["extra"], ["--filled", "eh"]]
)
def test_the_parsers_errors_are_input_errors(words):
    with pytest.raises(InputError, match="see --help"):
        parse_options(Painted, "Draw.", words)


@pytest.mark.parametrize("value", [True, False])
def test_words_for_true_and_false(value):
    words = ("yes", "true", "T", "y", "1") if value else ("no", "false", "F", "n", "0")
    assert all(str2bool(word) is value for word in (*words, str(value), value))


@pytest.mark.parametrize("word", ["", "maybe", "2"])
def test_other_words(word):
    with pytest.raises(argparse.ArgumentTypeError, match="expected True or False"):
        str2bool(word)


@settings(max_examples=60)
@given(words=st.lists(st.text("-ab=1 ", min_size=1), max_size=4))
def test_any_command_line_is_parsed_or_refused_in_one_line(words):
    parser = Parser("test", add_help=False)
    add_dict_to_argparser(parser, {"a": 1, "b": True})
    try:
        assert isinstance(parser.parse_args(words), argparse.Namespace)
    except InputError as error:
        assert str(error).strip()
        assert "\n" not in str(error)


@pytest.mark.parametrize("value", [2**63, 10**400])
def test_a_number_that_no_checkpoint_can_hold_is_refused(value):
    with pytest.raises(InputError, match="save_interval must be below 2"):
        ImageTraining(save_interval=value)
