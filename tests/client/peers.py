"""Peers on loopback that misbehave in one way each, for tests of the transports."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

Handler = Callable[[socket.socket, threading.Event], None]
"""Serves one connection; the event says that the test is over."""


@contextmanager
def tcp_peer(handler: Handler) -> Iterator[int]:
    """A port on which every connection is given to the handler."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            handler(connection, over)

    def accept() -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.settimeout(5)
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        accepting.join()
        for thread in threads:
            thread.join()
        listener.close()


def dead_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def full_port() -> Iterator[int]:
    """A port whose machine answers no more: the queue of those who want to connect is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = []
        try:
            for _ in range(3):
                waiting.append(socket.socket())
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(listener.getsockname())
            yield int(listener.getsockname()[1])
        finally:
            for each in waiting:
                each.close()


def silent(connection: socket.socket, over: threading.Event) -> None:
    """Takes the connection and never says anything, nor reads."""
    over.wait(10)


def closing(connection: socket.socket, over: threading.Event) -> None:
    """Hangs up at once."""


def resetting(connection: socket.socket, over: threading.Event) -> None:
    """Takes some of the request and breaks the connection off."""
    connection.recv(100)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def babbling(connection: socket.socket, over: threading.Event) -> None:
    """Speaks another protocol."""
    connection.sendall(b"220 mail.example ESMTP ready\r\n" * 20 + b"\r\n")
    while connection.recv(65536):
        pass


def secured(handler: Handler, context: ssl.SSLContext) -> Handler:
    """The same behind TLS."""

    def serve(connection: socket.socket, over: threading.Event) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            handler(secure, over)

    return serve


def dripping(before: bytes) -> Handler:
    """Sends some bytes, and then one every 50 ms for ever."""

    def handler(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(before)
        while not over.wait(0.05):
            connection.sendall(b"x")

    return handler


def read_request(connection: socket.socket) -> bytes:
    """An HTTP request with its body; nothing where the caller left before it was whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            return data
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")] or [
        0
    ]
    while len(body) < int(length):
        received = connection.recv(65536)
        if not received:
            return b""
        body += received
    return head + b"\r\n\r\n" + body


def http_answer(status: int = 200, body: bytes = b"", length: int | None = None, **headers: Any) -> Handler:
    """Gives every request this answer; `length` is what the answer claims to have."""
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    def handler(connection: socket.socket, over: threading.Event) -> None:
        while read_request(connection):
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            if length is not None:
                return

    return handler


def kserve_answer(outputs: list[dict[str, Any]], raw: bytes) -> Handler:
    head = json.dumps({"model_name": "ensemble_pipeline", "outputs": outputs}).encode()
    return http_answer(200, head + raw, Inference_Header_Content_Length=len(head))


def output(name: str, datatype: str, shape: list[int], size: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, answer: Callable[[Any, grpc.ServicerContext], Any]) -> None:
        self._answer = answer

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, "_answer" if name[0].isupper() else name)


@contextmanager
def grpc_peer(
    answer: Callable[[Any, grpc.ServicerContext], Any],
    port: int = 0,
    *,
    workers: int = 2,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[int]:
    """A gRPC server each of whose methods is the function; on any free port where `port` is 0."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(workers), options=unlimited)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(answer), server)
    where = f"127.0.0.1:{port}"
    port = server.add_insecure_port(where) if credentials is None else server.add_secure_port(where, credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


class Watch:
    """What a server sees of a request that it takes and never answers."""

    def __init__(self) -> None:
        self.came = threading.Event()
        self.left = threading.Event()

    def serve_http(self, connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        self.came.set()
        with suppress(OSError):  # the client may as well reset the connection
            while not over.is_set() and connection.recv(65536):
                pass
        self.left.set()

    def serve_grpc(self, request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(self.left.set)
        self.came.set()
        self.left.wait(10)
        return service_pb2.ModelInferResponse()


@contextmanager
def watching(scheme: str) -> Iterator[tuple[str, Watch]]:
    """The address of a server that takes requests and never answers, and what it sees."""
    watch = Watch()
    peer = grpc_peer(watch.serve_grpc) if scheme == "grpc" else tcp_peer(watch.serve_http)
    with peer as port:
        yield f"{scheme}://127.0.0.1:{port}", watch


@contextmanager
def echoing(scheme: str, delay_s: Callable[[bytes], float] = lambda _: 0.0) -> Iterator[str]:
    """The address of a server that sends each picture back after a while, as the output "images"."""

    def serve_grpc(request: Any, context: grpc.ServicerContext) -> Any:
        raw = request.raw_input_contents[0]
        time.sleep(delay_s(raw[4:]))
        return grpc_answer(("images", "BYTES", [1], raw))(request, context)

    def serve_http(connection: socket.socket, over: threading.Event) -> None:
        while data := read_request(connection):
            head, _, body = data.partition(b"\r\n\r\n")
            (length,) = [
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"inference-header-content-length")
            ]
            time.sleep(delay_s(body[length + 4 :]))
            kserve_message = json.dumps({"outputs": [output("images", "BYTES", [1], len(body) - length)]}).encode()
            answer = kserve_message + body[length:]
            lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(answer)}"]
            lines += [f"Inference-Header-Content-Length: {len(kserve_message)}", "", ""]
            connection.sendall("\r\n".join(lines).encode() + answer)

    peer = grpc_peer(serve_grpc, workers=16) if scheme == "grpc" else tcp_peer(serve_http)
    with peer as port:
        yield f"{scheme}://127.0.0.1:{port}"


def grpc_failure(status: str, message: str) -> Callable[[Any, grpc.ServicerContext], Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode[status], message)

    return answer


def grpc_answer(*outputs: tuple[str, str, list[int], bytes]) -> Callable[[Any, grpc.ServicerContext], Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        response = service_pb2.ModelInferResponse(id=request.id)
        for name, datatype, shape, raw in outputs:
            response.outputs.add(name=name, datatype=datatype, shape=shape)
            response.raw_output_contents.append(raw)
        return response

    return answer


def seconds_of(call: Callable[[], Any]) -> tuple[float, Exception | None]:
    """How long a call took, and what it raised."""
    started = time.monotonic()
    try:
        call()
    except Exception as error:
        return time.monotonic() - started, error
    return time.monotonic() - started, None
