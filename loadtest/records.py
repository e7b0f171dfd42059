"""One line per request: what was asked, when, how it ended. A log of them is all that a report's times need."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loadtest.scenarios import SERVED


@dataclass(frozen=True)
class Record:
    """One request.

    Attributes:
        kind: what was asked, see `scenarios.Ask`.
        way: "gRPC" or "HTTP".
        code: `SERVED`, or the error's.
        expected: whether that was a right answer.
        intended_s: when it was to be sent, seconds of Unix time.
        sent_s: when it was sent: later than intended where the load test itself could not keep up.
        done_s: when the answer was there.
        sent_bytes: of the picture.
        answered_bytes: of all cut-outs.
        stages_ms: milliseconds per stage, as the server reports them.
        message: of the error, where it was not expected.
    """

    kind: str
    way: str
    code: str
    expected: bool
    intended_s: float
    sent_s: float
    done_s: float
    sent_bytes: int
    answered_bytes: int
    stages_ms: dict[str, float] = field(default_factory=dict)
    message: str = ""

    @property
    def served(self) -> bool:
        return self.code == SERVED

    @property
    def latency_ms(self) -> float:
        """From when it was to be sent, so that a slow server cannot hide the requests that it kept from being sent."""
        return (self.done_s - self.intended_s) * 1000

    @property
    def late_ms(self) -> float:
        """How much later it was sent than intended."""
        return (self.sent_s - self.intended_s) * 1000

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def write(path: Path, records: Iterable[Record]) -> None:
    path.write_text("".join(json.dumps(record.as_dict()) + "\n" for record in records))


def read(path: Path) -> list[Record]:
    """The records of a log, in the order in which they ended. A last line that is not whole yet is left out."""
    return Tail(path).more() if path.exists() else []


class Tail:
    """Reads a log while it is written."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def more(self) -> list[Record]:
        """What was added since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return [Record(**json.loads(line)) for line in whole.splitlines()]
