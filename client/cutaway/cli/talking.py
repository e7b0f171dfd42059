"""What the command says, and where: lines for people, JSON for programs, a bar while one waits."""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from cutaway.cli.streams import writing
from cutaway.contract.errors import CutawayError
from cutaway.contract.limits import Tier

if TYPE_CHECKING:
    from typing import Never

    from cutaway.report import Notice

FILE_ERROR = "FILE_ERROR"
"""In JSON the code of what is wrong with a file here, which no server ever answers."""

REASON_LETTERS = 200
"""So much of a reason is shown to people; JSON has all of it."""


def say(text: str, stream: TextIO) -> None:
    """Print a line beside the progress bar; names and servers' words cannot steer the terminal."""
    with writing(stream):
        tqdm.write("".join(c if c.isprintable() else "�" for c in text), file=stream)


def say_json(form: Mapping[str, Any]) -> None:
    """Print one object on one line. ASCII only: it survives every terminal, pipe and undecodable file name."""
    with writing(sys.stdout):
        tqdm.write(json.dumps(form), file=sys.stdout)
        sys.stdout.flush()


class Teller:
    """Tells people or programs what became of each picture.

    Args:
        as_json: one object per picture on standard output; words for people go to standard error.
        quiet: only what failed.
        taken: standard output carries a picture, so words go to standard error.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, taken: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._people = sys.stderr if as_json or taken else sys.stdout

    def went_well(self, form: Mapping[str, Any], lines: Sequence[str]) -> None:
        if self.as_json:
            say_json(form)
        elif not self.quiet:
            for line in lines:
                say(line, self._people)

    def went_wrong(self, form: Mapping[str, Any], *lines: str) -> None:
        if self.as_json:
            say_json(form)
        for line in lines:
            say(line, sys.stderr)

    def only_json(self, form: Mapping[str, Any]) -> None:
        if self.as_json:
            say_json(form)

    def bar(self, total: int, settled: int) -> tqdm[Never]:
        """A progress bar, on terminals only; `settled` pictures need nothing more."""
        return tqdm(total=total, initial=settled, unit="picture", leave=False, disable=True if self.quiet else None)


@contextmanager
def own_log(*, verbose: bool) -> Iterator[None]:
    """Let the SDK's own log speak where people asked for it. Otherwise errors tell what matters, but for a cache that
    does not work: no call fails of it.
    """
    logger = logging.getLogger("cutaway")
    handler = _LogLines() if verbose else _CacheWarnings(logging.WARNING)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    if verbose:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


class _LogLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"  {record.name}: {record.getMessage()}", sys.stderr)


class _CacheWarnings(logging.Handler):
    """Each once, however many threads meet it."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.addFilter(logging.Filter("cutaway.cache"))
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self._said:
            self._said.add(message)
            say(f"warning: {message}", sys.stderr)


def readable(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, CutawayError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def reasons(error: Exception) -> list[str]:
    """Why each of those that were asked did not serve, a line each, where several were."""
    tried = error.details.get("tried") if isinstance(error, CutawayError) else None
    if not isinstance(tried, list):
        return []
    return [
        f"  {entry.get('provider')}: {textwrap.shorten(str(entry.get('message')), REASON_LETTERS, placeholder=' …')}"
        for entry in tried
        if isinstance(entry, dict)
    ]


def error_form(error: Exception) -> dict[str, Any]:
    """An error for programs: the error form, and the request's id."""
    if isinstance(error, CutawayError):
        return {**error.to_dict(), "request_id": error.request_id}
    return failure_form(readable(error))


def failure_form(message: str, action: str = "Check the path, what is there, and its permissions.") -> dict[str, Any]:
    """The same for what is wrong with files here."""
    return {
        "code": FILE_ERROR,
        "message": message,
        "tier": int(Tier.HIGH),
        "user_action": action,
        "retry_after": None,
        "details": {},
        "request_id": "",
    }


def notice_form(notice: Notice, request_id: str) -> dict[str, Any]:
    """A warning for programs. What there is to do stands in its message."""
    return {
        "code": notice.code,
        "message": notice.message,
        "tier": int(notice.tier),
        "user_action": "",
        "details": dict(notice.details),
        "request_id": request_id,
    }


def warning_lines(notices: Sequence[Notice]) -> list[str]:
    return [f"  warning: {notice.message} ({notice.code})" for notice in notices]


def people(number: int) -> str:
    return {0: "nobody", 1: "1 person"}.get(number, f"{number} people")


def pictures(number: int) -> str:
    return "1 picture" if number == 1 else f"{number:,} pictures"


def duration(elapsed_ms: float) -> str:
    return f"{elapsed_ms:.0f} ms" if elapsed_ms < 10_000 else f"{elapsed_ms / 1000:.1f} s"


def show_warning(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    say(f"warning: {message}", sys.stderr)
