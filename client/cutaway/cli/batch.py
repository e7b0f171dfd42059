"""Many pictures, several at once: their outcomes, which are skipped, and when to stop."""

from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

import cutaway
from cutaway.cli.codes import FAILED, INTERRUPTED, OK, TERMINATED, UNAVAILABLE
from cutaway.cli.console import clear_bar, reason, say, say_json
from cutaway.cli.files import Destination, Job, write
from cutaway.cli.options import open_client
from cutaway.contract.limits import RUN_GIVE_UP_FAILURES


@dataclass(frozen=True)
class Made:
    """A successful picture: its result, its JSON fields, its lines of text, and the files to write."""

    result: Any
    form: Mapping[str, Any]
    lines: Sequence[str]
    files: Mapping[Path, bytes] = field(default_factory=dict)


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine in an event loop, where Ctrl-C and SIGTERM cancel it; returns the exit code."""

    async def cancellable() -> int:
        task = asyncio.current_task()
        if task and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            with suppress(RuntimeError):  # not in the main thread, or on Windows
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(cancellable())
    except KeyboardInterrupt:
        return INTERRUPTED
    except asyncio.CancelledError:
        return TERMINATED


def error_form(error: Exception) -> dict[str, Any]:
    """The JSON fields of an error; FILE_ERROR is the code of errors of local files."""
    if isinstance(error, cutaway.CutawayError):
        return {**error.to_dict(), "request_id": error.request_id}
    advice = "Check the path, what is there, and its permissions."
    form = {"code": "FILE_ERROR", "message": reason(error), "tier": int(cutaway.Tier.HIGH), "user_action": advice}
    return {**form, "retry_after": None, "details": {}, "request_id": ""}


@dataclass
class Batch:
    """One run over pictures.

    Attributes:
        context: of the subcommand, whose options say how.
        jobs: the pictures.
        to: where what is made goes; None where nothing is made.
        places: files of a picture of which one that is there says that the picture is done.
    """

    context: click.Context
    jobs: Sequence[Job]
    to: Destination | None = None
    places: Callable[[Job], Iterable[Path]] = lambda _: ()

    def __post_init__(self) -> None:
        self._given, self._tally, self._hosted = self.context.params, Counter[str](), Counter[str]()
        self._sources = {job.source.resolve() for job in self.jobs if job.data is None}
        self._failures_in_a_row, self._stopped = 0, ""

    async def run(
        self, work: Callable[[Any, Any], Awaitable[Any]], made: Callable[[Job, Any], Made], *, upscales: bool = False
    ) -> int:
        """Process all pictures by a client, and write their files; returns the exit code."""
        from cutaway.many import run_many

        todo = [job for job in self.jobs if self._is_to_do(job)]
        shows = not self._given["quiet"] and len(self.jobs) > 1 and sys.stderr.isatty()
        bar = click.progressbar(length=len(self.jobs), show_pos=True, file=sys.stderr)

        async def images() -> AsyncGenerator[Any, None]:
            for job in todo:
                if self._stopped:
                    return
                yield job.source if job.data is None else job.data

        try:
            async with open_client(self.context, upscales=upscales) as client:
                # What is only listed comes in the order given.
                outcomes = run_many(
                    lambda image: work(client, image), images(), jobs=self._given["jobs"], ordered=self.to is None
                )
                with bar if shows else nullcontext():
                    async with aclosing(outcomes):
                        async for each in outcomes:
                            self._take(todo[each.index], each, made)
                            bar.update(len(self.jobs) - self._left - bar.pos if shows else 0)
        except asyncio.CancelledError:
            say("interrupted", err=True)
            say(self._summary(), err=True)
            raise
        if self._stopped and self._left:
            say(f"stopped: {self._stopped}; the same command goes on from here", err=True)
        if (len(self.jobs) > 1 or self._tally["skipped"]) and (self._tally["failed"] or not self._given["quiet"]):
            say(self._summary(), err=True)
        return UNAVAILABLE if self._stopped else FAILED if self._tally["failed"] else OK

    @property
    def _left(self) -> int:
        return len(self.jobs) - self._tally.total()

    def _summary(self) -> str:
        counts = [(number, f"by {name} (hosted)") for name, number in sorted(self._hosted.items())]
        counts += [(self._tally["skipped"], "skipped, there already"), (self._tally["failed"], "failed")]
        parts = [f"{number:,} {what}" for number, what in (*counts, (self._left, "not tried")) if number]
        pictures = "1 picture" if len(self.jobs) == 1 else f"{len(self.jobs):,} pictures"
        return "; ".join([f"{self._tally['done']:,} of {pictures} done", *parts])

    def _is_to_do(self, job: Job) -> bool:
        there = [path for path in self.places(job) if path.exists()]
        if not there:
            return True
        if self._sources & {path.resolve() for path in there}:
            self._fail(job, FileExistsError(f"{there[0]} is a picture of this very run and is not written over"))
        elif self._given["overwrite"]:
            return True
        elif job.file:
            self._fail(job, FileExistsError(f"{there[0]} is there already; --overwrite replaces it"))
        else:
            self._tell("skipped", job, {"outputs": [{"path": str(path)} for path in there]}, [])
        return False

    def _take(self, job: Job, outcome: cutaway.Outcome, made: Callable[[Job, Any], Made]) -> None:
        stdout = self.to is not None and self.to.stdout
        try:
            done = made(job, outcome.unwrap())
            if not stdout:
                write(done.files, overwrite=self._given.get("overwrite", False), spared=self._sources)
        except (cutaway.CutawayError, OSError) as error:
            self._fail(job, error)
            return
        if stdout:
            sys.stdout.buffer.write(*done.files.values())
            sys.stdout.buffer.flush()
        self._failures_in_a_row = 0
        self._hosted.update([done.result.provider] if done.result.tier > 1 else [])
        warnings = [f"  warning: {each.message} ({each.code})" for each in getattr(done.result, "warnings", ())]
        self._tell("done", job, done.form, [*done.lines, *warnings])

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
                self._stopped = self._stopped or "the server is not there"
            elif self._failures_in_a_row >= RUN_GIVE_UP_FAILURES:
                self._stopped = self._stopped or f"the server failed {self._failures_in_a_row} times in a row"

    def _tell(self, status: str, job: Job, form: Mapping[str, Any], lines: Sequence[str]) -> None:
        self._tally[status] += 1
        clear_bar()
        if self._given["json"]:
            say_json({"source": str(job.source), "status": status, "outputs": [], **form})
        for line in lines if status == "failed" or not (self._given["json"] or self._given["quiet"]) else ():
            say(line, err=status == "failed" or bool(self.to and self.to.stdout))
