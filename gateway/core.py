"""What all protocols of the process share: settings, admission, metrics, and the way to Triton."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cutaway.contract.errors import CutawayError, InferenceError

from gateway import failures, wire
from gateway.admission import Admission, Place
from gateway.failures import Failure
from gateway.metrics import Metrics
from gateway.request import InferRequest
from gateway.settings import Settings
from gateway.upstream import Upstream

TRACE_HEADERS = ("traceparent", "tracestate")
_MAX_TRACE_CHARS = 512
CALLER = "caller"
"""The parameter that says who sends a request, which `model_repository/ensemble_pipeline/1/serving.py` reads."""


@dataclass
class Seen:
    """What metrics say of a request."""

    model: str = ""
    request_bytes: int = 0
    response_bytes: int = 0


class CallerGone(Exception):
    """The caller closed its connection, or did not take its answer."""


class Core:
    """Made and used in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.admission = Admission(settings, self.metrics)
        self.upstream = Upstream(settings, self.metrics)

    async def infer(
        self, request: InferRequest, place: Place, timeout_s: float, metadata: Sequence[tuple[str, str]]
    ) -> bytes:
        """Triton's ``ModelInferResponse`` to a request, which is checked here.

        Raises:
            CutawayError: the request is refused.
            Failure: Triton, or the way to it, failed.
        """
        request.check(self.settings)
        # Both are the gate's to say: streams share their places by callers, and health checks come first in the queue.
        request.parameters[CALLER] = place.caller
        request.parameters.pop("priority", None)
        timeout_s = min(timeout_s, self.settings.request_timeout_s)
        traced = [(name, value) for name, value in metadata if _is_trace(name, value)]
        answer = await self.upstream.call("ModelInfer", wire.framed(request), timeout_s, traced)
        place.hold(len(answer), shed=False)
        return answer

    async def ready(self) -> bool:
        return not self.admission.draining and await self.upstream.ready()

    @contextmanager
    def observed(self, protocol: str, model: str = "") -> Iterator[Seen]:
        """Count an inference request; every CutawayError leaves as a Failure."""
        seen, started, code = Seen(model), time.monotonic(), "CANCELLED"
        try:
            yield seen
            code = "OK"
        except Failure as failure:
            code = failure.code
            raise
        except CutawayError as error:
            code = error.code
            raise failures.of_error(error) from None
        except CallerGone:
            raise
        except Exception:
            code = "INFERENCE_ERROR"
            failures.log.exception("the gate failed")
            raise failures.of_error(InferenceError("The server failed.")) from None
        finally:
            labels = protocol, seen.model
            self.metrics.requests.labels(*labels, code).inc()
            self.metrics.request_bytes.labels(*labels).inc(seen.request_bytes)
            self.metrics.response_bytes.labels(*labels).inc(seen.response_bytes)
            self.metrics.seconds.labels(*labels).observe(time.monotonic() - started)


def _is_trace(name: str, value: str) -> bool:
    return name in TRACE_HEADERS and len(value) <= _MAX_TRACE_CHARS and value.isascii() and value.isprintable()
