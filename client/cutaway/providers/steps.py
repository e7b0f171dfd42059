"""What a provider's work consists of: requests, pauses, and reading pictures.

A provider's work is a generator that yields :class:`Request`, :class:`Pause` and :class:`Work`, and gets what came of
it (or an exception) back; :mod:`.exchange` performs the steps. So every rule about retries, polling and giving up is
written once, and holds for threads and for asyncio.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from cutaway.contract import limits
from cutaway.providers.apart import Check
from cutaway.resilience import Deadline

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One HTTP request.

    Attributes:
        method: "GET" or "POST".
        url: absolute; may be to the provider's own address or to a public https one, see :mod:`.guard`.
        deadline: everything about it ends then, the answer's last byte included.
        headers: sent as they are; not part of the representation, since they hold the token.
        body: sent as it is.
        max_bytes: the answer is cut off and refused beyond this.
        until: called with what came so far; True ends an answer that its server keeps open.
    """

    method: str
    url: str
    deadline: Deadline
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    max_bytes: int = limits.HOSTED_MAX_ANSWER_BYTES
    until: Callable[[bytes], bool] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Compute something that may take its time, where no event loop has to wait for it.

    Attributes:
        do: is given a check to call now and then; what it returns is sent back.
        deadline: nobody waits any longer than that.
        doing: what it does, in words, for the error that says so.
    """

    do: Callable[[Check], Any] = field(repr=False)
    deadline: Deadline
    doing: str


@dataclass(frozen=True)
class Response:
    """What came back.

    Attributes:
        status: the HTTP status.
        headers: names in lower case.
        body: all of it.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def media_type(self) -> str:
        """The content type without its parameters, in lower case; "" where there is none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def json(self) -> Any:
        """The body as JSON, or None where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


Step: TypeAlias = Request | Pause | Work
Steps: TypeAlias = Generator[Step, Any, T]
