"""The one exception that means: what the user gave cannot work."""

from collections.abc import Callable
from typing import Any


class InputError(ValueError):
    """A flag, file or argument that cannot work.

    The message is one line that says what is wrong, where, and what to do. Scripts print it to
    stderr and exit with status 2; callers of the library catch it as a ``ValueError``.
    """


class DivergedError(RuntimeError):
    """Training produced nothing but losses or gradients that are not finite.

    The message is one line that names the step, the learning rate and the last good checkpoint.
    """


def together(*makers: Callable[[], Any]) -> tuple[Any, ...]:
    """What each of ``makers`` returns.

    :raises InputError: with the problems of all of them in one line.
    """
    made, problems = [], []
    for make in makers:
        try:
            made.append(make())
        except InputError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise InputError("; ".join(map(str, problems)))
    return tuple(made)
