"""What blocks an asynchronous client's threads is abandoned at the deadline, and holds up nobody else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cutaway import AsyncClient, ProcessingTimeout, ResultCache, ServerUnavailable
from cutaway.contract.limits import CLIENT_THREADS
from cutaway.resilience import RetryPolicy
from cutaway.transports.base import InferRequest, Tensor

from tests.client import answers, peers
from tests.client.hosted.peers import picture

NEVER = RetryPolicy(retries=0)


class Answering:
    """A server that answers at once."""

    async def infer(self, request: InferRequest) -> Mapping[str, Tensor]:
        del request
        return answers.outputs()

    async def aclose(self) -> None:
        pass


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
        async with AsyncClient(transport=Answering(), cache=Slow(tmp_path / "cache")) as client:
            assert (await asyncio.wait_for(client.cut(picture(), timeout_s=0.5), 1.5)).images
        free.set()

    asyncio.run(main())
