"""A server's log, read from its end only: it may have grown without bounds before it was cut."""

from __future__ import annotations

import re
from pathlib import Path

LOG_MAX_BYTES = 16 * 2**20
"""A larger log is cut; its last part is kept beside it as `server.log.1` (keeper.py)."""
TAIL_BYTES = 2**20
"""What is read of a log: a restart must not wait for gigabytes."""

# "failed to load 'x' version 1: Internal: …" is the reason; lines after it only repeat that something failed.
_ERROR_PATTERNS = (
    re.compile(r"^E\d{4} .*?\] \"?(failed to load .*?)\"?$", re.MULTILINE),
    re.compile(r"^error: (.*)$", re.MULTILINE),
    re.compile(r"^E\d{4} .*?\] \"?(.*?)\"?$", re.MULTILINE),
    re.compile(r"^.*?(error while loading shared libraries: .*)$", re.MULTILINE),
)
# Printed by every start on a machine without a GPU, and no reason for anything.
_HARMLESS = ("CudaDriverHelper has not been initialized",)


def tail(log: Path, start: int = 0, most: int = TAIL_BYTES) -> str:
    """The last `most` bytes of a log, or what came since byte `start` where that is less."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            # A log that was cut begins anew.
            file.seek(max(start if start <= end else 0, end - most))
            return file.read(most).decode(errors="replace")
    except OSError:
        return ""


def last_error(log: str) -> str:
    """The line of a Triton log that most likely says why it ended, "" where there is none."""
    for pattern in _ERROR_PATTERNS:
        found = [text for text in pattern.findall(log) if not any(word in text for word in _HARMLESS)]
        if found:
            return str(found[-1]).strip()
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith("{")]  # no access log's
    return lines[-1].strip() if lines else ""
