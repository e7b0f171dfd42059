"""One run's output folder: what is done already, what is in the way, and keeping what is made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cutaway.cli.files import Job
from cutaway.cli.journal import Entry, Fingerprint, Journal, fingerprint, is_unchanged
from cutaway.cli.writer import REPLACE, Files, Writer

AGAIN = "--force makes it again"


@dataclass(frozen=True)
class Standing:
    """How it stands with a picture before anything is done.

    Attributes:
        status: "todo"; "skipped", done earlier; "differs", done earlier of another picture or with other options; or
            "failed", something is in the way.
        why: of the last two, for people.
        outputs: what is there, of the two in the middle.
        replaceable: files that an earlier run made and that may be replaced.
    """

    status: Literal["todo", "skipped", "differs", "failed"]
    why: str = ""
    outputs: tuple[Path, ...] = ()
    replaceable: frozenset[Path] = frozenset()


TODO = Standing("todo")


class OutputFolder:
    """Where one run puts what it makes.

    Args:
        jobs: all of the run.
        journal: the folder's; None for a single file of the caller's choice.
        options: the command and its options, in the journal's form.
        extension: "png", "webp" or "jpg".
        others: what it may turn out to be instead.
        numbered: one file per person, with the id in its name.
        force: make everything again, and replace what is there.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        journal: Journal | None,
        *,
        options: Mapping[str, Any],
        extension: str,
        others: Sequence[str] = (),
        numbered: bool = False,
        force: bool = False,
    ) -> None:
        self._journal = journal
        self._options = dict(options)
        self._extension = extension
        self._others = tuple(others)
        self._numbered = numbered
        self._force = force
        self._writer = Writer(jobs, force=force)
        self._begun: dict[Path, Fingerprint | None] = {}
        self._replaceable: dict[Path, frozenset[Path]] = {}

    def standing(self, job: Job) -> Standing:
        """Whether the picture is to be done."""
        found = self._standing(job)
        self._replaceable[job.stem] = found.replaceable
        return found

    def begin(self, job: Job) -> None:
        """Note what the picture is, before it is read."""
        self._begun[job.stem] = fingerprint(job.source) if job.data is None and self._journal is not None else None

    def finish(self, job: Job, files: Files, origin: Mapping[str, Any]) -> None:
        """Keep what was made of a picture.

        Raises:
            OSError: it cannot be written, or something is in the way after all.
        """
        entry: Entry | None = None
        was = self._begun.pop(job.stem, None)
        journal = self._journal

        def record(made: Mapping[Path, Fingerprint]) -> None:
            nonlocal entry
            if journal is None or was is None:
                return
            entry = Entry(
                journal.name_of(job.stem),
                self._suffix,
                journal.source_of(job.source),
                was,
                self._options,
                {journal.name_of(target): each for target, each in made.items()},
                {**origin, "at": datetime.now(UTC).isoformat(timespec="seconds")},
            )
            journal.add(entry)

        try:
            self._writer.write(files, replaceable=self._replaceable.get(job.stem, frozenset()), record=record)
        except BaseException:
            if journal is not None and entry is not None:
                journal.take_back(entry)
            raise

    @property
    def _suffix(self) -> str:
        return f"-*.{self._extension}" if self._numbered else f".{self._extension}"

    def _standing(self, job: Job) -> Standing:
        entry = None if self._journal is None else self._journal.at(job.stem, self._suffix)
        if self._force or self._journal is None or entry is None:
            return self._by_name(job)
        outputs = {self._journal.folder / name: made for name, made in entry.outputs.items()}
        there = tuple(path for path, made in outputs.items() if _is_whole(path, made))
        source = self._journal.source_of(job.source)
        same = job.data is None and is_unchanged(job.source, entry.fingerprint)
        if source != entry.source and not same:
            made_of = os.path.normpath(self._journal.folder / entry.source)
            return Standing("failed", f"{there[0]} is there already, made of {made_of}; {REPLACE}") if there else TODO
        if len(there) < len(outputs):
            # Somebody deleted it, or the power failed: what is left of it is replaced, unless somebody worked on it.
            for path in there:
                if not is_unchanged(path, outputs[path]):
                    why = f"{path} was changed since it was made, and others that belong to it are gone; {AGAIN}"
                    return Standing("differs", why, there)
            broken = {path for path in outputs if os.path.lexists(path)}
            return replace(TODO, replaceable=frozenset(broken))
        first = next(iter(outputs))
        if not same:
            return Standing("differs", f"{first} was made of an earlier {job.source.name}; {AGAIN}", there)
        if dict(entry.options) != self._options:
            return Standing("differs", f"{first} was made with {_differences(entry.options)}; {AGAIN}", there)
        return Standing("skipped", outputs=there)

    def _by_name(self, job: Job) -> Standing:
        """Where the journal says nothing, what is there stays there."""
        for extension in (self._extension, *self._others):
            first = job.target(0 if self._numbered else None, extension)
            if self._writer.bars(first):
                own = "is a picture of this very run and is not written over"
                return Standing("failed", f"{first} {own if self._force else f'is there already; {REPLACE}'}")
        return TODO


def _is_whole(path: Path, made: Fingerprint) -> bool:
    """Whether a file is there: as it was made, or as somebody has changed it since, but not what a power cut left."""
    try:
        stat = path.stat()
    except OSError:
        return False
    return stat.st_size == made.n_bytes or (stat.st_size > 0 and stat.st_mtime_ns != made.mtime_ns)


def _differences(then: Mapping[str, Any]) -> str:
    """The options of an earlier run, for a line."""
    words = [f"{name} {value}" for name, value in then.items() if name != "command"]
    return f"other options ({', '.join(words) or 'the defaults'})"
