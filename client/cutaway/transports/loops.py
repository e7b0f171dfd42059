"""Holding a client of asyncio to the event loop that its connections belong to."""

from __future__ import annotations

import asyncio

from cutaway.cancel import closed


class OneLoop:
    """The event loop that was first met."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def check(self) -> None:
        """
        Raises:
            RuntimeError: this is another loop, or the client is closed.
        """
        if self._closed:
            raise RuntimeError("the connection is closed")
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        elif self._loop is not running:
            raise RuntimeError(
                "an asynchronous client belongs to the event loop in which it was first used: make one for each loop"
            )

    def anew(self) -> OneLoop:
        """The same for another process, whose loops are others."""
        other = OneLoop()
        other._closed = self._closed
        return other

    def close(self) -> bool:
        """Whether there is something to close here: connections of a loop that is gone went with it."""
        self._closed = True
        return self._loop is asyncio.get_running_loop()

    def raise_if_closed(self) -> None:
        """To be called where a wait was cancelled: closing the client does that, too.

        Raises:
            RequestCancelled: the client was closed, and nobody cancelled the task.
        """
        task = asyncio.current_task()
        # Before Python 3.11 nobody knows whether the task was cancelled as well, and a cancellation must not get lost.
        asked = task.cancelling() if task is not None and hasattr(task, "cancelling") else 1
        if self._closed and not asked:
            raise closed()
