"""Many pictures, several at once: their outcomes, which are skipped, and when to stop."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import click

import cutaway
from cutaway.cli.codes import FAILED, OK, UNAVAILABLE
from cutaway.cli.console import clear_bar, error_form, reason, say, say_json
from cutaway.cli.files import STDOUT, THERE, Job, write
from cutaway.cli.options import open_client
from cutaway.contract.limits import RUN_GIVE_UP_FAILURES

Form: TypeAlias = dict[str, Any]
Made: TypeAlias = tuple[Form, list[str], Mapping[Path, bytes]]
"""A result's JSON fields, its lines of text, and the files to write."""


class Batch:
    """One run over pictures, by the options of a subcommand's context.

    `places` are the files of a picture of which one that is there says that the picture is done; None where nothing
    is written.
    """

    def __init__(
        self, context: click.Context, jobs: Sequence[Job], places: Callable[[Job], Iterable[Path]] | None = None
    ) -> None:
        self._context, self._given, self._jobs, self._places = context, context.params, jobs, places
        self._sources = {job.source.resolve() for job in jobs if job.data is None}
        self._to_stdout = jobs[0].file == STDOUT
        self._tally, self._hosted = Counter[str](), Counter[str]()
        self._failures_in_a_row, self._stopped = 0, ""

    async def run(self, work: Callable[[Any, Any], Awaitable[Any]], made: Callable[[Job, Any], Made]) -> int:
        """Process all pictures by a client, and write their files; returns the exit code."""
        from cutaway.many import run_many

        todo = [job for job in self._jobs if self._is_to_do(job)]
        shows = not self._given["quiet"] and len(self._jobs) > 1 and sys.stderr.isatty()
        bar = click.progressbar(length=len(self._jobs), show_pos=True, file=sys.stderr)

        async def images() -> AsyncGenerator[Any, None]:
            for job in todo:
                if self._stopped:
                    return
                yield job.source if job.data is None else job.data

        try:
            async with open_client(self._context) as client:
                # What is only listed comes in the order given.
                order = {"jobs": self._given["jobs"], "ordered": self._places is None}
                async with aclosing(run_many(lambda image: work(client, image), images(), **order)) as outcomes:
                    with bar if shows else nullcontext():
                        async for each in outcomes:
                            self._take(todo[each.index], each, made)
                            bar.update(self._tally.total() - bar.pos if shows else 0)
        except asyncio.CancelledError:
            say("interrupted", err=True)
            say(self._summary(), err=True)
            raise
        if self._stopped and not self._summary().endswith("failed"):
            say(f"stopped: {self._stopped}; the same command goes on from here", err=True)
        if (len(self._jobs) > 1 or self._tally["skipped"]) and (self._tally["failed"] or not self._given["quiet"]):
            say(self._summary(), err=True)
        return UNAVAILABLE if self._stopped else FAILED if self._tally["failed"] else OK

    def _summary(self) -> str:
        number, tally = len(self._jobs), self._tally
        counts = [(hosted, f"by {name} (hosted)") for name, hosted in sorted(self._hosted.items())]
        counts += [(tally["skipped"], "skipped, there already"), (tally["failed"], "failed")]
        parts = [f"{each:,} {what}" for each, what in (*counts, (number - tally.total(), "not tried")) if each]
        return "; ".join([f"{tally['done']:,} of {number:,} picture{'s' * (number != 1)} done", *parts])

    def _is_to_do(self, job: Job) -> bool:
        there = [path for path in (self._places(job) if self._places else ()) if path.exists()]
        spared = self._sources & {path.resolve() for path in there}
        if spared or (there and job.file and not self._given["overwrite"]):
            self._fail(job, FileExistsError(THERE.format(there[0])))
        elif there and not self._given["overwrite"]:
            self._tell("skipped", job, {"outputs": [{"path": str(path)} for path in there]}, [])
        else:
            return True
        return False

    def _take(self, job: Job, outcome: cutaway.Outcome, made: Callable[[Job, Any], Made]) -> None:
        try:
            form, lines, files = made(job, outcome.unwrap())
            if not self._to_stdout:
                write(files, overwrite=self._given.get("overwrite", False), spared=self._sources)
        except (cutaway.CutawayError, OSError) as error:
            self._fail(job, error)
            return
        if self._to_stdout:
            sys.stdout.buffer.write(*files.values())
            sys.stdout.buffer.flush()
        self._failures_in_a_row = 0
        self._hosted.update([form["provider"]] if form.get("tier", 1) > 1 else [])
        lines += [f"  warning: {each['message']} ({each['code']})" for each in form.get("warnings", ())]
        self._tell("done", job, form, lines)

    def _fail(self, job: Job, error: Exception) -> None:
        lines = [f"{job.source}: {reason(error)}"]
        for each in error.details.get("tried", ()) if isinstance(error, cutaway.CutawayError) else ():
            lines.append(f"  {each['provider']}: {textwrap.shorten(each['message'], 200, placeholder=' …')}")
        self._tell("failed", job, {"error": error_form(error)}, lines)
        if isinstance(error, cutaway.NoPersonDetected):
            self._failures_in_a_row = 0  # the server looked
        elif isinstance(error, cutaway.ServiceError):
            self._failures_in_a_row += 1
            gone, too_many = error.code == "UNAVAILABLE", self._failures_in_a_row >= RUN_GIVE_UP_FAILURES
            why = "is not there" if gone else f"failed {self._failures_in_a_row} times in a row"
            self._stopped = self._stopped or (f"the server {why}" if gone or too_many else "")

    def _tell(self, status: str, job: Job, form: Form, lines: Sequence[str]) -> None:
        self._tally[status] += 1
        clear_bar()
        if self._given["json"]:
            say_json({"source": str(job.source), "status": status, "outputs": [], **form})
        for line in lines if status == "failed" or not (self._given["json"] or self._given["quiet"]) else ():
            say(line, err=status == "failed" or self._to_stdout)
