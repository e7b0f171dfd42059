"""What all protocols of the process share: settings, admission, metrics, and the way to Triton."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from cutaway.contract.errors import CutawayError, InferenceError

from gateway import failures, wire
from gateway.access import AccessLog, Entry
from gateway.admission import Admission, Place
from gateway.failures import Failure
from gateway.metrics import Metrics
from gateway.request import InferRequest
from gateway.settings import Settings
from gateway.tracing import Tracing
from gateway.upstream import Upstream

STREAM = "stream_pipeline"
CALLER = "caller"
"""The parameter that says who sends a request, which `model_repository/ensemble_pipeline/1/serving.py` reads."""


class CallerGone(Exception):
    """The caller closed its connection, or did not take its answer."""


class Core:
    """Made and used in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.admission = Admission(settings, self.metrics)
        self.upstream = Upstream(settings, self.metrics)
        self.tracing = Tracing(settings.traces_url)
        self.access = AccessLog(settings.access_log, settings.access_log_fd, self.tracing)
        self.leaving = False

    async def infer(
        self, request: InferRequest, place: Place, timeout_s: float, traced: Sequence[tuple[str, str]]
    ) -> bytes:
        """Triton's ``ModelInferResponse`` to a request, which is checked here.

        Args:
            traced: the metadata by which Triton's spans are below the request's.

        Raises:
            CutawayError: the request is refused.
            Failure: Triton, or the way to it, failed.
        """
        request.check(self.settings)
        # Both are the gate's to say: streams share their places by callers, and health checks come first in the queue.
        request.parameters[CALLER] = place.caller
        request.parameters.pop("priority", None)
        timeout_s = min(timeout_s, self.settings.request_timeout_s)
        stream = request.model == STREAM
        answer = await self.upstream.call("ModelInfer", wire.framed(request), timeout_s, traced, one_server=stream)
        place.hold(len(answer), shed=False)
        return answer

    async def ready(self) -> bool:
        return not self.leaving and await self.upstream.ready()

    @contextmanager
    def observed(
        self, protocol: str, headers: Iterable[tuple[str, str]], *, route: str, model: str = ""
    ) -> Iterator[Entry]:
        """Count and tell of an inference request; every CutawayError leaves as a Failure."""
        with self.access.entered(protocol, headers, route=route, model=model) as entry, self.counted(entry):
            yield entry

    @contextmanager
    def counted(self, entry: Entry) -> Iterator[None]:
        """Count an inference request alone."""
        try:
            yield
            entry.code, entry.status = "OK", "OK" if entry.protocol == "grpc" else 200
        except Failure as failure:
            entry.failed(failure)
            raise
        except CutawayError as error:
            refused = failures.of_error(error)
            entry.failed(refused)
            raise refused from None
        except CallerGone:
            raise
        except Exception:
            failures.log.exception("the gate failed")
            broken = failures.of_error(InferenceError("The server failed."))
            entry.failed(broken)
            raise broken from None
        finally:
            labels = entry.protocol, entry.model
            self.metrics.requests.labels(*labels, entry.code or "CANCELLED").inc()
            self.metrics.request_bytes.labels(*labels).inc(entry.request_bytes)
            self.metrics.response_bytes.labels(*labels).inc(entry.response_bytes)
            self.metrics.seconds.labels(*labels).observe(time.monotonic() - entry.began_s)
