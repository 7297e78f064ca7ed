"""The one exception that means: what the user gave cannot work."""


class InputError(ValueError):
    """A flag, file or argument that cannot work.

    The message is one line that says what is wrong, where, and what to do. Scripts print it to
    stderr and exit with status 2; callers of the library catch it as a ``ValueError``.
    """


class DivergedError(RuntimeError):
    """Training produced nothing but losses or gradients that are not finite.

    The message is one line that names the step, the learning rate and the last good checkpoint.
    """
