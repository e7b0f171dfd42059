"""Pictures in shared memory, with a real server: the same answers, no region in two hands, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cutaway
import httpx
import numpy as np
import pytest
from cutaway.contract.errors import NoPersonDetected, Overloaded, ProcessingTimeout, RequestCancelled, ServerRefused
from cutaway.resilience import RetryPolicy
from cutaway.shared_memory import regions
from PIL import Image

from tests.client.driving import DRIVERS, driven
from tests.integration import levers

pytestmark = pytest.mark.triton

ROOT = Path(__file__).resolve().parents[2]
WAYS = [(driver, scheme) for driver in DRIVERS for scheme in ("grpc", "http")]
ONCE = RetryPolicy(retries=0)
BUSY_S = 20.0
"""So long is waited for what happens at once on a machine that has nothing else to do."""
FEW, MANY = 8, 64


def address(server: Any, scheme: str) -> str:
    return str(server.grpc_url if scheme == "grpc" else server.http_url)


def registered(server: Any) -> set[str]:
    """Names of the regions that the server knows."""
    answer = httpx.get(f"{server.http_url}/v2/systemsharedmemory/status", timeout=10)
    return {region["name"] for region in answer.json()}


def in_memory() -> set[str]:
    """Names of the regions that this process, or one that it started, has made and not taken away."""
    names = {entry.name for entry in regions.SHM.glob("cutaway_picture-*")} - LEFT_BEFORE
    return {name for name in names if not _somebody_elses(int(name.split("-")[2]))}


def _somebody_elses(pid: int) -> bool:
    """Whether it is alive and not of this process' family: other tests run beside these ones."""
    while pid != os.getpid():
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(status.rpartition(")")[2].split()[1])
        if pid <= 1:
            return True
    return False


LEFT_BEFORE = {entry.name for entry in regions.SHM.glob("cutaway_picture-*")}


def wait_until(what: Callable[[], bool]) -> bool:
    ends_at = time.monotonic() + BUSY_S
    while not what():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.05)
    return True


def png(seed: int, side_px: int = 64) -> bytes:
    """A picture like no other; 64 px are 12 kB, 400 px half a megabyte."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def sharing(sharing_server: Any) -> Iterator[Any]:
    """The server; when the test is over, nothing may be left there or in memory."""
    assert in_memory() == set()
    yield sharing_server
    assert in_memory() == set()
    assert registered(sharing_server) == set()
    assert not regions._held


@contextmanager
def counting(url: str) -> Iterator[tuple[str, list[int]]]:
    """An address that leads to the other one, and how many bytes went there, piece by piece."""
    host, port = url.partition("://")[2].split(":")
    sent: list[int] = []

    def pump(source: socket.socket, sink: socket.socket, counts: list[int] | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if counts is not None:
                    counts.append(len(data))
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                there = socket.create_connection((host, int(port)))
                for arguments in ((client, there, sent), (there, client, None)):
                    threads.append(threading.Thread(target=pump, args=arguments))
                    threads[-1].start()
                sockets.extend((client, there))

    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield f"{url.partition(':')[0]}://127.0.0.1:{listener.getsockname()[1]}", sent
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for each in sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for each in sockets:
                each.close()


# ------------------------------------------------------------------------------------------------- what goes well


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_the_same_answer_with_the_picture_off_the_wire(driver: str, scheme: str, sharing: Any) -> None:
    picture = (ROOT / "samples" / "astronaut.jpg").read_bytes()
    with driven(driver, address(sharing, scheme)) as client:
        expected = client.cut(picture, subject="each")
    with counting(address(sharing, scheme)) as (url, sent), driven(driver, url, shared_memory="system") as client:
        result = client.cut(picture, subject="each")
        assert (result.images, result.requests) == (expected.images, 1)
        assert len(registered(sharing)) == 1
        assert in_memory() == set(), "a region's name outlived its registration"
        assert sum(sent) < len(picture) / 10
        assert len(client.detect(picture).boxes) == len(expected.boxes)
        assert client.health().ok
        assert len(registered(sharing)) == 1, "calls one after the other need one region"


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_many_at_once_never_share_a_region(driver: str, scheme: str, sharing: Any) -> None:
    """Each gets its own picture back, though the larger ones need larger regions than the first had."""
    pictures = [png(number, 400 if number % 8 == 7 else 64) for number in range(MANY)]
    with driven(driver, address(sharing, scheme), shared_memory="system", retry=ONCE) as client:
        for together in (FEW, MANY):
            answers = client.together(
                [
                    lambda one, number=number: one.cut(pictures[number], request_id=f"echo-{number}", subject="all")
                    for number in range(together)
                ]
            )
            assert [list(answer.images) for answer in answers] == [[each] for each in pictures[:together]]
        assert 1 < len(registered(sharing)) <= MANY + FEW


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_a_region_serves_again_after_a_refused_picture(driver: str, scheme: str, sharing: Any) -> None:
    flat = io.BytesIO()
    Image.new("RGB", (320, 240), "#6080a0").save(flat, "PNG")
    with driven(driver, address(sharing, scheme), shared_memory="system") as client:
        for _ in range(3):
            with pytest.raises(NoPersonDetected):
                client.cut(flat.getvalue())
            assert len(registered(sharing)) == 1


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_no_more_is_kept_than_was_said(driver: str, scheme: str, sharing: Any) -> None:
    keep = cutaway.SharedMemory(keep_bytes=2 * regions.SMALLEST_BYTES)
    with driven(driver, address(sharing, scheme), shared_memory=keep) as client:
        calls = [lambda one, seed=seed: one.cut(png(seed), request_id=f"echo-{seed}") for seed in range(FEW)]
        assert all(isinstance(answer, cutaway.CutResult) for answer in client.together(calls))

        def few() -> bool:
            client.cut(png(0), request_id="echo-again")
            return len(registered(sharing)) <= 2

        assert wait_until(few)
        client.cut(png(0, 400), request_id="echo-large")
        client.cut(png(0), request_id="echo-small")
        assert wait_until(few)


@pytest.mark.parametrize("driver", DRIVERS)
def test_several_servers_have_regions_each(driver: str, sharing: Any) -> None:
    urls = [address(sharing, "grpc"), address(sharing, "http")]
    with driven(driver, urls, shared_memory="system", retry=ONCE) as client:
        answers = [client.cut(png(number), request_id=f"echo-{number}") for number in range(4)]
        assert [answer.origin.url for answer in answers] == urls * 2
        assert len(registered(sharing)) == 2


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_a_region_of_a_request_given_up_is_not_used_again(driver: str, scheme: str, sharing: Any) -> None:
    """Until the server has done with the request it keeps the region, and then lets go of it."""
    with driven(driver, address(sharing, scheme), shared_memory="system", retry=ONCE) as client:
        client.cut(png(1), request_id="echo-before")
        (used,) = registered(sharing)
        begun = time.monotonic()
        with pytest.raises(ProcessingTimeout):
            client.cut(png(2), request_id=f"slow-2-{driver}-{scheme}", timeout_s=0.5)
        assert time.monotonic() - begun < 1.5
        assert list(client.cut(png(3), request_id="echo-after").images) == [png(3)]
        others = registered(sharing) - {used}
        assert len(others) == 1

        def let_go() -> bool:
            client.cut(png(4), request_id="echo-later")
            return registered(sharing) == others

        assert wait_until(let_go)


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_a_cancelled_call_leaves_nothing(driver: str, scheme: str, sharing: Any) -> None:
    """Nor does closing the client at once, while the server is still at it."""
    request_id = f"slow-0.7-cancelled-{driver}-{scheme}"
    with driven(driver, address(sharing, scheme), shared_memory="system", retry=ONCE) as client:
        if driver == "threads":
            cancel = cutaway.Cancel()

            def cancelling() -> None:
                wait_until(lambda: levers.began(sharing, request_id))
                cancel.cancel()

            thread = threading.Thread(target=cancelling)
            thread.start()
            with pytest.raises(RequestCancelled):
                client.cut(png(1), request_id=request_id, cancel=cancel)
            thread.join()
        else:

            async def cancelled(one: Any) -> None:
                task = asyncio.ensure_future(one.cut(png(1), request_id=request_id))
                while not levers.began(sharing, request_id):
                    await asyncio.sleep(0.01)
                task.cancel()
                await task

            (outcome,) = client.together([cancelled])
            assert isinstance(outcome, asyncio.CancelledError)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_closing_ends_calls_in_flight_and_lets_go(scheme: str, sharing: Any) -> None:
    client = cutaway.Client(address(sharing, scheme), shared_memory="system", retry=ONCE)
    caught: list[Exception] = []

    def call() -> None:
        try:
            client.cut(png(1), request_id=f"slow-1-closed-{scheme}")
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert wait_until(lambda: levers.began(sharing, f"slow-1-closed-{scheme}"))
    client.close()
    thread.join()
    assert [type(error) for error in caught] == [RequestCancelled]
    with pytest.raises(RuntimeError, match="closed"):
        client.cut(png(1))


@pytest.mark.parametrize(("driver", "scheme"), [("threads", "grpc"), ("asyncio", "http")])
def test_a_server_that_was_restarted(driver: str, scheme: str, sharing: Any) -> None:
    """It knows none of the regions any more, and no caller notices."""
    with driven(driver, address(sharing, scheme), shared_memory="system", retry=ONCE) as client:
        calls = [lambda one, seed=seed: one.cut(png(seed), request_id=f"echo-{seed}") for seed in range(FEW)]
        client.together(calls)
        before, restarts = registered(sharing), sharing.restarts
        assert before
        os.kill(sharing.process.pid, signal.SIGKILL)
        assert wait_until(lambda: sharing.restarts > restarts and sharing.probe.ready())
        assert registered(sharing) == set()
        for answer, seed in zip(client.together(calls), range(FEW), strict=True):
            assert list(answer.images) == [png(seed)]
            assert answer.requests == 1
        assert registered(sharing)
        assert not registered(sharing) & before


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_a_server_that_forbids_it_says_so(driver: str, scheme: str, server: Any) -> None:
    before = in_memory()
    with driven(driver, address(server, scheme), shared_memory="system") as client:
        for _ in range(3):
            with pytest.raises(ServerRefused, match="forbids shared memory") as refusal:
                client.cut(png(1))
            assert "--allow-shared-memory" in refusal.value.user_action
            assert "without shared_memory" in refusal.value.user_action
            assert (refusal.value.retry, refusal.value.details["requests"]) == (False, 1)
            assert not regions._held, "memory is kept that nobody will read"
        health = client.health()
        assert not health.ok
        assert isinstance(health.error, ServerRefused)
    assert in_memory() == before
    assert not regions._held
    with driven(driver, address(server, scheme)) as client:
        assert client.cut(png(1), subject="all").provider == "triton"


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_a_server_with_other_memory_says_so(
    driver: str, scheme: str, sharing: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As one on another machine has, or in a container of its own: it finds nothing under the name."""
    monkeypatch.setattr(regions, "SHM", tmp_path)
    with driven(driver, address(sharing, scheme), shared_memory="system") as client:
        for _ in range(2):
            with pytest.raises(ServerRefused, match="cannot use this machine's shared memory") as refusal:
                client.cut(png(1))
            assert "--ipc=host" in refusal.value.user_action
            assert "Unable to open" in refusal.value.details["said"]
            assert not refusal.value.retry
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- how clients end

ENDING = """
import os, signal, sys, warnings
warnings.simplefilter("error")
warnings.simplefilter("ignore", ResourceWarning)  # the sockets of HTTP clients that nobody closes
import cutaway
from cutaway.shared_memory import regions

how, url, picture = sys.argv[1:]
client = cutaway.Client(url, shared_memory="system")
client.cut(picture, subject="all")
if how == "kill":
    print("served", flush=True)
    signal.pause()
if how == "fork":
    pid = os.fork()
    if pid == 0:
        client.cut(picture, subject="all")
        own = [name for name in regions._held if f"-{os.getpid()}-" in name]
        client.close()
        os._exit(0 if len(own) == 1 and not regions._held.intersection(own) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    client.cut(picture, subject="all")
if how == "async":
    import asyncio

    other = cutaway.AsyncClient(url, shared_memory="system")
    asyncio.run(other.cut(picture, subject="all"))
print("served", flush=True)
"""


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_no_room_for_a_region_is_like_a_full_queue(driver: str, scheme: str, sharing: Any) -> None:
    """The limit of a file's size stands for a full /dev/shm: the kernel refuses either way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with driven(driver, address(sharing, scheme), shared_memory="system", retry=ONCE) as client:
        resource.setrlimit(resource.RLIMIT_FSIZE, (regions.SMALLEST_BYTES // 2, before[1]))
        try:
            with pytest.raises(Overloaded, match="This machine has no shared memory of") as failure:
                client.cut(png(1), request_id="echo-1")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "--shm-size" in failure.value.user_action
        assert list(client.cut(png(1), request_id="echo-1").images) == [png(1)]


def other_process(how: str, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ENDING, how, url, str(ROOT / "samples" / "astronaut.jpg")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "client")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_processes_that_end_leave_nothing(scheme: str, sharing: Any) -> None:
    """A client that nobody closes, and one that lives on in a fork; they leave what other processes use alone."""
    with cutaway.Client(address(sharing, scheme), shared_memory="system", retry=ONCE) as client:
        client.cut(png(1), request_id="echo-1")
        mine = registered(sharing)
        assert len(mine) == 1
        for how in ("end", "async", *(["fork"] if scheme == "http" else [])):
            said, complaints = other_process(how, address(sharing, scheme)).communicate(timeout=60)
            assert (said, complaints) == ("served\n", ""), how
            assert in_memory() == set()
            assert registered(sharing) == mine
        client.cut(png(1), request_id="echo-1")
        assert registered(sharing) == mine


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_what_a_killed_process_leaves_the_next_client_removes(driver: str, scheme: str, sharing: Any) -> None:
    with other_process("kill", address(sharing, scheme)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "served\n"
        left = registered(sharing)
        process.kill()
    assert in_memory() == set()
    assert registered(sharing) == left
    assert len(left) == 1
    with driven(driver, address(sharing, scheme), shared_memory="system") as client:
        client.cut(png(1), request_id="echo-1")
        assert len(registered(sharing)) == 1
        assert not registered(sharing) & left


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_client_that_is_forgotten(scheme: str, sharing: Any) -> None:
    client = cutaway.Client(address(sharing, scheme), shared_memory="system")
    client.cut(png(1), request_id="echo-1")
    assert len(registered(sharing)) == 1
    del client
    gc.collect()
    assert registered(sharing) == set()


# --------------------------------------------------------------------------------------------------------- a GPU


def cuda_missing() -> str:
    try:
        regions.check_cuda(0)
    except (ImportError, RuntimeError) as error:
        return str(error)
    return ""


@pytest.mark.skipif(bool(cuda_missing()), reason=f"no GPU to share memory of: {cuda_missing()}")
@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_a_gpus_memory(driver: str, scheme: str, sharing: Any) -> None:
    with driven(driver, address(sharing, scheme), shared_memory="cuda", retry=ONCE) as client:
        calls = [lambda one, seed=seed: one.cut(png(seed), request_id=f"echo-{seed}") for seed in range(FEW)]
        for answer, seed in zip(client.together(calls), range(FEW), strict=True):
            assert list(answer.images) == [png(seed)]
        status = httpx.get(f"{sharing.http_url}/v2/cudasharedmemory/status", timeout=10)
        assert 1 <= len(status.json()) <= FEW
    status = httpx.get(f"{sharing.http_url}/v2/cudasharedmemory/status", timeout=10)
    assert status.json() == []
