"""How a server stands with the calls of this client: it works, or it stands back for a while.

A breaker (:mod:`cutaway.breaker`) rests a server that is at fault. This is about one that is alive and has no room, or
that lets deadlines pass: it is asked after the others, and one call at a time tries whether that is over. No call is
refused because of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cutaway.contract import limits

Clock = Callable[[], float]


class Pace:
    """How long calls take that succeed, on any of the servers: what a deadline that passed is judged by."""

    WEIGHT = 0.2
    """Of the newest call: about the last ten calls count."""

    def __init__(self) -> None:
        self._average_s: float | None = None
        self._lock = threading.Lock()

    def succeeded(self, took_s: float) -> None:
        with self._lock:
            known = took_s if self._average_s is None else self._average_s
            self._average_s = known + self.WEIGHT * (took_s - known)

    def is_enough(self, seconds: float, *, unknown: bool) -> bool:
        """Whether calls take no longer on the average; `unknown` where none has succeeded yet."""
        return unknown if self._average_s is None else seconds >= self._average_s


@dataclass(frozen=True, eq=False)
class Turn:
    """One call's leave to ask a server, to be handed back with what came of it."""

    generation: int


class Standing:
    """What calls found a server to be like, lately; thread-safe.

    It stands back when it has shed calls for `contract.limits.ENDPOINT_BACK_S` and served none, or asks for a time
    itself, or lets `contract.limits.ENDPOINT_LATE_MAX` deadlines in a row pass: one picture may be slow. That is
    for `contract.limits.ENDPOINT_BACK_S`, or as long as it asks; then one call tries it, and each failed trial
    doubles the time, up to that of a breaker.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._generation = 0
        self._late = 0
        self._back_s = 0.0
        self._until = 0.0
        self._trial: Turn | None = None
        self._has_shed = False
        self._sheds_since: float | None = None
        self._healthy = False

    @property
    def healthy(self) -> bool:
        """The last that was heard of it is a success."""
        return self._healthy

    @property
    def back_for_s(self) -> float:
        """Seconds until the next call may try it; 0 where one may now."""
        with self._lock:
            return max(0.0, self._until - self._clock()) if self._back_s else 0.0

    def turn(self) -> Turn | None:
        """Leave for a call to ask it before those that stand back; None where it stands back itself."""
        with self._lock:
            if not self._back_s:
                return Turn(self._generation)
            if self._clock() < self._until:
                return None
            # A trial that never comes back frees its place.
            self._until = self._clock() + limits.BREAKER_RESET_S
            self._generation += 1
            self._trial = Turn(self._generation)
            return self._trial

    def turn_anyway(self) -> Turn:
        """Leave for a call that has nobody else to ask."""
        with self._lock:
            return Turn(self._generation)

    def succeeded(self, turn: Turn) -> None:
        """It answered, be it that the picture is at fault."""
        with self._lock:
            self._sheds_since = None
            if self._has_shed and turn.generation != self._generation:
                return  # begun before it had no more room
            self._back_s, self._late, self._trial, self._has_shed, self._healthy = 0.0, 0, None, False, True

    def failed(self, turn: Turn) -> None:
        """It is at fault: the breaker's business, except that a trial is over."""
        with self._lock:
            self._healthy = False
        self.dropped(turn)

    def dropped(self, turn: Turn) -> None:
        """The call says nothing about it."""
        with self._lock:
            if turn is self._trial:
                self._trial, self._until = None, self._clock()

    def shed(self, turn: Turn, asked_s: float | None) -> None:
        """It has no room; it may have said how long to leave it alone."""
        with self._lock:
            now = self._clock()
            self._healthy = False
            if self._sheds_since is None:
                self._sheds_since = now
            if asked_s is None and not self._back_s and now - self._sheds_since < limits.ENDPOINT_BACK_S:
                return
            self._stand_back(turn, asked_s)
            self._has_shed = True

    def late(self, turn: Turn) -> None:
        """It did not answer in a time in which others do, or gave the picture up."""
        with self._lock:
            if turn.generation != self._generation:
                return  # it began before the server stood back, or before it was tried again
            self._late += 1
            self._healthy = False
            if self._late >= limits.ENDPOINT_LATE_MAX or self._back_s:
                self._stand_back(turn, None)

    def _stand_back(self, turn: Turn, asked_s: float | None) -> None:
        now = self._clock()
        if turn is self._trial:
            self._trial = None
            self._back_s = min(2 * self._back_s, limits.BREAKER_RESET_S)
            self._until = now + self._back_s
        elif not self._back_s:
            self._back_s = limits.ENDPOINT_BACK_S
            self._until = now + self._back_s
            self._generation += 1  # news of calls that are under way is of the past
        if asked_s is not None:
            self._until = max(self._until, now + min(asked_s, limits.RETRY_AFTER_MAX_S))
