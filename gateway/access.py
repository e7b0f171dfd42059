"""The access log: a line of JSON for each request, which is also what its span says.

Nothing of a request's content is in it: no picture, no option, no key, no query of an address.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cutaway.contract.errors import CutawayError

from gateway import wire
from gateway.failures import Failure
from gateway.request import InferRequest
from gateway.tracing import Trace, Tracing

MAX_WAITING_LINES = 10_000
"""While the log cannot be written, because its pipe is full; further lines are counted, and left out."""
FLUSH_S = 1.0
MAX_TEXT_CHARS = 128


@dataclass
class Entry:
    """What is told of one request; metrics, log and span take it from here.

    Attributes:
        protocol: http, grpc (KServe), service (its HTTP), job.
        quiet: only a failure is told: a frame inside a stream, a health check, a file of the page.
        code: "OK", or an error's; "" until it is known.
        status: of HTTP, or gRPC's name.
        pictures: outcomes by code of those that the service was sent, of which a request may have several.
        key, tier: of the caller; the key's name, not the key.
    """

    protocol: str
    trace: Trace = field(default_factory=lambda: Trace(()))
    route: str = ""
    model: str = ""
    request_id: str = ""
    quiet: bool = False
    code: str = ""
    status: int | str = ""
    request_bytes: int = 0
    response_bytes: int = 0
    stage_ms: dict[str, float] = field(default_factory=dict)
    pictures: Counter[str] = field(default_factory=Counter)
    key: str = ""
    tier: str = ""
    began_s: float = field(default_factory=time.monotonic)

    def take(self, request: InferRequest) -> None:
        """A KServe request that has been read; from here on it has a span."""
        self.model, self.request_id = request.model, request.id
        ends = request.parameters.get("sequence_start"), request.parameters.get("sequence_end")
        self.quiet = self.quiet or (request.model == "stream_pipeline" and True not in ends)
        if not self.quiet or self.trace.is_sampled:
            self.trace.begin(self.route)

    def read(self, answer: bytes) -> None:
        """Triton's answer: the stages' times in the pipeline's report, where one was asked for."""
        if not self.quiet:
            with suppress(Exception):  # a log fails no answer, whatever is in it
                reports = [tensor for tensor in wire.infer_response(answer)[1] if tensor.name == "report"]
                for report in reports:
                    self.add_stages(json.loads(b"".join(report.parts)[4:])["milliseconds"])

    def add_stages(self, milliseconds: Mapping[str, float]) -> None:
        """The stages of one more picture."""
        for stage, ms in milliseconds.items():
            self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + ms

    def failed(self, failure: Failure) -> None:
        self.code = failure.code
        self.status = failure.grpc_status.name if self.protocol == "grpc" else failure.http_status

    def fields(self) -> dict[str, Any]:
        """Those that there are, by the names of the log."""
        stages = {stage: round(ms, 1) for stage, ms in self.stage_ms.items()}
        told = {
            "request_id": self.request_id,
            "trace_id": self.trace.id,
            "protocol": self.protocol,
            "route": self.route,
            "model": self.model,
            "code": self.code,
            "status": self.status,
            "request_bytes": self.request_bytes,
            "response_bytes": self.response_bytes,
            "total_ms": round((time.monotonic() - self.began_s) * 1000, 1),
            "stage_ms": stages,
            "pictures": dict(self.pictures),
            "key": self.key,
            "tier": self.tier,
        }
        shown = {name: shorten(value) if isinstance(value, str) else value for name, value in told.items()}
        return {name: value for name, value in shown.items() if value not in ("", {})}

    def attributes(self) -> dict[str, Any]:
        """Those of the span: OpenTelemetry's names where it has some, else ``cutaway.*``."""
        told = self.fields()
        named = {f"cutaway.stage.{stage}_ms": ms for stage, ms in told.pop("stage_ms", {}).items()}
        named |= {f"cutaway.pictures.{code}": count for code, count in told.pop("pictures", {}).items()}
        status = "rpc.grpc.status_code" if self.protocol == "grpc" else "http.response.status_code"
        if self.status:
            named[status] = told["status"]
        if self.code != "OK":
            named["error.type"] = self.code
        left_out = ("status", "trace_id", "total_ms")
        return named | {f"cutaway.{name}": value for name, value in told.items() if name not in left_out}

    @property
    def is_server_error(self) -> bool:
        return self.status in ("INTERNAL", "UNAVAILABLE") or (isinstance(self.status, int) and self.status >= 500)


_current: ContextVar[Entry | None] = ContextVar("entry", default=None)


def current() -> Entry:
    """The entry of the request that is being served; one that nobody reads where there is none."""
    return _current.get() or Entry("none", quiet=True)


class AccessLog:
    """Writes lines in a thread of its own, so that a full pipe stops no request.

    That is what logging's QueueListener does, too, but it waits for the pipe without end when it is stopped.

    Args:
        form: "json", or "off" for none.
        descriptor: of the open file.
        tracing: which is told of the same.
    """

    def __init__(self, form: str, descriptor: int, tracing: Tracing) -> None:
        self.on, self._descriptor, self._tracing = form == "json", descriptor, tracing
        self._lines: queue.Queue[bytes] = queue.Queue(MAX_WAITING_LINES)
        self._left_out = 0
        if self.on:
            self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
            self._thread.start()

    @contextmanager
    def entered(
        self, protocol: str, headers: Iterable[tuple[str, str]], *, route: str, quiet: bool = False, **known: Any
    ) -> Iterator[Entry]:
        """A request's entry, which is told when it ends; an error that leaves gives it its code."""
        quiet = quiet or not (self.on or self._tracing.on)
        entry = Entry(protocol, self._tracing.trace(headers), route, quiet=quiet, **known)
        before = _current.set(entry)
        try:
            yield entry
        except Failure as failure:
            entry.failed(failure)
            raise
        except CutawayError as error:
            entry.code = error.code
            raise
        finally:
            _current.reset(before)
            if not entry.code:
                entry.code, entry.status = "CANCELLED", "CANCELLED" if protocol == "grpc" else 499
            self._tell(entry)

    def _tell(self, entry: Entry) -> None:
        if self._tracing.on and (not entry.quiet or entry.trace.is_sampled or entry.code != "OK"):
            entry.trace.end(entry.route, entry.attributes(), entry.code if entry.is_server_error else "")
        if not self.on or (entry.quiet and entry.code == "OK"):
            return
        told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **entry.fields()}
        if self._left_out:
            told["lines_left_out"] = self._left_out
        try:
            self._lines.put_nowait(json.dumps(told).encode() + b"\n")  # in ASCII: every other character is escaped
            self._left_out = 0
        except queue.Full:
            self._left_out += 1

    def _write(self) -> None:
        while line := self._lines.get():
            with suppress(OSError):  # a full disk, a reader that has gone
                os.write(self._descriptor, line)

    def close(self) -> None:
        """Write what waits, within a bound."""
        if self.on:
            with suppress(queue.Full):
                self._lines.put_nowait(b"")
            self._thread.join(FLUSH_S)


def shorten(text: str) -> str:
    """A text of a caller's, cut, without what moves a cursor or ends a line."""
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_TEXT_CHARS])
