import argparse
import errno
import os

import pytest

from improved_diffusion.commands import cli
from improved_diffusion.errors import DivergedError, InputError


def outcome(main, capsys):
    """Exit status and lines on stderr of a script with this main function."""
    with pytest.raises(SystemExit) as raised:
        cli.run(main)
    return raised.value.code, capsys.readouterr().err.splitlines()


def raiser(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_a_script_ends_with_what_its_main_returns(returned, status, capsys):
    assert outcome(lambda: returned, capsys) == (status, [])


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("wrong\n  flag"), 2, "error: wrong flag"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_expected_end_is_one_line(error, status, said, capsys):
    code, lines = outcome(raiser(error), capsys)
    assert code == status
    assert len(lines) == 1
    assert said in lines[0]


def test_divergence_is_one_line(capsys):
    code, lines = outcome(raiser(DivergedError("training diverged")), capsys)
    assert code == 1
    assert len(lines) == 1
    assert "training diverged" in lines[0]


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 // 0)


def test_a_closed_pipe_is_no_complaint(capsys, monkeypatch):
    descriptor = os.dup(1)
    try:
        monkeypatch.setattr("sys.stdout", open(os.dup(1), "w"))  # noqa: SIM115
        assert outcome(raiser(BrokenPipeError()), capsys) == (1, [])
    finally:
        os.dup2(descriptor, 1)
        os.close(descriptor)


@pytest.mark.parametrize("word", ["yes", "true", "T", "y", "1", "True", True])
def test_words_for_true(word):
    assert cli.str2bool(word) is True


@pytest.mark.parametrize("word", ["no", "false", "F", "n", "0", "False", False])
def test_words_for_false(word):
    assert cli.str2bool(word) is False


@pytest.mark.parametrize("word", ["", "maybe", "2"])
def test_other_words(word):
    with pytest.raises(argparse.ArgumentTypeError, match="expected True or False"):
        cli.str2bool(word)


@pytest.fixture
def parser():
    parser = cli.Parser("What it does.")
    parser.add_argument("--number", type=int, default=3, help="a number")
    parser.add_argument("--flag", type=cli.str2bool, default=False, help="a truth")
    return parser


@pytest.mark.parametrize("words", [["--number", "x"], ["--num", "3"], ["extra"], ["--flag", "eh"]])
def test_the_parsers_errors_are_input_errors(parser, words):
    with pytest.raises(InputError, match="see --help"):
        parser.parse_args(words)


def test_help_shows_defaults(parser, capsys):
    with pytest.raises(SystemExit) as raised:
        parser.parse_args(["--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert "a number (default: 3)" in text
    assert "a truth (default: False)" in text


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ([], set()),
        (["--number", "3"], {"number"}),
        (["--flag=no", "--number=1"], {"number", "flag"}),
    ],
)
def test_flags_given_are_told_from_defaults(parser, words, given, monkeypatch):
    monkeypatch.setattr("sys.argv", ["script.py", *words])
    args, found = parser.parse_args_and_given()
    assert found == given
    assert vars(args).keys() == {"number", "flag"}
    assert vars(parser.parse_args([])) == {"number": 3, "flag": False}
