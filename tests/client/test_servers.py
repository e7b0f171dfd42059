"""Several servers: calls go where there is room, a server that lets them down stands back, and an outage stays one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, pairwise
from typing import Any

import pytest
from cutaway import loop
from cutaway.contract import limits
from cutaway.contract.errors import (
    CutawayError,
    InferenceError,
    Overloaded,
    ProcessingTimeout,
    RateLimitExceeded,
    RequestCancelled,
)
from cutaway.resilience import Deadline, Retries, RetryBudget, RetryPolicy
from cutaway.servers import Server, Servers
from cutaway.transports.base import InferRequest

from tests.client import peers
from tests.client.driving import DRIVERS, driven
from tests.client.hosted.peers import picture

REQUEST = InferRequest("m", b"", ())
QUICK = RetryPolicy(first_delay_s=0.001)
PIC = picture(size_wh=(160, 96))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Peer:
    """A transport that does what `behave` does, and counts how often it is asked."""

    def __init__(self, behave: Callable[[InferRequest], Any] = lambda request: None) -> None:
        self.behave = behave
        self.asked = 0

    async def infer(self, request: InferRequest) -> dict[str, Any]:
        self.asked += 1
        waits = self.behave(request)
        if waits is not None:
            await waits
        return {}

    async def aclose(self) -> None:
        pass


def failing(error: Callable[[], CutawayError]) -> Callable[[InferRequest], None]:
    def behave(request: InferRequest) -> None:
        raise error()

    return behave


async def silent(request: InferRequest) -> None:
    await asyncio.sleep(request.timeout_s)
    raise ProcessingTimeout("no answer")


class Fleet:
    """Servers behind the rules, asked from threads or under asyncio, with a clock that stands still by default."""

    def __init__(self, driver: str, *behaviours: Callable[[InferRequest], Any], budget: float = 5.0) -> None:
        self.clock = Clock()
        self.budget = RetryBudget(budget)
        self.servers = [Peer(each) for each in behaviours]
        members = [Server(f"http://{number}", each) for number, each in enumerate(self.servers)]  # type: ignore[arg-type]
        self._servers = Servers(members, clock=self.clock)
        self._run = loop.run if driver == "threads" else asyncio.run

    def _ask(self, deadline: Deadline, retries: Retries) -> None:
        self._run(self._servers.infer(REQUEST, deadline, retries))

    def ask(self, times: int = 1, *, timeout_s: float = 10.0, policy: RetryPolicy = QUICK, every_s: float = 0.0) -> int:
        """How many of so many calls, one after the other, failed."""
        failed = 0
        for _ in range(times):
            self.clock.now += every_s
            deadline = Deadline(timeout_s)
            try:
                self._ask(deadline, Retries(deadline, policy, self.budget))
            except CutawayError:
                failed += 1
        return failed

    @property
    def asked(self) -> list[int]:
        return [server.asked for server in self.servers]


def well(request: InferRequest) -> None:
    pass


# --------------------------------------------------------------------------------- one of them lets calls down


@pytest.mark.parametrize(
    ("error", "most"),
    [
        (lambda: Overloaded("full"), 10),
        (lambda: RateLimitExceeded("slow down", retry_after=60.0), 1),
        (lambda: ProcessingTimeout("the gateway gave up"), 6),
    ],
    ids=["full", "limited", "gateway"],
)
@pytest.mark.parametrize("driver", DRIVERS)
def test_no_call_fails_while_another_server_has_room(driver: str, error: Callable[[], CutawayError], most: int) -> None:
    """A hundred calls in ten seconds, half of which would come to the server that is of no use."""
    fleet = Fleet(driver, failing(error), well)
    assert fleet.ask(100, every_s=0.1) == 0
    assert fleet.asked[0] <= most, "it is not asked first any more"


def test_servers_that_are_full_now_and_then_go_on_sharing_the_work() -> None:
    """Room for eighty, and sixty-four that ask: were those that were full for a moment left alone, the others would be
    too full."""

    async def served(seconds: float, room: threading.Semaphore, request: InferRequest) -> None:
        if not room.acquire(blocking=False):
            raise Overloaded("full")
        try:
            await asyncio.sleep(seconds)
        finally:
            room.release()

    servers = [Peer(partial(served, 0.02, threading.Semaphore(20))) for _ in range(4)]
    endpoints = Servers([Server(f"http://{number}", each) for number, each in enumerate(servers)])  # type: ignore[arg-type]
    budget = RetryBudget()

    def caller(_: int) -> int:
        failed = 0
        for _ in range(20):
            deadline = Deadline(10)
            try:
                loop.run(endpoints.infer(REQUEST, deadline, Retries(deadline, QUICK, budget)))
            except CutawayError:
                failed += 1
        return failed

    with ThreadPoolExecutor(64) as pool:
        assert sum(pool.map(caller, range(64))) <= 0.02 * 64 * 20
    assert max(each.asked for each in servers) < 1.2 * min(each.asked for each in servers)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_silent_server_is_found_out_by_what_others_need(driver: str) -> None:
    fleet = Fleet(driver, silent, well)
    assert fleet.ask(30, timeout_s=0.3) <= limits.SERVER_LATE_MAX + 1
    assert fleet.ask(10, timeout_s=0.3) == 0
    fleet.clock.now += limits.SERVER_BACK_S
    assert fleet.ask(10, timeout_s=0.3) == 1, "one call tries it again"


def test_it_comes_back_when_it_has_room_again() -> None:
    fleet = Fleet("threads", failing(lambda: Overloaded("full")), well)
    fleet.ask(20, every_s=limits.SERVER_BACK_S / 10)
    fleet.servers[0].behave, fleet.servers[0].asked = well, 0
    fleet.ask(10)
    assert fleet.asked[0] == 0
    fleet.clock.now += limits.SERVER_BACK_S
    fleet.ask(20)
    assert fleet.asked[0] >= 10


def test_one_slow_picture_condemns_no_server() -> None:
    slow = iter([False, True] + [False] * 50)
    fleet = Fleet("threads", lambda request: silent(request) if next(slow) else None, well)
    assert fleet.ask(40, timeout_s=0.05) == 1
    assert fleet.asked == [20, 20]


def test_a_caller_s_hurry_says_nothing_about_a_server() -> None:
    async def needs_20_ms(request: InferRequest) -> None:
        if request.timeout_s < 0.02:
            await silent(request)
        await asyncio.sleep(0.02)

    fleet = Fleet("threads", needs_20_ms, needs_20_ms)
    assert fleet.ask(4) == 0
    assert fleet.ask(8, timeout_s=0.002) == 8
    before = fleet.asked
    assert fleet.ask(4) == 0
    assert [after - before for after, before in zip(fleet.asked, before, strict=True)] == [2, 2], "both in their order"


def test_a_server_that_gives_up_is_not_followed_by_one_that_has_no_time_left() -> None:
    async def gives_up(request: InferRequest) -> None:
        await asyncio.sleep(0.9 * request.timeout_s)
        raise ProcessingTimeout("gave up")

    fleet = Fleet("threads", lambda request: asyncio.sleep(0.05), gives_up)
    assert fleet.ask() == 0
    assert fleet.ask(timeout_s=0.2) == 1
    assert fleet.asked == [1, 1]


# ------------------------------------------------------------------------------------------------ the budget


def test_a_server_without_room_is_left_for_a_healthy_one_whatever_the_budget() -> None:
    fleet = Fleet("threads", well, well, budget=0)
    fleet.ask(2)
    fleet.servers[0].behave = failing(lambda: Overloaded("full"))
    assert fleet.ask(20) == 0
    assert fleet.asked == [11, 21]


def test_a_failed_one_is_not() -> None:
    fleet = Fleet("threads", failing(lambda: InferenceError("stub died")), well, budget=0)
    assert fleet.ask(4) == 2
    assert fleet.asked == [2, 2]


ALL_FAIL = [lambda: Overloaded("full"), lambda: ProcessingTimeout("gave up"), lambda: InferenceError("stub died")]


@pytest.mark.parametrize("error", ALL_FAIL, ids=["full", "gateway", "broken"])
@pytest.mark.parametrize("before", [0, 20], ids=["new", "used"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_an_outage_of_all_is_not_amplified(driver: str, before: int, error: Callable[[], CutawayError]) -> None:
    fleet = Fleet(driver, well, well, well)
    fleet.ask(before)
    for server in fleet.servers:
        server.asked, server.behave = 0, failing(error)
    policy = RetryPolicy(first_delay_s=0.0)
    for _ in range(25):
        assert fleet.ask(policy=policy) == 1
        fleet.clock.now += 1.0
    assert 25 <= sum(fleet.asked) <= 1.2 * 25


def test_an_outage_seen_by_many_threads_is_not_amplified() -> None:
    fleet = Fleet("threads", well, well)
    fleet.ask(20)
    for server in fleet.servers:
        server.asked, server.behave = 0, failing(lambda: Overloaded("full"))
    with ThreadPoolExecutor(8) as pool:
        failed = sum(pool.map(lambda _: fleet.ask(25), range(8)))
    assert failed == 200
    assert sum(fleet.asked) <= 1.2 * 200


# ------------------------------------------------------------------------- how long a server is tried last


def pauses(fleet: Fleet, seconds: float, behave: Callable[[InferRequest], Any]) -> list[float]:
    """Seconds between the calls that the first of two servers gets in so many seconds."""
    times: list[float] = []

    def timed(request: InferRequest) -> Any:
        times.append(fleet.clock.now)
        return behave(request)

    fleet.servers[0].behave = timed
    assert fleet.ask(int(seconds / 0.25), every_s=0.25) == 0
    return [round(after - before, 2) for before, after in pairwise(times)]


def test_one_that_serves_between_its_refusals_goes_on_in_its_order() -> None:
    turns = count()

    def now_and_then(request: InferRequest) -> None:
        if next(turns) % 2:
            raise Overloaded("full")

    assert set(pauses(Fleet("threads", well, well), 20, now_and_then)) == {0.5}


def test_each_failed_trial_doubles_the_time_up_to_a_minute() -> None:
    found = pauses(Fleet("threads", well, well), 300, failing(lambda: Overloaded("full")))
    waits = [pause for pause in found if pause >= limits.SERVER_BACK_S]
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], abs=0.5)


@pytest.mark.parametrize(("asked_s", "back_s"), [(50.0, 50.0), (0.0, 1.0), (9999.0, limits.RETRY_AFTER_MAX_S)])
def test_it_is_left_alone_as_long_as_it_asks(asked_s: float, back_s: float) -> None:
    found = pauses(Fleet("threads", well, well), 130, failing(lambda: RateLimitExceeded("no", retry_after=asked_s)))
    assert found[0] == pytest.approx(back_s, abs=0.5)


def test_a_server_without_room_is_not_brought_back_by_a_call_from_before() -> None:
    fleet = Fleet("threads", well, well)
    begun, over = threading.Event(), threading.Event()

    def slow(request: InferRequest) -> Any:
        begun.set()
        return asyncio.to_thread(over.wait)

    fleet.servers[0].behave = slow
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(fleet.ask)
        begun.wait()
        fleet.clock.now += 1
        fleet.servers[0].behave = failing(lambda: RateLimitExceeded("slow down", retry_after=60.0))
        assert fleet.ask(2) == 0
        over.set()
        assert early.result() == 0
    asked = fleet.asked[0]
    fleet.ask(4)
    assert fleet.asked[0] == asked


def test_a_trial_that_is_cancelled_frees_its_place() -> None:
    fleet = Fleet("threads", well, well)
    fleet.servers[0].behave = failing(lambda: RateLimitExceeded("slow down", retry_after=10.0))
    fleet.ask(2)
    fleet.clock.now += 10

    def cancelled(request: InferRequest) -> None:
        raise asyncio.CancelledError

    fleet.servers[0].behave = cancelled
    with pytest.raises(asyncio.CancelledError):
        fleet.ask(2)
    fleet.servers[0].behave, asked = well, fleet.asked[0]
    fleet.ask(4)
    assert fleet.asked[0] == asked + 2


# ------------------------------------------------------------------------------------------------- over a network


@pytest.mark.parametrize(("status", "seconds"), [(503, 60), (429, 60), (500, 59), (409, 45)])
@pytest.mark.parametrize("driver", DRIVERS)
def test_retry_after_is_obeyed_whatever_the_table_advises(driver: str, status: int, seconds: int) -> None:
    requests = []
    answer = peers.http_answer(status, b"x", Retry_After=seconds)

    def counted(connection: Any, over: threading.Event) -> None:
        requests.append(connection)
        answer(connection, over)

    with peers.tcp_peer(counted) as port, driven(driver, f"http://127.0.0.1:{port}", timeout_s=10) as client:
        seconds_taken, error = peers.seconds_of(lambda: client.cut(PIC))
    assert isinstance(error, CutawayError)
    assert error.retry_after == error.details["retry_after_seconds"] == seconds
    assert error.details["requests"] == len(requests) == 1
    assert seconds_taken < 1


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_stays_wrong_is_sent_once(driver: str) -> None:
    with peers.tcp_peer(peers.http_answer(400, b"bad")) as port, driven(driver, f"http://127.0.0.1:{port}") as client:
        _, error = peers.seconds_of(lambda: client.cut(PIC))
    assert isinstance(error, CutawayError)
    assert (error.retry, error.retry_after, error.details["requests"]) == (False, None, 1)


@pytest.mark.parametrize("driver", DRIVERS)
def test_closing_ends_a_pause_before_a_repeat(driver: str) -> None:
    def close_soon(client: Any) -> Any:
        if driver == "threads":
            time.sleep(0.2)
            return client.close()

        async def closing() -> None:
            await asyncio.sleep(0.2)
            await client.close()

        return closing()

    with (
        peers.tcp_peer(peers.http_answer(503, b"x", Retry_After=9)) as port,
        driven(driver, f"http://127.0.0.1:{port}") as client,
    ):
        started = time.monotonic()
        (error, _) = client.together([lambda each: each.cut(PIC), close_soon])
        assert time.monotonic() - started < 2
    assert isinstance(error, RequestCancelled)
    assert "closed" in error.message
