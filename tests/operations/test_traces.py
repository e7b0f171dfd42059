"""One trace from the caller to both models, as a collector on loopback sees it; and a collector that is away."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cutaway import Client
from cutaway.observers import OpenTelemetry
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from playwright.sync_api import expect, sync_playwright

from gateway.tracing import Trace, Tracing
from runtime.process import endpoint_of_spans
from runtime.server import Server, ServerOptions
from tests.gateway.conftest import triton_of
from tests.gateway.gates import LIMIT_S
from tests.operations.collector import Collector, Span
from tests.service.services import REMOVE, service_before

TRIES = 5
"""Triton misses a few contexts in a hundred (`gateway.tracing.Trace.metadata`), not so many of one kind in a row."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
GATE, TRITON = "cutaway-gateway", "triton-inference-server"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose gate, with the HTTP service, and whose Triton export their spans."""
    options = ServerOptions(
        cache_dir=tmp_path_factory.mktemp("traced"), traces_url=collector.url, service_port=0, canary_interval_s=3600.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with Server(options) as running:
            yield running


@pytest.fixture(scope="module")
def application(collector: Collector) -> TracerProvider:
    """The tracer provider of the caller's program."""
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=collector.url)))
    return provider


def chain(spans: list[Span], span: Span) -> list[str]:
    """The names from a root to a span."""
    parents = [each for each in spans if each.id == span.parent_id and each.trace_id == span.trace_id]
    assert len(parents) == (1 if span.parent_id else 0), span
    return [*(chain(spans, parents[0]) if parents else []), span.name]


def rooted(spans: list[Span]) -> bool:
    """Whether every parent has come, too: the gate and Triton send theirs when they like."""
    return {each.parent_id for each in spans} <= {each.id for each in spans} | {""}


def whole(collector: Collector, send: Callable[[], Any], *above: str, matting: str = "birefnet_trt") -> list[Span]:
    """The spans of one request, sent again where Triton has missed it: `above` are its names down to the gate's."""
    for _ in range(TRIES):
        seen = {each.trace_id for each in collector.spans}
        send()

        def models(spans: list[Span], seen: set[str] = seen) -> set[str]:
            return {each.model for each in spans if each.trace_id not in seen} - {""}

        spans = collector.wait_for(lambda found: models(found) >= {"ensemble_pipeline", matting}, 6.0)
        if models(spans):
            spans = collector.wait_for(rooted, LIMIT_S)
            break
    fresh = [each for each in spans if each.trace_id not in seen]
    assert len({each.trace_id for each in fresh}) == 1
    by_model = {each.model: each for each in fresh if each.model}
    assert by_model.keys() == {"ensemble_pipeline", "yolov8_seg", matting}
    down = [*above, "InferRequest", "ensemble_pipeline"]
    assert chain(fresh, by_model["ensemble_pipeline"]) == down
    for model in ("yolov8_seg", matting):
        assert chain(fresh, by_model[model]) == [*down, model]
        assert by_model[model].service == TRITON
    return fresh


@pytest.mark.triton
@pytest.mark.parametrize(
    ("protocol", "gate_span"),
    [("grpc", "inference.GRPCInferenceService/ModelInfer"), ("http", "POST /v2/models/ensemble_pipeline/infer")],
)
def test_from_the_sdk(
    protocol: str,
    gate_span: str,
    collector: Collector,
    traced: Server,
    application: TracerProvider,
    samples: list[Path],
) -> None:
    url = {"grpc": traced.grpc_url, "http": traced.http_url}[protocol]
    with Client(url, observers=[OpenTelemetry(application)]) as client:
        spans = whole(
            collector, lambda: client.cut(samples[0], request_id="order-66", timeout_s=60), "cutaway.cut", gate_span
        )
    (called,) = (each for each in spans if each.name == "cutaway.cut")
    assert called.service == "shop"
    (gate,) = (each for each in spans if each.name == gate_span)
    assert (gate.service, gate.failed, gate.attributes["cutaway.code"]) == (GATE, False, "OK")
    assert gate.attributes["cutaway.request_id"] == "order-66"
    assert gate.attributes["cutaway.stage.matte_ms"] > 0


@pytest.mark.triton
def test_of_a_whole_picture(
    collector: Collector, traced: Server, application: TracerProvider, samples: list[Path]
) -> None:
    """Which a third network cuts out."""
    picture = samples[0].parent / "more" / "coffee.jpg"
    with Client(traced.grpc_url, observers=[OpenTelemetry(application)]) as client:
        above = "cutaway.cut", "inference.GRPCInferenceService/ModelInfer"
        whole(collector, lambda: client.cut(picture, subject="auto", timeout_s=60), *above, matting="u2netp")


@pytest.mark.triton
def test_from_a_form(collector: Collector, traced: Server, samples: list[Path]) -> None:
    """A form has no trace of its own: the gate begins it."""
    picture = samples[0].read_bytes()

    def send() -> None:
        files = {"image": ("photo.jpg", picture, "image/jpeg")}
        answer = httpx.post(traced.service_url + REMOVE, files=files, timeout=LIMIT_S, trust_env=False)
        assert answer.status_code == 200

    spans = whole(collector, send, f"POST {REMOVE}", "cutaway.cut")
    (root,) = (each for each in spans if not each.parent_id)
    assert (root.service, root.attributes["http.response.status_code"]) == (GATE, "200")


@pytest.mark.triton
def test_from_the_page(collector: Collector, traced: Server, samples: list[Path]) -> None:
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "CI installs chromium"
        pytest.skip("needs chromium (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(traced.service_url)

        def send() -> None:
            page.set_input_files("#file", samples[0])
            expect(page.locator("#status")).to_contain_text("Cut out", timeout=LIMIT_S * 1000)
            page.wait_for_load_state("networkidle")

        # What the page asks for, people's outlines too, are requests of their own.
        send()
        for _ in range(TRIES):
            spans = collector.wait_for(lambda found: False, 2.0)
            roots = {each.trace_id for each in spans if each.name == f"POST {REMOVE}" and not each.parent_id}
            mattes = [each for each in spans if each.model == "birefnet_trt" and each.trace_id in roots]
            if len(mattes) > 1:  # the form's of the test before, and the page's
                break
            send()
        browser.close()
    spans = collector.wait_for(rooted, LIMIT_S)
    down = [f"POST {REMOVE}", "cutaway.cut", "InferRequest", "ensemble_pipeline", "birefnet_trt"]
    assert len(mattes) > 1
    assert [chain(spans, each) for each in mattes] == [down] * len(mattes)


@pytest.mark.triton
def test_a_refusal_has_a_span_and_reaches_no_triton(collector: Collector, traced: Server) -> None:
    context = f"00-{'5':0>32}-{'7':0>16}-01"
    answer = httpx.post(
        traced.service_url + REMOVE,
        files={"image": ("photo.jpg", b"no picture", "image/jpeg")},
        headers={"traceparent": context},
        timeout=LIMIT_S,
        trust_env=False,
    )
    assert answer.status_code == 400
    spans = collector.wait_for(lambda found: any(each.parent_id == f"{'7':0>16}" for each in found))
    (refused,) = (each for each in spans if each.parent_id == f"{'7':0>16}")
    assert refused.trace_id == f"{'5':0>32}"
    assert (refused.attributes["error.type"], refused.failed) == ("INVALID_FORMAT", False)
    assert not [each for each in spans if each.trace_id == refused.trace_id and each.service == TRITON]


@pytest.mark.triton
def test_what_is_not_sampled_leaves_no_span(
    collector: Collector, traced: Server, application: TracerProvider, samples: list[Path]
) -> None:
    trace_id = f"{'9':0>32}"
    for url, headers in (
        (f"{traced.http_url}/v2/models/ensemble_pipeline/infer", {"Inference-Header-Content-Length": "0"}),
        (f"{traced.service_url}/api/background-removal/health", {}),
    ):
        sent = {"traceparent": f"00-{trace_id}-{'7':0>16}-00", **headers}
        content = samples[0].read_bytes() if headers else None
        method = "POST" if headers else "GET"
        answer = httpx.request(method, url, content=content, headers=sent, timeout=LIMIT_S, trust_env=False)
        assert answer.status_code == 200
    with Client(traced.grpc_url, observers=[OpenTelemetry(application)]) as client:
        whole(
            collector,
            lambda: client.cut(samples[0], timeout_s=60),
            "cutaway.cut",
            "inference.GRPCInferenceService/ModelInfer",
        )
    assert trace_id not in {each.trace_id for each in collector.spans}


# ------------------------------------------------------------------------------------------- a collector that is away


@pytest.fixture(params=["refuses", "hangs"])
def dead(request: pytest.FixtureRequest) -> Iterator[str]:
    """A collector's address where nobody listens, or somebody who never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if request.param == "refuses":
            listener.close()
        yield url


@pytest.mark.triton
def test_a_dead_collector_delays_and_fails_nothing(
    dead: str, traced: Server, samples: list[Path], tmp_path: Path
) -> None:
    picture, log = samples[0].read_bytes(), tmp_path / "log"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": dead, "OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BSP_MAX_QUEUE_SIZE": "4"}
    variables |= {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2", "OTEL_EXPORTER_OTLP_TIMEOUT": "600"}  # of each try
    with service_before(triton_of(traced), "--free-per-minute=1000", log=log, **variables) as service:
        for _ in range(4):  # more than its queue holds
            assert service.gate.cut(picture).status_code == 200
            assert service.remove(picture).status_code == 200
        service.gate.process.terminate()
        assert service.gate.process.wait(LIMIT_S) == 0
    lines = [line for line in log.read_text().splitlines() if '"code": "OK"' in line]
    assert len(lines) == 8 and all('"trace_id": "' in line for line in lines)


# ---------------------------------------------------------------------------------------------------- without a server


def test_without_an_endpoint_no_exporter_is_imported() -> None:
    script = (
        "import sys, gateway.serving\n"
        "from gateway.tracing import Tracing\n"
        "Tracing('')\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.exporter')])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment["PYTHONPATH"] = os.pathsep.join(("client", "."))
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("sent", "trace_id", "passed"),
    [
        (f"00-{'a':0>32}-{'b':0>16}-01", f"{'a':0>32}", True),
        (f"00-{'a':0>32}-{'b':0>16}-03", f"{'a':0>32}", True),
        (f"00-{'a':0>32}-{'b':0>16}-00", f"{'a':0>32}", False),
        (f"00-{'A':0>32}-{'b':0>16}-01", "", False),
        ("00-1-2-01", "", False),
        (f"00-{'a':0>32}-{'b':0>16}-01\n", "", False),
        ("x" * 5000, "", False),
    ],
)
def test_what_a_caller_sends(sent: str, trace_id: str, passed: bool) -> None:
    trace = Trace([("traceparent", sent), ("authorization", "secret"), ("tracestate", "a=1")])
    assert trace.id == trace_id
    assert trace.metadata() == ([("traceparent", sent)] if passed else [])
    assert "secret" not in str(trace.headers())


def test_opentelemetrys_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    named = "http://collector:4318"
    assert endpoint_of_spans({}) == ""
    assert endpoint_of_spans({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{named}/"}) == f"{named}/v1/traces"
    assert endpoint_of_spans({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": named}) == named
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert not Tracing("").on


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match=r"cutaway\[traces\]"):
        Tracing("http://127.0.0.1:4318/v1/traces")
