"""The health check of a server: a small picture through the pipeline, since Triton's readiness is not sufficient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO

from PIL import Image

from cutaway.contract.errors import CutawayError, ServerUnavailable
from cutaway.contract.options import to_parameters
from cutaway.resilience import Deadline
from cutaway.result import CUT_OUTPUTS, Origin, read_cut
from cutaway.transports.base import InferRequest, Transport

PIPELINE = "ensemble_pipeline"


@dataclass(frozen=True)
class Health:
    """The health of a server, from a picture that it processed.

    Attributes:
        url: the server's address; all of them, with commas, where there are several.
        server_ready: the server's own readiness.
        model_ready: the pipeline's, which Triton also reports for a dead process.
        round_trip_ms: milliseconds of a small picture through the pipeline, or None where it failed.
        profile, device: the pair of models, such as "nano", and where they run; "" where it failed.
        error: the failure, or None.
        servers: one entry per server where a client has several; then the other attributes are those of the quickest
            healthy one, and `ok` is whether there is one.
    """

    url: str
    server_ready: bool = False
    model_ready: bool = False
    round_trip_ms: float | None = None
    profile: str = ""
    device: str = ""
    error: CutawayError | None = None
    servers: tuple[Health, ...] = ()

    @property
    def ok(self) -> bool:
        return self.round_trip_ms is not None


def combine(servers: Sequence[Health]) -> Health:
    """The health of a client with these servers."""
    if len(servers) == 1:
        return servers[0]
    best = min(servers, key=lambda each: each.round_trip_ms if each.round_trip_ms is not None else float("inf"))
    return replace(best, url=",".join(each.url for each in servers), servers=tuple(servers))


async def check(url: str, transport: Transport, deadline: Deadline) -> Health:
    """The health of one server."""
    health = Health(url)
    try:
        ready = await transport.server_ready(deadline.left_s)
        health = replace(health, server_ready=ready, model_ready=await transport.model_ready(PIPELINE, deadline.left_s))
        if not (ready and health.model_ready):
            raise ServerUnavailable(f"The {'pipeline' if ready else 'server'} at {url} is not ready.")
        begun, options = Deadline(deadline.left_s), to_parameters({"subject": "all"})
        request = InferRequest(PIPELINE, health_picture(), CUT_OUTPUTS, options, "health", begun.left_s)
        outputs = await transport.infer(request)
        elapsed_ms = begun.elapsed_s * 1000
        report = read_cut(outputs, Origin("triton", "health", elapsed_ms)).report
        return replace(health, round_trip_ms=elapsed_ms, profile=report.profile, device=report.device)
    except CutawayError as error:
        return replace(health, error=error)


@cache
def health_picture() -> bytes:
    """A 64×64 PNG with some texture: the smallest valid picture."""
    file = BytesIO()
    Image.radial_gradient("L").resize((64, 64)).save(file, "PNG")
    return file.getvalue()
