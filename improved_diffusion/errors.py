"""Errors whose message is all that a user needs: one line, without a traceback."""

told_by_rank_0 = False  # whether another process says what ends this one


class InputError(ValueError):
    """A flag, file or argument that cannot work.

    The message is one line that says what is wrong, where, and what to do. Scripts print it to
    stderr and exit with status 2; callers of the library catch it as a ``ValueError``.
    """


class DivergedError(RuntimeError):
    """Training produced nothing but losses or gradients that are not finite.

    The message is one line that names the step, the learning rate and the last good checkpoint.
    """


def as_word(value: object) -> str:
    """A flag's value as it stands on a command line, for a message."""
    return "''" if value == "" else str(value)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which torch says in its own words on each system and device."""
    words = ("allocate memory", "not enough memory", "out of memory", "calculation overflowed")
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in said for word in words)
    )


class LostRankError(OSError):
    """Another process of the run was killed, or the connection to it broke."""
