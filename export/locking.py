"""One writer at a time in a folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from typing import BinaryIO

from export import ExportError


@contextlib.contextmanager
def alone(lock: BinaryIO, busy: ExportError) -> Iterator[None]:
    """Hold the lock of an open file until the end, which closes it.

    Args:
        lock: a file in the folder that nobody else needs.
        busy: raised where another process holds it.
    """
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
