"""Threads for what an asynchronous client computes or reads from disk.

Not the event loop's executor: that is everybody's, and calls would wait behind whatever else keeps it busy; and its
threads are waited for at the end, while a read from a pipe or a dead network drive may never end. These are daemons,
and whoever waits for them leaves at the deadline.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeVar

from cutaway import limits
from cutaway.errors import ProcessingTimeout
from cutaway.resilience import Deadline

T = TypeVar("T")


class Threads:
    """At most so many at once, started when there is work; what nobody waits for any more is not begun."""

    def __init__(self, most: int = limits.CLIENT_THREADS) -> None:
        self._most = most
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting: deque[_Piece] = deque()
        self._running = 0

    async def run(self, doing: str, deadline: Deadline | None, work: Callable[[], T]) -> T:
        """What the work returns or raises.

        Args:
            doing: for the message, such as "reading the picture".
            deadline: nobody waits beyond it; None for what ends by itself.

        Raises:
            ProcessingTimeout: the deadline passed.
        """
        if self._pid != os.getpid():
            self._begin()  # threads do not survive a fork
        piece = _Piece(asyncio.get_running_loop(), work)
        self._start(piece)
        try:
            await asyncio.wait([piece.done], timeout=None if deadline is None else deadline.left_s)
        finally:
            piece.abandoned = True
        if not piece.done.done():
            assert deadline is not None
            raise ProcessingTimeout(
                f"The {deadline.budget_s:.1f} s were over while {doing}.",
                details={"elapsed_seconds": round(deadline.elapsed_s, 3)},
            )
        result, error = piece.done.result()
        if error is not None:
            raise error
        found: T = result
        return found

    def _start(self, piece: _Piece) -> None:
        with self._lock:
            if self._running >= self._most:
                self._waiting.append(piece)
                return
            self._running += 1
        threading.Thread(target=self._run, args=(piece,), name="cutaway", daemon=True).start()

    def _run(self, first: _Piece) -> None:
        piece: _Piece | None = first
        while piece is not None:
            piece.run()
            with self._lock:
                piece = self._waiting.popleft() if self._waiting else None
                if piece is None:
                    self._running -= 1


class _Piece:
    """Some work, and what came of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
        self.done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
        self.abandoned = False
        self._loop = loop
        self._work = work
        self._context = copy_context()

    def run(self) -> None:
        if self.abandoned:
            return
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = self._context.run(self._work), None
        except BaseException as error:
            outcome = None, error

        def deliver() -> None:
            if not self.abandoned:
                self.done.set_result(outcome)

        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(deliver)
