"""Property tests here judge results, not speed: the machine may be busy. Peers are closed after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings

from tests.client.hosted.peers import Peer, Received, Reply

settings.register_profile("client", deadline=None)
settings.load_profile("client")


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Received], Reply]], Peer]]:
    """Start a peer for a script; a script with a `base` learns its own address."""
    with ExitStack() as stack:

        def start(script: Callable[[Received], Reply]) -> Peer:
            peer = stack.enter_context(Peer(script))
            if hasattr(script, "base"):
                script.base = peer.base_url
            return peer

        yield start
