"""From the words of a command line to options."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from ..errors import InputError
from .flags import Flag, Options
from .presets import PRESETS, without_followers

AnyOptions = TypeVar("AnyOptions", bound=Options)
_NOT_GIVEN = object()


class Parser(argparse.ArgumentParser):
    """An argument parser that shows each default in ``--help`` and says errors in one line.

    :raises InputError: instead of the exit of ``argparse``, when words cannot be understood.
    """

    def __init__(self, description: str | None = None, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(description=description, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def parse_options(
    kind: type[AnyOptions], description: str | None, words: Sequence[str] | None = None
) -> AnyOptions:
    """The options of that kind which a command line gives; by default this process's.

    :raises InputError: if the words cannot be understood, or the values cannot work.
    """
    values, _ = parse_values(kind, description, words)
    return kind(**values)


def parse_values(
    kind: type[Options], description: str | None, words: Sequence[str] | None = None
) -> tuple[dict[str, Any], set[str]]:
    """The values of all flags, not yet checked, and the names of those that were given.

    Where there is a flag ``preset``, the words of the preset come before all others, but for those
    that go with a flag which is given.
    """
    parser = Parser(description)
    types, rules = kind.types(), kind.flags()
    for name, default in kind.defaults().items():
        add_flag(parser, name, default, types[name], rules[name])

    def parse(words: Sequence[str]) -> dict[str, Any]:
        unset = argparse.Namespace(**dict.fromkeys(types, _NOT_GIVEN))  # argparse leaves these be
        found = vars(parser.parse_args(words, unset))
        return {name: value for name, value in found.items() if value is not _NOT_GIVEN}

    words = sys.argv[1:] if words is None else words
    given = parse(words)
    if preset := PRESETS.get(given.get("preset", "")):
        given = parse([*as_words(without_followers(preset.flags, given)), *words])
    return kind.defaults() | given, set(given)


def as_words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as they stand on a command line."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def add_flag(
    parser: argparse.ArgumentParser, name: str, default: Any, kind: Any, rules: Flag | None
) -> None:
    """Give ``parser`` a flag, read as ``kind`` or as its rules say."""
    read = (rules and rules.parse) or (str2bool if kind is bool else kind)
    help_text = rules.full_help().replace("%", "%%") if rules else None
    parser.add_argument(f"--{name}", default=default, type=read, help=help_text)


def str2bool(value: str | bool) -> bool:
    """Read a truth value written as a word: yes/no, true/false, t/f, y/n, 1/0."""
    if isinstance(value, bool):
        return value
    word = value.lower()
    if word in ("yes", "true", "t", "y", "1"):
        return True
    if word in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, got {value!r}")
