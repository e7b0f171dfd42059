"""Deadlines, the retry rule at its boundaries, the budget in an outage, and the breaker under many threads."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cutaway.contract.errors import (
    CorruptImage,
    CutawayError,
    InferenceError,
    Overloaded,
    ProcessingTimeout,
    RateLimitExceeded,
    ServerUnavailable,
)
from cutaway.providers import HuggingFace, ProviderUnavailable
from cutaway.resilience import (
    CircuitBreaker,
    Deadline,
    Retries,
    RetryBudget,
    RetryPolicy,
    parse_retry_after,
)

from tests.client.hosted.peers import HubScript, Peer, Reply, mask, picture, png


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------------------------------------------- deadline


def test_deadline() -> None:
    clock = Clock()
    deadline = Deadline(10, clock=clock)
    clock.now += 4
    assert (deadline.left_s, deadline.elapsed_s, deadline.over) == (6, 4, False)
    assert deadline.capped(3).left_s == 3
    assert deadline.capped(30).left_s == 6
    assert deadline.capped(-1).over
    clock.now += 7
    assert deadline.over
    assert deadline.left_s == 0
    with pytest.raises(ProcessingTimeout, match=r"Replicate did not answer within 10\.0 s"):
        deadline.check("Replicate")


@pytest.mark.parametrize("seconds", [float("inf"), float("nan")])
def test_a_deadline_is_finite(seconds: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Deadline(seconds)


# ----------------------------------------------------------------------------------------------------- retries


def retries(seconds: float = 1000, draw: float = 0.0, **policy: Any) -> Retries:
    return Retries(Deadline(seconds, clock=Clock()), RetryPolicy(**policy), RetryBudget(100), draw=lambda: draw)


def unavailable(seconds: float | None = None) -> ServerUnavailable:
    return ServerUnavailable("no", details={} if seconds is None else {"retry_after_seconds": seconds})


def test_waits_double_up_to_the_longest_and_shrink_by_a_quarter_at_most() -> None:
    many = retries(retries=7)
    assert [many.delay_s(unavailable()) for _ in range(8)] == [0.5, 1, 2, 4, 8, 8, 8, None]
    shortest = retries(draw=1.0)
    assert shortest.delay_s(unavailable()) == 0.375
    assert RetryPolicy(retries=10**9).delay_s(10**6, None, lambda: 0.0) == 8


def test_two_retries_by_default() -> None:
    default = retries()
    assert [default.delay_s(unavailable()) is None for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(("asked", "waits"), [(0.0, 0.0), (119.9, 119.9), (120.0, 120.0), (121.0, None)])
def test_what_the_server_asks_for_is_obeyed_up_to_two_minutes(asked: float, waits: float | None) -> None:
    assert retries(draw=1.0).delay_s(unavailable(asked)) == waits


def test_an_error_s_own_retry_after_counts_and_the_table_s_advice_does_not() -> None:
    assert retries().delay_s(Overloaded("full", retry_after=3.0)) == 3.0
    assert retries().delay_s(RateLimitExceeded("slow down")) == 0.5


@pytest.mark.parametrize("error", [Overloaded, RateLimitExceeded, InferenceError, ServerUnavailable])
def test_what_a_server_asks_for_counts_where_the_table_advises_the_same(error: type[CutawayError]) -> None:
    advised = error("no").retry_after
    assert advised is not None
    assert retries().delay_s(error("no", retry_after=advised)) == advised
    told = error("no")
    told.asks_to_wait(advised)
    assert retries().delay_s(told) == told.details["retry_after_seconds"] == advised


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    brief = retries(seconds=2.0)
    assert brief.delay_s(unavailable(2.0)) is None
    assert brief.delay_s(unavailable(1.9)) == 1.9


@pytest.mark.parametrize("error", [CorruptImage("x"), ProcessingTimeout("x")])
def test_what_cannot_help_is_not_repeated(error: CutawayError) -> None:
    assert retries().delay_s(error) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("30", 30.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("Sat, 21 Nov 2026 10:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 09:00:00 GMT", 0.0),
        ("-1", None),
        ("inf", None),
        ("Sat, 21 Nov 2026 10:00:30 +999999999999", None),
        ("nan", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_header(value: str | None, expected: float | None) -> None:
    now = datetime(2026, 11, 21, 10, 0, 0, tzinfo=UTC)
    assert parse_retry_after(value, now=lambda: now) == expected


# ------------------------------------------------------------------------------------------------------ budget


@pytest.mark.parametrize("calls", [25, 50, 200])
def test_an_outage_is_not_amplified(calls: int, serve: Callable[..., Peer]) -> None:
    """Requests that a dead service sees, by calls: never 1.2 times as many."""
    peer = serve(HubScript(Reply(500)))
    provider = HuggingFace(base_url=peer.base_url, accept_noncommercial=True, retry=RetryPolicy(first_delay_s=0.001))
    failed = 0
    data = picture(size_wh=(64, 64))

    async def main() -> None:
        nonlocal failed
        for _ in range(calls):
            with pytest.raises(ProviderUnavailable):
                await provider.matte(data, "image/png", Deadline(5))
            failed += 1

    asyncio.run(main())
    assert failed == calls
    assert len(peer.received) <= 1.2 * calls


def test_an_outage_seen_by_many_threads_is_not_amplified(serve: Callable[..., Peer]) -> None:
    peer = serve(HubScript(Reply(503)))
    provider = HuggingFace(base_url=peer.base_url, accept_noncommercial=True, retry=RetryPolicy(first_delay_s=0.001))
    data = picture(size_wh=(64, 64))

    def work() -> None:
        for _ in range(10):
            with pytest.raises(Overloaded):
                asyncio.run(provider.matte(data, "image/png", Deadline(20)))

    in_threads(work, 8)
    assert 80 <= len(peer.received) <= 1.2 * 80


def test_the_budget_recovers_after_an_outage() -> None:
    budget = RetryBudget(tokens=2, per_success=0.1)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(9):
        budget.succeeded()
    assert not budget.take()
    budget.succeeded()
    assert budget.take()
    for _ in range(1000):
        budget.succeeded()
    assert budget.tokens == 2


def test_a_success_brings_a_token_back(serve: Callable[..., Peer]) -> None:
    peer = serve(HubScript(Reply(500), png(mask())))
    provider = HuggingFace(base_url=peer.base_url, accept_noncommercial=True, retry=RetryPolicy(first_delay_s=0.001))
    asyncio.run(provider.matte(picture(), "image/png", Deadline(5)))
    assert provider.budget.tokens == pytest.approx(4.1)


def in_threads(work: Callable[[], Any], count: int) -> None:
    gate = threading.Barrier(count)

    def run() -> None:
        gate.wait()
        work()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ----------------------------------------------------------------------------------------------------- breaker


def opened(clock: Clock, **more: Any) -> CircuitBreaker:
    breaker = CircuitBreaker(fail_max=2, reset_s=10, clock=clock, **more)
    for _ in range(2):
        permit = breaker.permit()
        assert permit is not None
        permit.failed()
    assert breaker.state == "open"
    return breaker


def test_breaker_opens_after_failures_in_a_row_and_not_before() -> None:
    breaker = CircuitBreaker(fail_max=3, reset_s=10, clock=Clock())
    for outcome in ("failed", "failed", "succeeded", "failed", "failed", "dropped"):
        permit = breaker.permit()
        assert permit is not None
        getattr(permit, outcome)()
    assert breaker.state == "closed"
    permit = breaker.permit()
    assert permit is not None
    permit.failed()
    assert breaker.state == "open"
    assert breaker.permit() is None
    assert breaker.open_for_s == 10


def test_half_open_admits_one_and_closes_or_opens_by_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 10
    trial = breaker.permit()
    assert trial is not None
    assert breaker.state == "half-open"
    assert breaker.permit() is None
    trial.failed()
    assert breaker.permit() is None
    clock.now += 10
    trial = breaker.permit()
    assert trial is not None
    trial.succeeded()
    assert breaker.state == "closed"
    assert breaker.permit() is not None


def test_half_open_admits_exactly_one_of_many_threads() -> None:
    for _ in range(20):
        clock = Clock()
        breaker = opened(clock)
        clock.now += 10
        admitted: list[object] = []

        def ask(breaker: CircuitBreaker = breaker, admitted: list[object] = admitted) -> None:
            permit = breaker.permit()
            if permit is not None:
                admitted.append(permit)

        in_threads(ask, 32)
        assert len(admitted) == 1


def test_a_cancelled_trial_frees_its_place() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 10
    trial = breaker.permit()
    assert trial is not None
    trial.dropped()
    assert breaker.permit() is not None


def test_a_trial_that_never_comes_back_frees_its_place_in_time() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 10
    lost = breaker.permit()
    clock.now += 9.9
    assert breaker.permit() is None
    clock.now += 0.2
    assert breaker.permit() is not None
    assert lost is not None
    lost.succeeded()
    assert breaker.state == "half-open", "the lost trial speaks of the past"


def test_late_news_from_before_the_breaker_opened_is_ignored() -> None:
    clock = Clock()
    breaker = CircuitBreaker(fail_max=1, reset_s=10, clock=clock)
    slow, quick = breaker.permit(), breaker.permit()
    assert slow is not None
    assert quick is not None
    quick.failed()
    slow.succeeded()
    assert breaker.state == "open"
    quick.failed()
    assert breaker.open_for_s == 10


def test_the_race_of_threads_through_all_states_leaves_no_permit_behind() -> None:
    """After any mix of outcomes the breaker still lets somebody through in time."""
    clock = Clock()
    breaker = CircuitBreaker(fail_max=3, reset_s=1, clock=clock)
    lock = threading.Lock()

    def work() -> None:
        mine = random.Random(threading.get_ident())
        for _ in range(200):
            permit = breaker.permit()
            if permit is None:
                with lock:
                    clock.now += 0.3
            else:
                getattr(permit, mine.choice(["succeeded", "failed", "failed", "dropped"]))()

    in_threads(work, 8)
    clock.now += 2
    permit = breaker.permit()
    assert permit is not None
    permit.succeeded()
    assert breaker.permit() is not None
