"""KServe over HTTP, as an ASGI application, and the metrics' one."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import grpc
from cutaway.contract.errors import ServerUnavailable

from gateway import failures, kserve_json, metrics
from gateway.admission import Place
from gateway.core import CallerGone, Core
from gateway.failures import Failure
from gateway.request import MODELS, NETWORKS, Body, Buffer, malformed, too_large
from gateway.upstream import EXTENSIONS

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers: TypeAlias = Mapping[str, str]

ROTATION = "/v2/health/rotation"
"""Readiness for balancers that tell by 404 who leaves, whose requests under way are to end, from who is broken."""
JSON = ("content-type", "application/json")
BINARY = ("content-type", "application/octet-stream")
JSON_LENGTH = "inference-header-content-length"
PREFLIGHT = (
    ("access-control-allow-methods", "GET, POST"),
    ("access-control-allow-headers", f"content-type, {JSON_LENGTH}"),
    ("access-control-max-age", "600"),
)

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([0-9]{1,9}))?(?:/(infer|ready))?")


class HttpApp:
    """Health, metadata and inference under ``/v2``."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        exchange = _Exchange(self._core, scope, headers, receive, send)
        with suppress(CallerGone):
            try:
                exchange.added = self._cross_origin(headers)
                await self._route(scope["method"], scope["path"], exchange)
            except Failure as failure:
                if not exchange.told:
                    exchange.tell(failure)
                await exchange.fail(failure)

    async def _route(self, method: str, path: str, exchange: _Exchange) -> None:
        if method == "OPTIONS" and exchange.added:
            return await exchange.respond(204, PREFLIGHT)
        found = _MODEL.fullmatch(path)
        name, version, action = found.groups() if found else ("", None, None)
        if found and name not in (MODELS if action == "infer" else (*MODELS, *NETWORKS)):
            raise failures.no_such_model(name)
        if method != ("POST" if action == "infer" else "GET"):
            raise Failure(f"not here with {method[:20]}", 405, grpc.StatusCode.UNIMPLEMENTED, "NOT_FOUND")
        if action == "infer":
            return await exchange.infer(name, version or "")
        if path == "/v2/health/live":
            return await exchange.respond(200, [JSON])
        if path == ROTATION and self._core.leaving:
            raise failures.not_found(path)
        if path in ("/v2/health/ready", ROTATION) or action == "ready":
            if await self._core.ready() and (not found or (await self._core.upstream.get(path))[0] == 200):
                return await exchange.respond(200, [JSON])
            raise failures.of_error(ServerUnavailable("The server is not ready."))
        if path == "/v2" or found:
            return await exchange.respond(*await self._metadata(path))
        raise failures.not_found(path)

    async def _metadata(self, path: str) -> tuple[int, list[tuple[str, str]], list[Buffer]]:
        """Triton's own; the path is one of this module's."""
        status, body = await self._core.upstream.get(path)
        if path == "/v2" and status == 200:
            told = json.loads(body)
            told["extensions"] = [each for each in told["extensions"] if each in EXTENSIONS]
            body = json.dumps(told).encode()
        return status, [JSON], [body]

    def _cross_origin(self, headers: Headers) -> list[tuple[str, str]]:
        """The headers for a page of an origin that may call; Failure where it, or the name of this host, may not.

        Without the check of the host's name, a page can have its own name point to this machine (DNS rebinding).
        """
        settings = self._core.settings
        host = headers.get("host", "")
        if not is_known_host(host, settings.hosts):
            raise failures.forbidden("this name is none of the server's: name it with --hosts")
        origin = headers.get("origin")
        if origin is None or origin.partition("://")[2] == host:
            return []
        if origin not in settings.origins and "*" not in settings.origins:
            raise failures.forbidden("pages of this origin may not call the server: name it with --origins")
        exposed = f"{JSON_LENGTH}, retry-after"
        return [("access-control-allow-origin", origin), ("access-control-expose-headers", exposed), ("vary", "origin")]


class _Exchange:
    """One request and its answer."""

    def __init__(self, core: Core, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        self._core, self._headers, self._receive, self._send = core, headers, receive, send
        self._caller = scope["client"][0] if scope["client"] else ""
        self._route = f"{scope['method']} {scope['path']}"
        self.told = False
        self.added: Sequence[tuple[str, str]] = ()

    async def infer(self, model: str, version: str) -> None:
        core, headers, self.told = self._core, self._headers, True
        observed = core.observed("http", headers.items(), route=self._route, model=model)
        with observed as seen, core.admission.place(self._caller) as place:
            coding = headers.get("content-encoding", "identity").lower()
            if coding != "identity":
                raise Failure(
                    f"the content coding {coding[:20]!r} is not taken",
                    415,
                    grpc.StatusCode.UNIMPLEMENTED,
                    "INVALID_OPTION",
                )
            written = headers.get(JSON_LENGTH)
            length = kserve_json.json_length(None if written is None else written.encode(), core.settings)
            body = await self._body(model, length, place)
            seen.request_bytes = body.size
            place.begin()
            request, wanted = kserve_json.infer_request(model, body, length, core.settings)
            request.version = version
            seen.take(request)
            timeout_s = core.settings.request_timeout_s
            message = await self._while_connected(core.infer(request, place, timeout_s, seen.trace.metadata()))
            seen.read(message)
            head, raw = kserve_json.answer(message, wanted, core.settings)
            seen.response_bytes = len(head) + sum(map(len, raw))
            kind = [BINARY, (JSON_LENGTH, str(len(head)))] if raw else [JSON]
            await self.respond(200, kind, [head, *raw])

    def tell(self, failure: Failure) -> None:
        """Tell of a refusal that is no inference's."""
        headers = self._headers.items()
        with suppress(Failure), self._core.access.entered("http", headers, route=self._route):
            raise failure

    async def respond(self, status: int, headers: Sequence[tuple[str, str]], parts: Sequence[Buffer] = ()) -> None:
        """Send the answer; CallerGone where it is not taken."""
        length = ("content-length", str(sum(map(len, parts)))) if status != 204 else ("vary", "origin")
        added = (*self.added, ("connection", "close")) if self._core.leaving else self.added
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in (*headers, length, *added)]
        try:
            async with asyncio.timeout(self._core.settings.answer_timeout_s):
                await self._send({"type": "http.response.start", "status": status, "headers": encoded})
                for part in parts:
                    await self._send({"type": "http.response.body", "body": part, "more_body": True})
                await self._send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            raise CallerGone from None

    async def fail(self, failure: Failure) -> None:
        headers = [JSON]
        if failure.retry_after_s is not None and failure.http_status in (429, 503):
            headers.append(("retry-after", str(max(1, round(failure.retry_after_s)))))
        await self.respond(failure.http_status, headers, [failure.body])

    async def _body(self, model: str, json_length: int | None, place: Place) -> Body:
        """The whole body, within bounds while it arrives."""
        settings = self._core.settings
        allowed = settings.max_json_bytes if json_length is None else settings.max_body_bytes(model)
        declared = int(self._headers.get("content-length", 0))
        parts: list[Buffer] = []
        size = 0
        try:
            async with self._core.admission.arriving():
                while True:
                    if max(size, declared) > allowed:
                        if json_length is not None:
                            raise too_large(max(size, declared))
                        raise malformed("its JSON is too long", f"at most {allowed} bytes; tensors in binary form")
                    event = await self._receive()
                    if event["type"] == "http.disconnect":
                        raise CallerGone
                    if part := event.get("body", b""):
                        parts.append(part)
                        size += len(part)
                        place.hold(len(part))
                    if not event.get("more_body", False):
                        return Body(parts)
        except TimeoutError:
            message = f"the body did not come within {settings.body_timeout_s:g} s"
            raise Failure(message, 408, grpc.StatusCode.DEADLINE_EXCEEDED, "BODY_TIMEOUT") from None

    async def _while_connected(self, call: Awaitable[bytes]) -> bytes:
        """The call's answer; it is cancelled where the caller disconnects, and so is Triton's request."""
        answer = asyncio.ensure_future(call)
        disconnect = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait((answer, disconnect), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise CallerGone
            return answer.result()
        finally:
            answer.cancel()
            disconnect.cancel()


def metrics_app(core: Core) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """``GET /metrics``: the gate's, Triton's and the supervisor's, and nothing else.

    Where Triton stands behind a further gate, that one tells of both: the same names would be there twice.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(core, scope, {}, receive, send)
        with suppress(CallerGone):
            if scope["path"] != "/metrics" or scope["method"] != "GET":
                return await exchange.fail(failures.not_found(scope["path"]))
            triton, supervisor = await core.upstream.metrics(), b""
            with suppress(OSError):
                supervisor = Path(core.settings.further_metrics).read_bytes()  # a page, written whole
            texts = [core.metrics.text(), b"" if metrics.OWN in triton else triton, supervisor]
            await exchange.respond(200, [("content-type", "text/plain; version=0.0.4; charset=utf-8")], texts)

    return answer


def is_known_host(host: str, names: Sequence[str]) -> bool:
    """Whether a Host header names this server: an address, localhost, a name of a local network, or one of `names`."""
    if "*" in names:
        return True
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(".localhost") or name in names
    return True
