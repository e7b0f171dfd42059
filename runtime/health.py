"""Health checks by canary requests: a small picture through detection and matting, and a frame through the streams.

They are sent on a schedule, whatever others send, and only their own outcome counts: a server that fails every request
is busy, too, and Triton's readiness misses a dead model process.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from cutaway.contract.errors import NoPersonDetected, Overloaded, from_json
from cutaway.contract.limits import INPUT_LIMITS, PROCESSING_TIMEOUT_S

from runtime.compose import PIPELINE, STREAM
from runtime.weights import WHOLE_MATTING

CANARY_INTERVAL_S = 10.0
"""Interval of health checks."""
CANARY_TIMEOUT_S = PROCESSING_TIMEOUT_S + 5.0
"""Of one canary: it waits for the picture in work, and for no other, since it has a queue of its own."""
OVERLOAD_TIMEOUT_S = 60.0
"""A part of the server that does nothing but shed canaries for this long is unhealthy."""
STATISTICS_TIMEOUT_S = 5.0
CANARY_PRIORITY = 1
CANARY_ID = "canary"
"""By which `model_repository/ensemble_pipeline/1/serving.py` leaves them out of the metrics of pictures."""

DETECTION, MATTING, STREAMS = "detection", "matting", "streams"

_BOX = {"boxes": "[[1, 1, 63, 63]]"}
"""With a box given, that nobody is in the noise makes the pipeline look no further."""

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


@dataclass(frozen=True)
class Failure:
    """Which part of the server is unhealthy (`DETECTION`, `MATTING` or `STREAMS`), and why."""

    part: str
    reason: str


class HealthProbe(Protocol):
    """What :class:`HealthMonitor` needs of a probe; :class:`Probe` in production."""

    def round(self, timeout_s: float) -> Mapping[str, Answer]: ...


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
        target: host:port as this machine reaches it, or unix:PATH.
        instances: how many processes each model has, so that every one is met.
    """

    def __init__(self, target: str, instances: Mapping[str, int] | None = None) -> None:
        self._target = target
        self._instances = instances or {}
        self._picture = canary_picture()

    def ready(self) -> bool:
        """Whether Triton reports all models as loaded."""
        try:
            return self.ask("GET", "/v2/health/ready", STATISTICS_TIMEOUT_S)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def canary(self, timeout_s: float) -> Answer:
        """Send a picture through detection, then through both kinds of matting, with `timeout_s` for each."""
        answer = self.detect(timeout_s)
        for matte in (self.matte, self.matte_whole):
            answer = matte(timeout_s) if answer.status is HealthStatus.HEALTHY else answer
        return answer

    def round(self, timeout_s: float) -> dict[str, Answer]:
        """A canary through each part, to every instance of the pipelines at once; the worst answer of each part."""
        calls = [(DETECTION, self.detect)] * self._instances.get(PIPELINE, 1)
        calls += [(STREAMS, self.stream)] * self._instances.get(STREAM, 0)
        calls.append((MATTING, self.matte))
        if WHOLE_MATTING in self._instances:
            calls.append((MATTING, self.matte_whole))
        with ThreadPoolExecutor(len(calls), thread_name_prefix="canary") as pool:
            answers = [(part, pool.submit(call, timeout_s)) for part, call in calls]
        found: dict[str, Answer] = {}
        for part, future in answers:
            answer = future.result()
            if part not in found or answer.status is not HealthStatus.HEALTHY:
                found[part] = answer
        return found

    def detect(self, timeout_s: float) -> Answer:
        return self._cut(("boxes", "scores", "report"), _BOX, timeout_s)

    def matte(self, timeout_s: float) -> Answer:
        return self._cut(("images", "boxes", "scores", "report"), _BOX, timeout_s)

    def matte_whole(self, timeout_s: float) -> Answer:
        """The whole picture, which may have a network of its own."""
        return self._cut(("images", "boxes", "scores", "report"), {"subject": "all"}, timeout_s)

    def stream(self, timeout_s: float) -> Answer:
        """A stream of one frame."""
        sequence = {"sequence_id": random.getrandbits(61) + 1, "sequence_start": True, "sequence_end": True}
        status, body = self._infer(STREAM, "file", ("report",), sequence, timeout_s)
        return judge_frame(status, body) if isinstance(body, bytes) else body

    def _cut(self, outputs: tuple[str, ...], parameters: dict[str, Any], timeout_s: float) -> Answer:
        # Behind a gate this is a picture like any other.
        first = {"priority": CANARY_PRIORITY} if self._instances else {}
        status, body = self._infer(PIPELINE, "image", outputs, {**parameters, **first}, timeout_s)
        return judge(status, body) if isinstance(body, bytes) else body

    def _infer(
        self, model: str, name: str, outputs: tuple[str, ...], parameters: dict[str, Any], timeout_s: float
    ) -> tuple[int, bytes | Answer]:
        element = struct.pack("<I", len(self._picture)) + self._picture
        image = {"name": name, "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
        header = json.dumps(
            {
                "id": CANARY_ID,
                "parameters": parameters,
                "inputs": [image],
                "outputs": [{"name": each, "parameters": {"binary_data": each != "report"}} for each in outputs],
            }
        ).encode()
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        }
        try:
            return self.ask("POST", f"/v2/models/{model}/infer", timeout_s, header + element, headers)
        except TimeoutError:
            return 0, Answer(HealthStatus.TIMEOUT, f"no answer to a small picture within {timeout_s:g} s")
        except (OSError, http.client.HTTPException) as error:
            return 0, Answer(HealthStatus.FAILED, f"the server cannot be reached: {error}")

    def ask(
        self, method: str, path: str, timeout_s: float, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request over a connection of its own. Raises `OSError` or `http.client.HTTPException`."""
        connection = _connection(self._target, timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(target: str, timeout_s: float) -> http.client.HTTPConnection:
    if target.startswith("unix:"):
        return _UnixConnection(target.removeprefix("unix:"), timeout_s)
    return http.client.HTTPConnection(target, timeout=timeout_s)


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


def judge_frame(status: int, body: bytes) -> Answer:
    """The same for a stream's frame, which comes back untouched where the detector fails: that is no error."""
    if status != 200:
        return judge(status, body)
    with contextlib.suppress(ValueError, LookupError, TypeError):
        report = json.loads(json.loads(body)["outputs"][0]["data"][0])
        if not report["untouched"]:
            return Answer(HealthStatus.HEALTHY)
        details = report["warnings"][0]["details"]
        shed = details.get("code") == Overloaded.code
        return Answer(
            HealthStatus.OVERLOADED if shed else HealthStatus.FAILED, f"a frame came back untouched: {details}"
        )
    return Answer(HealthStatus.FAILED, "a frame came back without a report")


class HealthMonitor:
    """Sends canaries on a schedule and decides which part of the server is unhealthy.

    Args:
        probe: sends the requests.
        interval_s: between rounds of health checks.
        timeout_s: of one canary.
        overload_timeout_s: how long a part may shed all canaries.
        clock: monotonic, in seconds.
        seen: called with the answers of each round.
    """

    def __init__(
        self,
        probe: HealthProbe,
        *,
        interval_s: float = CANARY_INTERVAL_S,
        timeout_s: float = CANARY_TIMEOUT_S,
        overload_timeout_s: float = OVERLOAD_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        seen: Callable[[Mapping[str, Answer]], None] = lambda _: None,
    ) -> None:
        self._seen = seen
        self._probe, self._interval_s, self._timeout_s, self._clock = probe, interval_s, timeout_s, clock
        self._overload_timeout_s = overload_timeout_s
        self._next_at = clock() + interval_s
        self._failures: dict[str, int] = {}
        self._served_at: dict[str, float] = {}
        self._begun_at = clock()
        self._pending: Future[Mapping[str, Answer]] | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="canaries")

    def check(self) -> Failure | None:
        """What is unhealthy, None while nothing is. Never blocks; to be called often."""
        now = self._clock()
        if self._pending is None:
            if now >= self._next_at:
                self._next_at = now + self._interval_s
                self._pending = self._executor.submit(self._probe.round, self._timeout_s)
            return None
        if not self._pending.done():
            return None
        answers, self._pending = self._pending.result(), None
        self._seen(answers)
        failures = [self._evaluate(part, answer, now) for part, answer in answers.items()]
        return next((failure for failure in failures if failure is not None), None)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _evaluate(self, part: str, answer: Answer, now: float) -> Failure | None:
        if answer.status is HealthStatus.HEALTHY:
            self._served_at[part] = now
            self._failures[part] = 0
            return None
        if answer.status is HealthStatus.OVERLOADED:
            self._failures[part] = 0
            shed_s = now - self._served_at.get(part, self._begun_at)
            return Failure(part, answer.message) if shed_s >= self._overload_timeout_s else None
        self._failures[part] = self._failures.get(part, 0) + 1
        if self._failures[part] > 1 or _DEAD_STUB in answer.message:
            return Failure(part, answer.message)
        self._next_at = now  # once may be chance: asked again at once
        return None


def statistics(probe: Probe, model: str) -> dict[str, Any]:
    """Triton's statistics of one model (`inference_count`, `execution_count`, `batch_stats`, …)."""
    status, body = probe.ask("GET", f"/v2/models/{model}/stats", STATISTICS_TIMEOUT_S)
    if status != 200:
        raise ConnectionError(f"no statistics of {model}: {body.decode(errors='replace')}")
    found: dict[str, Any] = json.loads(body)["model_stats"][0]
    return found
