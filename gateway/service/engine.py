"""The one way from a dialect to the pipeline: GPU guard, admission, the SDK's client, and what health reports of it."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Unpack

from cutaway import AsyncClient, CutResult, Detection
from cutaway.contract.errors import CutawayError, GpuMemoryExhausted
from cutaway.contract.limits import MIB
from cutaway.contract.options import OptionKeywords

from gateway.access import current
from gateway.core import Core
from gateway.service.transport import caller as asking

HOUR_S = 3600.0
KEPT_LATENCIES = 100_000
GPU_RESERVE_MB = 600.0
"""Free memory that a picture may need at the networks' largest batch; below it, work is refused, not begun."""
PIPELINE = "ensemble_pipeline"
GPU_FACTS_AGE_S = 1.0

_GPU_METRIC = re.compile(r"^nv_gpu_memory_(total|used)_bytes\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)


class Engine:
    """Cuts and detects for all dialects, in the places of the gate.

    Args:
        client: asks Triton through the core.
        core: the gate's settings, admission, metrics and way to Triton.
    """

    def __init__(self, client: AsyncClient, core: Core) -> None:
        self.client, self.core = client, core
        self._latencies: deque[tuple[float, float]] = deque(maxlen=KEPT_LATENCIES)
        self.tensorrt = False
        self._gpu_free_mb: float | None = None
        self._gpu_asked_at = 0.0

    async def cut(
        self, caller: str, data: bytes, media_type: str | None = None, **options: Unpack[OptionKeywords]
    ) -> CutResult:
        """See `cutaway.AsyncClient.cut`."""
        async with self._admitted("cut", caller, len(data)):
            result = await self.client.cut(data, media_type=media_type, request_id=_request_id(), **options)
        self.tensorrt = result.report.tensorrt
        current().add_stages(result.timings_ms)
        return result

    async def detect(
        self, caller: str, data: bytes, media_type: str | None = None, **options: Unpack[OptionKeywords]
    ) -> Detection:
        """See `cutaway.AsyncClient.detect`."""
        async with self._admitted("detect", caller, len(data)):
            found = await self.client.detect(data, media_type=media_type, request_id=_request_id(), **options)
        current().add_stages(found.timings_ms)
        return found

    @asynccontextmanager
    async def _admitted(self, operation: str, caller: str, size_bytes: int) -> AsyncIterator[None]:
        """Count what comes of one picture, which the transport finds a place for."""
        current().model = PIPELINE
        metrics, begun, code = self.core.metrics, time.monotonic(), "CANCELLED"
        try:
            await self._check_gpu()
            asking.set(caller.removeprefix("address:"))
            yield
            code = "OK"
            self._latencies.append((begun, (time.monotonic() - begun) * 1000))
        except CutawayError as error:
            code = error.code
            raise
        finally:
            current().pictures[code] += 1
            metrics.requests.labels("service", operation, code).inc()
            metrics.request_bytes.labels("service", operation).inc(size_bytes)
            metrics.seconds.labels("service", operation).observe(time.monotonic() - begun)

    async def _check_gpu(self) -> None:
        free_mb = await self.gpu_free_mb()
        if free_mb is not None and free_mb < GPU_RESERVE_MB:
            self.core.metrics.shed.labels("gpu_memory").inc()
            details = {"required_mb": GPU_RESERVE_MB, "available_mb": round(free_mb)}
            raise GpuMemoryExhausted("The GPU has too little free memory for a picture.", details=details)

    async def gpu_free_mb(self) -> float | None:
        """Free memory of the fullest GPU; None where there is none, or Triton does not say."""
        if time.monotonic() - self._gpu_asked_at > GPU_FACTS_AGE_S:
            self._gpu_asked_at = time.monotonic()
            text = (await self.core.upstream.metrics()).decode()
            values: dict[str, list[float]] = {"total": [], "used": []}
            for kind, value in _GPU_METRIC.findall(text):
                values[kind].append(float(value))
            free = [(total - used) / MIB for total, used in zip(values["total"], values["used"], strict=False)]
            self._gpu_free_mb = min(free, default=None)
        return self._gpu_free_mb

    def latencies(self) -> dict[str, Any]:
        """Of the last hour's pictures: avg, p95 and p99 in milliseconds, and how many; None where there were none."""
        since = time.monotonic() - HOUR_S
        values = sorted(ms for begun, ms in self._latencies if begun >= since)

        def quantile(share: float) -> float | None:
            return round(values[min(len(values) - 1, int(share * len(values)))], 1) if values else None

        average = round(sum(values) / len(values), 1) if values else None
        figures = {"avg_latency_ms": average, "p95_latency_ms": quantile(0.95), "p99_latency_ms": quantile(0.99)}
        return figures | {"requests_last_hour": len(values)}


def _request_id() -> str | None:
    """The request's, by which Triton's log names its pictures."""
    return current().request_id or None
