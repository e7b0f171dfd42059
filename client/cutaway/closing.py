"""Ending a hosted call because its caller cancelled it or its client is closed, until clients cancel their tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from cutaway.cancel import Cancel
from cutaway.contract.errors import RequestCancelled

T = TypeVar("T")


@contextmanager
def ended_by(cancel: Cancel | None, closing: Cancel | None) -> Iterator[Cancel | None]:
    """One that stands for both; the error tells which it was.

    Raises:
        RequestCancelled: the body gave up because of either.
    """
    if closing is None:
        yield cancel
        return
    both = Cancel()
    undo = [each.on_cancel(both.cancel) for each in (cancel, closing) if each is not None]
    try:
        yield both
    except RequestCancelled as error:
        if closing.cancelled and (cancel is None or not cancel.cancelled):
            raise _closed(error) from None
        raise
    finally:
        for unregister in undo:
            unregister()


async def ended_by_async(closing: Cancel | None, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns. It is cancelled as a task is, so that it can undo what it began.

    Whoever is first, the caller who cancels or the client that is closed, ends the work, and the other one does not
    disturb its undoing. Where both did, the error is CancelledError: asyncio's timeouts wait for it.

    Raises:
        RequestCancelled: by `closing`.
    """
    if closing is None:
        return await work
    loop = asyncio.get_running_loop()
    ending = _Ending(asyncio.ensure_future(work), loop)

    def at_closing() -> None:
        with suppress(RuntimeError):  # the loop is closed, and the task with it
            loop.call_soon_threadsafe(ending.close)

    unregister = closing.on_cancel(at_closing)
    try:
        return await ending
    except asyncio.CancelledError:
        if ending.cancelled_by_caller or not ending.closed:
            raise
        raise _closed(None) from None
    finally:
        unregister()


class _Ending(asyncio.Future[T]):
    """What is awaited in a task's stead. It ends as the task does, and tells who wanted it to."""

    def __init__(self, task: asyncio.Task[T], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.closed = False
        self.cancelled_by_caller = False
        self._message: Any = None
        self._task = task
        task.add_done_callback(self._settle)

    def cancel(self, msg: Any = None) -> bool:
        """By the caller, whose task awaits this; again and again if he must."""
        if self._task.done():
            return False
        self._message = msg
        first, self.cancelled_by_caller = not self.cancelled_by_caller, True
        return (first and self.closed) or self._task.cancel(msg)

    def close(self) -> None:
        """By the client, once."""
        if not (self.cancelled_by_caller or self._task.done()):
            self.closed = True
            self._task.cancel()

    def _settle(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            super().cancel(self._message)
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())


def _closed(error: RequestCancelled | None) -> RequestCancelled:
    return RequestCancelled("The client was closed.", details=None if error is None else error.details)
