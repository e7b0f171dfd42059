"""Which provider to ask: a circuit breaker rests one that fails, and experience orders the others.

Pybreaker is the well-kept library for this, but it knows no asyncio and no clock to inject, and holds a lock while the
half-open call runs. A permit that is handed out and given back serves both kinds of callers.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from cutaway.contract import limits

Clock = Callable[[], float]
State = Literal["closed", "open", "half-open"]


class Permit:
    """Leave to make one call; exactly one of the three methods is to be called when it has ended."""

    __slots__ = ("_breaker", "_generation", "_spent")

    def __init__(self, breaker: CircuitBreaker, generation: int) -> None:
        self._breaker = breaker
        self._generation = generation
        self._spent = False

    def succeeded(self) -> None:
        """The provider served, or refused a picture that nobody could serve."""
        self._settle("succeeded")

    def failed(self) -> None:
        """The provider is at fault."""
        self._settle("failed")

    def dropped(self) -> None:
        """The call was cancelled: that says nothing about the provider."""
        self._settle("dropped")

    def _settle(self, outcome: Literal["succeeded", "failed", "dropped"]) -> None:
        if not self._spent:
            self._spent = True
            self._breaker._settle(self._generation, outcome)


class CircuitBreaker:
    """Rests what failed `fail_max` times in a row for `reset_s` seconds, then lets exactly one call try it.

    Thread-safe; no lock is held while a call runs. A trial whose caller never comes back frees its place after another
    `reset_s`. What calls from before the last change of state report is ignored: they speak of the past.
    """

    def __init__(
        self,
        *,
        fail_max: int = limits.BREAKER_FAIL_MAX,
        reset_s: float = limits.BREAKER_RESET_S,
        clock: Clock = time.monotonic,
    ) -> None:
        if fail_max < 1:
            raise ValueError("fail_max is at least 1")
        self._fail_max = fail_max
        self._reset_s = reset_s
        self._clock = clock
        self._lock = threading.Lock()
        self._state: State = "closed"
        self._failures = 0
        self._wait_until = 0.0
        self._generation = 0

    @property
    def state(self) -> State:
        return self._state

    @property
    def rests_for_s(self) -> float:
        """Seconds until the next call may pass; 0 where one may now."""
        with self._lock:
            return 0.0 if self._state == "closed" else max(0.0, self._wait_until - self._clock())

    def permit(self) -> Permit | None:
        """Leave for one call, or None while the provider rests."""
        with self._lock:
            if self._state != "closed":
                if self._clock() < self._wait_until:
                    return None
                self._change("half-open")
            return Permit(self, self._generation)

    def permit_anyway(self) -> Permit:
        """Leave for one call although the provider may rest, for a caller who has nobody else to ask."""
        with self._lock:
            return Permit(self, self._generation)

    def _settle(self, generation: int, outcome: Literal["succeeded", "failed", "dropped"]) -> None:
        with self._lock:
            if generation != self._generation:
                return
            if outcome == "failed":
                self._failures += 1
                if self._state == "half-open" or self._failures >= self._fail_max:
                    self._change("open")
            elif outcome == "succeeded":
                self._failures = 0
                if self._state != "closed":
                    self._change("closed")
            elif self._state == "half-open":
                self._wait_until = self._clock()  # the next caller may try

    def _change(self, state: State) -> None:
        self._state = state
        self._generation += 1
        self._failures = 0
        self._wait_until = self._clock() + self._reset_s


class Experience:
    """How a provider did lately: moving averages of success and latency; thread-safe.

    Forgotten after `memory_s` without news, so that one that did badly is asked again some day.
    """

    WEIGHT = 0.2
    """Of the newest call: about the last ten calls count."""

    ENOUGH = 3
    """Calls before an opinion is formed."""

    def __init__(self, *, memory_s: float = 600.0, clock: Clock = time.monotonic) -> None:
        self._memory_s = memory_s
        self._clock = clock
        self._lock = threading.Lock()
        self._calls = 0
        self._success = 1.0
        self._latency_s = 0.0
        self._at = 0.0

    def add(self, ok: bool, latency_s: float) -> None:
        """One call ended; its latency counts only where it succeeded."""
        with self._lock:
            if self._stale():
                self._calls, self._success, self._latency_s = 0, 1.0, 0.0
            self._calls += 1
            self._at = self._clock()
            self._success += self.WEIGHT * (float(ok) - self._success)
            if ok:
                new = self._latency_s == 0.0
                self._latency_s = latency_s if new else self._latency_s + self.WEIGHT * (latency_s - self._latency_s)

    @property
    def success_rate(self) -> float | None:
        """0 to 1, or None without enough recent calls."""
        with self._lock:
            return None if self._unknown() else self._success

    @property
    def latency_s(self) -> float | None:
        """Of successful calls, or None without enough recent calls."""
        with self._lock:
            return None if self._unknown() or self._latency_s == 0.0 else self._latency_s

    def _stale(self) -> bool:
        return self._calls > 0 and self._clock() - self._at > self._memory_s

    def _unknown(self) -> bool:
        return self._calls < self.ENOUGH or self._stale()


def steered(experiences: Sequence[Experience]) -> list[int]:
    """In which order to ask: indices into the order that was composed.

    Those that fail more often than not go last. Among the others one overtakes those before it only where it is in a
    class that is twice as fast, so that the composed order (which may be about cost) is not upset by noise; those
    without enough experience keep their place.
    """
    rates = [experience.success_rate for experience in experiences]
    good = [index for index, rate in enumerate(rates) if rate is None or rate >= 0.5]
    bad = [index for index in range(len(rates)) if index not in good]
    latencies = {index: experiences[index].latency_s for index in good}
    known = [index for index in good if latencies[index] is not None]
    by_speed = iter(sorted(known, key=lambda index: (round(math.log2(max(1e-3, latencies[index] or 0.0))), index)))
    return [next(by_speed) if index in known else index for index in good] + bad
