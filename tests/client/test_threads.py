"""An asynchronous client's own threads: busy with nobody else's work, and left alone at the deadline."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cutaway import AsyncClient, ProcessingTimeout, ResultCache, ServerUnavailable
from cutaway.contract.limits import CLIENT_THREADS
from cutaway.resilience import Deadline, RetryPolicy
from cutaway.threads import Threads
from cutaway.transports.base import InferRequest
from cutaway.wire import Tensor

from tests.client import answers, peers
from tests.client.hosted.peers import picture

NEVER = RetryPolicy(retries=0)


def test_a_busy_executor_does_not_hold_up_calls() -> None:
    free = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        others = loop.run_in_executor(None, free.wait, 20)
        async with AsyncClient(f"http://127.0.0.1:{peers.dead_port()}", retry=NEVER) as client:
            started = time.monotonic()
            with pytest.raises(ServerUnavailable):
                await client.cut(picture(), timeout_s=5)
            assert time.monotonic() - started < 4
        free.set()
        await others

    asyncio.run(main())


def test_a_busy_executor_does_not_hold_up_the_end_of_a_client() -> None:
    free = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        others = loop.run_in_executor(None, free.wait, 20)
        client = AsyncClient(f"http://127.0.0.1:{peers.dead_port()}", shared_memory="system")
        try:
            await asyncio.wait_for(client.close(), 1)
        finally:
            free.set()
            await others

    asyncio.run(main())


def test_a_read_that_does_not_end_is_left_at_the_deadline_and_the_client_goes_on(tmp_path: Path) -> None:
    pipe = tmp_path / "picture.jpg"
    os.mkfifo(pipe)

    async def main() -> None:
        async with AsyncClient(f"http://127.0.0.1:{peers.dead_port()}", retry=NEVER) as client:
            started = time.monotonic()
            with pytest.raises(ProcessingTimeout, match="while reading the picture") as timeout:
                await client.cut(pipe, timeout_s=0.2)
            assert 0.2 <= time.monotonic() - started < 2
            assert timeout.value.details["elapsed_seconds"] >= 0.2
            with pytest.raises(ServerUnavailable):
                await client.cut(picture())

    asyncio.run(main())
    pipe.open("wb").close()


def test_however_many_reads_do_not_end_the_client_goes_on(tmp_path: Path) -> None:
    pipe = tmp_path / "picture.jpg"
    os.mkfifo(pipe)

    async def main() -> None:
        async with AsyncClient(f"http://127.0.0.1:{peers.dead_port()}", retry=NEVER) as client:
            stuck = [client.cut(pipe, timeout_s=0.2) for _ in range(CLIENT_THREADS + 2)]
            failed = await asyncio.gather(*stuck, return_exceptions=True)
            assert {type(error) for error in failed} == {ProcessingTimeout}
            with pytest.raises(ServerUnavailable):
                await client.cut(picture(), timeout_s=1)

    asyncio.run(main())
    pipe.open("wb").close()


def test_a_read_that_does_not_end_keeps_no_process_from_ending(tmp_path: Path) -> None:
    pipe = tmp_path / "picture.jpg"
    os.mkfifo(pipe)
    code = f"""
import asyncio, cutaway
async def main():
    async with cutaway.AsyncClient("http://127.0.0.1:1") as client:
        await client.cut({str(pipe)!r}, timeout_s=0.1)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert "ProcessingTimeout" in done.stderr.splitlines()[-1]


def test_no_more_at_once_than_allowed_and_nothing_that_nobody_waits_for() -> None:
    gate, lock = threading.Event(), threading.Lock()
    now = most = begun = 0

    def work() -> None:
        nonlocal now, most, begun
        with lock:
            begun += 1
            now += 1
            most = max(most, now)
        assert gate.wait(20)
        with lock:
            now -= 1

    async def main() -> None:
        threads = Threads(2)
        waited_for = [asyncio.ensure_future(threads.run("working", None, work)) for _ in range(4)]
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(ProcessingTimeout):
                await threads.run("working", Deadline(0.001), work)
        gate.set()
        await asyncio.gather(*waited_for)

    asyncio.run(main())
    assert (most, begun) == (2, 4)


def test_whatever_the_work_raises_is_raised() -> None:
    def work() -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(Threads().run("working", None, work))


class Answering:
    """A server that answers at once."""

    async def infer(self, request: InferRequest) -> Mapping[str, Tensor]:
        del request
        return answers.outputs()

    async def aclose(self) -> None:
        pass


def test_composing_ends_with_the_deadline_too(tmp_path: Path) -> None:
    pipe = tmp_path / "background.jpg"
    os.mkfifo(pipe)

    async def main() -> None:
        async with AsyncClient(transport=Answering()) as client:
            with pytest.raises(ProcessingTimeout, match="while composing"):
                await asyncio.wait_for(client.composite(picture(), pipe, timeout_s=0.5), 1.5)

    asyncio.run(main())
    pipe.open("wb").close()


def test_an_answer_does_not_wait_for_the_cache_beyond_the_deadline(tmp_path: Path) -> None:
    free = threading.Event()

    class Slow(ResultCache):
        def put(self, key: str, outputs: Mapping[str, Tensor]) -> None:
            free.wait(20)
            super().put(key, outputs)

    async def main() -> None:
        with Slow(tmp_path / "cache") as cache:
            async with AsyncClient(transport=Answering(), cache=cache) as client:
                assert (await asyncio.wait_for(client.cut(picture(), timeout_s=0.5), 1.5)).images
            free.set()

    asyncio.run(main())


@pytest.mark.parametrize("verify", [False, True])
def test_small_files_are_checked_at_once(verify: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    run = Threads.run

    async def counted(self: Threads, doing: str, *rest: Any) -> Any:
        begun.append(doing)
        return await run(self, doing, *rest)

    monkeypatch.setattr(Threads, "run", counted)

    async def main() -> None:
        async with AsyncClient(transport=Answering(), verify=verify) as client:
            await client.cut(picture())

    asyncio.run(main())
    assert begun == (["reading the picture"] if verify else [])


def test_what_nobody_waits_for_takes_no_place_and_is_not_kept() -> None:
    class Picture:
        pass

    free = threading.Event()

    async def main() -> None:
        threads = Threads(1)

        def given_up(seconds: float) -> tuple[asyncio.Task[bool], weakref.ref[Picture]]:
            taken = Picture()
            gone = weakref.ref(taken)

            def work(keeping: object = taken) -> bool:
                return free.wait(20) and keeping is taken

            return asyncio.ensure_future(threads.run("reading", Deadline(seconds), work)), gone

        endless, _ = given_up(0.3)
        behind, gone = given_up(0.1)
        turn = asyncio.ensure_future(threads.run("working", Deadline(5), lambda: "its turn"))
        for call in (behind, endless):
            with pytest.raises(ProcessingTimeout):
                await call
        del behind, call
        assert await asyncio.wait_for(turn, 1) == "its turn"
        assert gone() is None
        assert await asyncio.wait_for(threads.run("working", None, lambda: "the next"), 1) == "the next"
        free.set()

    asyncio.run(main())


def test_where_there_are_no_more_threads_calls_fail_until_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        threads = Threads(2)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            for _ in range(3):
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    await asyncio.wait_for(threads.run("working", None, int), 1)
        assert await asyncio.wait_for(threads.run("working", None, int), 1) == 0

    asyncio.run(main())
