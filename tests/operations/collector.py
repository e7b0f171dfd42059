"""A collector on loopback: takes OTLP over HTTP, as protobuf from OpenTelemetry's SDKs and as JSON from Triton."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Span:
    """An exported span; ids are hexadecimal, the parent's "" of a root."""

    service: str
    name: str
    trace_id: str
    id: str
    parent_id: str
    attributes: dict[str, Any]
    failed: bool

    @property
    def model(self) -> str:
        return str(self.attributes.get("triton.model_name", ""))


class Collector:
    """Listens while it is entered."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.came = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body, kind = self.rfile.read(int(self.headers["Content-Length"])), self.headers["Content-Type"]
                found = read_protobuf(body) if kind == "application/x-protobuf" else read_json(body)
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(b"{}" if kind != "application/x-protobuf" else ANSWER)
                with collector.came:
                    collector.spans += found
                    collector.came.notify_all()

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def __enter__(self) -> Collector:
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def wait_for(self, enough: Callable[[list[Span]], Any], limit_s: float = 30.0) -> list[Span]:
        """All spans, as soon as they are enough, or when the time is over."""
        until = time.monotonic() + limit_s
        with self.came:
            while not enough(self.spans) and time.monotonic() < until:
                self.came.wait(max(0.0, until - time.monotonic()))
            return list(self.spans)


ANSWER = ExportTraceServiceResponse().SerializeToString()


def read_protobuf(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    sent = MessageToDict(request)
    # In protobuf's own JSON ids are base64: here are the hexadecimal ones of OTLP's.
    for resource, parsed in zip(sent.get("resourceSpans", ()), request.resource_spans, strict=True):
        for scope, parsed_scope in zip(resource["scopeSpans"], parsed.scope_spans, strict=True):
            for span, parsed_span in zip(scope["spans"], parsed_scope.spans, strict=True):
                ids = parsed_span.trace_id, parsed_span.span_id, parsed_span.parent_span_id
                span |= dict(zip(("traceId", "spanId", "parentSpanId"), (each.hex() for each in ids), strict=True))
    return spans_of(sent)


def read_json(body: bytes) -> list[Span]:
    return spans_of(json.loads(body))


def spans_of(sent: dict[str, Any]) -> list[Span]:
    return [
        Span(
            service=str(values(resource["resource"]).get("service.name", "")),
            name=span["name"],
            trace_id=span["traceId"],
            id=span["spanId"],
            parent_id=span.get("parentSpanId", ""),
            attributes=values(span),
            failed=span.get("status", {}).get("code") in (2, "STATUS_CODE_ERROR"),
        )
        for resource in sent.get("resourceSpans", ())
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def values(described: dict[str, Any]) -> dict[str, Any]:
    return {entry["key"]: next(iter(entry["value"].values())) for entry in described.get("attributes", ())}
