"""Errors whose message is all that a user needs: one line, without a traceback."""


class InputError(ValueError):
    """A flag, file or argument that cannot work.

    The message is one line that says what is wrong, where, and what to do. Scripts print it to
    stderr and exit with status 2; callers of the library catch it as a ``ValueError``.
    """


class DivergedError(RuntimeError):
    """Training produced nothing but losses or gradients that are not finite.

    The message is one line that names the step, the learning rate and the last good checkpoint.
    """


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch has no class of its own for that on a CPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


class LostRankError(OSError):
    """Another process of the run was killed, or the connection to it broke."""


class ToldByRank0:
    """Marks an error that all ranks raise and rank 0 tells: whoever catches it keeps silent."""


class InputErrorOfAll(ToldByRank0, InputError):
    """An :class:`InputError` that rank 0 raises too."""


class DivergedErrorOfAll(ToldByRank0, DivergedError):
    """A :class:`DivergedError` that rank 0 raises too."""


class OSErrorOfAll(ToldByRank0, OSError):
    """An ``OSError`` that rank 0 raises too."""


def told_by_rank_0(error: Exception) -> Exception:
    """An error of the same kind and message, marked as one that rank 0 tells."""
    if isinstance(error, InputError):
        return InputErrorOfAll(*error.args)
    if isinstance(error, DivergedError):
        return DivergedErrorOfAll(*error.args)
    if isinstance(error, OSError):
        marked = OSErrorOfAll(*error.args)
        marked.filename = error.filename  # which need not be among the arguments
        return marked
    return error
