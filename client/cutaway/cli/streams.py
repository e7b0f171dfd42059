"""Standard input, output and error where they are closed, full, or nobody reads them any more."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_CLOSED = ((0, "stdin", "r", os.O_WRONLY), (1, "stdout", "w", os.O_RDONLY), (2, "stderr", "w", os.O_WRONLY))
"""What stands for a closed stream: using it fails like any other file's, but standard error just swallows."""


class OutputLost(Exception):
    """Standard output cannot be written.

    Attributes:
        reader_left: whoever read it, such as `head`, has gone: no failure to tell of.
    """

    def __init__(self, error: OSError | ValueError) -> None:
        super().__init__(f"standard output cannot be written: {why(error)}")
        self.reader_left = isinstance(error, BrokenPipeError)


def open_closed_streams() -> None:
    """Let no standard stream be None, and no file or connection get the number of one that is closed."""
    for number, name, mode, access in _CLOSED:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, access)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


@contextmanager
def writing(stream: Any) -> Iterator[None]:
    """For what writes to a standard stream.

    Raises:
        OutputLost: standard output could not be written. Where standard error cannot, nobody is left to be told.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if stream is sys.stdout:
            raise OutputLost(error) from None


def read_stdin(at_most: int) -> bytes:
    """So many bytes of standard input, or all.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return sys.stdin.buffer.read(at_most)
    except OSError as error:
        raise OSError(error.errno, f"standard input cannot be read: {why(error)}") from None


def drop_what_is_stuck() -> None:
    """Forget what could not be written: Python would try again at its end, and end with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
                stream.flush()


def why(error: OSError | ValueError) -> str:
    """In words."""
    if isinstance(error, OSError) and error.errno != errno.EBADF:
        return error.strerror or str(error)
    return "it is closed"
