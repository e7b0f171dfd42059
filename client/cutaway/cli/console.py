"""Standard streams: lines for people, JSON for programs, the SDK's log; and streams that are closed or full."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click

import cutaway


def open_closed_streams() -> None:
    """Open closed standard streams, so that none is None and no file or connection gets their descriptors."""
    # Standard error then swallows; the others fail like any closed file.
    modes = (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))
    for number, (name, mode, access) in enumerate(modes):
        if getattr(sys, name) is None:
            os.open(os.devnull, access)  # gets the lowest number that is free
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        elif isinstance(getattr(sys, name), io.TextIOWrapper):  # a terminal that lacks a letter shows another one
            getattr(sys, name).reconfigure(errors="replace" if number else None)


def drop_unwritten() -> None:
    """Discard output that could not be written: Python would retry at its end, and exit with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                stream.flush()


def reason(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        text = "it is closed" if error.errno == errno.EBADF else error.strerror
        return f"{text}: {error.filename}" if error.filename else text
    return str(error) or type(error).__name__


def error_form(error: Exception) -> dict[str, Any]:
    """The JSON fields of an error; FILE_ERROR is the code of errors of local files."""
    if isinstance(error, cutaway.CutawayError):
        return {**error.to_dict(), "request_id": error.request_id}
    advice = "Check the path, what is there, and its permissions."
    form = {"code": "FILE_ERROR", "message": reason(error), "tier": int(cutaway.Tier.HIGH), "user_action": advice}
    return {**form, "retry_after": None, "details": {}, "request_id": ""}


def say(text: str, *, err: bool = False) -> None:
    """Print a line without control sequences of names or servers; a stderr that cannot be written is ignored."""
    with suppress(*[OSError] if err else []):
        # Not click's echo, which sends UTF-8 to a terminal that knows ASCII only.
        line = "".join(letter if letter.isprintable() else "�" for letter in text)
        print(line, file=sys.stderr if err else sys.stdout, flush=True)


def say_json(form: Mapping[str, Any]) -> None:
    """Print one object on one line, in ASCII for every terminal, pipe and undecodable file name."""
    click.echo(json.dumps(form, default=lambda it: dict(it) if isinstance(it, Mapping) else asdict(it)))


def clear_bar() -> None:
    """Remove a terminal's progress bar before a line is printed."""
    if sys.stderr.isatty():
        click.echo(f"\r{' ' * (shutil.get_terminal_size().columns - 1)}\r", nl=False, err=True)


class _LogLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{'warning' if record.levelno >= logging.WARNING else record.name}: {record.getMessage()}", err=True)


def show_log(*, verbose: bool) -> None:
    """Print the SDK's log: all of it, or only warnings of a failing cache, which fails no call."""
    logger, handler = logging.getLogger("cutaway"), _LogLines(logging.DEBUG if verbose else logging.WARNING)
    handler.addFilter(logging.Filter("cutaway" if verbose else "cutaway.cache"))
    logger.handlers = [handler]
    logger.setLevel(handler.level)
