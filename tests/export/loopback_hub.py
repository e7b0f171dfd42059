"""A Hugging Face Hub and GitHub releases on loopback, and the CDN that both send on to; all requests are kept.

The hub answers `HEAD` and `GET` of `/{owner}/{name}/resolve/{revision}/{file}` as the real one does: a redirect to a
signed address, with the commit, the digest and the size in its headers, and errors told apart by `X-Error-Code`. The
CDN, as the real ones, answers ranges, wants its signature, and refuses a request that carries a token.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SIGNATURE = "X-Amz-Signature=s1gned"
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
RELEASE = re.compile(r"/([^/]+/[^/]+)/releases/download/([^/]+)/([^/]+)")


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Reply:
    """An answer; `stop_after` ends the connection after so many bytes of the body, `reset` in the rude way."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    stop_after: int | None = None
    reset: bool = False


@dataclass
class Repository:
    """One repository at the hub.

    Attributes:
        files: by commit, then by name.
        branches: from name to commit.
        gated: only `allowed` tokens get files; the others learn that a licence is to be accepted.
    """

    files: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    gated: bool = False
    allowed: tuple[str, ...] = ()


class Site:
    """One HTTP server on a free port of loopback."""

    def __init__(self, answer: Callable[[Received], Reply]) -> None:
        self.received: list[Received] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                request = Received(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
                site.received.append(request)
                reply = answer(request)
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                self.wfile.write(reply.body[: reply.stop_after])
                if reply.stop_after is not None:
                    self.wfile.flush()
                    self.close_connection = True
                    if reply.reset:
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    else:
                        self.connection.shutdown(socket.SHUT_WR)

            do_GET = do_HEAD = _serve  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that hangs up early is what some tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class LoopbackHub:
    """The sites together.

    Attributes:
        repositories: at the hub, by `owner/name`.
        assets: of releases, by `owner/name/tag/file`.
        faults: taken one by one by the CDN's answers: each is made of the true reply.
        hub_faults: the same for the hub; a reply in place of the true one.
        served: the CDN's bytes by path; a test may change them.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.assets: dict[str, bytes] = {}
        self.faults: list[Callable[[Reply], Reply]] = []
        self.hub_faults: list[Reply] = []
        self.served: dict[str, bytes] = {}
        self.tokens: tuple[str, ...] = ()
        self.hub, self.cdn = Site(self._answer), Site(self._serve)

    @property
    def url(self) -> str:
        return self.hub.url

    def _answer(self, request: Received) -> Reply:
        if self.hub_faults:
            return self.hub_faults.pop(0)
        path = urlsplit(request.path).path
        if found := RESOLVE.fullmatch(path):
            return self._resolve(request, *found.groups())
        if found := RELEASE.fullmatch(path):
            asset = self.assets.get("/".join(found.groups()))
            return Reply(404) if asset is None else self._send_on(f"/release{path}", asset, {})
        return Reply(404)

    def _resolve(self, request: Received, name: str, revision: str, file: str) -> Reply:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        repository = self.repositories.get(name)
        if token and token not in self.tokens:
            return _error(401, "", "Invalid credentials in Authorization header")
        if repository is None:
            return _error(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.gated and token not in repository.allowed:
            return _error(403 if token else 401, "GatedRepo", "Access to this model is restricted.")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.files:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = repository.files[commit].get(file)
        if content is None:
            return _error(404, "EntryNotFound", "Entry not found")
        digest = hashlib.sha256(content).hexdigest()
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "ETag": f'"{digest}"',
        }
        return self._send_on(f"/repos/{name}/{digest}", content, headers)

    def _send_on(self, path: str, content: bytes, headers: dict[str, str]) -> Reply:
        self.served.setdefault(path, content)
        return Reply(302, {**headers, "Location": f"{self.cdn.url}{path}?{SIGNATURE}"})

    def _serve(self, request: Received) -> Reply:
        parts = urlsplit(request.path)
        content = self.served.get(parts.path)
        if content is None or parts.query != SIGNATURE:
            return Reply(403)
        if "authorization" in request.headers:
            return Reply(400, body=b"Only one auth mechanism allowed")
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        reply = Reply(200, headers, content)
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if asked and request.headers.get("if-range", etag) == etag:
            begin = int(asked[1])
            if begin >= len(content):
                reply = Reply(416, {"Content-Range": f"bytes */{len(content)}"})
            else:
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
                reply = Reply(206, headers, content[begin:])
        return self.faults.pop(0)(reply) if self.faults else reply


def _error(status: int, code: str, message: str) -> Reply:
    headers = {"X-Error-Message": message, "Content-Type": "application/json"}
    if code:
        headers["X-Error-Code"] = code
    return Reply(status, headers, json.dumps({"error": message}).encode())


def breaks_after(size_bytes: int, reset: bool = False) -> Callable[[Reply], Reply]:
    """A fault: the connection ends in the middle of the body. After a reset even less may have arrived."""

    def fault(reply: Reply) -> Reply:
        reply.stop_after, reply.reset = size_bytes, reset
        return reply

    return fault


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    hub.hub.start()
    hub.cdn.start()
    try:
        yield hub
    finally:
        hub.hub.stop()
        hub.cdn.stop()
