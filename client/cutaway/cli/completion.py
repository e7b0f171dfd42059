"""``cutaway completion``: scripts that make a shell complete the command, written by shtab from the parser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from cutaway.cli.codes import FAILED, OK
from cutaway.cli.parser import build_parser
from cutaway.cli.streams import writing
from cutaway.cli.talking import say

FILES = ("IMAGE", "FILE")
FOLDERS = ("DIR",)


def run(given: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab
    except ImportError:
        say("shell completion needs one more package: pip install 'cutaway[completion]'", sys.stderr)
        return FAILED
    parser = build_parser()
    for action in _actions(parser):
        # shtab reads this attribute of an action.
        if action.metavar in FILES or "--onto" in action.option_strings:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    script = shtab.complete(parser, shell=given.shell)
    with writing(sys.stdout):
        sys.stdout.write(script)
    return OK


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of the command and of its subcommands."""
    for action in parser._actions:  # argparse has no public way to its arguments
        yield action
        if isinstance(action.choices, dict):
            subparsers: dict[Any, argparse.ArgumentParser] = action.choices
            for inner in subparsers.values():
                yield from _actions(inner)
