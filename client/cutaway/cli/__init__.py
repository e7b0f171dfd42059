"""The command ``cutaway``: cut, detect, composite, upscale, health, models, completion.

One module per subcommand; :mod:`.parser` has the command line, :mod:`.batch` the way of many pictures through a client,
:mod:`.output` and :mod:`.journal` what is done already, :mod:`.talking` what is said.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from cutaway.cli.codes import FAILED, INTERRUPTED
from cutaway.cli.parser import build_parser
from cutaway.cli.talking import own_log, say, show_warning

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows another one
            stream.reconfigure(errors="replace")
    given = build_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings(), own_log(verbose=getattr(given, "verbose", False)):
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = show_warning
            code: int = import_module(f"cutaway.cli.{given.command}").run(given)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        say("interrupted", sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
