"""Things by the name that a flag gives them, registered where they are defined."""

from collections.abc import Callable
from typing import TypeVar

from ..errors import InputError

Thing = TypeVar("Thing")


class UnknownNameError(InputError, NotImplementedError):
    """Nothing has that name (the reference raises ``NotImplementedError`` here)."""


class Registry(dict[str, Thing]):
    """A dictionary that grows where things are defined, and says what it holds.

    :param flag: the flag that takes its names, for messages.
    """

    def __init__(self, flag: str):
        super().__init__()
        self.flag = flag

    def register(self, name: str) -> Callable[[Thing], Thing]:
        """Decorate a thing to be registered under ``name``."""

        def add(thing: Thing) -> Thing:
            self[name] = thing
            return thing

        return add

    def __missing__(self, name: str) -> Thing:
        """:raises UnknownNameError: beside the names that there are."""
        raise UnknownNameError(f"unknown {self.flag} {name!r}; choose from {', '.join(self)}")
