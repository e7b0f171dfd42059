"""Closing a client ends its hosted calls."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import cutaway
import pytest
from cutaway.errors import RequestCancelled
from cutaway.resilience import RetryPolicy

from tests.client import peers
from tests.client.hosted.asking import hub
from tests.client.hosted.peers import HubScript, Peer, Reply, Stopwatch, picture


def test_sync() -> None:
    url = f"http://127.0.0.1:{peers.dead_port()}"
    with Peer(HubScript(Reply(hang="before"))) as peer, ThreadPoolExecutor(1) as pool:
        client = cutaway.Client(url, fallback=[hub(peer, timeout_s=20)], retry=RetryPolicy(retries=0))
        call = pool.submit(client.cut, picture())
        while not peer.received:
            time.sleep(0.01)
        watch = Stopwatch()
        client.close()
        error = call.exception(20)
        assert isinstance(error, RequestCancelled)
        assert error.message == "The client was closed."
        assert watch.s < 1


def test_async() -> None:
    url = f"http://127.0.0.1:{peers.dead_port()}"

    async def main(peer: Peer) -> None:
        client = cutaway.AsyncClient(url, fallback=[hub(peer, timeout_s=20)], retry=RetryPolicy(retries=0))
        call = asyncio.ensure_future(client.cut(picture()))
        while not peer.received:
            await asyncio.sleep(0.01)
        watch = Stopwatch()
        await client.close()
        with pytest.raises(RequestCancelled, match="The client was closed"):
            await call
        assert watch.s < 1

    with Peer(HubScript(Reply(hang="before"))) as peer:
        asyncio.run(main(peer))
