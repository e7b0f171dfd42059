"""The one way from a dialect to the pipeline: GPU guard, admission, the SDK's client, and what health reports of it."""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, Unpack

import httpx
from cutaway import AsyncClient, CutResult, Detection
from cutaway.contract.errors import GpuMemoryExhausted, Overloaded
from cutaway.contract.limits import MIB
from cutaway.contract.options import OptionKeywords

HOUR_S = 3600.0
KEPT_LATENCIES = 100_000
GPU_RESERVE_MB = 600.0
"""Free memory that a picture may need at the networks' largest batch; below it, work is refused, not begun."""
GPU_FACTS_AGE_S = 1.0

_GPU_METRIC = re.compile(r"^nv_gpu_memory_(total|used)_bytes\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)


class Admission(Protocol):
    """What bounds the work of all dialects together; the gate's."""

    def enter(self, caller: str, size_bytes: int) -> AbstractAsyncContextManager[None]:
        """Take a place for a request.

        Raises:
            Overloaded: there is none in time.
        """
        ...


class Engine:
    """Cuts and detects for all dialects.

    Args:
        client: asks Triton.
        admission: shared by all dialects.
        metrics_url: Triton's metrics, which know the GPUs' memory; "" where there is no GPU.
    """

    def __init__(self, client: AsyncClient, admission: Admission, metrics_url: str = "") -> None:
        self.client, self._admission, self._metrics_url = client, admission, metrics_url
        self._latencies: deque[tuple[float, float]] = deque(maxlen=KEPT_LATENCIES)
        self.tensorrt = False
        self._gpu_free_mb: float | None = None
        self._gpu_asked_at = 0.0
        self._http = httpx.AsyncClient(timeout=2.0, trust_env=False)

    async def aclose(self) -> None:
        await self._http.aclose()
        await self.client.close()

    async def cut(
        self, caller: str, data: bytes, media_type: str | None = None, **options: Unpack[OptionKeywords]
    ) -> CutResult:
        """See `cutaway.AsyncClient.cut`."""
        async with self._admitted(caller, len(data)):
            result = await self.client.cut(data, media_type=media_type, **options)
        self.tensorrt = result.report.tensorrt
        return result

    async def detect(
        self, caller: str, data: bytes, media_type: str | None = None, **options: Unpack[OptionKeywords]
    ) -> Detection:
        """See `cutaway.AsyncClient.detect`."""
        async with self._admitted(caller, len(data)):
            return await self.client.detect(data, media_type=media_type, **options)

    @asynccontextmanager
    async def _admitted(self, caller: str, size_bytes: int) -> AsyncIterator[None]:
        free_mb = await self.gpu_free_mb()
        if free_mb is not None and free_mb < GPU_RESERVE_MB:
            details = {"required_mb": GPU_RESERVE_MB, "available_mb": round(free_mb)}
            raise GpuMemoryExhausted("The GPU has too little free memory for a picture.", details=details)
        async with self._admission.enter(caller, size_bytes):
            begun = time.monotonic()
            yield
            self._latencies.append((begun, (time.monotonic() - begun) * 1000))

    async def gpu_free_mb(self) -> float | None:
        """Free memory of the fullest GPU; None where there is none, or Triton does not say."""
        if self._metrics_url and time.monotonic() - self._gpu_asked_at > GPU_FACTS_AGE_S:
            self._gpu_asked_at = time.monotonic()
            try:
                text = (await self._http.get(self._metrics_url)).text
            except httpx.HTTPError:
                return self._gpu_free_mb
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


class Places:
    """An admission of its own, for a service that runs without the gate: `most` pictures at once, others wait shortly.

    Args:
        most: pictures in flight.
        wait_s: how long a request waits for a place.
    """

    def __init__(self, most: int = 64, wait_s: float = 2.0) -> None:
        self._places, self._wait_s = asyncio.Semaphore(most), wait_s

    @asynccontextmanager
    async def enter(self, caller: str, size_bytes: int) -> AsyncIterator[None]:  # noqa: ARG002 (the gate's form)
        try:
            await asyncio.wait_for(self._places.acquire(), self._wait_s)
        except TimeoutError:
            raise Overloaded("The service has as many pictures in flight as it may.") from None
        try:
            yield
        finally:
            self._places.release()
