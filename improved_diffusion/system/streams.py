"""Standard output and standard error that cannot fail: what they say is not worth a run."""

import io
import os
import sys
from typing import Any, TextIO


class _Deaf(io.FileIO):
    """A file whose failures are nobody's: a closed pipe, a terminal that hung up, a full disk."""

    original: TextIO

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        return size if written is None else written  # None: nobody reads what should not block


def make_streams_tolerant() -> None:
    """From now on, what this process prints and nobody can read or show is lost without an error.

    Characters that the encoding does not have are shown by their numbers.
    """
    sys.stdout, sys.stderr = tolerant(sys.stdout), tolerant(sys.stderr)


def tolerant(stream: TextIO | None) -> TextIO:
    """The stream to use in the place of ``stream``; None is one that was closed at the start."""
    if stream is None:
        return open(os.devnull, "w", errors="backslashreplace")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")
    try:
        descriptor = stream.fileno()
        stream.flush()
    except (OSError, ValueError):  # no file; or one that has failed already
        return stream
    if os.name == "nt" and stream.isatty():  # a console, to which no bytes can be written
        return stream
    raw = _Deaf(descriptor, "wb", closefd=False)
    raw.original = stream  # which closes the descriptor when nobody holds it
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
