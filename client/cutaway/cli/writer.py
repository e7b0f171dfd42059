"""Writing what was made: whole or not at all, and never over anything that it must not replace."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cutaway.cli.files import Job
from cutaway.cli.journal import Fingerprint

REPLACE = "--force replaces what earlier runs made"

Files = Mapping[Path, bytes]
"""Where → what."""


class Writer:
    """Writes files, never over a picture that is being read, over what was made of another picture in this run, or,
    unless forced, over any file.

    Files come under temporary names first, ``.cutaway-….part`` beside their places, and get their own when all of a
    picture are whole: a name that shows is never half a picture.

    Args:
        jobs: all of the run.
        force: replace files of earlier runs.
    """

    def __init__(self, jobs: Sequence[Job], *, force: bool) -> None:
        self._sources = {job.source.resolve() for job in jobs if job.data is None}
        self._written: set[str] = set()
        self._force = force
        self._count = itertools.count()

    def bars(self, target: Path, *, replaceable: bool = False) -> bool:
        """Whether a file is there that may not be replaced."""
        if not os.path.lexists(target):
            return False
        resolved = target.resolve()
        kept = resolved in self._sources or _folded(resolved) in self._written
        return kept or not (self._force or replaceable)

    def write(
        self,
        files: Files,
        *,
        replaceable: Collection[Path] = (),
        record: Callable[[Mapping[Path, Fingerprint]], None] | None = None,
    ) -> None:
        """Write all files of a picture, or none.

        Args:
            files: what to write.
            replaceable: files that may be replaced though it is not forced.
            record: called with what the files will be, when they are whole and have not yet got their names.

        Raises:
            FileExistsError: one of the files is there.
            OSError: they cannot be written.
        """
        for target in files:
            if self.bars(target, replaceable=target in replaceable):
                raise _there(target)
        parts: dict[Path, Path] = {}
        new: list[Path] = []
        try:
            for target, data in files.items():
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f".cutaway-{os.getpid()}-{next(self._count)}.part")
                parts[target] = part
                with part.open("xb") as file:
                    file.write(data)
            if record is not None:
                record({target: _as_it_is(part) for target, part in parts.items()})
            for target, part in parts.items():
                if self._force or target in replaceable:
                    part.replace(target)
                else:
                    _name(part, target)
                    new.append(target)
        except BaseException:
            for target in new:
                target.unlink(missing_ok=True)
            raise
        finally:
            for part in parts.values():
                with suppress(OSError):
                    part.unlink()
        self._written.update(_folded(target.resolve()) for target in files)


def _name(part: Path, target: Path) -> None:
    """Give a file its name, unless another file has it."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise _there(target) from None
    except OSError:  # no such links on this file system: what came this very moment may be replaced
        if os.path.lexists(target):
            raise _there(target) from None
        part.replace(target)


def _there(target: Path) -> FileExistsError:
    return FileExistsError(f"{target} is there already; {REPLACE}")


def _as_it_is(path: Path) -> Fingerprint:
    stat = path.stat()
    return Fingerprint(stat.st_size, stat.st_mtime_ns)


def _folded(path: Path) -> str:
    return str(path).casefold()
