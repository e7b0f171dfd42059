"""Lines for people on standard output and standard error, and JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

import cutaway


def reason(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def error_form(error: Exception) -> dict[str, Any]:
    """The JSON fields of an error; FILE_ERROR is the code of errors of local files."""
    if isinstance(error, cutaway.CutawayError):
        return {**error.to_dict(), "request_id": error.request_id}
    advice = "Check the path, what is there, and its permissions."
    form = {"code": "FILE_ERROR", "message": reason(error), "tier": int(cutaway.Tier.HIGH), "user_action": advice}
    return {**form, "retry_after": None, "details": {}, "request_id": ""}


def say(text: str, *, err: bool = False) -> None:
    """Print a line without control sequences of names or servers, and with no letter that the terminal lacks."""
    stream = sys.stderr if err else sys.stdout
    line = "".join(letter if letter.isprintable() else "�" for letter in text)
    if stream is not None:  # None is closed; and click's echo sends UTF-8 to a terminal that knows ASCII only
        print(line.encode(stream.encoding, "replace").decode(stream.encoding), file=stream, flush=True)


def say_json(form: Mapping[str, Any]) -> None:
    """Print one object on one line, in ASCII for every terminal, pipe and undecodable file name."""
    click.echo(json.dumps(form, default=lambda it: dict(it) if isinstance(it, Mapping) else asdict(it)))
