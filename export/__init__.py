"""From trained weights to files that Triton serves. `python -m export --help` lists the commands."""


class ExportError(Exception):
    """Something a command reports to its user in a message of its own, without a traceback."""
