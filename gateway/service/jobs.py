"""Cutting in the background: taskiq, in the process or on Redis, where another gateway takes a dead one's jobs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from cutaway.contract.errors import CutawayError, InferenceError, Overloaded, ProcessingTimeout
from cutaway.contract.limits import CUT_MANY_JOBS
from redis.exceptions import RedisError
from taskiq import AsyncBroker, InMemoryBroker
from taskiq.api import run_receiver_task
from taskiq.depends.progress_tracker import TaskProgress, TaskState
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from gateway.service.errors import ServiceProblem, detail_form, not_found
from gateway.service.settings import KEEP_S

Work = Callable[[dict[str, Any], Callable[[str, int], Awaitable[None]]], Awaitable[dict[str, Any]]]
"""A job's arguments and the callback for its stage and percentage → its result; both are plain JSON."""

FINISHED = ("completed", "failed")
RECEIVE_AGAIN_S = 1.0
CLOSE_S = 5.0
"""For taskiq to end: it waits for a Redis that is away."""

log = logging.getLogger(__name__)


class Jobs:
    """Jobs by id: submitted, worked on side by side, with progress that any gateway can read.

    Args:
        work: does one job.
        redis_url: where jobs are kept; in the process where empty, and gone with it.
        most: unfinished jobs that this gateway takes.
        timeout_s: deadline of a job.
        reclaim_s: after so long without an acknowledgement a job of a dead gateway is begun anew by another.
    """

    def __init__(self, work: Work, redis_url: str, most: int, timeout_s: float, reclaim_s: float) -> None:
        self._work, self._most, self._timeout_s = work, most, timeout_s
        self._slots = asyncio.Semaphore(CUT_MANY_JOBS)
        self._begun: set[str] = set()
        self._reclaim_s = reclaim_s
        self._closing = False
        self._running: list[asyncio.Task[None]] = []
        self._broker = broker_on(redis_url, reclaim_s)
        self._in_process = not redis_url

        async def remove(job_id: str, arguments: dict[str, Any]) -> None:  # taskiq renames what it takes: no method
            await self._run(job_id, arguments)

        async def nothing() -> None:
            pass

        self._task = self._broker.register_task(remove, task_name="remove")
        self._tick = self._broker.register_task(nothing, task_name="tick")

    async def start(self) -> None:
        await self._broker.startup()
        if not self._in_process:
            self._running = [asyncio.create_task(self._receive()), asyncio.create_task(self._reclaim())]

    async def aclose(self) -> None:
        self._closing = True  # taskiq's receiver may swallow a cancellation
        for task in self._running:
            task.cancel()
        with suppress(TimeoutError, RedisError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*self._running, return_exceptions=True)
                await self._broker.shutdown()

    async def _receive(self) -> None:
        """Work on jobs; again and again, since the receiver ends where Redis goes away."""
        while not self._closing:
            try:
                await run_receiver_task(self._broker, max_async_tasks=CUT_MANY_JOBS, max_prefetch=0)
            except Exception as error:
                log.warning("Redis is away, so that no jobs are worked on: %s", error)
            await asyncio.sleep(RECEIVE_AGAIN_S)

    async def _reclaim(self) -> None:
        """taskiq's broker looks for the jobs of dead gateways only after a message has come: here is one."""
        while True:
            await asyncio.sleep(self._reclaim_s)
            with suppress(Exception):  # Redis is away; its client raises many
                await self._tick.kiq()

    async def check_room(self, wanted: int) -> None:
        """Raises:
        Overloaded: there are too many unfinished jobs for so many more.
        """
        if len(self._begun) + wanted > self._most:  # any gateway may have finished them
            for job_id in tuple(self._begun):
                found = await self._progress_of(job_id)
                if found is None or found["status"] in FINISHED:
                    self._begun.discard(job_id)
        if len(self._begun) + wanted > self._most:
            raise Overloaded(f"{len(self._begun)} of {self._most} jobs are waiting already.")

    async def submit(self, job_id: str, arguments: dict[str, Any]) -> None:
        """Begin a job.

        Raises:
            Overloaded: there are too many unfinished ones.
        """
        await self.check_room(1)
        self._begun.add(job_id)
        try:
            await self.progress(job_id, {"status": "queued", "stage": "queued", "percentage": 0})
            await self._task.kicker().with_task_id(job_id).kiq(job_id, arguments)
        except Exception as error:  # Redis is away; its client raises many
            self._begun.discard(job_id)
            raise _away() from error

    async def progress(self, job_id: str, state: dict[str, Any]) -> None:
        progress = TaskProgress(state=TaskState.STARTED, meta=state | {"at": time.time()})
        await self._broker.result_backend.set_progress(job_id, progress)

    async def state(self, job_id: str) -> dict[str, Any]:
        """A job's or batch's last state: status (queued, processing, completed, failed), stage, percentage, result.

        Raises:
            ServiceProblem: 404.
        """
        found = await self._progress_of(job_id)
        if found is None:
            raise not_found("job with this id")
        return found

    async def _progress_of(self, job_id: str) -> dict[str, Any] | None:
        try:
            found = await self._broker.result_backend.get_progress(job_id)
        except Exception as error:  # Redis is away; its client raises many
            raise _away() from error
        return dict(found.meta) if found is not None and isinstance(found.meta, dict) else None

    async def _run(self, job_id: str, arguments: dict[str, Any]) -> None:
        async def stage(name: str, percentage: int) -> None:
            await self.progress(job_id, {"status": "processing", "stage": name, "percentage": percentage})

        try:
            async with self._slots, asyncio.timeout(self._timeout_s):
                await stage("processing", 10)
                result = await self._work(arguments, stage)
            state = {"status": "completed", "stage": "done", "percentage": 100, "result": result}
        except TimeoutError:
            state = _failed(ProcessingTimeout(f"The job took more than {self._timeout_s:g} s."))
        except (CutawayError, ServiceProblem) as error:
            state = _failed(error)
        except Exception:  # the log has it
            await self.progress(job_id, _failed(InferenceError("The job failed.")))
            raise
        await self.progress(job_id, state)  # not where it is cancelled: on Redis another gateway begins it anew


def _away() -> ServiceProblem:
    return ServiceProblem(503, "UNAVAILABLE", "The queue of jobs does not answer.", "Try again.")


def _failed(error: CutawayError | ServiceProblem) -> dict[str, Any]:
    return {"status": "failed", "stage": "failed", "percentage": 100, "error": detail_form(error)}


def broker_on(redis_url: str, reclaim_s: float) -> AsyncBroker:
    """taskiq's broker in the process, or on a Redis stream with acknowledgements."""
    if not redis_url:
        return InMemoryBroker(max_stored_results=10_000)
    keep_s = round(KEEP_S["cutouts"])
    results: Any = RedisAsyncResultBackend(redis_url, result_ex_time=keep_s)
    broker = RedisStreamBroker(
        redis_url,
        queue_name="cutaway-jobs",
        idle_timeout=round(reclaim_s * 1000),
        xread_count=1,
        maxlen=100_000,  # of the stream: acknowledged messages stay in it
        unacknowledged_lock_timeout=reclaim_s,
    )
    return broker.with_result_backend(results)
