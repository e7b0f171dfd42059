"""The circuit breaker of a server or provider.

Pybreaker, the well-kept library for this, has neither asyncio nor a clock to inject, and holds a lock during the
half-open call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cutaway.contract import limits

Clock = Callable[[], float]
State = Literal["closed", "open", "half-open"]


@dataclass(eq=False)
class Permit:
    """The permission for one call; one method is called with its outcome, and later ones do nothing."""

    _settle: Callable[[Permit, str], None]
    _generation: int

    def succeeded(self) -> None:
        """The provider served, or refused an invalid picture."""
        self._settle(self, "succeeded")

    def failed(self) -> None:
        self._settle(self, "failed")

    def dropped(self) -> None:
        """The call was cancelled: neither a success nor a failure of the provider."""
        self._settle(self, "dropped")


class CircuitBreaker:
    """Opens after `fail_max` failures in a row; after `reset_s` seconds one call is the half-open probe.

    Thread-safe; no lock is held while a call runs. A probe without an outcome expires after another `reset_s`. Outcomes
    of calls that began before the last change of state are ignored.
    """

    def __init__(
        self,
        *,
        fail_max: int = limits.BREAKER_FAIL_MAX,
        reset_s: float = limits.BREAKER_RESET_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self._fail_max, self._reset_s, self._clock = fail_max, reset_s, clock
        self._lock = threading.Lock()
        self.state: State = "closed"
        self._failures = self._generation = 0
        self._wait_until = 0.0

    @property
    def open_for_s(self) -> float:
        """Seconds until the next call is permitted; 0 where one is now."""
        with self._lock:
            return 0.0 if self.state == "closed" else max(0.0, self._wait_until - self._clock())

    def permit(self) -> Permit | None:
        """The permit for one call, or None while the breaker is open."""
        with self._lock:
            if self.state != "closed":
                if self._clock() < self._wait_until:
                    return None
                self._change("half-open")
            return Permit(self._settle, self._generation)

    def permit_anyway(self) -> Permit:
        """A permit although the breaker may be open, for a caller without another provider."""
        with self._lock:
            return Permit(self._settle, self._generation)

    def _settle(self, permit: Permit, outcome: str) -> None:
        with self._lock:
            current, permit._generation = permit._generation == self._generation, -1
            if not current:
                return
            if outcome == "failed":
                self._failures += 1
                if self.state == "half-open" or self._failures >= self._fail_max:
                    self._change("open")
            elif outcome == "succeeded":
                self._failures = 0
                if self.state != "closed":
                    self._change("closed")
            elif self.state == "half-open":
                self._wait_until = self._clock()  # the next call is the probe

    def _change(self, state: State) -> None:
        self.state = state
        self._generation += 1
        self._failures = 0
        self._wait_until = self._clock() + self._reset_s
