"""A pickled client connects anew, in this process and in others; what cannot be pickled is named."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from cutaway import AsyncClient, Client, Fallback, ResultCache, RetryPolicy
from cutaway.providers import HuggingFace, Replicate

from tests.client import peers
from tests.client.hosted.peers import picture
from tests.client.own_server import DOWN, own_server


def cut(client: Client) -> tuple[int, int, int]:
    """Where it ran, how many cut-outs came back, and how many requests that took."""
    result = client.cut(picture())
    return os.getpid(), len(result.images), result.requests


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_processes_that_are_spawned(scheme: str) -> None:
    with (
        own_server(scheme) as server,
        Client(server.url, timeout_s=50) as client,
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        mine = cut(client)
        others = list(pool.map(cut, [client] * 4))
        assert {other[1:] for other in others} == {mine[1:]}
        assert mine[0] not in {other[0] for other in others}
        assert cut(client) == mine


def test_everything_goes_along(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    with own_server("http", DOWN) as server:
        fallback = Fallback([HuggingFace(accept_noncommercial=True), Replicate()])
        client = Client(
            [server.url, f"grpc://127.0.0.1:{peers.dead_port()}"],
            timeout_s=7,
            token="secret",
            headers={"X-Team": "blue"},
            retry=RetryPolicy(retries=0),
            fallback=fallback,
            cache=cache,
            fit=True,
        )
        for _ in range(2):
            client = pickle.loads(pickle.dumps(client))
        assert client._client._settings.timeout_s == 7
        assert client.urls[0].rstrip("/") == server.url.rstrip("/")
        settings = client._client._settings
        assert settings.connections[0].headers == {"x-team": "blue", "authorization": "Bearer secret"}
        assert settings.fallback is not None
        assert [type(each) for each in settings.fallback.providers] == [HuggingFace, Replicate]
        assert settings.cache is not None
        assert settings.cache.folder == cache.folder
        assert (settings.fit, settings.retry.retries) == (True, 0)
        client.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_closed_or_used_client_pickles_too(kind: type[Client | AsyncClient]) -> None:
    assert pickle.loads(pickle.dumps(kind("grpc://server.test"))).urls == ("grpc://server.test:8001",)
    with own_server("grpc") as server, Client(server.url) as client:
        cut(client)
        copy = pickle.loads(pickle.dumps(client))
    assert copy.urls == client.urls
