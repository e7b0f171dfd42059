"""The command's files: which pictures were meant, and where what is made of them goes, no two at the same place."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib")
"""What is taken from a folder, unless it is hidden; a file that is named is taken whatever its name."""

OTHER_KINDS = (
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
    ".jxl",
    ".jp2",
    ".ico",
    ".tga",
    ".psd",
    ".svg",
    ".pdf",
)
"""More that a folder is not called, and that is not written either."""


@dataclass(frozen=True)
class Job:
    """One picture and the place of what is made of it.

    Attributes:
        source: the picture.
        stem: path without extension; what is made is ``stem.png``, or ``stem-0.png``, ``stem-1.png``, … by id.
        data: the picture itself where it did not come from a file; `source` is only its name then.
        file: where the one thing that is made goes, whatever the stem.
    """

    source: Path
    stem: Path
    data: bytes | None = field(default=None, repr=False)
    file: Path | None = None

    @property
    def image(self) -> Path | bytes:
        """What the client is given."""
        return self.source if self.data is None else self.data

    def target(self, cutout_id: int | None, extension: str) -> Path:
        if self.file is not None:
            return self.file
        suffix = "" if cutout_id is None else f"-{cutout_id}"
        return self.stem.with_name(f"{self.stem.name}{suffix}.{extension}")


def find_pictures(
    names: Iterable[str], output_folder: Path | None = None, made: Collection[Path] = ()
) -> list[tuple[Path, Path]]:
    """The pictures that files, patterns and folders (with all below them) name, each once.

    Args:
        names: what the caller typed.
        output_folder: left out where it lies below a named folder: it holds the cut-outs of earlier runs.
        made: absolute paths of files that earlier runs made; left out of folders and patterns, too.

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
                if _shows(inner.relative_to(path))
                and _is_picture(inner)
                and not _is_below(inner, output_folder, path)
                and inner.resolve() not in made
            ]
        elif path.exists():
            pictures = [(path, Path(path.name))]
        else:
            matches = sorted(Path(match) for match in glob.iglob(name, recursive=True))  # noqa: PTH207
            pictures = [
                (match, Path(match.name)) for match in matches if match.is_file() and match.resolve() not in made
            ]
        if not pictures:
            raise FileNotFoundError(f"there is no picture {name!r}" if not path.is_dir() else f"no pictures in {name}")
        for picture, relative in pictures:
            found.setdefault(picture.resolve(), (picture, relative))
    return list(found.values())


def plan(pictures: Sequence[tuple[Path, Path]], folder: Path, known: Mapping[Path, Path] | None = None) -> list[Job]:
    """A place for each picture's cut-outs, no two the same.

    Pictures that differ only in extension or folder get numbers: ``photo``, ``photo_2``, …, in the order given.

    Args:
        pictures: from :func:`find_pictures`.
        folder: where cut-outs go.
        known: the places of earlier runs, absolute picture → stem; a picture keeps its place whatever came between.
    """
    taken: set[str] = set()
    stems: dict[int, Path] = {}
    for index, (source, _) in enumerate(pictures):
        stem = known.get(source.resolve()) if known else None
        if stem is not None and _folded(stem) not in taken:
            stems[index] = stem
            taken.add(_folded(stem))
    for index, (_, relative) in enumerate(pictures):
        if index in stems:
            continue
        stem = folder / relative.with_suffix("")
        candidate, number = stem, 1
        while _folded(candidate) in taken:
            number += 1
            candidate = stem.with_name(f"{stem.name}_{number}")
        stems[index] = candidate
        taken.add(_folded(candidate))
    return [Job(source, stems[index]) for index, (source, _) in enumerate(pictures)]


def _folded(path: Path) -> str:
    return str(path).casefold()  # some file systems do not tell A from a


def _is_below(picture: Path, output_folder: Path | None, named: Path) -> bool:
    if output_folder is None or output_folder.resolve() == named.resolve():
        return False
    output = output_folder.resolve()
    return output.is_relative_to(named.resolve()) and picture.resolve().is_relative_to(output)


def _shows(path: Path) -> bool:
    """Whether nothing on the way is hidden, such as the ``._photo.jpg`` that macOS leaves on other file systems."""
    return not any(part.startswith(".") for part in path.parts)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file()
