"""Whoever gives a call up gets out of it at once, the server sees it, and the transport goes on working.

By a Cancel (from a thread, from a signal handler), by Ctrl-C, by cancelling a task, by closing the client.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from cutaway import loop
from cutaway.contract.errors import RequestCancelled
from cutaway.loop import Cancel
from cutaway.transports import Connection, open_transport
from cutaway.transports.base import InferRequest, Transport, parse_address

from tests.client import peers

SCHEMES = ["grpc", "http"]
PROMPT_S = 20.0  # for a busy machine; what is not cancelled goes on for longer
"""On a busy machine; a call that is not given up takes its whole deadline."""
REQUEST = InferRequest("ensemble_pipeline", b"picture", ("images",), timeout_s=30)


class Synchronous:
    """A transport in the loop thread, as `Client` uses it."""

    def __init__(self, url: str) -> None:
        self._transport = opened_async(url)

    def infer(self, request: InferRequest, cancel: Cancel | None = None) -> dict[str, Any]:
        return loop.run(self._transport.infer(request), cancel)

    def close(self) -> None:
        loop.run(self._transport.aclose())


def opened(url: str) -> Synchronous:
    return Synchronous(url)


def opened_async(url: str) -> Transport:
    return open_transport(Connection(parse_address(url)))


@contextmanager
def soon(event: threading.Event, action: Callable[[], Any]) -> Iterator[None]:
    """Does something in another thread once the event has happened."""

    def run() -> None:
        if event.wait(10):
            action()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()


# ------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_cancelled_call_ends_here_and_there(scheme: str) -> None:
    cancel = Cancel()
    with peers.watching(scheme) as (url, watch), closing(opened(url)) as transport, soon(watch.came, cancel.cancel):
        took, error = peers.seconds_of(lambda: transport.infer(REQUEST, cancel))
        assert type(error) is RequestCancelled
        assert took < PROMPT_S
        assert watch.left.wait(PROMPT_S)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_cancelled_already_does_not_begin(scheme: str) -> None:
    cancel = Cancel()
    cancel.cancel()
    with peers.watching(scheme) as (url, _), closing(opened(url)) as transport:
        took, error = peers.seconds_of(lambda: transport.infer(REQUEST, cancel))
    assert type(error) is RequestCancelled
    assert took < PROMPT_S


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ctrl_c_ends_the_call_at_the_server(scheme: str) -> None:
    with (
        peers.watching(scheme) as (url, watch),
        closing(opened(url)) as transport,
        soon(watch.came, lambda: os.kill(os.getpid(), signal.SIGINT)),
    ):
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            transport.infer(REQUEST)
        assert time.monotonic() - started < PROMPT_S
        assert watch.left.wait(PROMPT_S)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cancelling_in_a_signal_handler(scheme: str) -> None:
    cancel = Cancel()
    before = signal.signal(signal.SIGUSR1, lambda *_: cancel.cancel())
    try:
        with (
            peers.watching(scheme) as (url, watch),
            closing(opened(url)) as transport,
            soon(watch.came, lambda: os.kill(os.getpid(), signal.SIGUSR1)),
        ):
            took, error = peers.seconds_of(lambda: transport.infer(REQUEST, cancel))
            assert type(error) is RequestCancelled
            assert took < PROMPT_S
            assert watch.left.wait(PROMPT_S)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_cancel_ends_many_calls_and_the_transport_goes_on(scheme: str) -> None:
    cancel = Cancel()
    waiting = threading.Semaphore(0)
    errors: list[Exception | None] = []

    def delay_s(picture: bytes) -> float:
        if picture == b"slow":
            waiting.release()
            return 1.0
        return 0.0

    with peers.echoing(scheme, delay_s) as url, closing(opened(url)) as transport:
        slow = InferRequest("m", b"slow", ("images",), timeout_s=30)
        threads = [
            threading.Thread(target=lambda: errors.append(peers.seconds_of(lambda: transport.infer(slow, cancel))[1]))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert waiting.acquire(timeout=10)
        cancel.cancel()
        for thread in threads:
            thread.join()
        assert [type(error) for error in errors] == [RequestCancelled] * 8
        # Not one of them may have left a connection behind that hands its late answer to somebody else.
        for number in range(20):
            picture = b"quick %d" % number
            answer = transport.infer(InferRequest("m", picture, ("images",), timeout_s=30), Cancel())
            assert answer == {"images": [picture]}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cancelling_while_the_picture_is_sent(scheme: str) -> None:
    reading = threading.Event()
    cancel = Cancel()

    def slow_reader(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(1000)
        reading.set()
        over.wait(3 * PROMPT_S)

    request = InferRequest("m", bytes(50_000_000), ("images",), timeout_s=30)
    with (
        peers.tcp_peer(slow_reader) as port,
        closing(opened(f"{scheme}://127.0.0.1:{port}")) as transport,
        soon(reading, cancel.cancel),
    ):
        took, error = peers.seconds_of(lambda: transport.infer(request, cancel))
    assert type(error) is RequestCancelled
    assert took < PROMPT_S


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cancelling_while_it_connects(scheme: str) -> None:
    cancel = Cancel()
    timer = threading.Timer(0.3, cancel.cancel)
    with peers.full_port() as port, closing(opened(f"{scheme}://127.0.0.1:{port}")) as transport:
        timer.start()
        _, error = peers.seconds_of(lambda: transport.infer(REQUEST, cancel))
    timer.join()
    assert type(error) is RequestCancelled, error


def test_cancelling_while_the_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hanging(*_: Any, **__: Any) -> Any:
        asked.set()
        answer.wait(3 * PROMPT_S)
        raise OSError("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    cancel = Cancel()
    with closing(opened("http://server.example:8000")) as transport, soon(asked, cancel.cancel):
        took, error = peers.seconds_of(lambda: transport.infer(REQUEST, cancel))
        assert type(error) is RequestCancelled
        assert took < PROMPT_S
        late = InferRequest("m", b"x", ("images",), timeout_s=0.3)
        took, error = peers.seconds_of(lambda: transport.infer(late))
        assert isinstance(error, TimeoutError)
        assert took < PROMPT_S
    answer.set()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_call_that_is_over_cannot_be_cancelled(scheme: str) -> None:
    """Nor can another one that uses its connection by then."""
    cancel = Cancel()
    with peers.echoing(scheme) as url, closing(opened(url)) as transport:
        assert transport.infer(REQUEST, cancel) == {"images": [b"picture"]}
        cancel.cancel()
        assert transport.infer(REQUEST, Cancel()) == {"images": [b"picture"]}


# ------------------------------------------------------------------------------------------------------- asyncio


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_cancelled_task_ends_here_and_there(scheme: str) -> None:
    async def run(url: str, watch: peers.Watch) -> None:
        transport = opened_async(url)
        task = asyncio.create_task(transport.infer(REQUEST))
        assert await asyncio.to_thread(watch.came.wait, 10)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < PROMPT_S
        assert await asyncio.to_thread(watch.left.wait, PROMPT_S)
        await transport.aclose()

    with peers.watching(scheme) as (url, watch):
        asyncio.run(run(url, watch))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_cancelled_tasks_leave_the_connections_in_order(scheme: str) -> None:
    async def run(url: str) -> None:
        transport = opened_async(url)
        slow = InferRequest("m", b"slow", ("images",), timeout_s=30)
        for wait_s in (0.0, 0.001, 0.01, 0.1):
            tasks = [asyncio.create_task(transport.infer(slow)) for _ in range(4)]
            await asyncio.sleep(wait_s)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        quick = [b"quick %d" % number for number in range(20)]
        answers = await asyncio.gather(
            *(transport.infer(InferRequest("m", picture, ("images",), timeout_s=30)) for picture in quick)
        )
        assert [answer["images"] for answer in answers] == [[picture] for picture in quick]
        await transport.aclose()

    with peers.echoing(scheme, lambda picture: 0.5 if picture == b"slow" else 0.0) as url:
        asyncio.run(run(url))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_closed_is_used_no_more(scheme: str) -> None:
    async def run(url: str) -> None:
        transport = opened_async(url)
        assert await transport.infer(REQUEST) == {"images": [b"picture"]}
        await transport.aclose()
        for call in (transport.infer(REQUEST), transport.server_ready(1), transport.metadata("m", 1)):
            with pytest.raises(RuntimeError, match="closed"):
                await call
        await transport.aclose()

    with peers.echoing(scheme) as url:
        asyncio.run(run(url))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_loop_per_client(scheme: str) -> None:
    async def call(transport: Transport) -> Any:
        return await transport.infer(REQUEST)

    with peers.echoing(scheme) as url:
        transport = opened_async(url)  # outside of any loop
        loop = asyncio.new_event_loop()
        try:
            assert loop.run_until_complete(call(transport)) == {"images": [b"picture"]}
            with pytest.raises(RuntimeError, match="belongs to the event loop"):
                asyncio.run(call(transport))
            assert loop.run_until_complete(call(transport)) == {"images": [b"picture"]}
            loop.run_until_complete(transport.aclose())
        finally:
            loop.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_closing_what_was_never_used(scheme: str) -> None:
    transport = opened_async(f"{scheme}://127.0.0.1:{peers.dead_port()}")
    asyncio.run(transport.aclose())
