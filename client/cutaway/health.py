"""The health check of a server: a small picture through the pipeline, since Triton's readiness is not sufficient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO

from PIL import Image

from cutaway.contract.errors import CutawayError


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


def combined(endpoints: Sequence[Health]) -> Health:
    """The health of a client with these servers."""
    if len(endpoints) == 1:
        return endpoints[0]
    best = min(endpoints, key=lambda each: each.round_trip_ms if each.round_trip_ms is not None else float("inf"))
    return replace(best, url=",".join(each.url for each in endpoints), endpoints=tuple(endpoints))


@cache
def canary() -> bytes:
    """A 64×64 PNG with some texture: the smallest valid picture."""
    file = BytesIO()
    Image.radial_gradient("L").resize((64, 64)).save(file, "PNG")
    return file.getvalue()
