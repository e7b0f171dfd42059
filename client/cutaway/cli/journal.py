"""The journal of an output folder: what was made of what, so that an interrupted run goes on where it stopped.

A file of JSON lines beside the cut-outs. A line is added when a picture's cut-outs are complete, under temporary
names, and just before they get their own: whatever interrupts a run, what looks done is done. Of two lines about the
same place the later one counts; a line without outputs takes an earlier one back. Lines that make no sense are passed
over, such as the last one after a power cut.

Delete a cut-out to have it made again, and the journal to have everything judged by its name alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

JOURNAL = ".cutaway-journal.jsonl"


@dataclass(frozen=True)
class Fingerprint:
    """A file as it was.

    Attributes:
        n_bytes: its size.
        mtime_ns: nanoseconds of its last change.
        sha256: of its content; "" where nobody looked.
    """

    n_bytes: int
    mtime_ns: int
    sha256: str = ""


@dataclass(frozen=True)
class Entry:
    """One line of the journal.

    Attributes:
        stem: the place, relative to the folder and without extension: "photo".
        suffix: what belongs to the names there: ".png", or "-*.png" for one file per person.
        source: the picture, relative to the folder.
        fingerprint: of the picture.
        options: the command and those options that were not left at their defaults.
        outputs: the files relative to the folder, and what they were when they were made.
        origin: who made them: provider, tier, profile and time. For people; nothing depends on it.
    """

    stem: str
    suffix: str
    source: str
    fingerprint: Fingerprint
    options: Mapping[str, Any]
    outputs: Mapping[str, Fingerprint]
    origin: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """The journal of one folder; a folder that is not there has an empty one.

    Raises:
        OSError: the journal is there and cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self._base = folder.resolve()
        self._entries: dict[tuple[str, str], Entry] = {}
        self._whole = True
        for entry in self._read():
            self._take(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def at(self, stem: Path, suffix: str) -> Entry | None:
        """What was made at a place."""
        return self._entries.get((self.name_of(stem), suffix))

    def stems(self) -> dict[Path, Path]:
        """Where the pictures of earlier runs have their cut-outs: absolute picture → path without extension."""
        return {_absolute(self._base, entry.source): self.folder / entry.stem for entry in self._entries.values()}

    def made(self) -> set[Path]:
        """Absolute paths of all files that the journal tells of."""
        return {_absolute(self._base, name) for entry in self._entries.values() for name in entry.outputs}

    def name_of(self, path: Path) -> str:
        """A path in or below the folder as the journal writes it."""
        return path.relative_to(self.folder).as_posix()

    def source_of(self, source: Path) -> str:
        """A picture as the journal names it: relative to the folder, so that both may move together."""
        try:
            return Path(os.path.relpath(source.resolve(), self._base)).as_posix()
        except ValueError:  # on another drive
            return source.resolve().as_posix()

    def file(self, name: str) -> Path:
        """The path of an output, to show and to open."""
        return self.folder / name

    def add(self, entry: Entry) -> None:
        """Write a line.

        Raises:
            OSError: it cannot be written.
        """
        self._write(_form_of(entry))
        self._take(entry)

    def take_back(self, entry: Entry) -> None:
        """Say that nothing was made there after all.

        Raises:
            OSError: it cannot be written.
        """
        self._write({"stem": entry.stem, "suffix": entry.suffix, "outputs": {}})
        self._entries.pop((entry.stem, entry.suffix), None)

    def _take(self, entry: Entry) -> None:
        if entry.outputs:
            self._entries[entry.stem, entry.suffix] = entry
        else:
            self._entries.pop((entry.stem, entry.suffix), None)

    def _read(self) -> Iterator[Entry]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        self._whole = data.endswith(b"\n") or not data
        for line in data.split(b"\n"):
            entry = _entry_of(line)
            if entry is not None:
                yield entry

    def _write(self, form: Mapping[str, Any]) -> None:
        """Append in one write, so that runs side by side do not tear each other's lines."""
        line = json.dumps(form).encode() + b"\n"
        if not self._whole:
            line, self._whole = b"\n" + line, True
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            while line:
                line = line[os.write(file, line) :]
        finally:
            os.close(file)


def fingerprint(path: Path) -> Fingerprint | None:
    """A file as it is now, its content included; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, ValueError):
        return None
    return Fingerprint(stat.st_size, stat.st_mtime_ns, digest.hexdigest())


def is_unchanged(path: Path, then: Fingerprint) -> bool:
    """Whether a file is what it was: by size and time, and where only the time differs by its content."""
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return False
    if stat.st_size != then.n_bytes:
        return False
    if stat.st_mtime_ns == then.mtime_ns:
        return True
    now = fingerprint(path) if then.sha256 else None
    return now is not None and now.sha256 == then.sha256


def _absolute(base: Path, name: str) -> Path:
    return Path(os.path.normpath(base / name))


def _form_of(entry: Entry) -> dict[str, Any]:
    source = entry.fingerprint
    return {
        "stem": entry.stem,
        "suffix": entry.suffix,
        "source": entry.source,
        "bytes": source.n_bytes,
        "mtime_ns": source.mtime_ns,
        "sha256": source.sha256,
        "options": dict(entry.options),
        "outputs": {name: {"bytes": made.n_bytes, "mtime_ns": made.mtime_ns} for name, made in entry.outputs.items()},
        **entry.origin,
    }


_OWN = ("stem", "suffix", "source", "bytes", "mtime_ns", "sha256", "options", "outputs")


def _entry_of(line: bytes) -> Entry | None:
    """A line, read with suspicion: an output folder may come from anywhere, and paths in it must not lead out of it."""
    try:
        form = json.loads(line)
        stem, suffix, outputs = form["stem"], str(form["suffix"]), form["outputs"]
        if not _inside(stem) or not all(_inside(name) for name in outputs):
            return None
        if not outputs:
            return Entry(stem, suffix, "", Fingerprint(0, 0), {}, {})
        made = {name: Fingerprint(int(each["bytes"]), int(each["mtime_ns"])) for name, each in outputs.items()}
        source = Fingerprint(int(form["bytes"]), int(form["mtime_ns"]), str(form["sha256"]))
        origin = {name: value for name, value in form.items() if name not in _OWN}
        return Entry(stem, suffix, str(form["source"]), source, dict(form["options"]), made, origin)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _inside(name: str) -> bool:
    path = Path(name)
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name
