"""What the access log and traces see of the HTTP service: ASGI middleware, and jobs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cutaway.call import MAX_REQUEST_ID_CHARS
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.access import AccessLog, Entry, current, shorten

REQUEST_ID = "X-Request-ID"
_TOLD = ("/api/", "/v1.0/")
"""Of other paths, the page's files, failures alone are told; as of health checks."""


class Observed:
    """ASGI middleware around all others: a request's entry, its span, and its id, which the answer has, too."""

    def __init__(self, app: ASGIApp, access: AccessLog) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers, path, verb = Headers(scope=scope), scope["path"], scope.get("method", "WS")
        quiet = not path.startswith(_TOLD) or path.endswith("/health")
        given = _request_id(headers.get(REQUEST_ID, ""))
        with self._access.entered(
            "service", headers.items(), route=f"{verb} {path}", quiet=quiet, request_id=given
        ) as entry:
            if not quiet:
                entry.trace.begin(verb)
            complete = False

            async def received() -> Message:
                message = await receive()
                entry.request_bytes += _size(message)
                return message

            async def sent(message: Message) -> None:
                nonlocal complete
                if message["type"] == "http.response.start":
                    entry.status = message["status"]
                    MutableHeaders(scope=message)[REQUEST_ID] = entry.request_id
                elif message["type"] == "websocket.accept":
                    entry.status = 101
                elif message["type"] == "websocket.close" and not entry.status:
                    entry.code, entry.status = "FORBIDDEN", 403  # what becomes of it before it is accepted
                entry.response_bytes += _size(message)
                await send(message)
                complete = complete or (message["type"] == "http.response.body" and not message.get("more_body", False))

            with entry.trace.current():
                try:
                    await self._app(scope, received, sent)
                finally:
                    if route := getattr(scope.get("route"), "path", ""):  # without the ids, by which pictures are read
                        entry.route = f"{verb} {route}"
            if not entry.code and (complete or verb == "WS"):
                failed = isinstance(entry.status, int) and entry.status >= 400
                entry.code = f"HTTP_{entry.status}" if failed else "OK"


def _size(message: Message) -> int:
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"")


def _request_id(given: str) -> str:
    """What the caller gave, as far as it is printable ASCII, or a new one."""
    return shorten(given.encode("ascii", "replace").decode())[:MAX_REQUEST_ID_CHARS] or uuid.uuid4().hex


def carried() -> dict[str, Any]:
    """What a job, maybe on another gateway, is told of the request that it comes from."""
    entry = current()
    told = {"request_id": entry.request_id, "key": entry.key, "tier": entry.tier}
    return told | {"headers": entry.trace.headers()}


def jobs_entry(access: AccessLog) -> Callable[[Mapping[str, Any]], Any]:
    """The entry of a job by its arguments."""

    @contextmanager
    def entered(arguments: Mapping[str, Any]) -> Iterator[Entry]:
        told = dict(arguments.get("from") or {})  # there is none in those of an older gateway
        headers = [(str(name), str(value)) for name, value in told.pop("headers", ())]
        with access.entered("job", headers, route="remove", **told) as entry:
            entry.trace.begin("remove")
            with entry.trace.current():
                yield entry
            entry.code = entry.code or "OK"

    return entered
