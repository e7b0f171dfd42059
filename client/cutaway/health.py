"""The health check of a server: a small picture through the pipeline, since Triton's readiness is not sufficient."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from cutaway.contract.errors import CutawayError, ServerUnavailable

if TYPE_CHECKING:
    from cutaway.result import CutResult


@dataclass(frozen=True)
class Health:
    """The health of a server, from a picture that it processed.

    Attributes:
        url: the server's address; all of them, with commas, where there are several.
        server_ready: the server's own readiness.
        model_ready: the pipeline's, which Triton also reports for a dead process.
        round_trip_ms: milliseconds of a small picture through the pipeline, or None where it failed.
        profile: the pair of models, such as "nano"; "" where it failed.
        device: the device of the models; "" where it failed.
        error: the failure, or None.
        endpoints: one entry per server where a client has several; then the other attributes are those of the
            quickest healthy one, and `ok` is whether there is one.
    """

    url: str
    server_ready: bool = False
    model_ready: bool = False
    round_trip_ms: float | None = None
    profile: str = ""
    device: str = ""
    error: CutawayError | None = None
    endpoints: tuple[Health, ...] = ()

    @property
    def ok(self) -> bool:
        return self.round_trip_ms is not None

    def readiness(self, *, server: bool, model: bool) -> Health:
        """With the server's own readiness, and the error where it is not ready."""
        what = "" if server and model else "The pipeline" if server else "The server"
        error = ServerUnavailable(f"{what} at {self.url} is not ready.") if what else None
        return replace(self, server_ready=server, model_ready=model, error=error)

    def came_back(self, result: CutResult) -> Health:
        return replace(
            self,
            round_trip_ms=result.elapsed_ms,
            profile=result.report.profile,
            device=result.report.device,
        )

    def failed(self, error: CutawayError) -> Health:
        return replace(self, error=error)


def combined(endpoints: Sequence[Health]) -> Health:
    """The health of a client with these servers."""
    if len(endpoints) == 1:
        return endpoints[0]
    best = min(endpoints, key=lambda each: each.round_trip_ms if each.round_trip_ms is not None else float("inf"))
    return replace(best, url=",".join(each.url for each in endpoints), endpoints=tuple(endpoints))


@cache
def canary() -> bytes:
    """A 64×64 PNG with some texture: the smallest valid picture."""
    rows = b"".join(
        b"\0" + bytes((x * 4, y * 4, (x ^ y) * 4)[c] for x in range(64) for c in range(3)) for y in range(64)
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
    )
