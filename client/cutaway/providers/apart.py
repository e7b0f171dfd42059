"""This machine's own work on a hosted call (decoding, composing, encoding), which nobody waits for beyond the deadline.

Pillow's codecs and filters cannot be interrupted, so the work runs in a thread of its own. Whoever waits leaves in
time; the work is told so the next time that it asks, which it does between pieces of a few milliseconds where it can.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from cutaway.cancel import Cancel, cancelled
from cutaway.chain import OutOfTime
from cutaway.contract.errors import ProcessingTimeout
from cutaway.resilience import Deadline
from cutaway.threads import Threads

T = TypeVar("T")

Check = Callable[[], None]
"""Called between pieces of work; raises where nobody waits for the result any more."""


_THREADS = Threads()
"""Of all calls under asyncio; they may be in several event loops."""


def unchecked() -> None:
    """The check of work that is waited for however long it takes."""


def apart(work: Callable[[Check], T], deadline: Deadline, doing: str, cancel: Cancel | None = None) -> T:
    """What the work returns or raises.

    Args:
        doing: what it does, to be told where the time is over ("decoding the picture").

    Raises:
        OutOfTime: it was not done by then.
        RequestCancelled: by `cancel`.
    """
    piece = _Piece(work, deadline, doing, cancel)
    piece.check()
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()
    unregister = None if cancel is None else cancel.on_cancel(lambda: ended.put(None))
    try:
        threading.Thread(target=piece.run, args=(lambda: ended.put(None),), name="cutaway-compose", daemon=True).start()
        with suppress(queue.Empty):
            ended.get(timeout=deadline.left_s)
    finally:
        piece.abandoned = True
        if unregister is not None:
            unregister()
    return piece.result()


async def apart_async(work: Callable[[Check], T], deadline: Deadline, doing: str) -> T:
    """The same as :func:`apart` for asyncio; so many pieces at once as an asynchronous client has threads."""
    piece = _Piece(work, deadline, doing, None)
    piece.check()
    try:
        with suppress(ProcessingTimeout):  # whether it was done in time, the piece itself knows
            await _THREADS.run(doing, deadline, lambda: piece.run(lambda: None))
    finally:
        piece.abandoned = True
    return piece.result()


class _Piece(Generic[T]):
    """Some work, and what came of it."""

    def __init__(self, work: Callable[[Check], T], deadline: Deadline, doing: str, cancel: Cancel | None) -> None:
        self.abandoned = False
        self._work = work
        self._deadline = deadline
        self._doing = doing
        self._cancel = cancel
        self._outcome: tuple[T] | None = None
        self._failure: BaseException | None = None

    def check(self) -> None:
        if self._cancel is not None:
            self._cancel.check()
        if self.abandoned or self._deadline.over:
            raise self._too_late()

    def run(self, done: Callable[[], object]) -> None:
        try:
            self.check()
            self._outcome = (self._work(self.check),)
        except BaseException as error:
            self._failure = error
        done()

    def result(self) -> T:
        if self._failure is not None:
            raise self._failure
        if self._cancel is not None and self._cancel.cancelled:
            raise cancelled()
        # What was done in time may be noticed a little later.
        if self._outcome is None:
            raise self._too_late()
        return self._outcome[0]

    def _too_late(self) -> OutOfTime:
        return OutOfTime(
            f"The {self._deadline.budget_s:.1f} s were over while {self._doing}.",
            details={"elapsed_seconds": round(self._deadline.elapsed_s, 3)},
        )
