"""Connections that are silent, slow or many: they are closed, and whoever has something to ask is served meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
from cutaway import Client
from tritonclient.grpc import service_pb2

from tests.gateway.gates import LIMIT_S, PIPELINE, GateProcess, by_hand, gate_before, post, to_end
from tests.runtime.leftovers import wait_for

pytestmark = pytest.mark.triton

IDLE = 1100
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
HEAD = post(f"/v2/models/{PIPELINE}/infer", "Content-Length: 1000", "Inference-Header-Content-Length: 0")


@pytest.fixture(scope="module")
def hasty(triton: dict[str, str]) -> Iterator[GateProcess]:
    """A gate that waits for two seconds at most."""
    waits = ("--header-timeout-s", "2", "--body-timeout-s", "2", "--idle-timeout-s", "2")
    with gate_before(triton, *waits) as running:
        yield running


@contextmanager
def connected(port: int, count: int, *sent: bytes) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)))
            for part in sent:
                opened[-1].sendall(part)
        yield opened


def serves(gate: GateProcess, samples: list[Path]) -> None:
    assert gate.cut(samples[0].read_bytes()).status_code == 200
    with tritonclient.grpc.InferenceServerClient(gate.grpc_address) as client:
        assert client.is_server_ready(client_timeout=LIMIT_S)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_connections_without_a_byte(protocol: str, hasty: GateProcess, samples: list[Path]) -> None:
    with connected(getattr(hasty, protocol), IDLE) as silent:
        serves(hasty, samples)
        for connection in silent:
            to_end(connection)
    serves(hasty, samples)


@pytest.mark.parametrize(
    "sent",
    [b"G", b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n", HEAD + b"xyz", b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    ids=["letter", "headers", "body", "idle"],
)
def test_half_requests(sent: bytes, hasty: GateProcess) -> None:
    """A request that stops anywhere, and a connection after its request."""
    answer = by_hand(hasty.http, sent)
    assert not answer or answer.startswith(b"HTTP/1.1 408") or sent.startswith(b"GET /v2 HTTP/1.1\r\nHost: localhost")
    assert wait_for(lambda: hasty.metric("cutaway_gateway_connections") <= 1, LIMIT_S)


def test_headers_letter_by_letter(hasty: GateProcess) -> None:
    letters = b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 10_000
    with socket.create_connection(("127.0.0.1", hasty.http), timeout=LIMIT_S) as connection:
        for number in range(len(letters)):
            try:
                connection.sendall(letters[number : number + 1])
            except OSError:
                break
            time.sleep(0.05)
    assert number < 1000


def test_grpc_without_a_call(hasty: GateProcess) -> None:
    with connected(hasty.grpc, 3, HTTP2_PREFACE) as opened:
        for connection in opened:
            to_end(connection)


def test_a_grpc_message_that_does_not_come(hasty: GateProcess) -> None:
    def never() -> Iterator[bytes]:
        time.sleep(LIMIT_S / 4)
        yield b""

    with grpc.insecure_channel(hasty.grpc_address) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(never(), timeout=LIMIT_S)
    assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_slow_requests_make_room(triton: dict[str, str], samples: list[Path]) -> None:
    """Bodies and messages that do not come take nobody's place, and give way where there is no other room."""
    bounds = ("--max-requests-per-caller", "4", "--max-messages", "4", "--max-bytes", "4000000")
    slow = post(f"/v2/models/{PIPELINE}/infer", "Content-Length: 10000000", "Inference-Header-Content-Length: 0")
    over = threading.Event()

    def never() -> Iterator[bytes]:
        over.wait(2 * LIMIT_S)
        yield b""

    with gate_before(triton, *bounds) as small, connected(small.http, 8, slow, bytes(100)):
        serves(small, samples)
        with grpc.insecure_channel(small.grpc_address) as channel, Client(small.grpc_url, timeout_s=LIMIT_S) as client:
            infer = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
            calls = [infer.future(never()) for _ in range(8)]
            assert client.cut(samples[0]).images
            over.set()
            assert {type(call.exception(LIMIT_S)) for call in calls} != {type(None)}
        with connected(small.http, 40, slow, bytes(100_000)):
            assert wait_for(lambda: small.cut(samples[0].read_bytes()).status_code == 200, LIMIT_S)


def test_idle_connections_make_room(triton: dict[str, str], samples: list[Path]) -> None:
    with gate_before(triton, "--max-connections", "20") as small, connected(small.http, 60) as opened:
        serves(small, samples)
        assert small.metric('cutaway_gateway_connections_closed_total{bound="connections"}') >= 40
        assert small.metric("cutaway_gateway_connections") <= 22
        opened[-1].sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert to_end(opened[-1]).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("headers", [["X: " + "y" * 40_000], [f"X-{number}: y" for number in range(5000)]])
def test_long_headers(headers: list[str], hasty: GateProcess) -> None:
    answer = by_hand(hasty.http, post("/v2", *headers))
    assert not answer or answer.startswith(b"HTTP/1.1 400")


def test_a_header_without_end(hasty: GateProcess) -> None:
    before = hasty.resident_bytes
    by_hand(hasty.http, b"GET /v2 HTTP/1.1\r\nX: ", *[b"y" * 2**20] * 200)
    by_hand(hasty.http, b"GET /", *[b"y" * 2**20] * 200)
    assert hasty.resident_bytes - before < 2**25


def test_long_metadata(hasty: GateProcess, samples: list[Path]) -> None:
    with (
        tritonclient.grpc.InferenceServerClient(hasty.grpc_address) as client,
        pytest.raises(Exception, match="metadata"),
    ):
        client.is_server_ready(headers={"x": "y" * 100_000})
    serves(hasty, samples)


def test_many_requests_at_once_on_a_connection(hasty: GateProcess) -> None:
    ask = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert by_hand(hasty.http, ask * 4).count(b"HTTP/1.1 200") == 4
    assert by_hand(hasty.http, ask * 5000).count(b"HTTP/1.1 200") < 100


def grainy(sample: Path) -> bytes:
    """A sample at four times its size with noise, whose cut-out has megabytes."""
    image = cv2.resize(cv2.imread(str(sample)), None, fx=2, fy=2)
    noise = np.random.default_rng(0).integers(0, 40, image.shape, dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.add(image, noise))[1].tobytes()


def test_an_answer_that_is_not_taken(triton: dict[str, str], samples: list[Path]) -> None:
    picture, length = grainy(samples[0]), "Inference-Header-Content-Length: 0"
    head = post(f"/v2/models/{PIPELINE}/infer", f"Content-Length: {len(picture)}", length)
    closed = 'cutaway_gateway_connections_closed_total{bound="answer"}'
    with gate_before(triton, "--answer-timeout-s", "2") as hasty, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(LIMIT_S)
        connection.connect(("127.0.0.1", hasty.http))
        # Several, because the system's own buffers take the first ones: up to 4 MB.
        connection.sendall((head.replace(b"Connection: close\r\n", b"") + picture) * 4)
        assert wait_for(lambda: hasty.metric(closed) == 1, LIMIT_S)


def test_a_grpc_answer_that_is_not_taken(triton: dict[str, str], samples: list[Path]) -> None:
    request = service_pb2.ModelInferRequest(model_name=PIPELINE)
    picture = samples[0].read_bytes()
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(picture).to_bytes(4, "little") + picture)
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    with (
        gate_before(triton, "--answer-timeout-s", "2") as hasty,
        grpc.insecure_channel(hasty.grpc_address, options) as channel,
    ):
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelInfer")
        answers = call(iter([request.SerializeToString()]), timeout=2 * LIMIT_S)
        cancelled = f'cutaway_gateway_requests_total{{code="CANCELLED",model="{PIPELINE}",protocol="grpc"}}'
        assert wait_for(lambda: hasty.metric(cancelled) == 1, LIMIT_S)
        assert hasty.metric("cutaway_gateway_bytes_in_flight") == 0
        answers.cancel()
        serves(hasty, samples)


def test_keep_alive(hasty: GateProcess) -> None:
    with httpx.Client(trust_env=False) as client:
        for _ in range(3):
            assert client.get(f"{hasty.http_url}/v2").status_code == 200
