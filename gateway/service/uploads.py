"""What arrives: bodies bounded while they arrive, pictures from forms and data URIs, the options as form fields."""

from __future__ import annotations

import asyncio
import base64
import binascii
import inspect
import re
import time
import unicodedata
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import PurePath
from typing import Annotated, Any

from cutaway.contract.errors import CutawayError, FileTooLarge, InvalidFormat, ServerUnavailable
from cutaway.contract.limits import INPUT_LIMITS, OPTIONS
from fastapi import Form, UploadFile
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.admission import Admission
from gateway.http import is_known_host
from gateway.service.errors import Problem, ServiceProblem, answer

_DATA_URI = re.compile(r"data:(image/[a-z0-9.+-]+)?(;[a-z0-9=.+-]+)*;base64,", re.IGNORECASE)


class Refused(HTTPException):
    """A problem met while the body is read, in the one class that the framework passes on unchanged."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(413)
        self.problem = problem


class Guard:
    """ASGI middleware: no body becomes longer than its path allows, and every answer has the same headers.

    Args:
        app: what is protected.
        admission: the gate's, with its settings: which names this host has, and how long a body may take.
        bound: path → bytes.
        headers: path and the caller's quota, where it was counted → headers that each answer gets.
    """

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        bound: Callable[[str], int],
        headers: Callable[[str, Any], dict[str, str]],
    ) -> None:
        self._app, self._admission, self._bound, self._headers = app, admission, bound, headers
        self._settings = admission.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        most, seen, send = self._bound(scope["path"]), 0, self._with_headers(scope, send)
        headers = dict(scope["headers"])
        if not is_known_host(headers.get(b"host", b"").decode("latin-1"), self._settings.hosts):
            unknown = ServiceProblem(403, "FORBIDDEN", "This name is none of the server's.", "Name it with --hosts.")
            return await answer(scope["path"], unknown)(scope, receive, send)
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > most:
            return await answer(scope["path"], too_large(int(declared)))(scope, receive, send)
        if headers.get(b"content-encoding", b"identity") != b"identity":
            problem: CutawayError = InvalidFormat("A body with a Content-Encoding is refused: send it as it is.")
            return await answer(scope["path"], problem)(scope, receive, send)

        until, complete = time.monotonic() + self._settings.body_timeout_s, False

        async def bounded() -> Message:
            nonlocal seen, complete
            try:
                async with asyncio.timeout(None if complete else max(0.0, until - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                message_s = f"The body did not come within {self._settings.body_timeout_s:g} s."
                raise Refused(ServiceProblem(408, "BODY_TIMEOUT", message_s, "Send it faster, or smaller.")) from None
            complete = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > most:
                raise Refused(too_large(seen))
            return message

        if scope["method"] == "GET":  # a job's state or a picture may be fetched to the end
            return await self._app(scope, bounded, send)
        try:
            with self._admission.request():
                return await self._app(scope, bounded, send)
        except ServerUnavailable as error:
            return await answer(scope["path"], error)(scope, receive, send)

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer_headers = MutableHeaders(scope=message)
                quota = scope.get("state", {}).get("quota")
                for name, value in self._headers(scope["path"], quota).items():
                    answer_headers.setdefault(name, value)
            await send(message)

        return sent


def too_large(size_bytes: int) -> FileTooLarge:
    limit = INPUT_LIMITS.max_file_bytes
    return FileTooLarge(
        f"{size_bytes:,} bytes are more than the {limit:,} allowed.",
        details={"size_bytes": size_bytes, "max_bytes": limit},
    )


async def read_upload(upload: UploadFile) -> bytes:
    """The bytes of a form's picture.

    Raises:
        FileTooLarge, InvalidFormat: it is too long, or empty.
    """
    data: bytes = await upload.read(INPUT_LIMITS.max_file_bytes + 1)
    if len(data) > INPUT_LIMITS.max_file_bytes:
        raise too_large(upload.size or len(data))
    if not data:
        raise InvalidFormat("The picture is empty.", details={"received": "nothing"})
    return data


def read_base64(text: str) -> tuple[bytes, str | None]:
    """The bytes and the declared media type of a data URI, or of bare base64.

    Raises:
        FileTooLarge, InvalidFormat.
    """
    head = _DATA_URI.match(text[:200])
    body = text[head.end() :] if head else text
    if len(body) > INPUT_LIMITS.max_file_bytes * 4 // 3 + 1024:
        raise too_large(len(body) * 3 // 4)
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        message = "The picture is no base64: send a data URI such as data:image/jpeg;base64,…"
        raise InvalidFormat(message, details={"received": text[:40]}) from None
    return data, head[1] if head else None


def data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def download_name(filename: str | None, extension: str) -> str:
    """``{stem}_nobg_{YYYYmmdd_HHMMSS}.png``, in ASCII, as a header can carry it."""
    stem = PurePath((filename or "image").replace("\\", "/")).stem
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', plain)[:100] or 'image'}_nobg_{datetime.now():%Y%m%d_%H%M%S}{extension}"


def option_fields(skip: tuple[str, ...] = ()) -> Callable[..., Awaitable[dict[str, str]]]:
    """A FastAPI dependency that reads the contract's options as form fields; what is empty keeps its default."""

    async def read(**given: str | None) -> dict[str, str]:
        return {name: value for name, value in given.items() if value not in (None, "")}

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, Form(description=f"{option.help}. Allowed: {option.allowed}.")],
        )
        for name, option in OPTIONS.items()
        if name not in skip
    ]
    read.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return read


def plain(value: Any) -> Any:
    """Numbers of numpy as Python's, rounded: boxes in answers."""
    return [round(float(number), 1) for number in value]
