"""Observers and the log: told of every call and its end, never in its way, and never of what is the caller's own.

The traceparent is looked for where it arrives: at loopback peers here, in a real Triton in `tests/operations`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cutaway import AsyncClient, Client
from cutaway.contract import limits
from cutaway.contract.errors import InferenceError, InvalidOption, RequestCancelled, ServerUnavailable
from cutaway.contract.options import parse_options
from cutaway.fallback import Tried
from cutaway.observe import ServedFacts, Unobserved, observed
from cutaway.observers import OpenTelemetry, Prometheus
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry

from tests.client import peers
from tests.client.answers import REPORT, outputs, wire_outputs
from tests.integration import picture_files as make

OPTIONS = parse_options({"subject": "each"})
FACTS = ServedFacts(
    provider="huggingface",
    tier=2,
    tried=(Tried("triton", 1, "UNAVAILABLE", "It is not there.", 12.5),),
    n_bytes=2000,
    stage_ms={"decode": 1.25, "total": 100},
    people=2,
    warnings=("HOSTED_MODEL",),
)
OURS = ServedFacts(provider="triton", tier=1, url="grpc://[::1]:8001", requests=3, n_bytes=500)
CACHED = ServedFacts(provider="triton", tier=1, requests=0, from_cache=True, n_bytes=500)


class Watching(Unobserved):
    """An observer that keeps what it was told, and fails where it is told to."""

    def __init__(self, fails_at: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.told: list[Any] = []
        self._fails_at = fails_at
        self._headers = headers or {}

    @contextmanager
    def call(self, operation: str, request_id: str) -> Iterator[Unobserved]:
        self._tell("call", operation, request_id)
        try:
            yield self
        except BaseException as error:
            self._tell("failed", type(error))
            raise
        finally:
            self._tell("ended")

    def headers(self) -> Mapping[str, str]:
        self._tell("headers")
        return self._headers

    def sent(self, n_bytes: int, options: Any) -> None:
        self._tell("sent", n_bytes, options)

    def served(self, facts: ServedFacts) -> None:
        self._tell("served", facts)

    def _tell(self, *what: Any) -> None:
        self.told.append(what)
        if what[0] == self._fails_at:
            raise ZeroDivisionError("the observer's own")


# ----------------------------------------------------------------------------------------- all of them as one


def test_all_are_told_of_everything() -> None:
    one, other = Watching(headers={"A": "1", "b": "1"}), Watching(headers={"b": "2"})
    with observed([one, other], "cut", "r1") as observation:
        assert observation.headers() == {"a": "1", "b": "2"}
        observation.sent(10, OPTIONS)
        observation.served(OURS)
    assert (
        one.told
        == other.told
        == [("call", "cut", "r1"), ("headers",), ("sent", 10, OPTIONS), ("served", OURS), ("ended",)]
    )


@pytest.mark.parametrize("error", [InferenceError("It failed."), KeyboardInterrupt(), asyncio.CancelledError()])
def test_errors_pass_through_them(error: BaseException) -> None:
    one, other = Watching(), Watching(fails_at="failed")
    with pytest.raises(type(error)) as raised, observed([one, other], "cut", "r1"):
        raise error
    assert raised.value is error
    assert one.told[1:] == [("failed", type(error)), ("ended",)]


def test_an_error_that_is_handled_around_a_call_is_not_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "cutaway")
    one = Watching()
    try:
        raise InferenceError("An earlier call failed.")
    except InferenceError:
        with observed([one], "cut", "r1"):
            pass
    assert one.told == [("call", "cut", "r1"), ("ended",)]
    assert "cut r1: OK in" in caplog.text


def test_none_can_swallow_an_error() -> None:
    class Swallowing(Watching):
        @contextmanager
        def call(self, operation: str, request_id: str) -> Iterator[Unobserved]:
            try:
                yield self
            except Exception:
                self.told.append("swallowed")

    swallowing = Swallowing()
    with pytest.raises(InferenceError), observed([swallowing], "cut", "r1"):
        raise InferenceError("It failed.")
    assert swallowing.told == ["swallowed"]


@pytest.mark.parametrize("fails_at", ["call", "headers", "sent", "served", "ended"])
def test_one_that_fails_is_in_nobodys_way(fails_at: str, caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = Watching(fails_at), Watching(headers={"a": "1"})
    for _ in range(3):
        with observed([broken, sound], "cut", "r1") as observation:
            assert observation.headers() == {"a": "1"}
            observation.sent(10, OPTIONS)
            observation.served(OURS)
    assert len(sound.told) == 15
    line, *_ = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "Watching failed with ZeroDivisionError" in line.getMessage()
    assert "in _tell" in line.getMessage(), "where, for who wrote it"


@pytest.mark.parametrize("broken", [object(), {}, 5])
def test_what_is_no_observer_fails_no_call(broken: Any, caplog: pytest.LogCaptureFixture) -> None:
    with observed([broken], "cut", "r1") as observation:
        assert observation.headers() == {}
    assert "failed with AttributeError" in caplog.text


# ------------------------------------------------------------------------------------------------------ the log


def test_one_line_for_each_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "cutaway")
    with observed([], "cut", "r1") as observation:
        observation.sent(1000, OPTIONS)
        observation.served(OURS)
    with observed([], "detect", "r2") as observation:
        observation.served(CACHED)
    with pytest.raises(ServerUnavailable), observed([], "cut", "r3"):
        raise ServerUnavailable("It is not there.")
    ours, cached, failed = caplog.records
    assert [record.levelno for record in caplog.records] == [logging.DEBUG] * 3
    assert ours.getMessage().startswith("cut r1: OK from triton in ")
    assert ours.getMessage().endswith(" ms, 1000 bytes sent, 500 received")
    assert ours.__dict__["request_id"] == "r1"
    assert ours.__dict__["provider"] == "triton"
    assert cached.getMessage().startswith("detect r2: OK from cache in ")
    assert failed.getMessage().startswith("cut r3: UNAVAILABLE in ")


def test_a_hosted_tier_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cutaway")
    with observed([], "cut", "r1") as observation:
        observation.served(FACTS)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "cut r1 was served by huggingface (tier 2); triton: UNAVAILABLE"


def test_nothing_of_the_callers_own_is_told(caplog: pytest.LogCaptureFixture, spans: InMemorySpanExporter) -> None:
    """No name of a file, no token, and no word of an error that may hold one."""
    caplog.set_level(logging.DEBUG, logger="cutaway")
    broken = Watching(fails_at="failed")
    client = Client(
        "http://127.0.0.1:1", token="s3cret-token", observers=[broken, OpenTelemetry(provider_of(spans))], timeout_s=5
    )
    with client, pytest.raises(FileNotFoundError):
        client.cut("/home/ann/private-picture.jpg")
    (span,) = spans.get_finished_spans()
    assert "FileNotFoundError" in caplog.text
    assert span.attributes["error.type"] == "FileNotFoundError"
    for told in (caplog.text, span.to_json()):
        assert "private-picture" not in told
        assert "s3cret" not in told


# ---------------------------------------------------------------------------------------------- OpenTelemetry


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def provider_of(spans: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return provider


def ids_of(span: Any) -> str:
    """How a traceparent begins that names this span; flags follow."""
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-"


def test_a_span_tells_what_happened(spans: InMemorySpanExporter) -> None:
    with observed([OpenTelemetry(provider_of(spans))], "cut", "r1") as observation:
        observation.sent(1000, OPTIONS)
        observation.served(FACTS)
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind, span.status.status_code) == ("cutaway.cut", SpanKind.CLIENT, StatusCode.UNSET)
    assert dict(span.attributes) == {
        "cutaway.operation": "cut",
        "cutaway.request_id": "r1",
        "cutaway.sent_bytes": 1000,
        "cutaway.subject": "each",
        "cutaway.output": "png",
        "cutaway.provider": "huggingface",
        "cutaway.tier": 2,
        "cutaway.requests": 1,
        "cutaway.from_cache": False,
        "cutaway.received_bytes": 2000,
        "cutaway.people": 2,
        "cutaway.warnings": ("HOSTED_MODEL",),
        "cutaway.stage.decode_ms": 1.25,
        "cutaway.stage.total_ms": 100.0,
    }
    (event,) = span.events
    assert event.name == "cutaway.tried"
    assert dict(event.attributes) == {
        "cutaway.provider": "triton",
        "cutaway.tier": 1,
        "error.type": "UNAVAILABLE",
        "cutaway.elapsed_ms": 12.5,
    }


def test_a_span_names_the_server(spans: InMemorySpanExporter) -> None:
    with observed([OpenTelemetry(provider_of(spans))], "cut", "r1") as observation:
        observation.served(OURS)
    (span,) = spans.get_finished_spans()
    assert (span.attributes["server.address"], span.attributes["server.port"]) == ("::1", 8001)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InferenceError("A model failed."), "INFERENCE_ERROR"),
        (InvalidOption("No."), "INVALID_OPTION"),
        (RequestCancelled("Gone."), "CANCELLED"),
        (asyncio.CancelledError(), "CANCELLED"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_span_of_a_failed_call(spans: InMemorySpanExporter, error: BaseException, code: str) -> None:
    with pytest.raises(type(error)), observed([OpenTelemetry(provider_of(spans))], "cut", "r1"):
        raise error
    (span,) = spans.get_finished_spans()
    assert span.attributes["error.type"] == code
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, code)


def test_spans_belong_to_the_callers(spans: InMemorySpanExporter) -> None:
    """In threads and in tasks alike: what is current is a context variable."""
    provider = provider_of(spans)
    observer = OpenTelemetry(provider)
    tracer = provider.get_tracer("test")
    meeting = threading.Barrier(4, timeout=30)

    def in_thread(number: int) -> None:
        with tracer.start_as_current_span(f"caller {number}"), observed([observer], "cut", f"{number}") as observation:
            meeting.wait()
            carried.append((number, observation.headers()["traceparent"]))

    async def in_task(number: int) -> None:
        with tracer.start_as_current_span(f"caller {number}"), observed([observer], "cut", f"{number}") as observation:
            await asyncio.sleep(0)
            carried.append((number, observation.headers()["traceparent"]))
            await asyncio.sleep(0.01)

    async def in_tasks() -> None:
        await asyncio.gather(*(in_task(number) for number in range(4)))

    for way in ("threads", "tasks"):
        carried: list[tuple[int, str]] = []
        spans.clear()
        if way == "threads":
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(in_thread, range(4)))
        else:
            asyncio.run(in_tasks())
        finished = {span.name: span for span in spans.get_finished_spans() if span.name.startswith("caller")}
        calls = {span.attributes["cutaway.request_id"]: span for span in spans.get_finished_spans() if span.parent}
        assert len(finished) == len(calls) == len(carried) == 4
        for number, traceparent in carried:
            caller, call = finished[f"caller {number}"], calls[str(number)]
            assert call.parent.span_id == caller.context.span_id
            assert traceparent.startswith(ids_of(call))
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_headers_are_those_of_the_call_in_any_thread(spans: InMemorySpanExporter) -> None:
    with observed([OpenTelemetry(provider_of(spans))], "cut", "r1") as observation, ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(observation.headers).result()
        assert elsewhere == observation.headers()
        assert set(elsewhere) == {"traceparent"}


# -------------------------------------------------------------------------------------------------- Prometheus


def test_calls_are_counted() -> None:
    registry = CollectorRegistry()
    observers = [Prometheus(registry)]

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    for facts in (FACTS, OURS, CACHED):
        with observed(observers, "cut", "r1") as observation:
            assert value("cutaway_calls_in_progress", operation="cut") == 1
            observation.sent(1000, OPTIONS)
            observation.served(facts)
    failure = ServerUnavailable("It is not there.", details={"requests": 3})
    for error in (failure, failure, FileNotFoundError()):
        with pytest.raises(type(error)), observed(observers, "detect", "r1"):
            raise error

    assert value("cutaway_calls_in_progress", operation="cut") == 0
    assert value("cutaway_calls_total", operation="cut", provider="huggingface", code="OK") == 1
    assert value("cutaway_calls_total", operation="cut", provider="triton", code="OK") == 1
    assert value("cutaway_calls_total", operation="cut", provider="cache", code="OK") == 1
    assert value("cutaway_calls_total", operation="detect", provider="none", code="UNAVAILABLE") == 2
    assert value("cutaway_calls_total", operation="detect", provider="none", code="FileNotFoundError") == 1
    assert value("cutaway_call_seconds_count", operation="cut", provider="triton") == 1
    assert value("cutaway_call_seconds_bucket", operation="cut", provider="triton", le="60.0") == 1
    assert value("cutaway_sent_bytes_total", operation="cut") == 3000
    assert value("cutaway_received_bytes_total", operation="cut") == 3000
    assert value("cutaway_fallbacks_total", operation="cut", provider="huggingface", tier="2") == 1
    assert value("cutaway_retries_total", operation="cut") == 2
    assert value("cutaway_retries_total", operation="detect") == 4
    names = {sample.name for metric in registry.collect() for sample in metric.samples}
    assert {name.removesuffix("_created") for name in names} <= {
        "cutaway_calls_total",
        "cutaway_calls",
        *(f"cutaway_call_seconds{part}" for part in ("", "_bucket", "_count", "_sum")),
        "cutaway_calls_in_progress",
        *(f"cutaway_{what}{part}" for what in SUMS for part in ("", "_total")),
    }


SUMS = ("sent_bytes", "received_bytes", "fallbacks", "retries")


def test_the_page_lists_the_metrics() -> None:
    registry = CollectorRegistry()
    Prometheus(registry)
    page = (Path(__file__).parents[2] / "docs" / "client" / "observability.md").read_text()
    counters = {metric.name: metric.type == "counter" for metric in registry.collect()}
    listed = re.findall(r"^\| `(cutaway_\w+)` \|", page, re.MULTILINE)
    assert set(listed) == {f"{name}_total" if counter else name for name, counter in counters.items()}


def test_buckets_reach_from_a_hit_to_a_deadline() -> None:
    assert limits.METRIC_BUCKETS_S[0] <= 0.01
    assert limits.METRIC_BUCKETS_S[-1] >= limits.FALLBACK_TIMEOUT_S


def test_a_registry_takes_them_once() -> None:
    registry = CollectorRegistry()
    Prometheus(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Prometheus(registry)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("OpenTelemetry", "opentelemetry", "cutaway[otel]"), ("Prometheus", "prometheus_client", "cutaway[prometheus]")],
)
def test_without_their_packages(name: str, module: str, extra: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None\nimport cutaway\nfrom cutaway.observers import {name}\n{name}()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": "client"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"pip install '{extra}'")
    assert done.stderr.splitlines()[-1].startswith("ImportError: ")


# -------------------------------------------------------------------------------------- with clients, on the wire


class Recorder:
    """A transport that gives every request the same answer and keeps the requests."""

    def __init__(self) -> None:
        self.answer: Any = outputs()
        self.requests: list[Any] = []

    async def infer(self, request: Any) -> dict[str, Any]:
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return dict(self.answer)

    async def aclose(self) -> None:
        """Nothing is open."""


def test_a_client_tells_its_observers() -> None:
    watching, recorder = Watching(headers={"traceparent": "x"}), Recorder()
    with Client("grpc://localhost:8001", transport=recorder, observers=[watching]) as client:
        result = client.cut(make.picture(), subject="each", request_id="r1")
        client.detect(make.picture())
        recorder.answer = InferenceError("It failed.")
        with pytest.raises(InferenceError):
            client.cut(make.picture())
    kinds = [what[0] for what in watching.told]
    assert kinds == ["call", "sent", "headers", "served", "ended"] * 2 + ["call", "sent", "headers", "failed", "ended"]
    assert watching.told[0] == ("call", "cut", "r1")
    assert watching.told[1][2] == OPTIONS
    facts = watching.told[3][1]
    assert (facts.provider, facts.tier, facts.url) == ("triton", 1, "grpc://localhost:8001")
    assert (facts.n_bytes, facts.people) == (sum(map(len, result.images)), 2)
    assert facts.stage_ms == REPORT["milliseconds"]
    assert facts.warnings == ("LOW_CONFIDENCE",)
    assert watching.told[5][1] == "detect"
    assert recorder.requests[0].headers == {"traceparent": "x"}


def test_spans_of_many_hang_below_the_callers(spans: InMemorySpanExporter) -> None:
    provider = provider_of(spans)
    observers = [OpenTelemetry(provider)]
    pictures = [make.picture()] * 3

    async def many() -> None:
        async with AsyncClient("http://127.0.0.1:1", transport=Recorder(), observers=observers) as client:
            async for outcome in client.cut_many(pictures):
                outcome.unwrap()

    for way in ("threads", "tasks"):
        spans.clear()
        with provider.get_tracer("test").start_as_current_span("caller") as caller:
            if way == "tasks":
                asyncio.run(many())
            else:
                with Client("http://127.0.0.1:1", transport=Recorder(), observers=observers) as client:
                    for outcome in client.cut_many(pictures):
                        outcome.unwrap()
        calls = [span for span in spans.get_finished_spans() if span.name == "cutaway.cut"]
        assert [span.parent.span_id for span in calls] == [caller.get_span_context().span_id] * 3, way


def arriving(scheme: str) -> tuple[Any, list[Mapping[str, str]]]:
    """A peer that serves, and the headers of each request that reached it."""
    arrived: list[Mapping[str, str]] = []
    if scheme == "http":
        answer = peers.kserve_answer(*wire_outputs())

        def http(connection: Any, over: threading.Event) -> None:
            class Reading:
                def recv(self, count: int) -> bytes:
                    data = connection.recv(count)
                    for line in data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
                        name, _, value = line.partition(b": ")
                        if name.lower() == b"traceparent":
                            arrived.append({"traceparent": value.decode()})
                    return data

                sendall = connection.sendall

            answer(Reading(), over)  # type: ignore[arg-type]

        return peers.tcp_peer(http), arrived

    described, raw = wire_outputs()
    parts, start = [], 0
    for output in described:
        size = output["parameters"]["binary_data_size"]
        parts.append((output["name"], output["datatype"], output["shape"], raw[start : start + size]))
        start += size
    answering = peers.grpc_answer(*parts)

    def grpc(request: Any, context: Any) -> Any:
        arrived.append(dict(context.invocation_metadata()))
        return answering(request, context)

    return peers.grpc_peer(grpc), arrived


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("way", ["sync", "async"])
def test_the_traceparent_goes_over_the_wire(scheme: str, way: str, spans: InMemorySpanExporter) -> None:
    peer, arrived = arriving(scheme)
    observers = [OpenTelemetry(provider_of(spans))]
    with peer as port:
        url = f"{scheme}://127.0.0.1:{port}"
        if way == "sync":
            with Client(url, observers=observers) as client:
                client.cut(make.picture(), request_id="r1")
        else:

            async def call() -> None:
                async with AsyncClient(url, observers=observers) as client:
                    await client.cut(make.picture(), request_id="r1")

            asyncio.run(call())
    (span,) = spans.get_finished_spans()
    (headers,) = arrived
    assert headers["traceparent"].startswith(ids_of(span))
    assert span.attributes["server.port"] == port
