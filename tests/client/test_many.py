"""Many pictures at once: bounds, order, failures, and that nothing goes on when nobody listens."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import anyio
import pytest
from cutaway import loop
from cutaway.async_client import Outcome, run_many
from cutaway.contract.errors import CorruptImage, RequestCancelled
from cutaway.loop import Cancel

WAIT_S = 20.0


def iterate_many(cut: Any, images: Any, **how: Any) -> Generator[Outcome, None, None]:
    """As `Client.cut_many` does."""
    return loop.iterate(run_many(cut, images, **how))


class Work:
    """Counts what is in flight, in the loop thread; each picture is done when its gate opens."""

    def __init__(self, gated: bool = False) -> None:
        self.now = self.most = self.begun = 0
        self.gates: dict[Any, asyncio.Event] = {}
        self.gated = gated

    def open(self, image: Any) -> None:
        loop.running().call_soon_threadsafe(self._gate(image).set)

    def _gate(self, image: Any) -> asyncio.Event:
        return self.gates.setdefault(image, asyncio.Event())

    async def __call__(self, image: Any) -> Any:
        self.begun += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self.gated:
                await asyncio.wait_for(self._gate(image).wait(), WAIT_S)
            if image == "bad":
                raise CorruptImage("bad")
            return f"result of {image}"
        finally:
            self.now -= 1


def test_every_picture_has_its_outcome_and_a_failure_ends_nothing() -> None:
    images = ["a", "bad", "c", "d"]
    steps: list[tuple[int, int | None]] = []
    outcomes = list(iterate_many(Work(), images, jobs=2, ordered=True, progress=lambda *step: steps.append(step)))
    assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3]
    assert [outcome.source for outcome in outcomes] == images
    assert [outcome.ok for outcome in outcomes] == [True, False, True, True]
    assert str(outcomes[2].unwrap()) == "result of c"
    with pytest.raises(CorruptImage):
        outcomes[1].unwrap()
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_in_order_of_completion() -> None:
    work = Work(gated=True)
    outcomes = iterate_many(work, ["slow", "quick"], jobs=2, ordered=False)
    work.open("quick")
    assert next(outcomes).source == "quick"
    work.open("slow")
    assert next(outcomes).source == "slow"
    assert next(outcomes, None) is None


def test_in_order_of_the_pictures() -> None:
    work = Work(gated=True)
    outcomes = iterate_many(work, ["slow", "quick"], jobs=2, ordered=True)
    work.open("quick")
    opener = threading.Timer(0.1, work.open, ("slow",))
    opener.start()
    assert [outcome.source for outcome in outcomes] == ["slow", "quick"]
    opener.join()


@pytest.mark.parametrize("ordered", [True, False])
def test_no_more_in_flight_than_jobs_and_inputs_are_lazy(ordered: bool) -> None:
    taken: list[int] = []

    def images() -> Iterator[int]:
        for number in range(10**9):
            taken.append(number)
            yield number

    work = Work()
    outcomes = iterate_many(work, images(), jobs=3, ordered=ordered)
    for _ in range(20):
        assert next(outcomes).ok
    outcomes.close()
    assert work.most <= 3
    assert len(taken) <= 20 + 2 * 3


def test_closing_cancels_what_is_in_flight() -> None:
    work = Work(gated=True)
    outcomes = iterate_many(work, ["first", "second", "third"], jobs=2, ordered=False)
    work.open("first")
    assert next(outcomes).source == "first"
    outcomes.close()  # returns although nobody opened the second one's gate
    assert work.now == 0
    assert work.begun <= 3


def test_a_cancel_from_outside_ends_it() -> None:
    work, cancel = Work(gated=True), Cancel()
    outcomes = iterate_many(work, map(str, range(1000)), jobs=2, ordered=False, cancel=cancel)
    canceller = threading.Timer(0.1, cancel.cancel)
    canceller.start()
    found = list(outcomes)
    canceller.join()
    assert 1 <= len(found) <= 4
    assert all(isinstance(outcome.error, RequestCancelled) for outcome in found)


def test_a_broken_source_of_pictures_is_raised_and_ends_the_rest() -> None:
    def images() -> Iterator[str]:
        yield "a"
        raise OSError("the list is gone")

    outcomes = iterate_many(Work(), images(), jobs=1, ordered=False)
    with pytest.raises(OSError, match="the list is gone"):
        list(outcomes)


def test_what_was_taken_before_the_source_broke_is_handed_out_first() -> None:
    def images() -> Iterator[str]:
        yield from "abc"
        raise OSError("the list is gone")

    outcomes = iterate_many(Work(), images(), jobs=8, ordered=True)
    assert [next(outcomes).source for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(OSError, match="the list is gone"):
        next(outcomes)


class Live:
    """A source that waits until it is given something; None ends it."""

    def __init__(self) -> None:
        self.given: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[Any]:
        while (image := self.given.get(timeout=WAIT_S)) is not None:
            yield image


@pytest.mark.parametrize("ordered", [True, False])
def test_a_source_may_wait_for_what_becomes_of_the_pictures_before(ordered: bool) -> None:
    live = Live()
    live.given.put(0)
    found = []
    for outcome in iterate_many(Work(), live, jobs=4, ordered=ordered):
        found.append(outcome.source)
        live.given.put(len(found) if len(found) < 5 else None)
    assert found == [0, 1, 2, 3, 4]


def test_leaving_or_cancelling_does_not_wait_for_the_source() -> None:
    started = time.monotonic()
    left, cancelled, cancel = Live(), Live(), Cancel()
    left.given.put("a")
    outcomes = iterate_many(Work(), left, jobs=2, ordered=False)
    assert next(outcomes).source == "a"
    outcomes.close()
    canceller = threading.Timer(0.1, cancel.cancel)
    canceller.start()
    assert list(iterate_many(Work(), cancelled, jobs=2, ordered=False, cancel=cancel)) == []
    canceller.join()
    assert time.monotonic() - started < WAIT_S / 2
    left.given.put(None)
    cancelled.given.put(None)


def test_what_leaves_an_iterable_and_is_no_exception_is_an_error_all_the_same() -> None:
    def images() -> Iterator[str]:
        yield "a"
        raise SystemExit(3)

    outcomes = iterate_many(Work(), images(), jobs=1, ordered=False)
    assert next(outcomes).ok
    with pytest.raises(RuntimeError, match="SystemExit"):
        next(outcomes)


def test_no_more_than_jobs_are_begun_while_nobody_asks() -> None:
    taken: list[str] = []

    def images() -> Iterator[str]:
        for name in "abcdef":
            taken.append(name)
            yield name

    outcomes = iterate_many(Work(), images(), jobs=1, ordered=False)
    for number, outcome in enumerate(outcomes, 1):
        time.sleep(0.02)
        assert outcome.source == taken[number - 1]
        assert len(taken) <= number + 1


@pytest.mark.parametrize("one", ["photo.jpg", b"\xff\xd8"])
def test_one_picture_is_not_several(one: Any) -> None:
    with pytest.raises(TypeError, match="put it into a list"):
        next(iterate_many(Work(), one, jobs=1, ordered=False))


# ------------------------------------------------------------------------------------------------ asyncio


def test_async_outcomes_bounds_and_failures() -> None:
    now = most = 0

    async def work(image: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        if image == 3:
            raise CorruptImage("bad")
        return image

    async def images() -> AsyncIterator[Any]:
        for number in range(12):
            yield number

    async def main() -> list[Outcome]:
        return [outcome async for outcome in run_many(work, images(), jobs=4, ordered=True)]

    outcomes = asyncio.run(main())
    assert [outcome.index for outcome in outcomes] == list(range(12))
    assert [outcome.index for outcome in outcomes if not outcome.ok] == [3]
    assert most <= 4


@pytest.mark.parametrize("ordered", [True, False])
def test_async_a_source_may_wait_for_what_becomes_of_the_pictures_before(ordered: bool) -> None:
    async def work(image: Any) -> Any:
        return image

    async def main() -> list[Any]:
        given: asyncio.Queue[Any] = asyncio.Queue()
        given.put_nowait(0)

        async def images() -> AsyncIterator[Any]:
            async with anyio.create_task_group():  # must be left in the task in which it was entered
                while (image := await given.get()) is not None:
                    yield image

        found = []
        async for outcome in run_many(work, images(), jobs=4, ordered=ordered):
            found.append(outcome.source)
            given.put_nowait(len(found) if len(found) < 5 else None)
        return found

    assert asyncio.run(asyncio.wait_for(main(), WAIT_S / 2)) == [0, 1, 2, 3, 4]


def test_async_leaving_does_not_wait_for_the_source_and_a_broken_one_is_raised() -> None:
    async def work(image: Any) -> Any:
        return image

    async def waiting() -> AsyncIterator[Any]:
        yield 0
        await asyncio.sleep(WAIT_S)

    async def broken() -> AsyncIterator[Any]:
        yield 0
        raise OSError("the list is gone")

    async def main() -> None:
        outcomes = run_many(work, waiting(), jobs=2, ordered=False)
        assert (await anext(outcomes)).ok
        await outcomes.aclose()
        outcomes = run_many(work, broken(), jobs=2, ordered=False)
        assert (await anext(outcomes)).ok
        with pytest.raises(OSError, match="the list is gone"):
            await anext(outcomes)

    asyncio.run(asyncio.wait_for(main(), WAIT_S / 2))


def test_async_jobs_stay_busy_while_the_caller_works_without_awaiting() -> None:
    begun: list[Any] = []

    async def work(image: Any) -> Any:
        begun.append(image)
        return image

    async def main() -> None:
        async for outcome in run_many(work, iter(range(20)), jobs=2, ordered=True):
            assert len(begun) <= outcome.index + 2 * 2

    asyncio.run(main())
    assert begun == list(range(20))


def test_async_closing_cancels_what_is_in_flight() -> None:
    cancelled: list[Any] = []

    async def work(image: Any) -> Any:
        if image == 0:
            return image
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            cancelled.append(image)
            raise

    async def main() -> None:
        outcomes = run_many(work, range(100), jobs=3, ordered=False)
        assert (await anext(outcomes)).source == 0
        await asyncio.sleep(0)
        await outcomes.aclose()

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < WAIT_S / 2
    assert len(cancelled) <= 3


def test_async_cancelling_the_loop_cancels_what_is_in_flight() -> None:
    begun: list[Any] = []
    cancelled: list[Any] = []

    async def work(image: Any) -> Any:
        begun.append(image)
        try:
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            cancelled.append(image)
            raise

    async def consume() -> None:
        async for _ in run_many(work, range(100), jobs=3, ordered=False):
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        while len(begun) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert sorted(begun) == sorted(cancelled) == [0, 1, 2]
