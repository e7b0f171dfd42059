"""The command ``cutaway``, on click, over the public SDK: its subcommands, and running them."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

import cutaway
from cutaway.cli import codes, console, options, pictures
from cutaway.cli.console import error_form, say, say_json


@options.command(options.JSON, *options.CLIENT)
async def health(context: click.Context, json: bool, **_: Any) -> int:
    """Send a small picture through each server's pipeline."""
    async with options.open_client(context) as client:
        found = await client.health()
    servers = found.servers or (found,)
    for one in servers:
        if json:
            names = ("url", "ok", "server_ready", "model_ready", "round_trip_ms", "profile", "device")
            error = error_form(one.error) if one.error else None
            say_json({name: getattr(one, name) for name in names} | {"error": error})
        elif one.error is None:
            say(f"{one.url}: a picture came back in {one.round_trip_ms:.0f} ms, by {one.profile} on {one.device}")
        else:
            say(f"{one.url}: {one.error}", err=True)
    return codes.OK if all(one.ok for one in servers) else codes.UNAVAILABLE


@options.command(options.JSON, *options.CLIENT)
async def models(context: click.Context, urls: list[str], json: bool, **_: Any) -> int:
    """List each server's models."""
    code = codes.OK
    for url in urls:
        form: dict[str, Any] = {"url": url, "models": (), "error": None}
        try:
            async with options.open_client(context, urls=[url]) as client:
                form["models"] = await client.models()
        except cutaway.CutawayError as error:
            form["error"] = error_form(error)
            say(f"{url}: {error}", err=True)
        if json:
            say_json(form)
        for model in () if json else form["models"]:
            say(f"{model.name:<24} {', '.join(model.versions):<8} {model.state}")
        code = codes.UNAVAILABLE if form["error"] or not all(model.ready for model in form["models"]) else code
    return code


COMMANDS = pictures.cut, pictures.detect, pictures.composite, pictures.upscale, health, models


@click.group(commands=COMMANDS, epilog=codes.EPILOG)
@click.version_option(cutaway.__version__, "-V", "--version", message="cutaway %(version)s")
def command() -> None:
    """Cut people and objects out of pictures with a Cutaway server."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log would stand among what the command says
    # The command says the rest itself, but that a cache fails, which fails no call.
    logging.getLogger("cutaway").setLevel(logging.ERROR)
    logging.getLogger("cutaway.cache").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}", err=True)
            return int(command.main(arguments, prog_name="cutaway", standalone_mode=False) or codes.OK)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return codes.INTERRUPTED
    except SystemExit as end:  # click's: whoever read standard output, such as `head`, has gone, and misses nothing
        return int(end.code or codes.OK)
    except OSError as error:
        say(f"standard output cannot be written: {console.reason(error)}", err=True)
        sys.stdout = None  # Python would try again at its end, and exit with a code of its own
        return codes.FAILED
