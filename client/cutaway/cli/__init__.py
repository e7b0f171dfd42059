"""The command ``cutaway``, on click: modules for pictures and servers over the public SDK."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence

import click

import cutaway
from cutaway.cli import codes, console, pictures, servers

COMMANDS = (pictures.cut, pictures.detect, pictures.composite, servers.health, servers.models)


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
            warnings.showwarning = lambda message, *_, **__: console.say(f"warning: {message}", err=True)
            return int(command.main(arguments, prog_name="cutaway", standalone_mode=False) or codes.OK)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return codes.INTERRUPTED
    except SystemExit as end:  # click's: whoever read standard output, such as `head`, has gone, and misses nothing
        return int(end.code or codes.OK)
    except OSError as error:
        console.say(f"standard output cannot be written: {console.reason(error)}", err=True)
        sys.stdout = None  # Python would try again at its end, and exit with a code of its own
        return codes.FAILED
