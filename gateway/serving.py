"""The gate's life: it listens, serves, and drains before it ends."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import grpc
import uvicorn

from gateway.connections import Connection, sweep
from gateway.core import Core
from gateway.grpc_server import Handlers, options
from gateway.http import HttpApp, metrics_app
from gateway.service.app import Service
from gateway.service.live import MAX_FRAME_BYTES
from gateway.service.settings import ServiceSettings
from gateway.settings import Settings

BACKLOG = 1024
DRAIN_POLL_S = 0.05
CLOSE_S = 2.0
"""For connections to end once no request is in flight."""
DESCRIPTORS = 65536
"""Wanted of the system; 1,024, the default, are fewer than the connections allowed."""


class _Server(uvicorn.Server):  # type: ignore[misc]
    """uvicorn's without its signal handlers: the gate has its own."""

    def capture_signals(self) -> Any:
        return nullcontext()


class Gate:
    """A gate that listens.

        gate = await Gate.start(Settings(…))
        await gate.stop()

    Attributes:
        core: what its protocols share, and what further ones in this process are to share.
        ports: the ports by name: http, grpc, metrics.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self.ports: dict[str, int] = {}
        self._servers: list[tuple[_Server, asyncio.Task[None]]] = []
        self._sweeps: list[asyncio.Task[None]] = []
        self._grpc: Any = None
        self._service: Service | None = None

    @classmethod
    async def start(cls, settings: Settings, service: ServiceSettings | None = None) -> Gate:
        """Listen.

        Raises:
            OSError: a port is taken, or the address is none of this machine's.
        """
        _raise_descriptors()
        core = Core(settings)
        gate = cls(core)
        try:
            metrics_address = settings.metrics_address or settings.address
            await gate.listen("http", HttpApp(core), settings.address, settings.http_port)
            await gate.listen("metrics", metrics_app(core), metrics_address, settings.metrics_port)
            gate._grpc = grpc.aio.server(
                handlers=[Handlers(core)], options=options(settings), maximum_concurrent_rpcs=2 * settings.max_requests
            )
            host = f"[{settings.address}]" if ":" in settings.address else settings.address
            try:
                gate.ports["grpc"] = gate._grpc.add_insecure_port(f"{host}:{settings.grpc_port}")
            except RuntimeError as error:
                raise OSError(f"{host}:{settings.grpc_port} cannot be listened on: {error}") from None
            await gate._grpc.start()
            if service is not None and service.service_port >= 0:
                gate._service = await Service.open(core, service)
                trusted = list(service.trusted_proxies)
                more: dict[str, Any] = {"ws": "websockets-sansio", "ws_max_size": MAX_FRAME_BYTES}
                more |= {"proxy_headers": bool(trusted), "forwarded_allow_ips": trusted}
                await gate.listen("service", gate._service.app, settings.address, service.service_port, **more)
        except BaseException:
            await gate.stop(drain_timeout_s=0)
            raise
        return gate

    async def listen(
        self, name: str, app: Callable[[Any, Any, Any], Awaitable[None]], address: str, port: int, **more: Any
    ) -> None:
        """Serve an ASGI application on a port of its own, with the gate's bounds; `more` is uvicorn's."""
        settings = self.core.settings
        # The protocol is named, because asyncio sends at once (TCP_NODELAY) only where it is.
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError:
            listener.close()
            raise
        given: dict[str, Any] = {
            "http": partial(Connection, settings, self.core.metrics),
            "ws": "none",
            "lifespan": "off",
            "interface": "asgi3",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "proxy_headers": False,  # callers are whom they connect from
            "timeout_keep_alive": settings.idle_timeout_s,
            "timeout_graceful_shutdown": CLOSE_S,
            "backlog": BACKLOG,
        }
        config = uvicorn.Config(app, **(given | more))
        server = _Server(config)
        self.ports[name] = listener.getsockname()[1]
        serving = asyncio.create_task(server.serve([listener]), name=f"gate-{name}")
        self._servers.append((server, serving))
        self._sweeps.append(asyncio.create_task(sweep(server.server_state.connections), name=f"sweep-{name}"))
        while not (server.started or serving.done()):
            await asyncio.sleep(0.005)

    async def stop(self, drain_timeout_s: float | None = None) -> None:
        """Be not ready, but serve until balancers know; refuse new requests; let those in flight end; close."""
        admission, settings = self.core.admission, self.core.settings
        timeout_s = settings.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        self.core.leaving = True
        # Jobs' own calls are let in while others are refused; waiting for them first would keep others coming.
        jobs = [] if self._service is None else [asyncio.create_task(self._service.finish_jobs())]
        refusing: list[asyncio.Task[None]] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(settings.drain_notice_s)
                admission.draining = True
                if self._grpc is not None:  # sends GOAWAY: who is connected here is to ask elsewhere
                    refusing.append(asyncio.create_task(self._grpc.stop(timeout_s)))
                while admission.unanswered or admission.places or not all(each.done() for each in jobs):
                    await asyncio.sleep(DRAIN_POLL_S)
        admission.draining = True
        for each in jobs:
            each.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        for server, _ in self._servers:
            server.should_exit = True
        if self._grpc is not None:
            await self._grpc.stop(CLOSE_S)
            await asyncio.gather(*refusing)
        await asyncio.gather(*(serving for _, serving in self._servers), return_exceptions=True)
        for task in self._sweeps:
            task.cancel()
        if self._service is not None:
            await self._service.aclose()
        await self.core.upstream.aclose()
        await self.core.tracing.aclose()
        self.core.access.close()


def _raise_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
