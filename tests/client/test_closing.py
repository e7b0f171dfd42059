"""Closing a client ends its hosted calls."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import cutaway
import pytest
from cutaway.contract.errors import RequestCancelled
from cutaway.providers import Replicate
from cutaway.resilience import RetryPolicy

from tests.client import peers
from tests.client.hosted.asking import hub
from tests.client.hosted.peers import HubScript, Peer, ReplicateScript, Reply, Stopwatch, picture


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


@pytest.mark.parametrize("order", [("cancel", "close"), ("close", "cancel"), ("close",), ("cancel",)])
def test_a_prediction_is_cancelled_whoever_ends_the_call_and_a_cancelled_task_stays_one(order: tuple[str, ...]) -> None:
    url = f"http://127.0.0.1:{peers.dead_port()}"
    script = ReplicateScript(states=["processing"])

    async def main(peer: Peer) -> None:
        chain = [Replicate(base_url=peer.base_url)]
        client = cutaway.AsyncClient(url, fallback=chain, retry=RetryPolicy(retries=0))
        call = asyncio.ensure_future(client.cut(picture(), timeout_s=20))
        while len(peer.received) < 2:
            await asyncio.sleep(0.01)
        closing = []
        for what in order:
            if what == "cancel":
                call.cancel()
            else:
                closing.append(asyncio.ensure_future(client.close()))
                await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError if "cancel" in order else RequestCancelled):
            await call
        await asyncio.gather(*closing, client.close())

    with Peer(script) as peer:
        script.base = peer.base_url
        asyncio.run(main(peer))
    assert script.cancelled == 1


def test_closing_one_client_leaves_the_calls_of_another_alone() -> None:
    """Two clients share a chain."""
    url = f"http://127.0.0.1:{peers.dead_port()}"
    script = ReplicateScript(states=["processing"])
    with Peer(script) as peer, ThreadPoolExecutor(2) as pool:
        script.base = peer.base_url
        fallback = cutaway.Fallback([Replicate(base_url=peer.base_url)], fail_max=1)
        mine, other = (cutaway.Client(url, fallback=fallback, retry=RetryPolicy(retries=0)) for _ in range(2))
        calls = [pool.submit(each.cut, picture(), timeout_s=30) for each in (mine, other)]
        while sum(received.method == "GET" for received in peer.received) < 4:
            time.sleep(0.01)
        mine.close()
        assert isinstance(calls[0].exception(20), RequestCancelled)
        assert script.cancelled == 1
        assert not calls[1].done()
        other.close()
        assert isinstance(calls[1].exception(20), RequestCancelled)
        assert script.cancelled == 2
        assert fallback.breakers[0].state == "closed"
