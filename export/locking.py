"""One writer at a time in a folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from export import ExportError


@contextlib.contextmanager
def alone_in(folder: Path, busy: ExportError) -> Iterator[None]:
    """Keep other processes out of a folder, which is made where it is not there.

    Raises:
        ExportError: `busy`, where another process is at it.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".writing").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
