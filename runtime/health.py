"""Health checks: a canary request with a small picture, since Triton's readiness misses a dead model process.

While requests complete, no canary is sent: progress proves health, and a busy server gets no extra load.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from cutaway.contract.errors import NoPersonDetected, Overloaded, from_json
from cutaway.contract.limits import INPUT_LIMITS

from runtime.compose import PIPELINE
from runtime.weights import WHOLE_MATTING

CANARY_INTERVAL_S = 10.0
"""Interval of health checks while the server is healthy."""
STALL_TIMEOUT_S = 60.0
"""A server with waiting requests that completes none for this long is unhealthy: twice the processing timeout."""
STATISTICS_TIMEOUT_S = 5.0

_REFUSALS = ("Exceeds maximum queue size", "Request timeout expired")
"""Triton's messages when its queue sheds a request: full, or queued for too long."""
_DEAD_STUB = "is not healthy"
"""Triton's message when a model's process has ended."""


class HealthStatus(Enum):
    HEALTHY = "answered"
    OVERLOADED = "shed the request"
    TIMEOUT = "did not answer in time"
    FAILED = "answered with an error"


@dataclass(frozen=True)
class Answer:
    """Result of a canary request. `message` is the error, "" for HEALTHY."""

    status: HealthStatus
    message: str = ""


class HealthProbe(Protocol):
    """What :class:`HealthMonitor` needs of a probe; :class:`Probe` in production."""

    def finished(self) -> int | None: ...
    def canary(self, timeout_s: float) -> Answer: ...


def canary_picture() -> bytes:
    """A PNG of grey noise in the smallest size allowed; noise stays below the limit of the decompression ratio."""
    side = INPUT_LIMITS.min_side_px
    state, noise = 1, bytearray()
    for _ in range(side * side):
        state = (state * 1103515245 + 12345) % 2**31
        noise.append(state >> 16 & 0xFF)
    rows = b"".join(b"\0" + noise[row * side : (row + 1) * side] for row in range(side))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Probe:
    """Sends health checks to one server over HTTP.

    Args:
        host: its host as this machine reaches it.
        port: its HTTP port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._picture = canary_picture()

    def ready(self) -> bool:
        """Whether Triton reports all models as loaded."""
        try:
            return self._ask("GET", "/v2/health/ready", STATISTICS_TIMEOUT_S)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def finished(self) -> int | None:
        """Requests that the pipeline has completed, successful or not; None where statistics are unavailable."""
        try:
            status, body = self._ask("GET", f"/v2/models/{PIPELINE}/stats", STATISTICS_TIMEOUT_S)
            if status != 200:
                return None
            counts = json.loads(body)["model_stats"][0]["inference_stats"]
            return int(counts["success"]["count"]) + int(counts["fail"]["count"])
        except (OSError, http.client.HTTPException, ValueError, LookupError):
            return None

    def canary(self, timeout_s: float) -> Answer:
        """Send the canary through detection, then through matting, with `timeout_s` for each.

        Where whole pictures have a network of their own, that is a third step.
        """
        # With a box given, that nobody is in the noise makes the pipeline look no further.
        box, whole = {"boxes": "[[1, 1, 63, 63]]"}, {"subject": "all"}
        found, all_outputs = ("boxes", "scores", "report"), ("images", "boxes", "scores", "report")
        matting = [(all_outputs, box)] if self._has(WHOLE_MATTING) else []
        for outputs, parameters in ((found, box), *matting, (all_outputs, whole)):
            answer = self._infer(outputs, parameters, timeout_s)
            if answer.status is not HealthStatus.HEALTHY:
                return answer
        return Answer(HealthStatus.HEALTHY)

    def _has(self, model: str) -> bool:
        try:
            return self._ask("GET", f"/v2/models/{model}", STATISTICS_TIMEOUT_S)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _infer(self, outputs: tuple[str, ...], parameters: dict[str, str], timeout_s: float) -> Answer:
        element = struct.pack("<I", len(self._picture)) + self._picture
        image = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
        header = json.dumps(
            {
                "id": "canary",
                "parameters": parameters,
                "inputs": [image],
                "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
            }
        ).encode()
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        }
        try:
            status, body = self._ask("POST", f"/v2/models/{PIPELINE}/infer", timeout_s, header + element, headers)
        except TimeoutError:
            return Answer(HealthStatus.TIMEOUT, f"no answer to a small picture within {timeout_s:g} s")
        except (OSError, http.client.HTTPException) as error:
            return Answer(HealthStatus.FAILED, f"the server cannot be reached: {error}")
        return judge(status, body)

    def _ask(
        self, method: str, path: str, timeout_s: float, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self._address, timeout=timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def judge(status: int, body: bytes) -> Answer:
    """Classify an HTTP response to the canary. NO_PERSON_DETECTED is healthy: the detector has run."""
    if status == 200:
        return Answer(HealthStatus.HEALTHY)
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, LookupError, TypeError):
        text = str(json.loads(text)["error"])
    error = from_json(text)
    if isinstance(error, NoPersonDetected):
        return Answer(HealthStatus.HEALTHY)
    if isinstance(error, Overloaded) or any(words in text for words in _REFUSALS):
        return Answer(HealthStatus.OVERLOADED, text)
    return Answer(HealthStatus.FAILED, error.message if error is not None else text)


@dataclass(frozen=True)
class _Observation:
    finished: int | None
    answer: Answer | None


class HealthMonitor:
    """Schedules canaries and decides when the server is unhealthy.

    Args:
        probe: sends the requests.
        interval_s: between health checks.
        stall_timeout_s: longest time without a completed request while one waits.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        probe: HealthProbe,
        *,
        interval_s: float = CANARY_INTERVAL_S,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe, self._interval_s, self._stall_timeout_s, self._clock = probe, interval_s, stall_timeout_s, clock
        self._next_at = clock() + interval_s
        self._progress_at = clock()
        self._finished: int | None = None
        self._failures = 0
        self._pending: Future[_Observation] | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="canary")

    def check(self) -> str | None:
        """Why the server is unhealthy, None while it is healthy. Never blocks; to be called often."""
        now = self._clock()
        if self._pending is None:
            if now >= self._next_at:
                self._pending = self._executor.submit(self._observe, self._finished)
            return None
        if not self._pending.done():
            return None
        seen, self._pending = self._pending.result(), None
        self._next_at = now + self._interval_s
        return self._evaluate(seen, now)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _observe(self, before: int | None) -> _Observation:
        finished = self._probe.finished()
        if finished is not None and finished != before:
            return _Observation(finished, None)
        answer = self._probe.canary(self._stall_timeout_s)
        return _Observation(self._probe.finished(), answer)

    def _evaluate(self, seen: _Observation, now: float) -> str | None:
        moved = seen.finished is not None and seen.finished != self._finished
        self._finished = seen.finished
        if moved:
            self._progress_at = now
        answer = seen.answer
        if answer is None or answer.status is HealthStatus.HEALTHY:
            self._failures = 0
            return None
        if answer.status is HealthStatus.FAILED:
            self._failures += 1
            if self._failures > 1 or _DEAD_STUB in answer.message:
                return answer.message
            self._next_at = now
            return None
        if not moved and now - self._progress_at >= self._stall_timeout_s:
            return answer.message or f"no picture was finished for {self._stall_timeout_s:g} s"
        return None


def statistics(probe: Probe, model: str) -> dict[str, Any]:
    """Triton's statistics of one model (`inference_count`, `execution_count`, `batch_stats`, …)."""
    status, body = probe._ask("GET", f"/v2/models/{model}/stats", STATISTICS_TIMEOUT_S)
    if status != 200:
        raise ConnectionError(f"no statistics of {model}: {body.decode(errors='replace')}")
    found: dict[str, Any] = json.loads(body)["model_stats"][0]
    return found
