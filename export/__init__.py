"""From trained weights to files that Triton serves. `python -m export --help` lists the commands."""

import argparse


class ExportError(Exception):
    """Something a command reports to its user in a message of its own, without a traceback."""


def positive(text: str) -> int:
    """A whole number above 0 from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number
