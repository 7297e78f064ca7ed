"""Things by the name that a flag gives them, registered where they are defined."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

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

    def takes(self, name: str, setting: str) -> bool:
        """Whether the callable of that name has a parameter called ``setting``."""
        return setting in inspect.signature(self._callable(name)).parameters

    def taking(self, name: str, **settings: Any) -> Callable[..., Any]:
        """The callable of that name, with those of some settings that it takes.

        :raises UnknownNameError: as ``self[name]`` does.
        """
        taken = {key: value for key, value in settings.items() if self.takes(name, key)}
        return partial(self._callable(name), **taken)

    def _callable(self, name: str) -> Callable[..., Any]:
        thing = self[name]
        assert callable(thing)
        return thing

    def __missing__(self, name: str) -> Thing:
        """:raises UnknownNameError: beside the names that there are."""
        raise UnknownNameError(f"unknown {self.flag} {name!r}; choose from {', '.join(self)}")
