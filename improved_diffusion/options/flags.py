"""Flags, each declared once: a field of a frozen dataclass with its default, help and rules.

The command line, ``--help``, the defaults, the checks, what may change when a run is resumed and
what sampling may override all follow from that one line::

    @dataclass(frozen=True, kw_only=True)
    class Training(Options):
        lr: float = flag(1e-4, "learning rate", at_least=0, on_resume="may change")
"""

import dataclasses
import functools
import math
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

from ..errors import InputError

OnResume = Literal["must stay", "may change"]
# A trained model's flag, in a script that uses the model: as it was trained, or any value, or
# whatever this script's command line says.
InUse = Literal["as trained", "free", "not adopted"]
Self = TypeVar("Self", bound="Options")
# What a flag of each type takes, and how a message calls that.
TAKEN: dict[type, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
}


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What is known of a flag besides its name, type and default.

    :param help: the text of ``--help``; choices, special values and the default are added to it.
    :param choices: the words that it takes, best a registry, which may grow.
    :param parse: makes the value of the command line's word, where the annotation does not.
    :param at_least: smallest value; ``above``, ``at_most`` and ``below`` are the other bounds.
    :param special: values beside the bounds and choices that mean something else, and what.
    :param on_resume: whether a run that is resumed may have another value.
    :param in_use: what a script that uses a trained model takes: the value of the training, from
        ``config.json`` ("as trained"); that, unless the command line gives another ("free"); or
        its own ("not adopted").
    :param in_weights: false if weights also load under a wrong value, and then mean nonsense.
    """

    help: str
    choices: Iterable[str] | None = None
    parse: Callable[[str], Any] | None = None
    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    special: Mapping[Any, str] = field(default_factory=dict)
    on_resume: OnResume = "must stay"
    in_use: InUse = "as trained"
    in_weights: bool = True

    def full_help(self) -> str:
        """The text of ``--help``, with the choices and the special values."""
        parts = [self.help]
        if self.choices is not None:
            parts.append(f"one of {', '.join(self.choices)}")
        parts += [f"{v if v != '' else 'empty'} for {mean}" for v, mean in self.special.items()]
        return "; ".join(parts)

    def problem(self, name: str, value: Any) -> str | None:
        """What is wrong with a value, or None."""
        if value in self.special:
            return None
        if self.choices is not None and value not in self.choices:
            return f"unknown {name} {value!r}; choose from {', '.join(self.choices)}"
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            fits = self.at_least <= value <= self.at_most and self.above < value < self.below
            if not (fits and (isinstance(value, int) or math.isfinite(value))):
                special = "".join(f" or {v} ({meaning})" for v, meaning in self.special.items())
                return f"{name} must be {self._range()}{special}, got {value}"
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                return f"{name} must be below 2**63, got {value}"
        return None

    def _range(self) -> str:
        low = f"at least {self.at_least:g}" if self.at_least > -math.inf else ""
        low = f"above {self.above:g}" if self.above > -math.inf else low
        high = f"at most {self.at_most:g}" if self.at_most < math.inf else ""
        high = f"below {self.below:g}" if self.below < math.inf else high
        return " and ".join(filter(None, (low, high))) or "a finite number"


def flag(default: Any, help: str, **rules: Any) -> Any:
    """Declare a flag: the value of a field in the body of an :class:`Options` class.

    :param rules: others of :class:`Flag`.
    """
    return field(default=default, metadata={"flag": Flag(help=help, **rules)})


def setting(default: Any, help: str, **rules: Any) -> Any:
    """Declare a flag of which a run that is resumed may have another value."""
    return flag(default, help, on_resume="may change", **rules)


def with_default(owner: type["Options"], name: str, default: Any) -> Any:
    """The flag ``name`` of another class, with a default of its own."""
    return field(default=default, metadata={"flag": owner.flags()[name]})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Frozen values of flags that are known to work, each of the type of its annotation.

    A script's flags are one class that inherits from those of its parts, so a function that needs
    a part only says so by its annotation.

    :raises InputError: naming all that is wrong with the values, in one line.
    """

    def __post_init__(self) -> None:
        problems = list(self._settle_types())
        said = (rules.problem(name, getattr(self, name)) for name, rules in self.flags().items())
        problems = problems or [problem for problem in said if problem]
        # Flags are held against each other only when each by itself can be.
        if problems := problems or list(self.check()):
            raise InputError("; ".join(problems))

    def _settle_types(self) -> Iterator[str]:
        """Have each value as its annotation says; tell which cannot be had so."""
        for name, kind in self.types().items():
            try:
                object.__setattr__(self, name, as_kind(getattr(self, name), kind))
            except TypeError as error:
                yield f"{name} must be {error}"

    def check(self) -> Iterator[str]:
        """What is wrong with flags that must fit each other; classes below add to it."""
        yield from ()

    @classmethod
    def flags(cls) -> dict[str, Flag]:
        """The rules of each flag, by name."""
        return {f.name: f.metadata["flag"] for f in dataclasses.fields(cls)}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of each flag, by name."""
        return {f.name: f.default for f in dataclasses.fields(cls)}

    @classmethod
    @functools.cache
    def types(cls) -> Mapping[str, Any]:
        """The annotation of each flag, by name."""
        hints = typing.get_type_hints(cls)
        return {f.name: hints[f.name] for f in dataclasses.fields(cls)}

    def as_dict(self) -> dict[str, Any]:
        """The value of each flag, by name: plain, for JSON and checkpoints."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def of(self, part: type[Self]) -> Self:
        """The flags of a part alone."""
        return part(**{f.name: getattr(self, f.name) for f in dataclasses.fields(part)})

    def but(self: Self, **changes: Any) -> Self:
        """The same options with some values changed, checked anew."""
        return dataclasses.replace(self, **changes)


def as_kind(value: Any, kind: Any) -> Any:
    """A value as an annotation has it: numpy's as Python's, 2 as 2.0 for a float, 1 as True.

    :param kind: a key of :data:`TAKEN`, or several as a union.
    :raises TypeError: saying what was wanted and what was given.
    """
    kinds = typing.get_args(kind) or (kind,)
    for each in kinds:
        if each is str and isinstance(value, os.PathLike):
            return os.fspath(value)
        is_one = isinstance(value, TAKEN[each][0]) and not isinstance(value, bool)
        if value in (0, 1) if each is bool else is_one:
            return each(value)
    raise TypeError(f"{' or '.join(TAKEN[each][1] for each in kinds)}, got {value!r}")


def complaint(make: Callable[[], object]) -> Iterator[str]:
    """What an ``InputError`` says that something raises, if it does."""
    try:
        make()
    except InputError as error:
        yield str(error)
