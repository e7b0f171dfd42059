"""Is the server alive? A small picture now and then says so: Triton's own readiness does not notice a dead model.

While pictures are being finished nothing is sent: that is proof enough, and a busy server is left to its work.
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

CANARY_INTERVAL_S = 10.0
"""How often the server is looked at when nothing is known to be wrong."""
PATIENCE_S = 60.0
"""This long without one finished picture while one waits is death. Twice what a picture may take."""
STATISTICS_TIMEOUT_S = 5.0

_REFUSALS = ("Exceeds maximum queue size", "Request timeout expired")
"""Triton's own words when its queue is full or a request waited too long in it."""
_DEAD_STUB = "is not healthy"
"""Triton's own words when a model's process has ended."""


class Verdict(Enum):
    WELL = "answered"
    BUSY = "refused, because it has much to do"
    SILENT = "did not answer"
    BROKEN = "answered with a failure"


@dataclass(frozen=True)
class Answer:
    """What came of a canary. `message` says what went wrong, "" for WELL."""

    verdict: Verdict
    message: str = ""


class Looker(Protocol):
    """What :class:`Watch` asks; :class:`Probe` in production."""

    def finished(self) -> int | None: ...
    def canary(self, timeout_s: float) -> Answer: ...


def canary_picture() -> bytes:
    """A PNG of the smallest size allowed, of grey noise: decodes at once, and no decompression limit minds it."""
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
    """Asks one server over HTTP.

    Args:
        host: its host as this machine reaches it.
        port: its HTTP port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._picture = canary_picture()

    def ready(self) -> bool:
        """Whether Triton itself says that all models are loaded."""
        try:
            return self._ask("GET", "/v2/health/ready", STATISTICS_TIMEOUT_S)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def finished(self) -> int | None:
        """How many requests the pipeline has finished, well or not; None where the server does not say."""
        try:
            status, body = self._ask("GET", f"/v2/models/{PIPELINE}/stats", STATISTICS_TIMEOUT_S)
            if status != 200:
                return None
            counts = json.loads(body)["model_stats"][0]["inference_stats"]
            return int(counts["success"]["count"]) + int(counts["fail"]["count"])
        except (OSError, http.client.HTTPException, ValueError, LookupError):
            return None

    def canary(self, timeout_s: float) -> Answer:
        """Send the small picture through detection, and then through matting. Each may take `timeout_s`."""
        for outputs, parameters in (
            (("boxes", "scores", "report"), {}),
            (("images", "boxes", "scores", "report"), {"subject": "all"}),
        ):
            answer = self._infer(outputs, parameters, timeout_s)
            if answer.verdict is not Verdict.WELL:
                return answer
        return Answer(Verdict.WELL)

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
            return Answer(Verdict.SILENT, f"no answer to a small picture within {timeout_s:g} s")
        except (OSError, http.client.HTTPException) as error:
            return Answer(Verdict.BROKEN, f"the server cannot be reached: {error}")
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
    """What an HTTP answer to the canary means. That nobody is seen in it is well: the detector has looked."""
    if status == 200:
        return Answer(Verdict.WELL)
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, LookupError, TypeError):
        text = str(json.loads(text)["error"])
    error = from_json(text)
    if isinstance(error, NoPersonDetected):
        return Answer(Verdict.WELL)
    if isinstance(error, Overloaded) or any(words in text for words in _REFUSALS):
        return Answer(Verdict.BUSY, text)
    return Answer(Verdict.BROKEN, error.message if error is not None else text)


@dataclass(frozen=True)
class _Seen:
    finished: int | None
    answer: Answer | None


class Watch:
    """Decides when the server is asked and when it counts as dead.

    Args:
        probe: who asks.
        interval_s: how often to look.
        patience_s: how long one may wait without any being finished.
        clock: seconds, only ever forward.
    """

    def __init__(
        self,
        probe: Looker,
        *,
        interval_s: float = CANARY_INTERVAL_S,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe, self._interval_s, self._patience_s, self._clock = probe, interval_s, patience_s, clock
        self._next_at = clock() + interval_s
        self._progress_at = clock()
        self._finished: int | None = None
        self._failures = 0
        self._pending: Future[_Seen] | None = None
        self._asker = ThreadPoolExecutor(1, thread_name_prefix="canary")

    def look(self) -> str | None:
        """Call often; it never waits. Why the server counts as dead, or None while it does not."""
        now = self._clock()
        if self._pending is None:
            if now >= self._next_at:
                self._pending = self._asker.submit(self._ask, self._finished)
            return None
        if not self._pending.done():
            return None
        seen, self._pending = self._pending.result(), None
        self._next_at = now + self._interval_s
        return self._weigh(seen, now)

    def close(self) -> None:
        self._asker.shutdown(wait=False, cancel_futures=True)

    def _ask(self, before: int | None) -> _Seen:
        finished = self._probe.finished()
        if finished is not None and finished != before:
            return _Seen(finished, None)
        answer = self._probe.canary(self._patience_s)
        return _Seen(self._probe.finished(), answer)

    def _weigh(self, seen: _Seen, now: float) -> str | None:
        moved = seen.finished is not None and seen.finished != self._finished
        self._finished = seen.finished
        if moved:
            self._progress_at = now
        answer = seen.answer
        if answer is None or answer.verdict is Verdict.WELL:
            self._failures = 0
            return None
        if answer.verdict is Verdict.BROKEN:
            self._failures += 1
            if self._failures > 1 or _DEAD_STUB in answer.message:
                return answer.message
            self._next_at = now
            return None
        if not moved and now - self._progress_at >= self._patience_s:
            return answer.message or f"no picture was finished for {self._patience_s:g} s"
        return None


def statistics(probe: Probe, model: str) -> dict[str, Any]:
    """Triton's statistics of one model (`inference_count`, `execution_count`, `batch_stats`, …)."""
    status, body = probe._ask("GET", f"/v2/models/{model}/stats", STATISTICS_TIMEOUT_S)
    if status != 200:
        raise ConnectionError(f"no statistics of {model}: {body.decode(errors='replace')}")
    found: dict[str, Any] = json.loads(body)["model_stats"][0]
    return found
