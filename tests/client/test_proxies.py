"""Proxies from the environment hold for gRPC and HTTP alike, and never for loopback."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import pytest
from cutaway import Client
from cutaway.transports.base import parse_address
from cutaway.transports.connection import Connection, proxy_of

from tests.client.driving import DRIVERS, driven
from tests.client.hosted.peers import picture
from tests.client.own_server import own_server

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "GRPC_PROXY")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class Proxy:
    """An HTTP proxy on loopback by which ``cutaway.test`` is this machine.

    Attributes:
        asked: the first line of each request, and its Proxy-Authorization.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.url = ""
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            method, target, version = first.split()
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            self.asked.append((first, fields.get("proxy-authorization", "")))
            parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
            assert parts.hostname == "cutaway.test"
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", parts.port)
            self.writers.append(up_writer)
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                up_writer.write(head.replace(first.encode(), f"{method} {parts.path} {version}".encode(), 1))
            await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))
        writer.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def running_proxy() -> Iterator[Proxy]:
    proxy, ready = Proxy(), threading.Event()
    over: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        over.append((asyncio.get_running_loop(), asyncio.Event()))
        ready.set()
        await over[0][1].wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in proxy.writers:  # a cancelled copy leaves them open, and the loop ends before it closes them
            writer.transport.abort()
        for _ in range(3):
            await asyncio.sleep(0)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait(10)
    try:
        yield proxy
    finally:
        loop, event = over[0]
        loop.call_soon_threadsafe(event.set)
        thread.join(10)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_server_behind_a_proxy(driver: str, scheme: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_proxy() as proxy, own_server(scheme) as server:
        monkeypatch.setenv(name, proxy.url.replace("http://", "http://user:secret@"))
        with driven(driver, server.url.replace("127.0.0.1", "cutaway.test")) as client:
            assert client.cut(picture()).images
    (first, authorization) = proxy.asked[0]
    assert first.startswith("CONNECT cutaway.test:" if scheme == "grpc" else "POST http://cutaway.test:")
    assert authorization == "Basic dXNlcjpzZWNyZXQ="


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_loopback_has_no_proxy(driver: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_proxy() as proxy, own_server(scheme) as server:
        for name in VARIABLES:
            if name != "NO_PROXY":
                monkeypatch.setenv(name.lower(), proxy.url)
                monkeypatch.setenv(name, proxy.url)
        for host in ("127.0.0.1", "localhost"):
            with driven(driver, server.url.replace("127.0.0.1", host)) as client:
                assert client.cut(picture()).images
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("url", "variables", "proxy"),
    [
        ("grpc://server.test", {"HTTPS_PROXY": "http://a:1"}, ""),
        ("grpcs://server.test", {"HTTPS_PROXY": "http://a:1", "HTTP_PROXY": "http://b:2"}, "http://a:1"),
        ("https://server.test", {"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "http://b:2"}, "http://a:1"),
        ("http://server.test", {"HTTPS_PROXY": "http://a:1", "ALL_PROXY": "http://b:2"}, "http://b:2"),
        ("http://server.test", {"HTTP_PROXY": "a:1"}, "http://a:1"),
        ("http://server.test", {"HTTP_PROXY": "http://a:1", "http_proxy": "http://b:2"}, "http://b:2"),
        ("http://server.test", {"HTTP_PROXY": "http://a:1", "NO_PROXY": "other.test, .test"}, ""),
        ("grpc://server.test", {"ALL_PROXY": "http://a:1", "no_proxy": "server.test:8001"}, ""),
        ("grpc://server.test", {"ALL_PROXY": "http://a:1", "NO_PROXY": "*"}, ""),
        ("http://server.test", {"HTTP_PROXY": ""}, ""),
        ("grpc://[::1]", {"ALL_PROXY": "http://a:1"}, ""),
        ("http://127.1.2.3", {"ALL_PROXY": "http://a:1"}, ""),
        ("http://a.localhost", {"ALL_PROXY": "http://a:1"}, ""),
    ],
)
def test_which_proxy(url: str, variables: dict[str, str], proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(parse_address(url)) == proxy


@pytest.mark.parametrize("value", ["socks5://user:secret@a:1", "https://user:secret@a:1", "http://"])
def test_proxies_of_other_kinds_are_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    for url in ("grpc://server.test", "https://server.test"):
        with pytest.raises(ValueError, match="NO_PROXY") as refusal:
            Client(url)
        assert "secret" not in str(refusal.value)


def test_a_proxy_s_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://user:secret@a:1")
    assert "secret" not in repr(Connection(parse_address("grpc://server.test")))
