"""The command's files: the pictures that arguments name, their destinations, and writing."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click

from cutaway.cli.console import reason
from cutaway.contract.limits import FIT_LIMITS

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib")
"""Extensions of a folder's pictures, hidden files excepted; a named file may have any."""

OTHER_KINDS = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".ico", ".psd", ".svg", ".pdf")
"""Further extensions that make a path a file's."""


@dataclass(frozen=True)
class Job:
    """One picture (`data` where it is no file), and its destination: `file`, or ``stem.png``."""

    source: Path
    stem: Path
    file: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def target(self, cutout_id: int | None, extension: str) -> Path:
        suffix = "" if cutout_id is None else f"-{cutout_id}"
        return self.file or self.stem.with_name(f"{self.stem.name}{suffix}.{extension}")


@dataclass(frozen=True)
class Destination:
    """The destination of ``-o``: a folder, one file in it, or standard output."""

    folder: Path = Path()
    file: Path | None = None
    stdout: bool = False

    @property
    def takes_one(self) -> bool:
        return self.stdout or self.file is not None


def destination(path: Path, extensions: Sequence[str]) -> Destination:
    """The destination of ``-o`` for files with these extensions, checked before a request is sent."""
    if str(path) == "-":
        if sys.stdout.isatty():
            raise click.UsageError("-o - would print a picture to the terminal: send it to a file or to a program")
        return Destination(stdout=True)
    kind = path.suffix.lower()
    file = path if kind in (*EXTENSIONS, *OTHER_KINDS) and not path.is_dir() else None
    if file and kind[1:] not in extensions:
        names = " or ".join(str(path.with_suffix(f".{each}")) for each in extensions)
        raise click.UsageError(f"{path}: no {kind[1:].upper()} file comes out: name it {names}")
    folder = path.parent if file else path
    there = next(each for each in (folder, *folder.parents, Path()) if os.path.lexists(each))
    if not there.is_dir():
        raise click.UsageError(f"{folder} cannot be a folder: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise click.UsageError(f"nothing can be written into {there}: no permission")
    return Destination(folder, file)


def plan(names: Sequence[str], to: Destination = Destination()) -> list[Job]:
    """The pictures that files, patterns and folders (with all below them) or "-" name, each once, with its own place.

    Pictures that differ only in extension or folder get numbers: ``photo``, ``photo_2``, …, in the order given.
    """
    if "-" in names:
        if len(names) > 1:
            raise click.UsageError("- stands for one picture from standard input: name no others beside it")
        try:  # one byte more than what is made to fit is enough to refuse it
            data = sys.stdin.buffer.read(FIT_LIMITS.max_file_bytes + 1)
        except OSError as error:
            raise click.UsageError(f"standard input cannot be read: {reason(error)}") from None
        return [Job(Path("stdin"), to.folder / "stdin", to.file, data)]
    jobs: dict[Path, Job] = {}
    taken: set[str] = set()
    for source, relative in (each for name in names for each in _pictures(name, to)):
        if source.resolve() in jobs:
            continue
        stem = candidate = to.folder / relative.with_suffix("")
        number = 1
        while str(candidate).casefold() in taken:  # some file systems do not tell A from a
            number += 1
            candidate = stem.with_name(f"{stem.name}_{number}")
        taken.add(str(candidate).casefold())
        jobs[source.resolve()] = Job(source, candidate, to.file)
    if to.takes_one and len(jobs) != 1:
        what = f"{to.file} is one file and" if to.file else "standard output"
        raise click.UsageError(f"{what} takes one picture, and {len(jobs)} are named: name a folder with -o")
    return list(jobs.values())


def _pictures(name: str, to: Destination) -> Iterator[tuple[Path, Path]]:
    """Pairs of a picture and its path relative to its argument, which its cut-out keeps below the output folder."""
    path, found = Path(name), False
    output = to.folder.resolve() if to.folder != Path() and not to.takes_one else None
    if name.startswith(("http://", "https://")):
        raise click.UsageError(f"{name} is no file: curl -L -o photo.jpg '{name}', and then name photo.jpg")
    if path.is_dir() and output == path.resolve():
        raise click.UsageError(f"{name} is searched for pictures: name another folder for the results with -o")
    if path.exists() and not path.is_dir():
        yield path, Path(path.name)
        return
    for each in sorted(path.rglob("*") if path.is_dir() else map(Path, glob.glob(name, recursive=True))):  # noqa: PTH207
        relative = each.relative_to(path) if path.is_dir() else Path(each.name)
        hidden = any(part.startswith(".") for part in relative.parts)  # such as the ._photo.jpg that macOS leaves
        if path.is_dir() and (hidden or each.suffix.lower() not in EXTENSIONS or output in each.resolve().parents):
            continue
        if each.is_file():
            found = True
            yield each, relative
    if not found:
        raise click.UsageError(f"no pictures in {name}" if path.is_dir() else f"there is no picture {name!r}")


def write(files: Mapping[Path, bytes], *, overwrite: bool, spared: Collection[Path]) -> None:
    """Write all files of a picture, or none; a file that shows is whole. Those of `spared` are never replaced.

    Raises:
        OSError: they cannot be written; FileExistsError where one is there.
    """
    for target in files:
        if os.path.lexists(target) and (not overwrite or target.resolve() in spared):
            raise FileExistsError(f"{target} is there already; --overwrite replaces what earlier runs made")
    parts = {target: target.with_name(f".cutaway-{os.getpid()}-{at}.part") for at, target in enumerate(files)}
    try:
        for target, part in parts.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(files[target])
        for target, part in parts.items():
            part.replace(target)
    finally:
        for part in parts.values():
            with suppress(OSError):
                part.unlink()
