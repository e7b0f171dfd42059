"""Many pictures, several at once: their outcomes, which are skipped, and when to stop."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeAlias

import click

import cutaway
from cutaway.cli.codes import FAILED, OK, UNAVAILABLE
from cutaway.cli.console import error_form, reason, say, say_json
from cutaway.cli.files import EXISTS, STDOUT, Job, write
from cutaway.cli.options import open_client
from cutaway.contract.limits import RUN_GIVE_UP_FAILURES

Form: TypeAlias = dict[str, Any]
Described: TypeAlias = tuple[Form, list[str], Mapping[Path, bytes]]  # JSON fields, lines of text, files to write


class Batch:
    """One run over pictures, by the options of a subcommand's context. `targets` are the files of a picture, of which
    one that exists says that the picture is done."""

    def __init__(
        self, context: click.Context, jobs: Sequence[Job], targets: Callable[[Job], Iterable[Path]] = lambda _: ()
    ) -> None:
        self._context, self._given, self._jobs, self._targets = context, context.params, jobs, targets
        self._overwrite: bool = context.params.get("overwrite", False)
        self._sources = {job.source.resolve() for job in jobs if job.data is None}
        self._to_stdout = jobs[0].file == STDOUT
        self._tally, self._failures_in_a_row, self._stopped = Counter[str](), 0, ""

    async def run(self, work: Callable[[Any, Any], Awaitable[Any]], describe: Callable[[Job, Any], Described]) -> int:
        """Process all pictures by a client, and write their files; returns the exit code."""
        from cutaway.async_client import run_many

        todo = [job for job in self._jobs if self._is_to_do(job)]

        async def images() -> AsyncGenerator[Any, None]:
            for job in todo:
                if not self._stopped:
                    yield job.source if job.data is None else job.data

        try:
            async with open_client(self._context) as client:
                # What is only listed comes in the order given.
                order = {"jobs": self._given["jobs"], "ordered": "overwrite" not in self._given}
                async with aclosing(run_many(lambda image: work(client, image), images(), **order)) as outcomes:
                    async for each in outcomes:
                        self._take(todo[each.index], each, describe)
        except asyncio.CancelledError:
            say("interrupted", err=True)
            say(self._summary(), err=True)
            raise
        if self._stopped and self._tally.total() < len(self._jobs):
            say(f"stopped: the server {self._stopped}; the same command goes on from here", err=True)
        if (len(self._jobs) > 1 or self._tally["skipped"]) and (self._tally["failed"] or not self._given["quiet"]):
            say(self._summary(), err=True)
        return UNAVAILABLE if self._stopped else FAILED if self._tally["failed"] else OK

    def _summary(self) -> str:
        number, tally = len(self._jobs), self._tally
        counts = (tally["skipped"], "skipped, there already"), (tally["failed"], "failed")
        parts = [f"{each:,} {what}" for each, what in (*counts, (number - tally.total(), "not tried")) if each]
        return "; ".join([f"{tally['done']:,} of {number:,} picture{'s' * (number != 1)} done", *parts])

    def _is_to_do(self, job: Job) -> bool:
        existing = [path for path in self._targets(job) if path.exists()]
        are_sources = bool(self._sources & {path.resolve() for path in existing})
        if are_sources or (existing and job.file and not self._overwrite):
            self._fail(job, FileExistsError(EXISTS.format(existing[0])))
        elif existing and not self._overwrite:
            self._tell("skipped", job, {"outputs": [{"path": str(path)} for path in existing]}, [])
        else:
            return True
        return False

    def _take(self, job: Job, outcome: cutaway.Outcome, describe: Callable[[Job, Any], Described]) -> None:
        try:
            form, lines, files = describe(job, outcome.unwrap())
            if not self._to_stdout:
                write(files, overwrite=self._overwrite, sources=self._sources)
        except (cutaway.CutawayError, OSError) as error:
            self._fail(job, error)
            return
        self._failures_in_a_row = 0
        if self._to_stdout:
            sys.stdout.buffer.write(*files.values())
            sys.stdout.buffer.flush()
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
            if error.code == "UNAVAILABLE":
                self._stopped = self._stopped or "is not there"
            elif self._failures_in_a_row >= RUN_GIVE_UP_FAILURES:
                self._stopped = self._stopped or f"failed {self._failures_in_a_row} times in a row"

    def _tell(self, status: str, job: Job, form: Form, lines: Sequence[str]) -> None:
        self._tally[status] += 1
        if self._given["json"]:
            say_json({"source": str(job.source), "status": status, "outputs": [], **form})
        for line in lines if status == "failed" or not (self._given["json"] or self._given["quiet"]) else ():
            say(line, err=status == "failed" or self._to_stdout)
