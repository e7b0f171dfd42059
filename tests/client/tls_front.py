"""TLS in front of servers that speak none, as a proxy would end it; and a host of pictures with a certificate."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import trustme

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], "asyncio.Future[None] | object"]


def server_context(authority: trustme.CA, *, demand_client: bool = False) -> ssl.SSLContext:
    """For "localhost", with both of HTTP's versions; `demand_client` refuses whom the authority does not know."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    if demand_client:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return context


@contextmanager
def tls_front(context: ssl.SSLContext, port: int) -> Iterator[int]:
    """A port on which TLS is spoken; what comes in goes to `port` on this machine."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(behind_writer):
                await asyncio.gather(_copy(reader, behind_writer), _copy(behind_reader, writer))

    with _serving(context, handle) as own_port:
        yield own_port


@contextmanager
def picture_host(context: ssl.SSLContext, files: dict[str, bytes]) -> Iterator[int]:
    """A port on which JPEGs can be had over https, by path."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            body = files.get(path, b"")
            status = "200 OK" if body else "404 Not Found"
            head = f"HTTP/1.1 {status}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            await writer.drain()

    with _serving(context, handle) as own_port:
        yield own_port


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()


@contextmanager
def _serving(
    context: ssl.SSLContext, handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]
) -> Iterator[int]:
    """An event loop in a thread that serves until the end."""
    ready, ports = threading.Event(), []
    over: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)  # type: ignore[arg-type]
        ports.append(server.sockets[0].getsockname()[1])
        over.append((asyncio.get_running_loop(), asyncio.Event()))
        ready.set()
        await over[0][1].wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # until the connections are closed

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait(10)
    try:
        yield ports[0]
    finally:
        loop, event = over[0]
        loop.call_soon_threadsafe(event.set)
        thread.join(10)
