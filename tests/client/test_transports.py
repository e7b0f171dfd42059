"""Whatever stands at the other end, a call ends within its deadline with the right typed error, or with the outputs."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from cutaway import loop
from cutaway.contract import errors, limits
from cutaway.contract.errors import (
    CutawayError,
    FileTooLarge,
    InferenceError,
    InvalidOption,
    Overloaded,
    ProcessingTimeout,
    RateLimitExceeded,
    ServerRefused,
    ServerUnavailable,
)
from cutaway.transports import Connection, open_transport
from cutaway.transports import grpc as grpc_transport
from cutaway.transports.base import Address, InferRequest, Transport, parse_address

from tests.client import peers

REPORT = struct.pack("<I", 2) + b"{}"
TIMEOUT_S = 0.5
SLACK_S = 20.0  # for a busy machine; a call that is held is held until the test is given up
"""For a busy machine; a call that ignores its deadline takes ten times as long."""


WAYS = ["sync", "async"]
"""In the loop thread, as for `Client`, and in a loop of one's own."""


@contextmanager
def opened(url: str) -> Iterator[Transport]:
    transport = open_transport(Connection(parse_address(url)))
    yield transport
    loop.run(transport.aclose())


def infer(url: str, way: str = "sync", *, image: bytes = b"picture", timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """One call through a transport of its own."""
    request = InferRequest("ensemble_pipeline", image, ("report",), {"subject": "all"}, "id", timeout_s)

    async def call() -> dict[str, Any]:
        transport = open_transport(Connection(parse_address(url)))
        try:
            return await transport.infer(request)
        finally:
            await transport.aclose()

    return loop.run(call()) if way == "sync" else asyncio.run(call())


# ------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("grpc://host", Address("grpc", "host", 8001)),
        ("grpc://host:1", Address("grpc", "host", 1)),
        ("grpcs://host", Address("grpcs", "host", 443)),
        ("http://127.0.0.1/", Address("http", "127.0.0.1", 8000)),
        ("https://host/triton/", Address("https", "host", 443, "/triton")),
        ("HTTP://Host:9", Address("http", "host", 9)),
        ("grpc://[::1]:8001", Address("grpc", "[::1]", 8001)),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert parse_address(url) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8001",
        "localhost",
        "ftp://host",
        "grpc://",
        "grpc://host:x",
        "grpc://host:99999",
        "grpc://host/path",
        "http://host?x=1",
        "http://[::1",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="grpc://host:8001"):
        parse_address(url)


def test_secrets_stay_out_of_addresses() -> None:
    with pytest.raises(ValueError, match="no user or password") as refusal:
        parse_address("http://user:hunter2@host")
    assert "hunter2" not in str(refusal.value)


# --------------------------------------------------------------------------------------------- broken connections

BROKEN = {
    "silent": (peers.silent, ProcessingTimeout),
    "closing": (peers.closing, ServerUnavailable),
    "resetting": (peers.resetting, ServerUnavailable),
}


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("way", WAYS)
def test_dead_port(way: str, scheme: str) -> None:
    took, error = peers.seconds_of(lambda: infer(f"{scheme}://127.0.0.1:{peers.dead_port()}", way, timeout_s=10))
    assert type(error) is ServerUnavailable
    assert isinstance(error, ConnectionError)
    assert error.retry
    assert took < 9, "no sooner than its deadline"


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("way", WAYS)
def test_broken_peers(way: str, scheme: str, kind: str) -> None:
    handler, expected = BROKEN[kind]
    with peers.tcp_peer(handler) as port:
        took, error = peers.seconds_of(lambda: infer(f"{scheme}://127.0.0.1:{port}", way))
    assert type(error) is expected, error
    assert took < TIMEOUT_S + SLACK_S
    if isinstance(error, ProcessingTimeout):
        assert isinstance(error, TimeoutError)
        assert error.details["elapsed_seconds"] == pytest.approx(took, abs=2)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("way", WAYS)
def test_other_protocols_are_no_reason_to_try_again(way: str, scheme: str) -> None:
    with (
        peers.tcp_peer(peers.babbling) as port,
        pytest.raises(ServerRefused, match="not as a Triton") as refusal,
    ):
        infer(f"{scheme}://127.0.0.1:{port}", way, timeout_s=5)
    assert not refusal.value.retry
    assert "port" in refusal.value.user_action


@pytest.mark.parametrize(("status", "expected"), [(404, ServerRefused), (200, ServerRefused), (503, ServerUnavailable)])
@pytest.mark.parametrize("way", WAYS)
def test_grpc_to_a_web_server(way: str, status: int, expected: type[CutawayError]) -> None:
    """A proxy that cannot reach its server says so in HTTP/1.1: that passes."""
    with (
        peers.tcp_peer(peers.http_answer(status, b"hello")) as port,
        pytest.raises(ServerUnavailable) as failure,
    ):
        infer(f"grpc://127.0.0.1:{port}", way, timeout_s=5)
    assert type(failure.value) is expected


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_takes_no_connection_is_gone_before_the_deadline(
    way: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that there is time for another one."""
    monkeypatch.setattr(limits, "CONNECT_TIMEOUT_S", 0.5)
    if scheme == "grpc":
        options = [option for option in grpc_transport.CHANNEL_OPTIONS if "min_reconnect" not in option[0]]
        monkeypatch.setattr(grpc_transport, "CHANNEL_OPTIONS", (*options, ("grpc.min_reconnect_backoff_ms", 500)))
    with peers.full_port() as port:
        took, error = peers.seconds_of(lambda: infer(f"{scheme}://127.0.0.1:{port}", way, timeout_s=20))
    assert type(error) is ServerUnavailable, error
    assert error.retry
    assert took < 10


@pytest.mark.parametrize(
    "before",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n"],
    ids=["status", "headers", "body"],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_dripping_server_does_not_hold_the_caller(way: str, before: bytes) -> None:
    with peers.tcp_peer(peers.dripping(before)) as port:
        took, error = peers.seconds_of(lambda: infer(f"http://127.0.0.1:{port}", way))
    assert type(error) is ProcessingTimeout, error
    assert TIMEOUT_S * 0.9 < took < TIMEOUT_S + SLACK_S


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_does_not_read_does_not_hold_the_caller(way: str, scheme: str) -> None:
    with peers.tcp_peer(peers.silent) as port:
        took, error = peers.seconds_of(lambda: infer(f"{scheme}://127.0.0.1:{port}", way, image=bytes(50_000_000)))
    assert type(error) is ProcessingTimeout, error
    assert took < TIMEOUT_S + SLACK_S


@pytest.mark.parametrize("way", WAYS)
def test_body_cut_off(way: str) -> None:
    with peers.tcp_peer(peers.http_answer(200, b"{", length=1000)) as port, pytest.raises(ServerUnavailable):
        infer(f"http://127.0.0.1:{port}", way)


def test_a_server_that_comes_back_is_found() -> None:
    """By the same transport, and within seconds: gRPC itself would wait for up to two minutes."""
    port = peers.dead_port()
    with opened(f"grpc://127.0.0.1:{port}") as transport:
        request = InferRequest("m", b"x", ("report",), timeout_s=5)
        for _ in range(20):
            with pytest.raises(ServerUnavailable):
                loop.run(transport.infer(request))
            time.sleep(0.05)
        with peers.grpc_peer(peers.grpc_answer(("report", "BYTES", [1], REPORT)), port):
            ends_at = time.monotonic() + 10
            while True:
                try:
                    assert loop.run(transport.infer(request)) == {"report": [b"{}"]}
                    break
                except ServerUnavailable:
                    assert time.monotonic() < ends_at
                    time.sleep(0.05)


# --------------------------------------------------------------------------------------------- failed HTTP answers

FORM = errors.InvalidOption("Option 'x' cannot be 1.", details={"name": "x"}).to_json()


@pytest.mark.parametrize(
    ("status", "body", "expected", "words"),
    [
        (400, {"error": FORM}, InvalidOption, "cannot be 1"),
        (400, {"error": "Request for unknown model: 'm' is not found"}, ServerRefused, "no such model"),
        (404, {"error": "Request for unknown model: 'm' version 9 is not found"}, ServerRefused, "no such model"),
        (404, {"error": "Request for unknown model: 'm' has no available versions"}, ServerUnavailable, "not ready"),
        (400, {"error": "Model version not ready"}, ServerUnavailable, "not ready"),
        (400, {"error": "unexpected shape"}, ServerRefused, "unexpected shape"),
        (401, "", ServerRefused, "refuses access"),
        (403, "go away", ServerRefused, "refuses access"),
        (404, "<html>Not Found</html>", ServerRefused, "not as a Triton"),
        (408, "", ServerUnavailable, "not available"),
        (409, "", ServerUnavailable, "not available"),
        (413, "<html>too large</html>", FileTooLarge, "takes no file this large"),
        (429, "slow down", RateLimitExceeded, "limits the rate"),
        (500, {"error": "stub died"}, InferenceError, "stub died"),
        (500, b"\xff\xfe garbage", InferenceError, "garbage"),
        (500, {"error": 7}, InferenceError, "server failed"),
        (499, "", ServerUnavailable, "gave the request up"),
        (501, "", ServerRefused, "not as a Triton"),
        (502, "", ServerUnavailable, "not available"),
        (503, {"error": "Exceeds maximum queue size"}, Overloaded, "queue is full"),
        (503, {"error": "[request id: 7] Request timeout expired"}, Overloaded, "queue is full"),
        (504, "", ProcessingTimeout, "did not answer"),
        (302, "", ServerRefused, "HTTP 302"),
        (418, "", ServerRefused, "HTTP 418"),
        (599, "", InferenceError, "HTTP 599"),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_http_failures(way: str, status: int, body: Any, expected: type[CutawayError], words: str) -> None:
    sent = json.dumps(body).encode() if isinstance(body, dict) else body if isinstance(body, bytes) else body.encode()
    with peers.tcp_peer(peers.http_answer(status, sent)) as port, pytest.raises(CutawayError) as failure:
        infer(f"http://127.0.0.1:{port}", way)
    assert type(failure.value) is expected
    assert words in failure.value.message
    if isinstance(failure.value, ServerUnavailable):
        assert failure.value.retry is (expected is not ServerRefused)


@pytest.mark.parametrize(
    ("header", "asked_s"),
    [
        ("7", 7.0),
        ("60", 60.0),
        ("1.5", 1.5),
        ("99999999", 99999999.0),
        ("Sat, 21 Nov 2020 10:00:30 GMT", 0.0),
        ("soon", None),
        ("-1", None),
    ],
)
@pytest.mark.parametrize(
    ("status", "body"),
    [(429, ""), (500, ""), (503, ""), (503, "not ready"), (503, errors.Overloaded("full").to_json())],
)
def test_retry_after_is_heeded(header: str, asked_s: float | None, status: int, body: str) -> None:
    answer = peers.http_answer(status, body.encode(), Retry_After=header)
    with peers.tcp_peer(answer) as port, pytest.raises(CutawayError) as failure:
        infer(f"http://127.0.0.1:{port}")
    advised = errors.ERRORS_BY_CODE[failure.value.code]("no").retry_after
    assert failure.value.retry_after == (advised if asked_s is None else asked_s)
    assert failure.value.details.get("retry_after_seconds") == asked_s


def test_retry_after_may_be_a_date() -> None:
    answer = peers.http_answer(503, Retry_After="Fri, 21 Oct 2099 07:28:00 GMT")
    with peers.tcp_peer(answer) as port, pytest.raises(ServerUnavailable) as failure:
        infer(f"http://127.0.0.1:{port}")
    assert failure.value.details["retry_after_seconds"] > 1e9


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_without_end_is_cut_short(way: str) -> None:
    with peers.tcp_peer(peers.http_answer(500, b"a" * 10_000_000)) as port, pytest.raises(InferenceError) as failure:
        infer(f"http://127.0.0.1:{port}", way, timeout_s=10)
    assert len(failure.value.message) < 1000


# -------------------------------------------------------------------------------------------- ill-formed answers

ILL_FORMED = {
    "beyond_end": ([peers.output("report", "BYTES", [1], 99)], REPORT),
    "no_size": ([{"name": "report", "datatype": "BYTES", "shape": [1], "data": ["x"]}], b""),
    "negative_size": ([peers.output("report", "BYTES", [1], -1)], REPORT),
    "size_is_text": ([peers.output("report", "BYTES", [1], "6")], REPORT),
    "element_beyond_end": ([peers.output("report", "BYTES", [1], 6)], struct.pack("<I", 2**31) + b"{}"),
    "other_count": ([peers.output("report", "BYTES", [3], 6)], REPORT),
    "many_sides": ([peers.output("scores", "FP32", [1] * 65, 4)], bytes(4)),
    "endless_side": ([peers.output("scores", "FP32", [0, 2**70], 0)], b""),
    "negative_shape": ([peers.output("report", "BYTES", [-1], 6)], REPORT),
    "shape_is_text": ([peers.output("report", "BYTES", ["1"], 6)], REPORT),
    "huge_shape": ([peers.output("scores", "FP32", [2**40, 2**40], 6)], REPORT),
    "other_type": ([peers.output("report", "FP64", [1], 6)], REPORT),
    "odd_numbers": ([peers.output("scores", "FP32", [1], 6)], REPORT),
    "no_name": ([{"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}], REPORT),
    "output_is_text": (["report"], REPORT),
}


@pytest.mark.parametrize("kind", ILL_FORMED)
@pytest.mark.parametrize("way", WAYS)
def test_ill_formed_tensors(way: str, kind: str) -> None:
    outputs, raw = ILL_FORMED[kind]
    with peers.tcp_peer(peers.kserve_answer(outputs, raw)) as port, pytest.raises(InferenceError, match="malformed"):
        infer(f"http://127.0.0.1:{port}", way)


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b"[]", b'{"outputs": 3}', b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("way", WAYS)
def test_answers_of_other_servers(way: str, body: bytes) -> None:
    with (
        peers.tcp_peer(peers.http_answer(200, body)) as port,
        pytest.raises(ServerRefused, match="not as a Triton"),
    ):
        infer(f"http://127.0.0.1:{port}", way)


@pytest.mark.parametrize("length", ["-1", "9999", "x", "٣", "1" * 5000])
@pytest.mark.parametrize("way", WAYS)
def test_impossible_lengths_of_the_header(way: str, length: str) -> None:
    handler = peers.http_answer(200, b"{}", Inference_Header_Content_Length=length)
    with peers.tcp_peer(handler) as port, pytest.raises((InferenceError, ServerUnavailable)):
        infer(f"http://127.0.0.1:{port}", way)


# ------------------------------------------------------------------------------------------------------------ gRPC


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        ("INVALID_ARGUMENT", FORM, InvalidOption),
        ("INVALID_ARGUMENT", "unexpected shape", ServerRefused),
        ("UNAVAILABLE", "Exceeds maximum queue size", Overloaded),
        ("UNAVAILABLE", "Request for unknown model: 'm' is not found", ServerRefused),
        ("NOT_FOUND", "Request for unknown model: 'm' is not found", ServerRefused),
        ("NOT_FOUND", "Request for unknown model: 'm' has no available versions", ServerUnavailable),
        ("UNAVAILABLE", "Request for unknown model: 'm' version 1 is not at ready state", ServerUnavailable),
        ("UNAVAILABLE", "Server exiting", ServerUnavailable),
        ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped accepting", ServerUnavailable),
        ("NOT_FOUND", "", ServerRefused),
        ("UNIMPLEMENTED", "", ServerRefused),
        ("UNAUTHENTICATED", "no token", ServerRefused),
        ("PERMISSION_DENIED", "not yours", ServerRefused),
        ("DEADLINE_EXCEEDED", "", ProcessingTimeout),
        ("CANCELLED", "", ServerUnavailable),
        ("RESOURCE_EXHAUSTED", "too many requests", RateLimitExceeded),
        ("RESOURCE_EXHAUSTED", "Received message larger than max", FileTooLarge),
        ("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (7680000 vs. 4194304)", FileTooLarge),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (4294967296 vs. 2147483647)", InferenceError),
        ("INTERNAL", "stub died", InferenceError),
        ("UNKNOWN", "", InferenceError),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_grpc_failures(way: str, status: str, message: str, expected: type[CutawayError]) -> None:
    with (
        peers.grpc_peer(peers.grpc_failure(status, message)) as port,
        pytest.raises(CutawayError) as failure,
    ):
        infer(f"grpc://127.0.0.1:{port}", way, timeout_s=5)
    assert type(failure.value) is expected


@pytest.mark.parametrize("way", WAYS)
def test_grpc_carries_more_than_four_megabytes(way: str) -> None:
    """grpcio's own limit, which comes back whenever a channel is given options of one's own."""
    image = bytes(20_000_000)
    raw = struct.pack("<I", len(image)) + image
    with peers.grpc_peer(peers.grpc_answer(("images", "BYTES", [1], raw))) as port:
        assert infer(f"grpc://127.0.0.1:{port}", way, image=image, timeout_s=10) == {"images": [image]}


@pytest.mark.parametrize(
    "outputs",
    [
        [("report", "BYTES", [2], REPORT)],
        [("report", "BYTES", [1], REPORT[:-1])],
        [("scores", "FP32", [2], bytes(4))],
        [("scores", "INT8", [4], bytes(4))],
        [("scores", "FP32", [-1], bytes(4))],
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_grpc_ill_formed_tensors(way: str, outputs: list[Any]) -> None:
    with (
        peers.grpc_peer(peers.grpc_answer(*outputs)) as port,
        pytest.raises(InferenceError, match="malformed"),
    ):
        infer(f"grpc://127.0.0.1:{port}", way, timeout_s=5)


@pytest.mark.parametrize("way", WAYS)
def test_zeros_at_the_end_of_an_element_stay(way: str) -> None:
    raw = struct.pack("<I", 3) + b"a\0\0"
    with peers.grpc_peer(peers.grpc_answer(("report", "BYTES", [1], raw))) as port:
        assert infer(f"grpc://127.0.0.1:{port}", way, timeout_s=5) == {"report": [b"a\0\0"]}
    outputs = [peers.output("report", "BYTES", [1], 7), peers.output("scores", "FP32", [0], 0)]
    with peers.tcp_peer(peers.kserve_answer(outputs, raw)) as port:
        answer = infer(f"http://127.0.0.1:{port}", way)
    assert answer["report"] == [b"a\0\0"]
    np.testing.assert_array_equal(answer["scores"], np.zeros(0, np.float32))
