"""The gate's settings: addresses, and the one table of bounds, each with its reason."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from cutaway.contract.limits import INPUT_LIMITS, MIB, STREAM_LIMITS

KIB = 1024


def setting(default: Any, reason: str) -> Any:
    """A field of settings: its default, and why it is there."""
    return field(default=default, metadata={"reason": reason})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the gate listens, where Triton does (``HOST:PORT`` or ``unix:PATH``), and what is let through; each field
    is also an option of the command line, and its reason is the help."""

    triton_http: str = field(metadata={"reason": "address of Triton's HTTP, for metadata"})
    triton_grpc: str = field(
        metadata={"reason": "address of Triton's gRPC, for inference in either protocol; a name's addresses take turns"}
    )
    triton_metrics: str = field(metadata={"reason": "address of Triton's metrics; none where empty"})
    further_metrics: str = setting("", "file of further metrics in Prometheus's text form: the supervisor's")
    address: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines reach it")
    metrics_address: str = setting("", "address of the metrics alone, the same as the rest where empty")
    http_port: int = setting(8000, "port of KServe over HTTP; 0 takes any free one, as with the others")
    grpc_port: int = setting(8001, "port of KServe over gRPC")
    metrics_port: int = setting(8002, "port of the metrics, the gate's and Triton's")
    hosts: tuple[str, ...] = setting(
        (),
        "further names in Host headers; addresses, localhost and names without a dot are"
        " taken anyway, * takes all: a page with a name that turns to this address is not",
    )
    origins: tuple[str, ...] = setting((), "origins of pages that may call (CORS), * for all: others' pages may not")

    access_log: str = setting("json", "a line of JSON for each request; off for none")
    access_log_fd: int = setting(2, "descriptor of the open file that it goes to; 2 is standard error")
    traces_url: str = setting(
        "",
        "where OTLP over HTTP takes spans, as http://127.0.0.1:4318/v1/traces; what OTEL_EXPORTER_OTLP_ENDPOINT says"
        " where empty",
    )

    max_connections: int = setting(
        2000, "for each protocol: some tens of kB each; over HTTP the longest idle one makes room"
    )
    header_timeout_s: float = setting(
        10.0,
        "for the headers of an HTTP request, and a gRPC connection's first frame: nobody holds a connection by silence",
    )
    idle_timeout_s: float = setting(
        75.0, "of a connection between requests: longer than clients and proxies keep theirs"
    )
    body_timeout_s: float = setting(60.0, "for a request's body: 10 MB at 1.4 Mbit/s")
    answer_timeout_s: float = setting(120.0, "for a caller to take its answer: it is held in memory for so long")
    request_timeout_s: float = setting(90.0, "for Triton: the queue's and the pipeline's own 30 s, and some")
    drain_timeout_s: float = setting(
        35.0, "for requests in flight when the gate ends: the pipeline's own 30 s, and some"
    )
    drain_notice_s: float = setting(
        0.0,
        "of it, to serve on though not ready any more: longer than balancers take to notice; 0 where there are none",
    )
    connection_age_s: float = setting(
        0.0, "after which a gRPC connection is to be made anew, so that callers find new replicas; 0: never"
    )

    max_header_bytes: int = setting(
        32 * KIB, "of a request's headers, and of gRPC metadata: traces and tokens take less than 8"
    )
    max_framing_bytes: int = setting(
        256 * KIB,
        "of a chunked body that is no data: 35 MB in chunks of 1 kB need as much, 600,000 chunks of one byte ten times",
    )
    max_json_bytes: int = setting(
        64 * KIB, "of a request's JSON, or protobuf without tensors: the longest list of boxes has 20"
    )
    max_json_depth: int = setting(16, "of nested JSON; a request has 5")
    max_parameters: int = setting(64, "of a request; all options of both models are 25")
    max_text_chars: int = setting(20_000, "of a parameter: as long as the contract's longest list")
    max_id_chars: int = setting(128, "of a request id, which is cut: it is logged")
    max_answer_bytes: int = setting(256 * MIB, "of an answer: cut-outs of the largest picture take less")
    max_json_values: int = setting(64 * KIB, "of an answer in JSON: more come in binary only")

    max_requests: int = setting(
        512, "in flight, all callers together: above what Triton queues, so that its queue decides"
    )
    max_requests_per_caller: int = setting(256, "in flight from one address: no single one takes all places")
    max_bytes: int = setting(
        512 * MIB, "of requests and answers in flight: what the gate may take of the machine's memory"
    )
    max_messages: int = setting(32, "of gRPC that arrive at once, each of up to 35 MB; the longest one makes room")
    max_streams: int = setting(256, "concurrent calls of a gRPC connection: further ones wait in the client")

    def __post_init__(self) -> None:
        if self.access_log not in ("json", "off"):
            raise ValueError(f"--access-log is json or off, not {self.access_log!r}")

    def max_body_bytes(self, model: str) -> int:
        """Of a request: its largest picture (with a stream, a raw frame and the backdrop), and the JSON."""
        frame_bytes = 3 * STREAM_LIMITS.max_pixels if model == "stream_pipeline" else 0
        return frame_bytes + INPUT_LIMITS.max_file_bytes + self.max_json_bytes


S = TypeVar("S")


def add_options(parser: argparse.ArgumentParser, title: str, kind: type[Any]) -> None:
    """An option for each field of a class of settings."""
    group = parser.add_argument_group(title)
    for each in fields(kind):
        option, default = f"--{each.name.replace('_', '-')}", each.default
        described: dict[str, Any] = {"help": each.metadata["reason"].replace("%", "%%")}
        if isinstance(default, tuple):
            group.add_argument(option, action="append", default=[], metavar="NAME", **described)
        elif default is MISSING:
            group.add_argument(option, required=True, metavar="HOST:PORT", **described)
        elif default is False:
            group.add_argument(option, action="store_true", **described)
        else:
            described["help"] += f" (default: {default})" if default != "" else ""
            group.add_argument(option, type=type(default), default=default, metavar="N", **described)


def read_options(kind: type[S], given: argparse.Namespace) -> S:
    """The settings of a parsed command line."""
    values = {each.name: getattr(given, each.name) for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """The gate's settings of a command line."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description="The gate in front of Triton.")
    add_options(parser, "the gate", Settings)
    return read_options(Settings, parser.parse_args(arguments))
