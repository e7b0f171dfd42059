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
        if fcntl is not None:
            stack.callback(os.close, _locked(folder))
        folder.mkdir(parents=True, exist_ok=True)
        stack.callback(_remove_empty, missing)  # while nobody else can hold it
        yield


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder that is there now: whoever held it before may just have removed it."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        except (FileExistsError, FileNotFoundError):
            if os.path.lexists(folder) and not folder.is_dir():
                raise
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise FolderInUse(f"{folder}: another run of cutaway is at work in this folder") from None
        except OSError:
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
