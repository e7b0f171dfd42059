"""Whatever a server is busy with, the clients end in time with the right error, or are served.

With Client and AsyncClient, over gRPC and HTTP, against one real server that is slow, full, and left by its callers.

Over HTTP the bundled Triton by itself does not notice that a caller has gone; the gate does, and cancels there.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cutaway
import numpy as np
import pytest
from cutaway.contract.errors import InvalidFormat, NoPersonDetected, Overloaded, ProcessingTimeout, RequestCancelled
from cutaway.resilience import RetryPolicy
from PIL import Image

from runtime.server import Server, ServerOptions
from tests.client.driving import DRIVERS, driven
from tests.integration import levers
from tests.integration import picture_files as make
from tests.runtime.leftovers import assert_nothing_left, wait_for

pytestmark = pytest.mark.triton

SCHEMES = ("grpc", "http")
WAYS = [(driver, scheme) for driver in DRIVERS for scheme in SCHEMES]
INSTANCES = 2
"""With one alone the bundled Triton often lets what waits rest for half a second although the instance is free."""
QUEUE_SIZE = 64
"""As on a GPU; on a CPU fewer may wait by default."""
NEVER_S = 3600.0
BUSY_S = 20.0
"""So long is waited for what happens at once on a machine that has nothing else to do."""
ONCE = RetryPolicy(retries=0)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for these tests alone; its supervisor sends no pictures of its own."""
    folder = tmp_path_factory.mktemp("busy")
    options = ServerOptions(
        cache_dir=folder / "cache",
        source=levers.repository(folder / "repository"),
        instances=INSTANCES,
        queue_size=QUEUE_SIZE,
        canary_interval_s=NEVER_S,
    )
    with Server(options) as server:
        yield server
        assert server.restarts == 0
    assert_nothing_left(folder / "cache")


@pytest.fixture(params=WAYS, ids="-".join)
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Which client, and which protocol."""
    driver, scheme = request.param
    return str(driver), str(scheme)


@pytest.fixture(scope="module")
def photo(samples: list[Path]) -> Path:
    return next(sample for sample in samples if sample.stem == "astronaut")


def url_of(server: Server, scheme: str) -> str:
    return server.grpc_url if scheme == "grpc" else server.http_url


@contextmanager
def occupied(server: Server, photo: Path, waiting: int = 0) -> Iterator[Callable[[], None]]:
    """All instances are busy and so many requests more wait; ends them all in the end, or when called."""
    cancel, number = cutaway.Cancel(), next(_numbers)
    running = [f"slow-60-{number}-{instance}" for instance in range(INSTANCES)]
    calls: list[Future[None]] = []

    def one(request_id: str) -> None:
        with pytest.raises(RequestCancelled):
            client.cut(photo, request_id=request_id, timeout_s=60, cancel=cancel)

    def free() -> None:
        cancel.cancel()
        for call in calls:
            call.result(BUSY_S)
        assert wait_for(lambda: levers.pending(server) == 0, BUSY_S)

    with cutaway.Client(server.grpc_url, retry=ONCE) as client, ThreadPoolExecutor(INSTANCES + waiting) as pool:
        try:
            calls += [pool.submit(one, id_) for id_ in running]
            assert wait_for(lambda: all(levers.began(server, id_) for id_ in running), BUSY_S)
            calls += [pool.submit(one, f"slow-60-{number}-waiting-{place}") for place in range(waiting)]
            assert wait_for(lambda: levers.pending(server) == waiting, BUSY_S)
            yield free
        finally:
            free()


_numbers = iter(range(10**6))


# ------------------------------------------------------------------------------------------------ sixty-four at once


def test_answers_never_cross(way: tuple[str, str], busy: Server) -> None:
    """As many threads or tasks as the server's queue is long, on one client, each with a picture of its own."""
    driver, scheme = way
    ids = [f"echo-{driver}-{scheme}-{place}" for place in range(QUEUE_SIZE)]
    pixels = np.random.default_rng(WAYS.index(way)).integers(0, 256, (QUEUE_SIZE, 64, 80, 3), np.uint8)
    pictures = [make.saved(Image.fromarray(each), "PNG") for each in pixels]

    def cut(id_: str, picture: bytes) -> Callable[[Any], Any]:
        return lambda each: each.cut(picture, request_id=id_)

    with driven(driver, url_of(busy, scheme)) as client:
        results = client.together(list(map(cut, ids, pictures)))
    for id_, picture, result in zip(ids, pictures, results, strict=True):
        assert isinstance(result, cutaway.CutResult), result
        assert result.request_id == result.report.raw["id"] == id_
        assert result.images == [picture]


# ------------------------------------------------------------------------------------------------------ many in a row


@pytest.mark.parametrize("ordered", [False, True], ids=["completion", "input"])
def test_many_pictures(ordered: bool, way: tuple[str, str], busy: Server) -> None:
    """The first is slow, one is no picture and one shows nobody; never more than `jobs` are at the server."""
    driver, scheme = way
    slow, quick, jobs = levers.lazy_picture(800), levers.lazy_picture(64), INSTANCES + 3
    nobody, no_picture = make.jpeg(), b"%PDF-1.7"
    pictures = [slow, quick, quick, no_picture, nobody, *[quick] * 7]
    waiting, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            waiting.append(levers.pending(busy))

    with driven(driver, url_of(busy, scheme)) as client, ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        outcomes = client.cut_many(pictures, jobs=jobs, ordered=ordered)
        over.set()
        watching.result(BUSY_S)
    order = [outcome.index for outcome in outcomes]
    assert sorted(order) == list(range(len(pictures)))
    if ordered:
        assert order == sorted(order)
    else:
        assert order.index(0) > order.index(1)
    for outcome in outcomes:
        assert outcome.source is pictures[outcome.index]
        if outcome.source in (nobody, no_picture):
            assert isinstance(outcome.error, NoPersonDetected if outcome.source is nobody else InvalidFormat)
        else:
            assert outcome.unwrap().images == [outcome.source]
    assert 1 <= max(waiting) <= jobs


# ---------------------------------------------------------------------------------------------- slow, left, and full


def test_a_slow_server_is_given_up_in_time(busy: Server, photo: Path) -> None:
    """All ways at once, while all instances are busy with something else; each client works after that.

    One call of each has three seconds, the next one a millisecond. None is begun when they are over.
    """
    deadline_s = 3.0

    def hurried(driver: str, scheme: str) -> float:
        with driven(driver, url_of(busy, scheme)) as client:
            begun = time.monotonic()
            with pytest.raises(ProcessingTimeout) as caught:
                client.cut(photo, timeout_s=deadline_s, request_id=f"late-{driver}-{scheme}")
            took_s = time.monotonic() - begun
            assert caught.value.details["elapsed_seconds"] <= deadline_s * 1.1
            with pytest.raises(ProcessingTimeout):
                client.cut(photo, timeout_s=0.001)
            assert free_at_last.wait(BUSY_S)
            assert len(client.detect(photo)) == 1
            return took_s

    free_at_last = threading.Event()
    with ThreadPoolExecutor(len(WAYS)) as pool:
        with occupied(busy, photo) as free:
            calls = [pool.submit(hurried, *way) for way in WAYS]
            try:
                assert wait_for(lambda: levers.pending(busy) == len(WAYS), BUSY_S)
                time.sleep(deadline_s * 1.3)
                free()
            finally:
                free_at_last.set()
        for call in calls:
            assert deadline_s * 0.9 < call.result(BUSY_S) < deadline_s * 1.1
    assert not any(levers.began(busy, f"late-{driver}-{scheme}") for driver, scheme in WAYS)


def test_a_full_queue(busy: Server, photo: Path) -> None:
    """All ways at once: who does not repeat is refused at once, who does is served when there is room again."""
    repeated = threading.Semaphore(0)

    class Patient(RetryPolicy):
        def delay_s(self, attempt: int, retry_after_s: float | None, draw: Callable[[], float]) -> float | None:
            repeated.release()
            return super().delay_s(attempt, retry_after_s, draw)

    def impatient(driver: str, scheme: str) -> Overloaded:
        with driven(driver, url_of(busy, scheme), retry=ONCE) as client:
            begun = time.monotonic()
            with pytest.raises(Overloaded) as caught:
                client.cut(photo)
            assert time.monotonic() - begun < 3.0
            return caught.value

    def patient(driver: str, scheme: str) -> cutaway.CutResult:
        with driven(driver, url_of(busy, scheme), retry=Patient(retries=5, first_delay_s=0.2)) as client:
            return client.cut(photo)

    with ThreadPoolExecutor(len(WAYS)) as pool:
        with occupied(busy, photo, waiting=QUEUE_SIZE) as free:
            for error in pool.map(lambda way: impatient(*way), WAYS):
                assert error.retry
                assert error.retry_after is not None
                assert 0 < error.retry_after < 30
                assert error.details["requests"] == 1
            calls = [pool.submit(patient, *way) for way in WAYS]
            for _ in WAYS:
                assert repeated.acquire(timeout=BUSY_S)
            assert levers.pending(busy) == QUEUE_SIZE
            free()
        for call in calls:
            result = call.result(BUSY_S)
            assert len(result.cutouts) == 1
            assert result.requests >= 2


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_the_server_sees_that_a_caller_has_gone(driver: str, scheme: str, busy: Server, photo: Path) -> None:
    """Some requests are being worked on and are given up there, one waits and is never begun; all callers leave."""
    name = f"{driver}-{scheme}"
    running, queued = [f"slow-60-{name}-{instance}" for instance in range(INSTANCES)], f"echo-{name}-queued"
    before = levers.cancelled(busy)
    with leaving(driver, busy, photo, scheme, running, queued) as leave:
        assert leave() < 2.0
        assert wait_for(lambda: all(levers.gave_up(busy, id_) for id_ in running), BUSY_S)
        assert wait_for(lambda: levers.cancelled(busy) == before + 1, BUSY_S)
        assert wait_for(lambda: levers.pending(busy) == 0, BUSY_S)
    assert not levers.began(busy, queued)


@contextmanager
def leaving(
    driver: str, server: Server, photo: Path, scheme: str, running: list[str], queued: str
) -> Iterator[Callable[[], float]]:
    """These calls are under way; gives them all up and says how many seconds that took. Then the client still works."""

    def all_running() -> bool:
        return all(levers.began(server, id_) for id_ in running)

    def one_waits() -> bool:
        return levers.pending(server) == 1

    url, took_s = url_of(server, scheme), Future[float]()
    if driver == "threads":
        cancel = cutaway.Cancel()
        with cutaway.Client(url, timeout_s=60) as client, ThreadPoolExecutor(len(running) + 1) as pool:

            def leave() -> float:
                begun = time.monotonic()
                cancel.cancel()
                assert {type(call.exception(BUSY_S)) for call in calls} == {RequestCancelled}
                return time.monotonic() - begun

            try:
                calls = [pool.submit(client.cut, photo, request_id=id_, cancel=cancel) for id_ in running]
                assert wait_for(all_running, BUSY_S)
                calls.append(pool.submit(client.cut, photo, request_id=queued, cancel=cancel))
                assert wait_for(one_waits, BUSY_S)
                yield leave
            finally:
                cancel.cancel()
            assert client.cut(photo, output="mask").images
        return

    ready, go = threading.Event(), threading.Event()

    async def main() -> None:
        async with cutaway.AsyncClient(url, timeout_s=60) as client:
            tasks = [asyncio.create_task(client.cut(photo, request_id=id_)) for id_ in running]
            try:
                assert await asyncio.to_thread(wait_for, all_running, BUSY_S)
                tasks.append(asyncio.create_task(client.cut(photo, request_id=queued)))
                assert await asyncio.to_thread(wait_for, one_waits, BUSY_S)
                ready.set()
                assert await asyncio.to_thread(go.wait, BUSY_S)
            finally:
                begun = time.monotonic()
                for task in tasks:
                    task.cancel()
                found = await asyncio.gather(*tasks, return_exceptions=True)
                took_s.set_result(time.monotonic() - begun)
            assert {type(each) for each in found} == {asyncio.CancelledError}
            assert (await client.cut(photo, output="mask")).images

    def leave_tasks() -> float:
        go.set()
        return took_s.result(BUSY_S)

    with ThreadPoolExecutor(1) as pool:
        over = pool.submit(asyncio.run, main())
        try:
            assert wait_for(lambda: ready.is_set() or over.done(), 2 * BUSY_S)
            yield leave_tasks
        finally:
            go.set()
        over.result(BUSY_S)
