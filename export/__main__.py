"""`python -m export COMMAND`: the commands that turn trained weights into files for Triton.

Each command is a module with two functions, `add_arguments(parser)` and `run(arguments) -> exit status`. Only the one
that is asked for is imported, so that `--help` needs none of the packages that the commands themselves do.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from export import ExportError

DISAGREES, UNUSABLE = 1, 2
"""Exit status: a check came out against the network; the command could not do its work. 2 is argparse's own, too."""


class Command(NamedTuple):
    module: str
    summary: str


COMMANDS = {
    "list": Command("export.listing", "profiles, and the released weights they are made of"),
    "fetch": Command("export.fetch", "download a profile's released weights, or take them from a folder"),
    "onnx": Command("export.onnx_models", "make ONNX files of a profile's weights"),
    "plan": Command("export.plan", "build TensorRT plans of the ONNX files, and prove them"),
    "models": Command("export.models", "all of it: fetch, onnx, and plan where TensorRT is installed"),
    "verify": Command("export.verify", "compare BiRefNet with figures of the public implementation"),
    "verify-detector": Command("export.verify_detector", "compare YOLOv8-seg with Ultralytics' own predict"),
}


def make_parser(chosen: str | None) -> argparse.ArgumentParser:
    """A parser that lists every command and knows the arguments of the chosen one."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="From trained weights to files that Triton serves.",
        epilog="`python -m export COMMAND --help` explains a command.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.summary)
        if name == chosen:
            module = import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    chosen = argv[0] if argv and argv[0] in COMMANDS else None
    try:
        arguments = make_parser(chosen).parse_args(argv)
        return int(arguments.run(arguments))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "export":
            raise
        print(
            f"export: needs the package {error.name!r}; `make test-export` installs all of them",
            file=sys.stderr,
        )
    except ExportError as error:
        print(f"export: {error}", file=sys.stderr)
    return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
