"""The command's files: the pictures that arguments name, what -o names, and writing."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from cutaway.contract.limits import FIT_LIMITS

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib")
"""Extensions of a folder's pictures, hidden files excepted; a named file may have any."""

FORMS = {"png": "png", "webp": "webp", "mask": "png", "jpeg": "jpg", "layers": "zip"}
"""The extension of each form of output, and of each format of a result."""

STDOUT, EXISTS = Path("-"), "{} is there already; --overwrite replaces it, unless it is a picture of this very run"


def kind(path: Path) -> str:
    """The extension, the same for ``x.JPEG`` and ``x.jpg``."""
    extension = path.suffix.lower()[1:]
    return FORMS.get(extension, extension)


@dataclass(frozen=True)
class Job:
    """One picture (`data` where it is no file), and where its results go: to `file`, or ``stem.png``."""

    source: Path
    stem: Path
    file: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def target(self, cutout_id: int | None, extension: str) -> Path:
        """The file of a result; what may have been paid for never gets a name that does not fit."""
        if self.file:
            return self.file if kind(self.file) in ("", extension) else self.file.with_suffix(f".{extension}")
        suffix = "" if cutout_id is None else f"-{cutout_id}"
        return self.stem.with_name(f"{self.stem.name}{suffix}.{extension}")


def plan(names: Sequence[str], to: Path = Path(), *extensions: str) -> list[Job]:
    """The pictures that files and folders (with all below them) or "-" name, each once, with its own target. `to` is a
    folder, one file with one of the extensions, or STDOUT. Pictures that differ only in extension or folder get
    numbers: ``photo``, ``photo_2``, …, in the order given."""
    file = to if to == STDOUT or (to.suffix.lower() in (*EXTENSIONS, ".zip") and not to.is_dir()) else None
    if file == STDOUT and sys.stdout.isatty():
        raise click.UsageError("-o - would print a picture to the terminal: send it to a file or to a program")
    if file and file != STDOUT and kind(file) not in extensions:
        fitting = " or ".join(str(file.with_suffix(f".{each}")) for each in extensions)
        raise click.UsageError(f"{file} will not be a {file.suffix[1:].upper()}: name it {fitting}")
    folder = file.parent if file else to
    existing = next(each for each in (folder, *folder.parents, Path()) if os.path.lexists(each))
    if not existing.is_dir():
        raise click.UsageError(f"{folder} cannot be a folder: {existing} is a file")
    if "-" in names:
        if len(names) > 1:
            raise click.UsageError("- stands for one picture from standard input: name no others beside it")
        data = sys.stdin.buffer.read(FIT_LIMITS.max_file_bytes + 1)  # one byte too many is enough to refuse it
        return [Job(Path("stdin"), folder / "stdin", file, data)]
    jobs: dict[Path, Job] = {}
    taken: set[str] = set()
    for source, relative in (each for name in names for each in _pictures(name, None if file else to)):
        stem = candidate = folder / relative.with_suffix("")
        number = 1
        while str(candidate).casefold() in taken:  # some file systems do not tell A from a
            number += 1
            candidate = stem.with_name(f"{stem.name}_{number}")
        if source.resolve() not in jobs:
            taken.add(str(candidate).casefold())
            jobs[source.resolve()] = Job(source, candidate, file)
    if file and len(jobs) != 1:
        raise click.UsageError(f"-o {file} takes one picture, and {len(jobs)} are named: name a folder")
    return list(jobs.values())


def _pictures(name: str, to: Path | None) -> list[tuple[Path, Path]]:
    """Pairs of a picture and its path relative to its argument, which its result keeps below the folder `to`."""
    path, output = Path(name), to.resolve() if to and to != Path() else None
    if name.startswith(("http://", "https://")):
        raise click.UsageError(f"{name} is no file: curl -L -o photo.jpg '{name}', and then name photo.jpg")
    if not path.is_dir():
        pairs = [(path, Path(path.name))] if path.exists() else []
    elif output == path.resolve():
        raise click.UsageError(f"{name} is searched for pictures: name another folder for the results with -o")
    else:
        found = [each for each in sorted(path.rglob("*")) if each.suffix.lower() in EXTENSIONS and each.is_file()]
        pairs = [(each, each.relative_to(path)) for each in found if output not in each.resolve().parents]
        # Hidden ones are such as the ._photo.jpg that macOS leaves.
        pairs = [pair for pair in pairs if not any(part.startswith(".") for part in pair[1].parts)]
    if not pairs:
        raise click.UsageError(f"there is no picture {'in ' * path.is_dir()}{name!r}")
    return pairs


def write(files: Mapping[Path, bytes], *, overwrite: bool, sources: Collection[Path]) -> None:
    """Write the files of a picture, each whole or not at all; those of `sources` are never replaced.

    Raises:
        OSError: they cannot be written; FileExistsError where one exists.
    """
    for target in files:
        if os.path.lexists(target) and (not overwrite or target.resolve() in sources):
            raise FileExistsError(EXISTS.format(target))
    for target, data in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".cutaway-{os.getpid()}.part")
        try:
            part.write_bytes(data)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
