"""The command's files: which pictures were meant, and where their cut-outs go without overwriting anything."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cutaway.result import Cutout

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib")
"""What is taken from a folder; a file that is named is taken whatever its name."""


@dataclass(frozen=True)
class Job:
    """One picture and the place of its cut-outs.

    Attributes:
        source: the picture.
        stem: path without extension; cut-outs are ``stem.png``, or ``stem-0.png``, ``stem-1.png``, … by id.
    """

    source: Path
    stem: Path

    def target(self, cutout_id: int | None, extension: str) -> Path:
        suffix = "" if cutout_id is None else f"-{cutout_id}"
        return self.stem.with_name(f"{self.stem.name}{suffix}.{extension}")


def find_pictures(names: Iterable[str], output_folder: Path | None = None) -> list[tuple[Path, Path]]:
    """The pictures that files, patterns and folders (with all below them) name, each once.

    Args:
        names: what the caller typed.
        output_folder: left out where it lies below a named folder: it holds the cut-outs of earlier runs.

    Returns:
        Pairs of the picture and its path relative to what named it, which its cut-out keeps below the output folder.

    Raises:
        FileNotFoundError: a name or pattern that matches nothing.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            pictures = [
                (inner, inner.relative_to(path))
                for inner in sorted(path.rglob("*"))
                if _is_picture(inner) and not _is_below(inner, output_folder, path)
            ]
        elif path.exists():
            pictures = [(path, Path(path.name))]
        else:
            matches = sorted(Path(match) for match in glob.iglob(name, recursive=True))  # noqa: PTH207
            pictures = [(match, Path(match.name)) for match in matches if match.is_file()]
        if not pictures:
            raise FileNotFoundError(f"there is no picture {name!r}" if not path.is_dir() else f"no pictures in {name}")
        for picture, relative in pictures:
            found.setdefault(picture.resolve(), (picture, relative))
    return list(found.values())


def plan(pictures: Sequence[tuple[Path, Path]], folder: Path) -> list[Job]:
    """A place for each picture's cut-outs, no two the same.

    Pictures that differ only in extension or folder get numbers: ``photo``, ``photo_2``, …, in the order given.
    """
    taken: set[str] = set()
    jobs = []
    for source, relative in pictures:
        stem = folder / relative.with_suffix("")
        candidate, number = stem, 1
        while str(candidate).casefold() in taken:  # some file systems do not tell A from a
            number += 1
            candidate = stem.with_name(f"{stem.name}_{number}")
        taken.add(str(candidate).casefold())
        jobs.append(Job(source, candidate))
    return jobs


class Writer:
    """Writes cut-outs, never over a picture that is being read, over another picture's cut-out, or, unless forced, over
    any file.

    Args:
        jobs: all of the run.
        force: replace files of earlier runs.
        extension: "png" or "webp".
        numbered: one cut-out per person, with the id in its name.
    """

    def __init__(self, jobs: Sequence[Job], *, force: bool, extension: str, numbered: bool) -> None:
        self._sources = {job.source.resolve() for job in jobs}
        self._written: set[str] = set()
        self._force = force
        self._extension = extension
        self._numbered = numbered

    def in_the_way(self, job: Job) -> Path | None:
        """A file that bars the job, as far as can be told before it is done."""
        first = job.target(0 if self._numbered else None, self._extension)
        return first if self._bars(first) else None

    def write(self, job: Job, cutouts: Sequence[Cutout]) -> list[Path]:
        """Write all cut-outs of a picture, or none.

        Raises:
            FileExistsError: one of the files is there.
            OSError: they cannot be written.
        """
        targets = [job.target(cutout.id if self._numbered else None, cutout.format) for cutout in cutouts]
        for target in targets:
            if self._bars(target):
                raise FileExistsError(f"{target} is there already")
        job.stem.parent.mkdir(parents=True, exist_ok=True)
        for cutout, target in zip(cutouts, targets, strict=True):
            cutout.save(target, overwrite=self._force)
            self._written.add(str(target.resolve()).casefold())
        return targets

    def _bars(self, target: Path) -> bool:
        if not target.exists():
            return False
        resolved = target.resolve()
        return not self._force or resolved in self._sources or str(resolved).casefold() in self._written


def _is_below(picture: Path, output_folder: Path | None, named: Path) -> bool:
    if output_folder is None or output_folder.resolve() == named.resolve():
        return False
    output = output_folder.resolve()
    return output.is_relative_to(named.resolve()) and picture.resolve().is_relative_to(output)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file()
