"""KServe-v2 with binary tensors over HTTP, through httpcore: tritonclient's own HTTP client needs gevent, belongs to
one thread, and does not validate a server's lengths; httpx around it takes a third of a millisecond per request."""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
import time
from collections.abc import Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import anyio  # noqa: F401 (httpcore would import it in the first call, within its deadline)
import httpcore

from cutaway import __version__
from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, ServerUnavailable
from cutaway.resilience import parse_retry_after
from cutaway.transports import failures
from cutaway.transports.base import InferRequest, ModelInfo, Tensor, read_model, tensor
from cutaway.transports.connection import Connection, OneLoop
from cutaway.transports.failures import MAX_ANSWER_BYTES, STATUS_OF_HTTP, malformed, no_triton, refused

JSON_LENGTH = "Inference-Header-Content-Length"  # the number of JSON bytes in a body; the raw tensors follow them

# Of the timeout in Triton's queue, which does not detect that an HTTP caller has gone, over the caller's own.
QUEUE_TIMEOUT_FACTOR = 1.1
MAX_FAILURE_BYTES = 64 * 1024
MAX_IDLE, IDLE_S = 100, 30.0  # connections that wait for a request: shorter than what proxies commonly keep them for
READY_STATUSES = (200, 400, 503)  # Triton answers "not ready" with 400, and with 503 while it starts
FAILURES = httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, httpcore.TimeoutException, OSError


class HttpTransport:
    """See :class:`cutaway.transports.base.Transport`; OSError or ValueError where a certificate cannot be read."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._address = str(connection.address)
        self._path = quote(f"{connection.address.path}/v2", safe="/%")
        unused = partial(ssl.SSLContext, ssl.PROTOCOL_TLS_CLIENT)  # quicker than reading the public authorities
        default = ssl.create_default_context if connection.encrypted else unused
        self._context = connection.tls.context() if connection.tls is not None else default()
        scheme, host, port = connection.address.scheme, connection.address.host, connection.address.port
        self._url = partial(httpcore.URL, scheme=scheme, host=host.strip("[]").encode("idna"), port=port)
        self._headers = {
            "Host": host if port == {"http": 80, "https": 443}[scheme] else f"{host}:{port}",
            "User-Agent": f"cutaway/{__version__}",
            # Triton would otherwise compress PNGs once more, for ten times the milliseconds and no bytes less.
            "Accept-Encoding": "identity",
        }
        self._pool = OneLoop(self._opened)

    async def infer(self, request: InferRequest) -> dict[str, Tensor]:
        content, headers = _message_of(request)
        path = self._model_path(request.model, "/infer")
        _, received, body = await self._exchange("POST", path, request.timeout_s, headers=headers, content=content)
        return _tensors_of(received, body, self._address)

    async def server_ready(self, timeout_s: float) -> bool:
        return await self._ready(f"{self._path}/health/ready", timeout_s)

    async def model_ready(self, model: str, timeout_s: float) -> bool:
        return await self._ready(self._model_path(model, "/ready"), timeout_s)

    async def metadata(self, model: str, timeout_s: float) -> ModelInfo:
        _, _, body = await self._exchange("GET", self._model_path(model), timeout_s)
        return read_model(_json(body, self._address), self._address)

    async def aclose(self) -> None:
        if (pool := self._pool.close()) is not None:
            await pool.aclose()

    async def _ready(self, path: str, timeout_s: float) -> bool:
        return (await self._exchange("GET", path, timeout_s, expected=READY_STATUSES))[0] == 200

    async def _exchange(
        self, method: str, path: str, timeout_s: float, *, expected: tuple[int, ...] = (200,), **message: Any
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers (names in lower case) and bounded body of the answer to `message`: headers and content."""
        pool, started, body = self._pool.get(), time.monotonic(), bytearray()
        unfinished: list[Any] = []  # the connection of a TLS handshake, which httpcore forgets where it is cancelled

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                unfinished.append(info["return_value"])
            elif event == "connection.start_tls.complete":
                unfinished.clear()

        # The deadline bounds every other wait.
        extensions: dict[str, Any] = {"timeout": {"connect": limits.CONNECT_TIMEOUT_S}}
        if self._connection.encrypted:
            extensions["trace"] = trace
        headers = {**self._headers, **self._connection.headers, **message.pop("headers", {})}
        headers["Content-Length"] = str(len(message.get("content", b"")))
        request = httpcore.Request(
            method, self._url(target=path), headers=list(headers.items()), extensions=extensions, **message
        )
        try:
            async with asyncio.timeout(timeout_s), aclosing(await pool.handle_async_request(request)) as response:
                is_expected = response.status in expected
                async for part in response.aiter_stream():
                    body += part
                    if len(body) > (MAX_ANSWER_BYTES if is_expected else MAX_FAILURE_BYTES):
                        if response.status == 200:
                            raise malformed(f"it has more than {MAX_ANSWER_BYTES:,} bytes")
                        break
        except FAILURES as error:
            raise _broken(error, self._address, time.monotonic() - started, timeout_s) from None
        finally:
            for stream in unfinished:
                await stream.aclose()
        received = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        if not is_expected:
            raise _failure(response.status, received, bytes(body), self._address, time.monotonic() - started)
        return response.status, received, bytes(body)

    def _model_path(self, model: str, what: str = "") -> str:
        return f"{self._path}/models/{quote(model, safe='')}{what}"

    def _opened(self) -> httpcore.AsyncConnectionPool:
        parts = urlsplit(self._connection.proxy)
        secret = (unquote(parts.username or ""), unquote(parts.password or ""))
        place = f"http://{parts.netloc.rpartition('@')[2]}"  # the kind that `proxy_of` takes
        proxy = httpcore.Proxy(place, auth=secret if any(secret) else None) if parts.netloc else None
        return httpcore.AsyncConnectionPool(self._context, proxy, None, MAX_IDLE, IDLE_S)  # None: as many as it takes


def _message_of(request: InferRequest) -> tuple[bytes, dict[str, str]]:
    """The body of an inference request, and its headers."""
    raw: list[bytes] = []
    inputs: list[dict[str, Any]] = []
    for name, value in request.all_inputs.items():
        parts = (struct.pack("<I", len(value)), value) if isinstance(value, bytes) else (value.tobytes(),)
        datatype, shape = ("BYTES", [1]) if isinstance(value, bytes) else ("UINT8", list(value.shape))
        size = {"binary_data_size": sum(map(len, parts))}
        inputs.append({"name": name, "datatype": datatype, "shape": shape, "parameters": size})
        raw += parts
    parameters = {**request.parameters, "timeout": round(request.timeout_s * QUEUE_TIMEOUT_FACTOR * 1e6)}
    if (part := request.sequence) is not None:
        parameters |= {"sequence_id": part.id, "sequence_start": part.begins, "sequence_end": part.ends}
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs]
    message = {"id": request.request_id, "parameters": parameters, "inputs": inputs, "outputs": outputs}
    head = json.dumps(message).encode()
    headers = {JSON_LENGTH: str(len(head)), "Content-Type": "application/octet-stream", **request.headers}
    return b"".join((head, *raw)), headers


def _tensors_of(headers: Mapping[str, str], body: bytes, address: str) -> dict[str, Tensor]:
    """The outputs in an answer; InferenceError where they are malformed, ServerRefused where it is none of Triton's."""
    written = headers.get(JSON_LENGTH.lower(), str(len(body)))
    # Digits are bounded, because int() raises another error for thousands of them.
    length = int(written) if written.isascii() and written.isdigit() and len(written) < 20 else -1
    if not 0 <= length <= len(body):
        raise malformed("the length of its header is impossible")
    outputs = _json(body[:length], address).get("outputs")
    if not isinstance(outputs, list):
        raise no_triton(address, "JSON without outputs")
    view, position = memoryview(body), length
    tensors: dict[str, Tensor] = {}
    for output in outputs:
        match output:
            case {"name": str(name), "datatype": str(datatype), "shape": list(shape), "parameters": dict(parameters)}:
                size = parameters.get("binary_data_size")
            case _:
                raise malformed("an output is not described")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise malformed("an output is not binary")
        if size > len(body) - position:
            raise malformed(f"output {name!r} is cut off")
        tensors[name] = tensor(name, datatype, shape, view[position : position + size])
        position += size
    return tensors


def _json(body: bytes, address: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        if isinstance(head := json.loads(body), dict):
            return head
    raise no_triton(address, "no JSON")


def _failure(code: int, headers: Mapping[str, str], body: bytes, address: str, elapsed_s: float) -> CutawayError:
    """The error for an answer with an unexpected status."""
    wait_s = parse_retry_after(headers.get("retry-after"))
    if code not in STATUS_OF_HTTP and not 500 <= code <= 599:
        return no_triton(address, f"HTTP {code}")
    status, said = STATUS_OF_HTTP.get(code, "UNKNOWN"), failures.http_message(body) or f"HTTP {code}"
    return failures.error_of(status, said, address=address, elapsed_s=elapsed_s, retry_after_s=wait_s)


def _broken(error: Exception, address: str, elapsed_s: float, timeout_s: float) -> CutawayError:
    """The error for an exchange that failed underway, `elapsed_s` after it began with `timeout_s` seconds."""
    words = str(error).rstrip(".") or type(error).__name__
    if isinstance(error, (httpcore.TimeoutException, TimeoutError)):
        if isinstance(error, httpcore.ConnectTimeout) and elapsed_s < 0.99 * timeout_s:
            return ServerUnavailable(f"{address} cannot be reached within {limits.CONNECT_TIMEOUT_S:.0f} s.")
        return failures.timed_out(address, elapsed_s)
    refusal = _tls_refusal(error, address)
    if refusal is not None:
        return refusal
    if isinstance(error, httpcore.ConnectError):
        return ServerUnavailable(f"{address} cannot be reached: {words}.")
    if words.startswith("illegal "):  # of h11, about the first line: nothing that is a web server sends that
        return no_triton(address, words)
    return ServerUnavailable(f"{address} broke the connection: {words}.")


def _tls_refusal(error: BaseException, address: str) -> CutawayError | None:
    """The refusal behind a failed exchange; a connection that was merely closed may be a server that starts."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return failures.untrusted(address, str(cause.verify_message).rstrip("."))
        reason = str(getattr(cause, "reason", "")) if isinstance(cause, ssl.SSLError) else ""
        if "ALERT" in reason and "INTERNAL_ERROR" not in reason:
            return refused(f"{address} refuses the connection: {reason}.", "Check the client certificate.")
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return no_triton(address, reason)
        cause = cause.__cause__ or cause.__context__
    return None
