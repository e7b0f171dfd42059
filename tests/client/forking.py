"""Run by test_transports_fork.py in a process of its own: uses a client, forks, and tells what the child may do.

python forking.py http://127.0.0.1:8000 sync
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cutaway import loop
from cutaway.loop import Cancel
from cutaway.transports import Connection, open_transport
from cutaway.transports.base import InferRequest, parse_address

warnings.simplefilter("error")
LIMIT_S = 20.0


def request(picture: bytes) -> InferRequest:
    return InferRequest("m", picture, ("images",), timeout_s=10)


def in_child(work: Callable[[], None]) -> None:
    """Fork, run, and say what came of it; a child that hangs is ended."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        watchdog = threading.Timer(LIMIT_S, lambda: os._exit(9))
        watchdog.daemon = True
        watchdog.start()
        status = 1
        try:
            work()
            gc.collect()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    print("child ended with", os.waitstatus_to_exitcode(status), flush=True)


class Synchronous:
    """A transport in the loop thread, as `Client` uses it."""

    def __init__(self, connection: Connection) -> None:
        self._transport = open_transport(connection)

    def infer(self, request: InferRequest, cancel: Cancel | None = None) -> dict[str, Any]:
        return loop.run(self._transport.infer(request), cancel)

    def close(self) -> None:
        loop.run(self._transport.aclose())


def synchronous(url: str) -> None:
    connection = Connection(parse_address(url))
    transport = Synchronous(connection)
    assert transport.infer(request(b"parent")) == {"images": [b"parent"]}

    def work() -> None:
        try:
            assert transport.infer(request(b"child")) == {"images": [b"child"]}
            print("child served", flush=True)
        except RuntimeError as error:
            print("child refused:", error, flush=True)
        transport.close()
        with pytest.raises(RuntimeError):
            transport.infer(request(b"closed"))
        if url.startswith("http"):
            with_own = Synchronous(connection)
            assert with_own.infer(request(b"own")) == {"images": [b"own"]}
            with_own.close()

    for _ in range(2):
        in_child(work)
        # The child must not have touched the parent's connection.
        assert transport.infer(request(b"parent again")) == {"images": [b"parent again"]}
    if url.startswith("http"):
        with ThreadPoolExecutor(1) as pool:  # nor end what is under way on it
            under_way = pool.submit(transport.infer, request(b"slow"))
            time.sleep(0.2)
            in_child(work)
            assert under_way.result() == {"images": [b"slow"]}
    transport.close()


def asynchronous(url: str) -> None:
    connection = Connection(parse_address(url))
    transport = open_transport(connection)
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(transport.infer(request(b"parent"))) == {"images": [b"parent"]}

    async def in_new_loop() -> None:
        try:
            assert await transport.infer(request(b"child")) == {"images": [b"child"]}
            print("child served", flush=True)
        except RuntimeError as error:
            print("child refused:", error, flush=True)
        await transport.aclose()

    in_child(lambda: asyncio.run(in_new_loop()))
    assert loop.run_until_complete(transport.infer(request(b"parent again"))) == {"images": [b"parent again"]}
    loop.run_until_complete(transport.aclose())
    loop.close()


if __name__ == "__main__":
    {"sync": synchronous, "async": asynchronous}[sys.argv[2]](sys.argv[1])
    print("parent done", flush=True)
