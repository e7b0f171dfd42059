"""The way to Triton: inference over gRPC, whose cancellation and deadlines reach it; metadata and metrics over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

import grpc
import httpx
from cutaway.contract.errors import ServerUnavailable
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from gateway import failures
from gateway.failures import Failure
from gateway.metrics import Metrics
from gateway.settings import Settings

SERVICE = "/inference.GRPCInferenceService/"
EXTENSIONS = {"binary_tensor_data", "parameters", "sequence"}  # of Triton's, what passes the gate
HEALTH_TIMEOUT_S = 5.0
READY_TIMEOUT_S = 2.0
READY_TRIES = 3

UNIX = "unix:"

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),
    # After failed connections gRPC would refuse calls for up to two minutes, although Triton is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 1000),
)


class Upstream:
    """Triton, as one event loop reaches it; every method raises only `Failure`."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        # Of a name with several addresses, such as a headless Kubernetes service, each is asked in turn; but a stream's
        # past is known where it began.
        self._channel, self._one_server = (
            grpc.aio.insecure_channel(
                settings.triton_grpc,
                (
                    *_OPTIONS,
                    ("grpc.max_receive_message_length", settings.max_answer_bytes),
                    ("grpc.lb_policy_name", policy),
                ),
            )
            for policy in ("round_robin", "pick_first")
        )
        addresses = {settings.triton_http, settings.triton_metrics}
        self._http = {address: _client(address) for address in addresses if address}

    async def call(
        self,
        method: str,
        message: bytes,
        timeout_s: float,
        metadata: Sequence[tuple[str, str]] = (),
        *,
        one_server: bool = False,
    ) -> bytes:
        """Triton's answer; cancelling this cancels the request there.

        Args:
            one_server: ask the same server as before while it is there, where there are several.
        """
        started, channel = time.monotonic(), self._one_server if one_server else self._channel
        try:
            answer: bytes = await channel.unary_unary(SERVICE + method)(
                message, timeout=timeout_s, metadata=tuple(metadata)
            )
        except grpc.aio.AioRpcError as error:
            self._metrics.ready.set(error.code() is not grpc.StatusCode.UNAVAILABLE)
            raise failures.of_triton(error, time.monotonic() - started) from None
        self._metrics.ready.set(1)
        return answer

    async def get(self, path: str) -> tuple[int, bytes]:
        """The status and body of a path of Triton's HTTP."""
        return await self._get(self._settings.triton_http, path)

    async def metrics(self) -> bytes:
        """Triton's metrics; none while it is away, or has no address."""
        if not self._settings.triton_metrics:
            return b""
        try:
            status, text = await self._get(self._settings.triton_metrics, "/metrics")
        except Failure:
            return b""
        return text if status == httpx.codes.OK else b""

    async def ready(self) -> bool:
        """Whether Triton says so; of several servers, one of the next few in turn: others may be leaving."""
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S):
                for _ in range(READY_TRIES):
                    with suppress(Failure, DecodeError):
                        answer = await self.call("ServerReady", b"", READY_TIMEOUT_S)
                        if service_pb2.ServerReadyResponse.FromString(answer).ready:
                            return True
        return False

    async def aclose(self) -> None:
        for client in self._http.values():
            await client.aclose()
        await self._channel.close()
        await self._one_server.close()

    async def _get(self, address: str, path: str) -> tuple[int, bytes]:
        try:
            host = "localhost" if address.startswith(UNIX) else address
            response = await self._http[address].get(f"http://{host}{path}")
        except (httpx.HTTPError, OSError):
            self._metrics.ready.set(0)
            raise failures.of_error(ServerUnavailable("The models are not there: the server starts.")) from None
        return response.status_code, response.content


def _client(address: str) -> httpx.AsyncClient:
    """HTTP to HOST:PORT, or to the socket of ``unix:PATH``."""
    socket = address.removeprefix(UNIX) if address.startswith(UNIX) else None
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=socket), trust_env=False, timeout=HEALTH_TIMEOUT_S)
