"""Deadlines, retries, the retry budget and the circuit breaker; the numbers and their reasons are in `contract.limits`.

Tenacity has no retry budget and no clock to inject; pybreaker has no asyncio, and locks during the half-open call.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, ProcessingTimeout

Clock = Callable[[], float]
State = Literal["closed", "open", "half-open"]


class Deadline:
    """The time by which a whole call has to end; 0 seconds or less are over already."""

    def __init__(self, seconds: float, *, clock: Clock = time.monotonic) -> None:
        if not seconds < float("inf"):
            raise ValueError(f"a deadline needs a finite number of seconds, not {seconds!r}")
        self.budget_s = max(0.0, float(seconds))
        self._clock = clock
        self._ends_at = clock() + self.budget_s

    @property
    def left_s(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._ends_at - self._clock())

    @property
    def elapsed_s(self) -> float:
        return self.budget_s - (self._ends_at - self._clock())

    @property
    def over(self) -> bool:
        return self.left_s <= 0.0

    def capped(self, seconds: float) -> Deadline:
        """A deadline from now that ends with this one or after so many seconds, whichever is first."""
        return Deadline(min(seconds, self.left_s), clock=self._clock)

    def check(self, what: str, *, need_s: float = 0.0) -> None:
        """Raise :meth:`exceeded` where not more than `need_s` seconds are left."""
        if self.left_s <= need_s:
            raise self.exceeded(what)

    @asynccontextmanager
    async def limit(self, what: str) -> AsyncIterator[None]:
        """Cancel the block when the deadline is exceeded, and raise :meth:`exceeded`."""
        self.check(what)
        try:
            async with asyncio.timeout(self.left_s) as timeout:
                yield
        except TimeoutError:
            if timeout.expired():
                raise self.exceeded(what) from None
            raise

    def exceeded(self, what: str) -> ProcessingTimeout:
        """The error for `what` ("Replicate") not having answered in time."""
        details = {"elapsed_seconds": round(self.elapsed_s, 3)}
        return ProcessingTimeout(f"{what} did not answer within {self.budget_s:.1f} s.", details=details)


class RetryBudget:
    """Tokens that retries cost and successes bring back; safe to share between threads. While all calls fail, n of them
    send at most n + `tokens` requests; while most succeed, one in ten may be retried."""

    def __init__(
        self, tokens: float = limits.RETRY_BUDGET_TOKENS, per_success: float = limits.RETRY_BUDGET_PER_SUCCESS
    ) -> None:
        self._most = self.tokens = tokens
        self._per_success = per_success
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return RetryBudget, (self._most, self._per_success)

    def take(self) -> bool:
        """Take the token of one retry; False where the budget is used up."""
        with self._lock:
            # Ten floating-point tenths are a little less than one.
            if self.tokens < 1.0 - 1e-9:
                return False
            self.tokens = max(0.0, self.tokens - 1.0)
            return True

    def succeeded(self) -> None:
        with self._lock:
            self.tokens = min(self._most, self.tokens + self._per_success)


@dataclass(frozen=True)
class RetryPolicy:
    """Number and delays of retries: ``RetryPolicy(retries=0)`` for none, ``RetryPolicy(first_delay_s=0.1)``."""

    retries: int = limits.RETRIES
    first_delay_s: float = limits.RETRY_FIRST_DELAY_S
    max_delay_s: float = limits.RETRY_MAX_DELAY_S
    jitter: float = limits.RETRY_JITTER
    retry_after_max_s: float = limits.RETRY_AFTER_MAX_S

    def delay_s(self, attempt: int, retry_after_s: float | None, draw: Callable[[], float]) -> float | None:
        """Seconds to wait after the failed attempt number `attempt` (0 is the first), or None to stop trying; a
        ``Retry-After`` is used without jitter, for which `draw` is a random number in [0, 1)."""
        if attempt >= self.retries:
            return None
        if retry_after_s is not None:
            return retry_after_s if retry_after_s <= self.retry_after_max_s else None
        # The exponent is bounded, because 2.0**1024 overflows.
        wait = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(attempt, 30))
        return float(wait * (1.0 - self.jitter * draw()))


@dataclass
class Retries:
    """One call's retries: the policy, the budget it shares with other calls, and its own deadline and count."""

    deadline: Deadline
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    budget: RetryBudget = field(default_factory=RetryBudget)
    draw: Callable[[], float] = random.random
    attempt: int = 0

    def delay_s(self, error: CutawayError) -> float | None:
        """Seconds to wait before the next attempt, or None where the error is to be raised."""
        if not error.retry:
            return None
        wait = self.policy.delay_s(self.attempt, retry_after_of(error), self.draw)
        if wait is None or wait >= self.deadline.left_s or not self.budget.take():
            return None
        self.attempt += 1
        return wait


def retry_after_of(error: CutawayError) -> float | None:
    """The server's own ``Retry-After``; the table's value for the code is for people and not used for retries."""
    said = error.details.get("retry_after_seconds")
    if isinstance(said, (int, float)) and 0 <= said < float("inf"):
        return float(said)
    return error.asked_to_wait_s


def parse_retry_after(value: str | None, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """Seconds of a ``Retry-After`` header, whole or decimal or an HTTP date; None for anything else."""
    with suppress(ValueError):
        seconds = float(value or "")
        return seconds if 0 <= seconds < float("inf") else None
    with suppress(ValueError, OverflowError):
        at = parsedate_to_datetime(value or "")
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - now()).total_seconds())
    return None


@dataclass(eq=False)
class Permit:
    """The permission for one call; one method is called with its outcome, and later ones do nothing."""

    _settle: Callable[[Permit, str, bool, float], None]
    _generation: int

    def succeeded(self) -> None:
        """The provider served, or refused an invalid picture."""
        self._settle(self, "succeeded", False, 0.0)

    def failed(self, *, opens: bool = False, for_s: float = 0.0) -> None:
        """The provider failed; `opens` at once, and for so many seconds at least."""
        self._settle(self, "failed", opens, for_s)

    def dropped(self) -> None:
        """The call was cancelled: neither a success nor a failure of the provider."""
        self._settle(self, "dropped", False, 0.0)


class CircuitBreaker:
    """Opens after `fail_max` failures in a row; after `reset_s` seconds one call is the half-open probe. With a
    `first_reset_s`, these seconds double with each failed probe, from that up to `reset_s`. Thread-safe. A probe
    without an outcome expires; outcomes of calls from before the last change of state are ignored."""

    def __init__(
        self,
        *,
        fail_max: int = limits.BREAKER_FAIL_MAX,
        reset_s: float = limits.BREAKER_RESET_S,
        first_reset_s: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._fail_max, self._reset_s, self._clock = fail_max, reset_s, clock
        self._first_s = self._open_s = reset_s if first_reset_s is None else first_reset_s
        self._lock = threading.Lock()
        self.state: State = "closed"
        self._failures = self._generation = 0
        self._wait_until = 0.0

    @property
    def open_for_s(self) -> float:
        """Seconds until the next call is permitted; 0 where one is now."""
        with self._lock:
            return 0.0 if self.state == "closed" else max(0.0, self._wait_until - self._clock())

    def permit(self, *, anyway: bool = False) -> Permit | None:
        """The permit for one call; None while the breaker is open, unless the caller has no other provider."""
        with self._lock:
            if self.state != "closed" and not anyway:
                if self._clock() < self._wait_until:
                    return None
                self._change("half-open", self._reset_s)
            return Permit(self._settle, self._generation)

    def _settle(self, permit: Permit, outcome: str, opens: bool, for_s: float) -> None:
        with self._lock:
            current, permit._generation = permit._generation == self._generation, -1
            if not current:
                return
            if outcome == "failed":
                self._failures += 1
                if self.state == "open":
                    self._wait_until = max(self._wait_until, self._clock() + for_s)
                elif opens or self.state == "half-open" or self._failures >= self._fail_max:
                    self._open_s = min(2 * self._open_s, self._reset_s) if self.state == "half-open" else self._first_s
                    self._change("open", max(self._open_s, for_s))
            elif outcome == "succeeded":
                self._failures = 0
                if self.state != "closed":
                    self._change("closed", 0.0)
            elif self.state == "half-open":
                self._wait_until = self._clock()  # the next call is the probe

    def _change(self, state: State, wait_s: float) -> None:
        self.state = state
        self._generation += 1
        self._failures = 0
        self._wait_until = self._clock() + wait_s
