"""Between threads and event loops: the loop thread of synchronous callers, and threads for work that blocks a loop.

There is one loop thread per process, a daemon, made anew after a fork: anyio's blocking portal hangs in a forked child.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import Future, wait
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from cutaway.contract.errors import ProcessingTimeout, RequestCancelled
from cutaway.contract.limits import CLIENT_THREADS
from cutaway.resilience import Deadline

T = TypeVar("T")

CANCELLED = "The caller cancelled the request."
INTERRUPT_GRACE_S = 1.0  # for the cancelled task, so that the server hears of it before the process ends
_END = object()
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_threads: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
_of_parents: list[asyncio.AbstractEventLoop | None] = []


class Cancel:
    """Cancels the calls it was given to, now or as soon as they begin.

        cancel = Cancel()
        signal.signal(signal.SIGTERM, lambda *_: cancel.cancel())
        client.cut("photo.jpg", cancel=cancel)  # raises RequestCancelled at once, and the server stops working on it

    One serves any number of calls, in any thread, once. It has no lock, on which a signal handler would deadlock.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self._callbacks: dict[object, Callable[[], object]] = {}

    def cancel(self) -> None:
        """Cancel; callbacks run in this thread, each exactly once."""
        self.cancelled = True
        for key in list(self._callbacks):
            if callback := self._callbacks.pop(key, None):
                callback()

    def on_cancel(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Register a callback, called at once where this is cancelled already; returns a function to unregister."""
        key = object()
        self._callbacks[key] = callback
        if self.cancelled:
            self.cancel()
        return lambda: self._callbacks.pop(key, None)


def run(coroutine: Coroutine[Any, Any, T], cancel: Cancel | None = None) -> T:
    """The coroutine's result, from a task in the loop thread that has a copy of the caller's context variables;
    RequestCancelled where `cancel` cancels it. A KeyboardInterrupt here cancels it, too."""
    try:
        loop = running()
    except RuntimeError:
        coroutine.close()
        raise
    ended: Future[asyncio.Task[T]] = Future()
    task: asyncio.Task[T] | None = None

    def start() -> None:
        nonlocal task
        task = loop.create_task(coroutine)
        task.add_done_callback(ended.set_result)

    def stop() -> None:
        loop.call_soon_threadsafe(lambda: task is not None and task.cancel())

    loop.call_soon_threadsafe(start)
    unregister = cancel.on_cancel(stop) if cancel is not None else None
    try:
        return ended.result().result()
    except asyncio.CancelledError:
        if cancel is not None and cancel.cancelled:
            raise RequestCancelled(CANCELLED) from None
        raise
    except BaseException:
        if not ended.done():  # a KeyboardInterrupt, or what else a signal handler raises in this thread
            stop()
            wait([ended], INTERRUPT_GRACE_S)
        raise
    finally:
        if unregister is not None:
            unregister()


def iterate(generator: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """The items of an asynchronous generator that runs in the loop thread; closing this closes it."""

    async def following() -> Any:
        return await anext(generator, _END)

    async def close() -> None:
        await generator.aclose()

    try:
        while (item := run(following())) is not _END:
            yield item
    finally:
        run(close())


async def in_thread(doing: str, deadline: Deadline | None, work: Callable[[], T]) -> T:
    """The work's result, from a daemon thread that is abandoned at the deadline, since a read may never end; not from
    asyncio's executor, for whose threads the end of the loop waits."""
    ended: Future[T] = Future()
    ended.set_running_or_notify_cancel()  # so that nobody who has gone cancels it

    def main() -> None:
        try:
            ended.set_result(work())
        except BaseException as error:  # only an Exception leaves the event loop running
            ended.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    threads = _threads.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(CLIENT_THREADS))
    try:
        async with asyncio.timeout(None if deadline is None else deadline.left_s) as scope, threads:
            threading.Thread(target=copy_context().run, args=(main,), name="cutaway", daemon=True).start()
            return await asyncio.wrap_future(ended)
    except TimeoutError:
        if deadline is None or not scope.expired():
            raise
        details = {"elapsed_seconds": round(deadline.elapsed_s, 3)}
        raise ProcessingTimeout(f"The {deadline.budget_s:.1f} s were over while {doing}.", details=details) from None


def running() -> asyncio.AbstractEventLoop:
    """The loop, whose thread is started where there is none; RuntimeError in that thread itself."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(_loop,), name="cutaway-loop", daemon=True).start()
    if asyncio._get_running_loop() is _loop:
        raise RuntimeError("a synchronous client cannot be used in a callback of its own event loop: use AsyncClient")
    return _loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    while True:  # a SystemExit in a task leaves run_forever(), although it belongs to the task's caller
        with suppress(KeyboardInterrupt, SystemExit):
            loop.run_forever()


def _forget() -> None:
    """In a forked child, where the thread is not: its loop is kept, since collecting it would touch its sockets."""
    global _lock, _loop
    _of_parents.append(_loop)
    _lock, _loop = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
