"""HTTP servers on loopback that speak the hosted wire formats, faults included; everything they receive is kept."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image, ImageDraw

TOKEN = "hf_s3cr3t_t0k3n_never_shown"
SIZE_WH = (160, 96)


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)
    connection: int = 0
    """The other side's port: the same for all requests over one connection."""

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What to answer, and how to misbehave.

    Attributes:
        hang: "before" the status line, or "body" after half of the body: nothing more comes.
        drip: "head" or "body": one byte at a time, for ever.
        reset: "before" or "body": the connection is reset instead of (the rest of) the answer.
        delay_s: wait before answering.
        length: what Content-Length says; None for the truth, -1 for chunks without end.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hang: str = ""
    drip: str = ""
    reset: str = ""
    delay_s: float = 0.0
    length: int | None = None


def picture(media_type: str = "image/png", size_wh: tuple[int, int] = SIZE_WH) -> bytes:
    """A picture with an ellipse on a gradient, upright and without metadata."""
    image = Image.linear_gradient("L").resize(size_wh).convert("RGB")
    ImageDraw.Draw(image).ellipse(_ellipse(size_wh), fill=(200, 90, 40))
    return encoded(image, media_type)


def mask(size_wh: tuple[int, int] = SIZE_WH) -> Image.Image:
    """Where the ellipse is, L."""
    image = Image.new("L", size_wh)
    ImageDraw.Draw(image).ellipse(_ellipse(size_wh), fill=255)
    return image


def cutout(size_wh: tuple[int, int] = SIZE_WH) -> Image.Image:
    """The ellipse cut out, RGBA."""
    image = Image.open(io.BytesIO(picture(size_wh=size_wh))).convert("RGB")
    image.putalpha(mask(size_wh))
    return image


def encoded(image: Image.Image, media_type: str = "image/png") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, media_type.partition("/")[2].upper())
    return buffer.getvalue()


def png(image: Image.Image) -> Reply:
    return Reply(body=encoded(image), headers={"Content-Type": "image/png"})


def as_json(form: Any, status: int = 200, **more: Any) -> Reply:
    headers = {"Content-Type": "application/json", **more.pop("headers", {})}
    return Reply(status, json.dumps(form).encode(), headers, **more)


def text(body: str, media_type: str = "text/html", status: int = 200) -> Reply:
    return Reply(status, body.encode(), {"Content-Type": media_type})


def _ellipse(size_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    return size_wh[0] // 4, size_wh[1] // 4, size_wh[0] * 3 // 4, size_wh[1] * 3 // 4


class Peer:
    """A server whose every answer comes from `answer`; use as a context manager."""

    def __init__(self, answer: Callable[[Received], Reply]) -> None:
        self.received: list[Received] = []
        self.answer = answer
        self.closing = threading.Event()
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def respond(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                received = Received(self.command, self.path, headers, body, self.client_address[1])
                peer.received.append(received)
                peer.send(self, peer.answer(received))

            do_GET = respond  # noqa: N815
            do_POST = respond  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def paths(self) -> list[str]:
        return [f"{received.method} {received.path}" for received in self.received]

    def send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.delay_s:
            self.closing.wait(reply.delay_s)
        if reply.hang == "before":
            self._hang(handler)
            return
        if reply.reset == "before":
            _reset(handler)
            return
        if reply.drip == "head":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            self._drip(handler)
            return
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.length == -1:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            length = len(reply.body) if reply.length is None else reply.length
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        if reply.length == -1:
            while not self.closing.is_set():
                handler.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        if reply.hang or reply.reset or reply.drip:
            handler.wfile.write(reply.body[: len(reply.body) // 2])
            handler.wfile.flush()
        if reply.drip == "body":
            self._drip(handler)
        elif reply.hang == "body":
            self._hang(handler)
        elif reply.reset == "body":
            _reset(handler)
        else:
            handler.wfile.write(reply.body)

    def _hang(self, handler: BaseHTTPRequestHandler) -> None:
        self.closing.wait(20)
        handler.close_connection = True

    def _drip(self, handler: BaseHTTPRequestHandler) -> None:
        while not self.closing.wait(0.02):
            handler.wfile.write(b"x")
            handler.wfile.flush()


def _reset(handler: BaseHTTPRequestHandler) -> None:
    """Close so that the other side sees a reset and not an end."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


# ------------------------------------------------------------------------------------- the three wire formats


class HubScript:
    """Hugging Face's router with one model: the replies in turn, the last one for ever."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies) or [png(mask())]

    def __call__(self, received: Received) -> Reply:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]


class ReplicateScript:
    """Replicate's API: create, poll through the states, cancel, and the file."""

    def __init__(
        self,
        *,
        states: Iterable[str] = ("starting", "processing", "succeeded"),
        output: Any = "{base}/files/out.png",
        error: str | None = None,
        create: Reply | list[Reply] | None = None,
        poll: Reply | list[Reply] | None = None,
        file: Reply | None = None,
    ) -> None:
        self.base = ""
        self._states = list(states)
        self._output = output
        self._error = error
        self._create = [create] if isinstance(create, Reply) else list(create or [])
        self._poll = [poll] if isinstance(poll, Reply) else list(poll or [])
        self._file = file or png(cutout())
        self.cancelled = 0

    def __call__(self, received: Received) -> Reply:
        if received.path.endswith("/cancel"):
            self.cancelled += 1
            return as_json({"id": "p1", "status": "canceled"})
        if received.path.startswith("/files/"):
            return self._file
        faults = self._create if received.method == "POST" else self._poll
        if faults:
            return faults.pop(0) if len(faults) > 1 else faults[0]
        return self.prediction(201 if received.method == "POST" else 200)

    def prediction(self, status: int) -> Reply:
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        output = json.loads(json.dumps(self._output).replace("{base}", self.base)) if state == "succeeded" else None
        form = {
            "id": "p1",
            "status": state,
            "output": output,
            "error": self._error,
            "metrics": {"predict_time": 1.25},
            "urls": {"get": f"{self.base}/v1/predictions/p1", "cancel": f"{self.base}/v1/predictions/p1/cancel"},
        }
        return as_json(form, status)


class SpaceScript:
    """A Gradio app: upload, call, events, file."""

    def __init__(
        self,
        *,
        events: str | None = None,
        upload: Reply | None = None,
        call: Reply | None = None,
        stream: Reply | None = None,
        file: Reply | None = None,
    ) -> None:
        self.base = ""
        self._events = events
        self._upload, self._call, self._stream = upload, call, stream
        self._file = file or png(cutout())

    def __call__(self, received: Received) -> Reply:
        if received.path == "/gradio_api/upload":
            return self._upload or as_json(["/tmp/gradio/ab12/picture.png"])
        if received.path.startswith("/gradio_api/file="):
            return self._file
        if received.method == "POST":
            return self._call or as_json({"event_id": "e1"})
        return self._stream or Reply(body=self.events().encode(), headers={"Content-Type": "text/event-stream"})

    def events(self) -> str:
        if self._events is not None:
            return self._events.replace("{base}", self.base)
        file = {
            "path": "/tmp/gradio/cd34/out.png",
            "url": f"{self.base}/gradio_api/file=/tmp/gradio/cd34/out.png",
            "meta": {"_type": "gradio.FileData"},
        }
        return f"event: heartbeat\ndata: null\n\nevent: complete\ndata: {json.dumps([file])}\n\n"


def hub_json(image: Image.Image, label: str = "mask") -> Reply:
    """hf-inference's answer for image-segmentation."""
    return as_json([{"label": label, "mask": base64.b64encode(encoded(image)).decode(), "score": 1.0}])


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    @property
    def s(self) -> float:
        return time.monotonic() - self._at
