"""The command ``cutaway``: cut, detect, composite, upscale, stream, health, models, completion.

One module per subcommand; :mod:`.parser` has the command line, :mod:`.batch` the way of many pictures through a client,
:mod:`.output` and :mod:`.journal` what is done already, :mod:`.talking` what is said, :mod:`.streams` where to.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from cutaway.cli.codes import FAILED, INTERRUPTED, OK
from cutaway.cli.parser import build_parser
from cutaway.cli.streams import OutputLost, drop_what_is_stuck, open_closed_streams, writing
from cutaway.cli.talking import own_log, say, show_warning

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log would stand among what the command says
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows another one
            stream.reconfigure(errors="replace")
    code = OK
    try:
        code = _run(arguments)
        with writing(sys.stdout):
            sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted", sys.stderr)
        code = INTERRUPTED
    except OutputLost as lost:
        if not lost.reader_left:
            say(str(lost), sys.stderr)
        code = FAILED
    finally:
        drop_what_is_stuck()
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        given = build_parser().parse_args(arguments)
        with warnings.catch_warnings(), own_log(verbose=getattr(given, "verbose", False)):
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = show_warning
            code: int = import_module(f"cutaway.cli.{given.command}").run(given)
            return code
    except SystemExit as end:  # argparse's, after --help or with a usage line
        return int(end.code or OK)
