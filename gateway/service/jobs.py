"""Cutting in the background: taskiq, in the process or on Redis, where another gateway takes a dead one's jobs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

from cutaway.contract.errors import CutawayError, InferenceError, Overloaded, ProcessingTimeout, ServerUnavailable
from cutaway.contract.limits import CUT_MANY_JOBS
from redis.exceptions import RedisError
from taskiq import AsyncBroker, InMemoryBroker
from taskiq.depends.progress_tracker import TaskProgress, TaskState
from taskiq.receiver import Receiver
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from gateway.access import current
from gateway.metrics import Metrics
from gateway.service.errors import ServiceProblem, detail_form, not_found
from gateway.service.settings import KEEP_S

Work = Callable[[dict[str, Any], Callable[[str, int], Awaitable[None]]], Awaitable[dict[str, Any]]]
"""A job's arguments and the callback for its stage and percentage → its result; both are plain JSON."""

T = TypeVar("T")
Entered = Callable[[dict[str, Any]], AbstractContextManager[Any]]
"""A job's arguments → its entry in the access log (`observing.jobs_entry`)."""

UNFINISHED = ("queued", "processing")
FINISHED = ("completed", "failed")
LOOK_INTERVAL_S = 2.0
RECEIVE_AGAIN_S = RETRY_S = 1.0
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
        entered: while it is entered, a job is worked on.
        metrics: counts jobs.
    """

    def __init__(
        self,
        work: Work,
        redis_url: str,
        most: int,
        timeout_s: float,
        reclaim_s: float,
        entered: Entered,
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self._work, self._most, self._timeout_s = work, most, timeout_s
        self._entered = entered
        self._slots = asyncio.Semaphore(CUT_MANY_JOBS)
        self._begun: set[str] = set()
        self._reclaim_s = reclaim_s
        self._closing = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []
        self._broker = broker_on(redis_url, reclaim_s)
        self._in_process = not redis_url

        async def remove(job_id: str, arguments: dict[str, Any]) -> None:  # taskiq renames what it takes: no method
            with self._entered(arguments):
                await self._run(job_id, arguments)

        async def nothing() -> None:
            pass

        self._task = self._broker.register_task(remove, task_name="remove")
        self._tick = self._broker.register_task(nothing, task_name="tick")

    async def start(self) -> None:
        await self._broker.startup()
        self._running.append(asyncio.create_task(self._look()))
        if not self._in_process:
            self._receiving = asyncio.create_task(self._receive())
            self._running += [self._receiving, asyncio.create_task(self._reclaim())]

    async def aclose(self) -> None:
        self._closing.set()  # taskiq's receiver may swallow a cancellation
        for task in self._running:
            task.cancel()
        with suppress(TimeoutError, RedisError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*self._running, return_exceptions=True)
                await self._broker.shutdown()

    async def finish(self) -> None:
        """Begin no more jobs, and wait for those that were begun: taskiq acknowledges, and so loses, what is cancelled.
        Those in Redis are another gateway's, those in the process are done first."""
        self._closing.set()
        if isinstance(self._broker, InMemoryBroker):
            await self._broker.wait_all()
        else:
            await self._receiving

    async def _receive(self) -> None:
        """Work on jobs; again and again, since the receiver ends where Redis goes away."""
        self._broker.is_worker_process = True
        while not self._closing.is_set():
            receiver = Receiver(self._broker, run_startup=False, max_async_tasks=CUT_MANY_JOBS)
            try:
                await receiver.listen(self._closing)
            except Exception as error:
                log.warning("Redis is away, so that no jobs are worked on: %s", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), RECEIVE_AGAIN_S)

    async def _reclaim(self) -> None:
        """taskiq's broker looks for the jobs of dead gateways only after a message has come: here is one."""
        while True:
            await asyncio.sleep(self._reclaim_s)
            with suppress(Exception):  # Redis is away; its client raises many
                await self._tick.kiq()

    async def _look(self) -> None:
        """Tell metrics of this gateway's unfinished jobs, which any gateway may work on."""
        while True:
            counts = dict.fromkeys(UNFINISHED, 0)
            with suppress(ServiceProblem):  # Redis is away: as before
                for job_id, status in (await self._statuses()).items():
                    if status in FINISHED:
                        self._begun.discard(job_id)
                    elif status in counts:  # one that is being submitted has none yet
                        counts[status] += 1
                for status, count in counts.items():
                    self._metrics.jobs.labels(status).set(count)
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _statuses(self) -> dict[str, str | None]:
        found = {job_id: await self._progress_of(job_id) for job_id in tuple(self._begun)}
        return {job_id: None if state is None else str(state["status"]) for job_id, state in found.items()}

    async def check_room(self, wanted: int) -> None:
        """Raises:
        Overloaded: there are too many unfinished jobs for so many more.
        """
        if len(self._begun) + wanted > self._most:  # any gateway may have finished them
            for job_id, status in (await self._statuses()).items():
                if status is None or status in FINISHED:
                    self._begun.discard(job_id)
        if len(self._begun) + wanted > self._most:
            self._metrics.shed.labels("jobs").inc()
            raise Overloaded(f"{len(self._begun)} of {self._most} jobs are waiting already.")

    async def submit(self, job_id: str, arguments: dict[str, Any]) -> None:
        """Begin a job.

        Raises:
            Overloaded: there are too many unfinished ones.
            ServiceProblem: 503, where Redis is away, or the process, which would take the job with it, ends.
        """
        if self._in_process and self._closing.is_set():
            raise _away()
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
        if state["status"] in FINISHED:
            self._metrics.jobs_finished.labels(state["status"]).inc()

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
            state = {"status": "processing", "stage": name, "percentage": percentage}
            await _until_redis_is_back(lambda: self.progress(job_id, state))

        found = await _until_redis_is_back(lambda: self._progress_of(job_id))
        if found is not None and found["status"] in FINISHED:  # by a gateway that died before it acknowledged
            return
        try:
            async with self._slots, asyncio.timeout(self._timeout_s):
                await stage("processing", 10)
                result = await self._when_served(arguments, stage)
            state = {"status": "completed", "stage": "done", "percentage": 100, "result": result}
        except TimeoutError:
            state = _failed(ProcessingTimeout(f"The job took more than {self._timeout_s:g} s."))
        except (CutawayError, ServiceProblem) as error:
            state = _failed(error)
        except Exception:
            log.exception("a job failed")
            state = _failed(InferenceError("The job failed."))
        await _until_redis_is_back(lambda: self.progress(job_id, state))

    async def _when_served(self, arguments: dict[str, Any], stage: Callable[[str, int], Awaitable[None]]) -> Any:
        """A job is sent again, within its time, where the server is full, slow or away: nobody is there to do it."""
        while True:
            try:
                return await self._work(arguments, stage)
            except (ServerUnavailable, ProcessingTimeout) as error:
                await asyncio.sleep(error.retry_after or RETRY_S)


async def _until_redis_is_back(ask: Callable[[], Awaitable[T]]) -> T:
    """A job that raises is acknowledged, and lost; one that waits is done, or taken over by another gateway."""
    while True:
        try:
            return await ask()
        except Exception as error:  # its client raises many
            log.warning("Redis is away, so that a job waits: %s", error)
            await asyncio.sleep(RETRY_S)


def _away() -> ServiceProblem:
    return ServiceProblem(503, "UNAVAILABLE", "The queue of jobs does not answer.", "Try again.")


def _failed(error: CutawayError | ServiceProblem) -> dict[str, Any]:
    current().code = error.code
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
