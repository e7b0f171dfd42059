"""Threads for what an asynchronous client computes or reads from disk.

Not the event loop's executor: that is everybody's, and calls would wait behind whatever else keeps it busy; and its
threads are waited for at the end, while a read from a pipe or a dead network drive may never end. These are daemons,
and whoever waits for them leaves at the deadline. What was left takes nobody else's place, whether it ends or not.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, TypeAlias, TypeVar

from cutaway.contract import limits
from cutaway.contract.errors import ProcessingTimeout
from cutaway.resilience import Deadline

T = TypeVar("T")

Outcome: TypeAlias = "tuple[Any, BaseException | None]"
"""What work returned, or what it raised."""


class Threads:
    """So many pieces of work at once that somebody waits for, each in a thread that is started when there is work.

    A piece that nobody waits for any more is not begun, and one that was begun counts no longer.

    Args:
        most: so many at once; others wait for their turn.
        daemon: False for what a process does not end without.
    """

    def __init__(self, most: int = limits.CLIENT_THREADS, *, daemon: bool = True) -> None:
        self._most = most
        self._daemon = daemon
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting: OrderedDict[_Piece, None] = OrderedDict()
        self._running: set[_Piece] = set()

    async def run(self, doing: str, deadline: Deadline | None, work: Callable[[], T]) -> T:
        """What the work returns or raises.

        Args:
            doing: for the message, such as "reading the picture".
            deadline: nobody waits beyond it; None for what ends by itself.

        Raises:
            ProcessingTimeout: the deadline passed.
            RuntimeError: the system has no more threads.
        """
        if self._pid != os.getpid():
            self._begin()  # threads do not survive a fork
        piece = _Piece(asyncio.get_running_loop(), work)
        try:
            self._add(piece)
            await asyncio.wait([piece.done], timeout=None if deadline is None else deadline.left_s)
        finally:
            self._abandon(piece)
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

    def _add(self, piece: _Piece) -> None:
        with self._lock:
            self._waiting[piece] = None
        self._start()

    def _abandon(self, piece: _Piece) -> None:
        """Nobody waits for it any more: what it keeps from being begun has its turn."""
        piece.abandoned = True
        if self._pid != os.getpid():
            return  # the loop went on in a fork, where no thread is, and the lock may be held for ever
        with self._lock:
            self._waiting.pop(piece, None)
            still_running = piece in self._running
            self._running.discard(piece)
        if still_running:
            self._start()

    def _start(self) -> None:
        """Threads for as many as may be begun."""
        while (piece := self._next()) is not None:
            try:
                threading.Thread(target=self._run, args=([piece],), name="cutaway", daemon=self._daemon).start()
            except BaseException as error:
                with self._lock:
                    self._running.discard(piece)
                piece.deliver((None, error))

    def _next(self, *, done: _Piece | None = None) -> _Piece | None:
        """The next one to be begun, whose place is taken herewith."""
        with self._lock:
            if done is not None:
                self._running.discard(done)
            if not self._waiting or len(self._running) >= self._most:
                return None
            piece, _ = self._waiting.popitem(last=False)
            self._running.add(piece)
            return piece

    def _run(self, handed: list[_Piece]) -> None:
        """A thread, which keeps nothing of a piece that is done: the next one may never end."""
        piece: _Piece | None = handed.pop()
        while piece is not None:
            piece = self._do(piece)

    def _do(self, piece: _Piece) -> _Piece | None:
        """One piece of work; returns the next."""
        outcome = piece.run()
        following = self._next(done=piece)
        piece.deliver(outcome)
        return following


class _Piece:
    """Some work, and what came of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
        self.done: asyncio.Future[Outcome] = loop.create_future()
        self.abandoned = False
        self._loop = loop
        self._work = work
        self._context = copy_context()

    def run(self) -> Outcome:
        if self.abandoned:
            return None, None
        try:
            return self._context.run(self._work), None
        except BaseException as error:
            return None, error

    def deliver(self, outcome: Outcome) -> None:
        def settle() -> None:
            if not (self.abandoned or self.done.done()):
                self.done.set_result(outcome)

        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(settle)
