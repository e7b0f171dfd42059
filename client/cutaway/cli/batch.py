"""Many pictures, one after the other or several at once: what becomes of each, and when to stop."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from cutaway.cancel import Cancel
from cutaway.cli.codes import FAILED, OK, UNAVAILABLE
from cutaway.cli.files import Job
from cutaway.cli.interrupts import interruptible
from cutaway.cli.output import OutputFolder
from cutaway.cli.talking import Teller, error_form, failure_form, pictures, readable, reasons, say
from cutaway.contract.errors import CutawayError, InputError, NoPersonDetected, RequestCancelled
from cutaway.contract.limits import RUN_GIVE_UP_FAILURES

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from pathlib import Path

    from cutaway.many import Outcome

R = TypeVar("R")

SHOWN = 10
"""So many lines about pictures that were done earlier in another way; the rest is counted."""


@dataclass(frozen=True)
class Finished:
    """What became of a picture that went well.

    Attributes:
        form: for programs.
        lines: for people.
        provider: who served it.
        tier: 1 for a server of one's own.
    """

    form: Mapping[str, Any]
    lines: Sequence[str]
    provider: str = "triton"
    tier: int = 1


class Start(Protocol):
    """Begins the work on pictures as they are needed, until they end or `cancel` is used."""

    def __call__(self, images: Iterable[Any], cancel: Cancel) -> Generator[Outcome, None, None]: ...


@dataclass
class Tally:
    """How many pictures went which way."""

    total: int
    done: int = 0
    skipped: int = 0
    failed: int = 0
    differ: int = 0
    hosted: Counter[str] = field(default_factory=Counter)

    @property
    def left(self) -> int:
        return self.total - self.done - self.skipped - self.failed - self.differ

    def __str__(self) -> str:
        parts = [f"{self.done:,} of {pictures(self.total)} done"]
        parts += [f"{number:,} by {provider} (hosted)" for provider, number in sorted(self.hosted.items())]
        parts += [
            f"{number:,} {what}"
            for number, what in (
                (self.skipped, "skipped, done earlier"),
                (self.differ, "left alone, made in another way"),
                (self.failed, "failed"),
                (self.left, "not tried"),
            )
            if number
        ]
        return "; ".join(parts)


class Patience:
    """When a server counts as gone: at once where it says so, and after too many failures of its own in a row."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def went_well(self) -> None:
        self._in_a_row = 0

    def is_over(self, error: Exception) -> str:
        """Why to stop after this failure, or ""."""
        if not isinstance(error, CutawayError) or isinstance(error, RequestCancelled):
            return ""
        if isinstance(error, InputError):
            if isinstance(error, NoPersonDetected):  # the server looked
                self._in_a_row = 0
            return ""
        self._in_a_row += 1
        if error.code == "UNAVAILABLE":
            return "the server is not there"
        if self._in_a_row >= RUN_GIVE_UP_FAILURES:
            return f"the server failed {self._in_a_row} times in a row"
        return ""


class Batch(Generic[R]):
    """One run over pictures.

    Args:
        jobs: the pictures.
        teller: says what becomes of them.
        output: where what is made goes; None where nothing is made.
        finish: keeps a result and says what it was; may raise OSError.
        name: a picture's name for people.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        teller: Teller,
        finish: Callable[[Job, R], Finished],
        *,
        output: OutputFolder | None = None,
    ) -> None:
        self._teller = teller
        self._finish = finish
        self._output = output
        self._jobs = list(jobs)
        self._patience = Patience()
        self._stopped = ""
        self.tally = Tally(len(jobs))

    def run(self, start: Start) -> int:
        """Do it all; returns the exit code."""
        todo = self._to_do()
        with interruptible() as interrupts:
            if todo:
                self._drive(todo, start, interrupts.cancel)
            if self._stopped and self.tally.left:
                say(f"stopped: {self._stopped}; the same command goes on from here", sys.stderr)
            if interrupts.code:
                say("interrupted", sys.stderr)
            if self._has_a_summary() or interrupts.code:
                say(str(self.tally), sys.stderr)
            if interrupts.code:
                return interrupts.code
        if self._stopped:
            return UNAVAILABLE
        return FAILED if self.tally.failed or self.tally.differ else OK

    def _has_a_summary(self) -> bool:
        tally = self.tally
        if tally.total == 1 and not tally.skipped:
            return False  # its own line said it all
        return not self._teller.quiet or tally.failed > 0 or tally.differ > 0

    def _to_do(self) -> list[Job]:
        """The pictures that are still to be done; tells of the others."""
        if self._output is None:
            return self._jobs
        todo, other_ways = [], 0
        for job in self._jobs:
            found = self._output.standing(job)
            form = {**_form(job, found.status), "outputs": [{"path": str(path)} for path in found.outputs]}
            if found.status == "todo":
                todo.append(job)
            elif found.status == "skipped":
                self.tally.skipped += 1
                self._teller.only_json(form)
            elif found.status == "differs":
                self.tally.differ += 1
                self._teller.only_json(form | {"error": failure_form(found.why, "Use --force to make it again.")})
                other_ways += 1
                if other_ways <= SHOWN:
                    say(f"{job.source}: {found.why}", sys.stderr)
            else:
                self.tally.failed += 1
                action = "Use --force, or another folder."
                self._teller.went_wrong(form | {"error": failure_form(found.why, action)}, f"{job.source}: {found.why}")
        if other_ways > SHOWN:
            say(f"… and {other_ways - SHOWN:,} more that were made in another way", sys.stderr)
        return todo

    def _drive(self, todo: Sequence[Job], start: Start, cancel: Cancel) -> None:
        settled = self.tally.total - len(todo)
        with self._teller.bar(self.tally.total, settled) as bar, closing(start(self._feed(todo), cancel)) as outcomes:
            for outcome in outcomes:
                self._take(todo[outcome.index], outcome)
                bar.update()

    def _feed(self, todo: Sequence[Job]) -> Iterator[Path | bytes]:
        for job in todo:
            if self._stopped:
                return
            if self._output is not None:
                self._output.begin(job)
            yield job.image

    def _take(self, job: Job, outcome: Outcome) -> None:
        error = outcome.error
        if error is None:
            result: Any = outcome.result
            try:
                finished = self._finish(job, result)
            except (CutawayError, OSError) as trouble:
                error = trouble
            else:
                self._patience.went_well()
                self.tally.done += 1
                if finished.tier > 1:
                    self.tally.hosted[finished.provider] += 1
                self._teller.went_well({**_form(job, "done"), **finished.form}, finished.lines)
                return
        if isinstance(error, RequestCancelled):
            return  # it was in flight when somebody interrupted: as good as not tried
        if not isinstance(error, (CutawayError, OSError)):
            raise error
        self.tally.failed += 1
        form = {**_form(job, "failed"), "error": error_form(error)}
        self._teller.went_wrong(form, f"{job.source}: {readable(error)}", *reasons(error))
        self._stopped = self._stopped or self._patience.is_over(error)


def _form(job: Job, status: str) -> dict[str, Any]:
    return {"source": str(job.source), "status": status, "outputs": []}
