"""KServe over gRPC: the calls that pass, on bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container
from typing import Any, TypeAlias

import grpc
from cutaway.contract.errors import CutawayError
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from gateway import failures, wire
from gateway.core import Core
from gateway.failures import Failure
from gateway.request import MODELS, NETWORKS, malformed
from gateway.settings import Settings
from gateway.upstream import EXTENSIONS, HEALTH_TIMEOUT_S, SERVICE

Context: TypeAlias = Any  # grpc.aio.ServicerContext, on bytes
Handler: TypeAlias = Callable[[Any, Context], Awaitable[None]]

KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 60_000, 20_000  # how soon a peer without power is noticed
SERVING, NOT_SERVING = b"\x08\1", b"\x08\2"  # of grpc.health.v1
INFER = f"{SERVICE.strip('/')}/ModelInfer"
IDENTITY_ONLY = 1  # a bit for each of gRPC's compressions: small messages would unfold without a bound of ours


def options(settings: Settings) -> list[tuple[str, int]]:
    """gRPC's own bounds of connections and messages."""
    largest = max(map(settings.max_body_bytes, MODELS))
    age_ms, grace_ms = round(settings.connection_age_s * 1000), round(settings.request_timeout_s * 1000)
    aging = [("grpc.max_connection_age_ms", age_ms), ("grpc.max_connection_age_grace_ms", grace_ms)] if age_ms else []
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", largest),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.max_concurrent_streams", settings.max_streams),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_idle_ms", round(settings.idle_timeout_s * 1000)),
        *aging,
        ("grpc.server_handshake_timeout_ms", round(settings.header_timeout_s * 1000)),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
    ]


class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The methods that are served; gRPC itself answers UNIMPLEMENTED to others."""

    def __init__(self, core: Core) -> None:
        self._core = core
        # A unary call looks the same as one of streams with a message each; as such its message is read, and its answer
        # written, within the admission and the timeouts, or not read at all where there is nothing in it.
        self._methods = {
            name: grpc.stream_stream_rpc_method_handler(method)
            for name, method in {
                f"/{INFER}": self._infer,
                SERVICE + "ServerLive": self._answering(self._live),
                SERVICE + "ServerReady": self._answering(self._ready),
                SERVICE + "ServerMetadata": self._answering(self._server_metadata),
                SERVICE + "ModelReady": self._answering(self._about_model, "ModelReady"),
                SERVICE + "ModelMetadata": self._answering(self._about_model, "ModelMetadata"),
                "/grpc.health.v1.Health/Check": self._answering(self._health),
            }.items()
        }

    def service(self, details: Any) -> Any:
        return self._methods.get(details.method)

    async def _infer(self, _: Any, context: Context) -> None:
        core = self._core
        metadata = [(name, value) for name, value in context.invocation_metadata() if isinstance(value, str)]
        try:
            observed = core.observed("grpc", metadata, route=INFER)
            with observed as seen, core.admission.place(_address(context)) as place:
                message = await self._message(context)
                place.hold(len(message))
                place.begin()
                seen.request_bytes = len(message)
                request = wire.infer_request(message, core.settings)
                _known(request.model)
                seen.take(request)
                left_s = context.time_remaining()
                timeout_s = core.settings.request_timeout_s if left_s is None else left_s
                answer = await core.infer(request, place, timeout_s, seen.trace.metadata())
                seen.read(answer)
                seen.response_bytes = len(answer)
                await self._write(context, answer)
        except Failure as failure:
            await context.abort(failure.grpc_status, failure.message)

    async def _message(self, context: Context) -> bytes:
        try:
            async with self._core.admission.arriving_message():
                message = await context.read()
        except TimeoutError:
            raise Failure("the message did not come", 408, grpc.StatusCode.DEADLINE_EXCEEDED, "BODY_TIMEOUT") from None
        if not isinstance(message, bytes):
            raise malformed("no message came", "one")
        return message

    async def _write(self, context: Context, answer: bytes) -> None:
        try:
            async with asyncio.timeout(self._core.settings.answer_timeout_s):
                await context.write(answer)
        except TimeoutError:
            raise Failure("the answer was not taken", 408, grpc.StatusCode.DEADLINE_EXCEEDED, "CANCELLED") from None

    def _answering(self, method: Callable[..., Awaitable[bytes]], *about: str) -> Handler:
        """A method that is given the names of what it is about and the message, or neither."""

        async def answer(_: Any, context: Context) -> None:
            try:
                given = (*about, await self._message(context)) if about else ()
                return await self._write(context, await method(*given))
            except CutawayError as error:
                failure = failures.of_error(error)
            except Failure as raised:
                failure = raised
            await context.abort(failure.grpc_status, failure.message)

        return answer

    async def _live(self) -> bytes:
        return _encoded(service_pb2.ServerLiveResponse(live=True))

    async def _ready(self) -> bytes:
        return _encoded(service_pb2.ServerReadyResponse(ready=await self._core.ready()))

    async def _health(self) -> bytes:
        return SERVING if await self._core.ready() else NOT_SERVING

    async def _server_metadata(self) -> bytes:
        answer = await self._core.upstream.call("ServerMetadata", b"", HEALTH_TIMEOUT_S)
        told = service_pb2.ServerMetadataResponse.FromString(answer)
        told.extensions[:] = [each for each in told.extensions if each in EXTENSIONS]
        return _encoded(told)

    async def _about_model(self, method: str, message: bytes) -> bytes:
        """Both requests have a name and a version."""
        try:
            asked = service_pb2.ModelReadyRequest.FromString(message[: self._core.settings.max_json_bytes])
        except DecodeError:
            raise malformed("it is no such message", "protobuf") from None
        sent = service_pb2.ModelReadyRequest(name=_known(asked.name, (*MODELS, *NETWORKS)), version=asked.version[:9])
        return await self._core.upstream.call(method, _encoded(sent), HEALTH_TIMEOUT_S)


def _encoded(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _known(model: str, among: Container[str] = MODELS) -> str:
    if model not in among:
        raise failures.no_such_model(model)
    return model


def _address(context: Context) -> str:
    """The caller's, without the port."""
    return str(context.peer()).rpartition(":")[0]
