"""Ending a hosted call because its caller cancelled it, or because the client that made it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from cutaway.cancel import Cancel
from cutaway.errors import RequestCancelled

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

    Raises:
        RequestCancelled: by `closing`.
    """
    if closing is None:
        return await work
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    closed = False

    def end() -> None:
        nonlocal closed
        closed = not task.done()
        task.cancel()

    def at_closing() -> None:
        with suppress(RuntimeError):  # the loop is closed, and the task with it
            loop.call_soon_threadsafe(end)

    unregister = closing.on_cancel(at_closing)
    try:
        return await task
    except asyncio.CancelledError:
        if not closed:
            raise
        raise _closed(None) from None
    finally:
        unregister()


def _closed(error: RequestCancelled | None) -> RequestCancelled:
    return RequestCancelled("The client was closed.", details=None if error is None else error.details)
