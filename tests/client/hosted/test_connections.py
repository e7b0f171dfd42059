"""Connections to hosted models: kept between calls, never taken from a call that uses them, gone when nobody does."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from cutaway.providers import Replicate
from cutaway.resilience import Deadline
from cutaway.transports.deadline import DeadlineTransport

from tests.client.hosted.asking import assert_right, hub
from tests.client.hosted.peers import HubScript, Peer, Received, ReplicateScript, Reply, mask, picture, png

ROOT = Path(__file__).resolve().parents[3]


def test_connections_are_kept_until_they_are_closed(serve: Callable[..., Peer]) -> None:
    peer = serve(HubScript())
    provider = hub(peer)
    for closing in (False, True, False):
        provider.matte(picture(), "image/png", Deadline(10))
        if closing:
            provider.close()
    provider.close()
    first, second, third = (received.connection for received in peer.received)
    assert first == second != third


def test_closing_does_not_disturb_a_call_that_is_under_way(serve: Callable[..., Peer]) -> None:
    """Whoever shares a provider may close a client of his own; what is in use is closed when its call has ended."""
    arrived, go = Event(), Event()

    def answer(received: Received) -> Reply:
        if not arrived.is_set():
            arrived.set()
            go.wait(20)
        return png(mask())

    peer = serve(answer)
    provider = hub(peer)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(provider.matte, picture(), "image/png", Deadline(20))
        assert arrived.wait(20)
        provider.close()
        provider.matte(picture(), "image/png", Deadline(20))
        go.set()
        assert_right(call.result(20))
    provider.matte(picture(), "image/png", Deadline(20))
    provider.close()
    assert len(peer.received) == 3, "nothing was repeated"
    busy, beside, later = (received.connection for received in peer.received)
    assert busy != beside == later


def test_a_creation_that_is_under_way_is_not_charged_twice(serve: Callable[..., Peer]) -> None:
    arrived, go = Event(), Event()
    script = ReplicateScript(states=["succeeded"])

    def answer(received: Received) -> Reply:
        if received.method == "POST":
            arrived.set()
            go.wait(20)
        return script(received)

    peer = serve(answer)
    script.base = peer.base_url
    provider = Replicate(base_url=peer.base_url)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(provider.matte, picture(), "image/png", Deadline(20))
        assert arrived.wait(20)
        provider.close()
        go.set()
        assert_right(call.result(20))
    provider.close()
    assert peer.paths == ["POST /v1/predictions", "GET /files/out.png"]


def test_nothing_is_left_of_closed_connections(serve: Callable[..., Peer]) -> None:
    provider = hub(serve(HubScript()))

    def kept() -> tuple[int, int]:
        gc.collect()
        transports = [each for each in gc.get_objects() if isinstance(each, DeadlineTransport)]
        return len(transports), len(weakref.finalize._registry)  # type: ignore[attr-defined]

    before = kept()
    for _ in range(5):
        provider.matte(picture(), "image/png", Deadline(10))
        provider.close()
    assert kept() == before


def test_connections_end_with_their_provider(serve: Callable[..., Peer]) -> None:
    """Without a warning of a socket that was forgotten, which would be an error here."""
    provider = hub(serve(HubScript()))
    provider.matte(picture(), "image/png", Deadline(10))
    gone = weakref.ref(provider)
    del provider
    gc.collect()
    assert gone() is None


FORKING = r"""
import os, ssl, sys, threading, time, warnings
warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
from cutaway.providers import ProviderUnavailable, Replicate
from cutaway.resilience import Deadline, RetryPolicy
from tests.client.hosted.peers import picture

provider, data = Replicate(base_url=sys.argv[1], retry=RetryPolicy(retries=0)), picture()
making, make = threading.Event(), ssl.create_default_context

def slowly(*arguments, **options):
    making.set()
    time.sleep(0.5)
    return make(*arguments, **options)

def ask():
    try:
        provider.matte(data, "image/png", Deadline(3))
    except ProviderUnavailable:
        os.write(1, b"refused\n")

ssl.create_default_context = slowly
thread = threading.Thread(target=ask)
thread.start()
making.wait(20)
child = os.fork()
ssl.create_default_context = make
if child == 0:
    threading.Thread(target=lambda: (time.sleep(15), os._exit(9)), daemon=True).start()
    ask()
    os._exit(0)
thread.join()
print("child ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_the_first_connection_is_made() -> None:
    """The thread that makes it is not in the child, nor is anything that it holds."""
    with Peer(HubScript()) as peer:
        closed = peer.port
    done = subprocess.run(
        [sys.executable, "-c", FORKING, f"https://127.0.0.1:{closed}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "client")))},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == ["refused", "refused", "child ended with 0"], done.stdout + done.stderr


FORKED_IDLE = """
import os, sys, warnings
warnings.simplefilter("ignore")
from cutaway.providers import HuggingFace
from cutaway.resilience import Deadline
from tests.client.hosted.peers import picture

provider = HuggingFace(base_url=sys.argv[1], accept_noncommercial=True)
provider.matte(picture(), "image/png", Deadline(10))
child = os.fork()
provider.matte(picture(), "image/png", Deadline(10))
if child == 0:
    provider.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
provider.matte(picture(), "image/png", Deadline(10))
provider.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_has_connections_of_its_own() -> None:
    """And the parent keeps its own, whatever the child does."""
    with Peer(HubScript()) as peer:
        done = subprocess.run(
            [sys.executable, "-c", FORKED_IDLE, peer.base_url],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "client")))},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        used = [received.connection for received in peer.received]
    assert sorted(used.count(each) for each in set(used)) == [1, 3]
