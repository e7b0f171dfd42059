"""One run at a time for an output folder: two would do the same work, and then be in each other's way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: what is there stays there, as always
    fcntl = None  # type: ignore[assignment]


class FolderInUse(Exception):
    """Another run is at work in the folder."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder, made where it is missing and removed again where nothing came into it.

    The lock is the kernel's and ends with the process, however that ends. A file system without locks is used without.

    Raises:
        FolderInUse: somebody else holds it.
        OSError: it can neither be opened nor made.
    """
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.callback(_remove_empty, missing)
        if fcntl is not None:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderInUse(f"{folder}: another run of cutaway is at work in this folder") from None
            except OSError:
                pass
        yield


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
