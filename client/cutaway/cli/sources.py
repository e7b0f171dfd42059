"""From the command line's pictures and its ``-o`` to jobs and to where they go: a folder, a file or standard output."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cutaway.cli.claim import FolderInUse, claimed
from cutaway.cli.codes import FAILED
from cutaway.cli.connect import refuse
from cutaway.cli.files import EXTENSIONS, OTHER_KINDS, Job, find_pictures, plan
from cutaway.cli.journal import Journal
from cutaway.cli.output import OutputFolder
from cutaway.cli.streams import read_stdin, writing
from cutaway.cli.talking import Teller, readable, say
from cutaway.contract.limits import INPUT_LIMITS

STREAM = "-"
STDIN_NAME = "stdin"


@dataclass(frozen=True)
class Destination:
    """Where ``-o`` says that things go.

    Attributes:
        folder: the folder, or that of the file.
        file: the one file; None where each picture gets its own name.
        stream: standard output instead of all this.
    """

    folder: Path
    file: Path | None = None
    stream: bool = False

    @property
    def takes_many(self) -> bool:
        return self.file is None and not self.stream


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes:
        jobs: the pictures and their places.
        journal: the output folder's, where there is one.
        destination: where things go.
        teller: who tells what became of them.
    """

    jobs: list[Job]
    journal: Journal | None
    destination: Destination
    teller: Teller

    def output(
        self,
        given: argparse.Namespace,
        options: Mapping[str, Any],
        extension: str,
        *,
        others: Sequence[str] = (),
        numbered: bool = False,
    ) -> OutputFolder | None:
        """The output folder; None where everything goes to standard output."""
        if self.destination.stream:
            return None
        return OutputFolder(
            self.jobs,
            self.journal,
            options=options,
            extension=extension,
            others=others,
            numbered=numbered,
            force=given.force,
        )


@contextmanager
def planned(given: argparse.Namespace, extensions: Collection[str], writable: Sequence[str]) -> Iterator[Plan]:
    """Find the pictures and give each its place, and hold the output folder meanwhile; ends the command where that
    makes no sense.

    Args:
        extensions: of what is made, such as "png": a destination that ends like that is a file.
        writable: of all that the subcommand can make.
    """
    to = destination(given, extensions, writable)
    if not to.stream and (barred := _barred(to.folder)):
        refuse(given, barred)
    with ExitStack() as stack:
        try:
            if to.takes_many:
                stack.enter_context(claimed(to.folder))
            journal = Journal(to.folder) if to.takes_many else None
            jobs = jobs_of(given, to.folder, journal)
        except FolderInUse as error:
            say(f"{error}: wait for its end, or name another one with -o", sys.stderr)
            raise SystemExit(FAILED) from None
        except OSError as error:
            refuse(given, readable(error))
        if not to.takes_many and len(jobs) != 1:
            what = "standard output takes" if to.stream else f"{to.file} is one file and takes"
            refuse(given, f"{what} one picture, and {len(jobs)} are named: name a folder with -o")
        if to.file is not None:
            jobs = [replace(jobs[0], file=to.file)]
        yield Plan(jobs, journal, to, Teller(as_json=given.json, quiet=given.quiet, taken=to.stream))


def destination(given: argparse.Namespace, extensions: Collection[str], writable: Sequence[str]) -> Destination:
    """What ``-o`` means."""
    path: Path = given.output_dir
    if str(path) == STREAM:
        if given.json:
            refuse(given, "-o - and --json both want standard output")
        if sys.stdout.isatty():
            refuse(given, "-o - would print a picture to the terminal: send it to a file or to a program")
        return Destination(Path(), stream=True)
    if path.suffix.lower() in OTHER_KINDS and not path.is_dir():
        names = " or ".join(str(path.with_suffix(f".{each}")) for each in writable)
        refuse(given, f"{path}: {path.suffix.lstrip('.').upper()} files cannot be written: name it {names}")
    if path.suffix.lower() not in EXTENSIONS or path.is_dir():
        return Destination(path)
    if path.suffix.lower().lstrip(".") not in extensions:
        first = next(iter(extensions))
        refuse(given, f"{path}: what comes out is a {first.upper()} file: name it {path.with_suffix(f'.{first}')}")
    return Destination(path.parent, file=path)


def _barred(folder: Path) -> str:
    """Why nothing can be written below a folder, to be known before anything is sent; "" where it can."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
    if not there.is_dir():
        return f"{folder} cannot be a folder: {there} is a file"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"nothing can be written into {there}: no permission"


def jobs_of(given: argparse.Namespace, folder: Path | None = None, journal: Journal | None = None) -> list[Job]:
    """The pictures that were named, each with its place below the folder.

    Raises:
        FileNotFoundError: a name of nothing.
        OSError: standard input cannot be read.
    """
    place = folder if folder is not None else Path()
    if STREAM in given.images:
        if len(given.images) > 1:
            refuse(given, "- stands for one picture from standard input: name no others beside it")
        # One byte more than what is allowed is enough to refuse it.
        data = read_stdin(INPUT_LIMITS.max_file_bytes + 1)
        return [Job(Path(STDIN_NAME), place / STDIN_NAME, data)]
    made = journal.made() if journal is not None else ()
    return plan(find_pictures(given.images, folder, made), place, journal.stems() if journal is not None else None)


def to_stdout(data: bytes) -> None:
    """Write a picture to standard output."""
    with writing(sys.stdout):
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
