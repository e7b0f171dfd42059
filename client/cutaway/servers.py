"""Several servers that do the same work: round robin, circuit breakers, load shedding, and retries.

- Calls go round robin. The circuit breaker of a server that fails several times in a row opens
  (:class:`cutaway.breaker.CircuitBreaker`); one that sheds load, or misses deadlines, is tried last
  (:class:`Availability`).
- A failure moves the call on to the next server at once, as long as there are some that it has not tried; after that
  it waits by :class:`cutaway.resilience.RetryPolicy` and goes round again. A server that timed out before the
  deadline is not tried again, but others are within the deadline.
- Each retry, at any server, costs a token of the retry budget. Without one left, a call that was shed still moves on to
  a server whose last answer was a success: in an outage there is none.
- An error of the picture never moves on. A server that refused (unknown model, wrong token, see
  :class:`cutaway.ServerRefused`) is not tried again in the same call, but others are.

All of it runs in one event loop, so that there are no locks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeGuard

from cutaway.breaker import CircuitBreaker, Permit
from cutaway.contract import limits
from cutaway.contract.errors import (
    CutawayError,
    InferenceError,
    InputError,
    Overloaded,
    ProcessingTimeout,
    RateLimitExceeded,
    ServerRefused,
    ServerUnavailable,
    ServiceError,
)
from cutaway.resilience import Deadline, Retries, asked_to_wait_s
from cutaway.transports.base import InferRequest, ModelInfo, Tensor, Transport

logger = logging.getLogger("cutaway")

_SHED = (Overloaded, RateLimitExceeded)
"""The server is healthy, and shed the call."""


@dataclass(frozen=True, eq=False)
class Ticket:
    """The permission for one call to a server, which is returned with the outcome."""

    generation: int


class Availability:
    """Whether a server is tried in its order, or last because it sheds load or misses deadlines.

    It is tried last when it has shed all calls for `contract.limits.ENDPOINT_BACK_S`, or has a ``Retry-After``, or
    misses `contract.limits.ENDPOINT_LATE_MAX` deadlines in a row: one picture may be slow. After that time, or its
    ``Retry-After``, one call is its half-open probe; each failed probe doubles the time, up to a breaker's.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.healthy = False  # the last outcome is a success
        self._clock = clock
        self._generation = 0
        self._late = 0
        self._back_s = 0.0
        self._until = 0.0
        self._probe: Ticket | None = None
        self._has_shed = False
        self._sheds_since: float | None = None

    @property
    def backs_off_for_s(self) -> float:
        """Seconds until the next probe; 0 where a call may pass now."""
        return max(0.0, self._until - self._clock()) if self._back_s else 0.0

    def ticket(self) -> Ticket | None:
        """For a call in its turn, or for the probe; None while the server backs off."""
        if not self._back_s:
            return Ticket(self._generation)
        if self._clock() < self._until:
            return None
        # A probe without an outcome expires.
        self._until = self._clock() + limits.BREAKER_RESET_S
        self._generation += 1
        self._probe = Ticket(self._generation)
        return self._probe

    def ticket_anyway(self) -> Ticket:
        """For a call that has no other server left."""
        return Ticket(self._generation)

    def succeeded(self, ticket: Ticket) -> None:
        """It answered, with a result or an error of the picture."""
        self._sheds_since = None
        if self._has_shed and ticket.generation != self._generation:
            return  # it began before the server shed load
        self._back_s, self._late, self._probe, self._has_shed, self.healthy = 0.0, 0, None, False, True

    def failed(self, ticket: Ticket) -> None:
        """It failed: counted by the breaker; here only a probe ends."""
        self.healthy = False
        self.dropped(ticket)

    def dropped(self, ticket: Ticket) -> None:
        """The outcome is neither its success nor its failure."""
        if ticket is self._probe:
            self._probe, self._until = None, self._clock()

    def shed(self, ticket: Ticket, asked_s: float | None) -> None:
        """It shed the call, perhaps with a ``Retry-After``."""
        now = self._clock()
        self.healthy = False
        if self._sheds_since is None:
            self._sheds_since = now
        if asked_s is None and not self._back_s and now - self._sheds_since < limits.ENDPOINT_BACK_S:
            return
        self._back_off(ticket, asked_s)
        self._has_shed = True

    def late(self, ticket: Ticket) -> None:
        """It did not answer within the usual time, or timed out by itself."""
        if ticket.generation != self._generation:
            return  # it began before the server backed off, or before the probe
        self._late += 1
        self.healthy = False
        if self._late >= limits.ENDPOINT_LATE_MAX or self._back_s:
            self._back_off(ticket, None)

    def _back_off(self, ticket: Ticket, asked_s: float | None) -> None:
        now = self._clock()
        if ticket is self._probe:
            self._probe = None
            self._back_s = min(2 * self._back_s, limits.BREAKER_RESET_S)
            self._until = now + self._back_s
        elif not self._back_s:
            self._back_s = limits.ENDPOINT_BACK_S
            self._until = now + self._back_s
            self._generation += 1  # outcomes of calls in flight are outdated
        if asked_s is not None:
            self._until = max(self._until, now + min(asked_s, limits.RETRY_AFTER_MAX_S))


@dataclass(frozen=True, eq=False)
class Server:
    """One server: its address for messages, its transport, and its state from the calls' outcomes."""

    url: str
    transport: Transport = field(repr=False)
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker, repr=False)
    availability: Availability = field(default_factory=Availability, repr=False)


class Answer(NamedTuple):
    """The outputs by name, the server's address, and the number of requests to all servers."""

    outputs: dict[str, Tensor]
    url: str
    requests: int


class _Attempt(NamedTuple):
    server: Server
    permit: Permit
    ticket: Ticket


class _Failure(NamedTuple):
    """A failed attempt, and when its server may be tried again: seconds after the call's beginning."""

    error: CutawayError
    due_s: float


class Servers:
    """The servers of one client.

    Args:
        members: they do the same work.
        always_ask: where all breakers are open, try the one that closes first. False fails at once, which leaves the
            time to a fallback.
    """

    LATENCY_WEIGHT = 0.2
    """Of the newest call in the moving average: about the last ten calls count."""

    def __init__(self, members: Sequence[Server], *, always_ask: bool = True) -> None:
        if not members:
            raise ValueError("there has to be a server")
        self.members = tuple(members)
        self._always_ask = always_ask
        self._calls = itertools.count()
        self._latency_s: float | None = None

    async def infer(
        self, request: InferRequest, deadline: Deadline, retries: Retries, *, nobody_else: bool = False
    ) -> Answer:
        """Try one server after the other until one answers or no retry is left.

        Args:
            request: its `timeout_s` is replaced by the time left.
            deadline: of the whole call.
            retries: of this call; their budget is shared between calls.
            nobody_else: no fallback serves this: servers are tried although all breakers are open.

        Raises:
            InputError: the picture or an option is invalid; no other server is tried.
            ProcessingTimeout: the deadline is exceeded.
            ServerRefused: all servers refused.
            ServerUnavailable, InferenceError: of the server that was tried last. The details of every error have the
                number of "requests".
        """
        everybody = self._round()
        untried = list(everybody)
        failures: dict[Server, _Failure] = {}
        deadline.check(everybody[0].url)
        always_ask = self._always_ask or nobody_else
        found = self._choose(untried, always_ask)
        if found is None:
            raise self._all_open()
        for requests in itertools.count(1):
            attempt, began_s = found, deadline.elapsed_s
            if attempt.server in untried:
                untried.remove(attempt.server)
            try:
                outputs = await attempt.server.transport.infer(replace(request, timeout_s=deadline.left_s))
            except BaseException as error:
                self._record(attempt, error, deadline, began_s)
                if isinstance(error, CutawayError):
                    error.details.setdefault("requests", requests)
                if not self._moves_on(error, deadline):
                    raise
                failure = _Failure(error, due_s=deadline.elapsed_s + (asked_to_wait_s(error) or 0.0))
            else:
                self._succeeded(attempt)
                took_s = deadline.elapsed_s - began_s
                known_s = took_s if self._latency_s is None else self._latency_s
                self._latency_s = known_s + self.LATENCY_WEIGHT * (took_s - known_s)
                retries.budget.succeeded()
                return Answer(outputs, attempt.server.url, requests)
            failures[attempt.server] = failure
            found = None
            if retries.policy.retries > 0 and not deadline.over:
                found = self._choose(untried, always_ask=False)
                if found is not None and not retries.budget.take():
                    self._dropped(found)
                    healthy = [each for each in untried if each.availability.healthy]
                    found = self._choose(healthy, always_ask=False) if isinstance(failure.error, _SHED) else None
                    if found is None:
                        raise failure.error
            if found is None:
                again = [each for each in everybody if each in failures and failures[each].error.retry]
                if not again:
                    raise failure.error
                soonest = min(again, key=lambda each: failures[each].due_s)
                wait_s = retries.delay_s(failures[soonest].error)
                if wait_s is None:
                    raise (failure if failure.error.retry else failures[again[-1]]).error
                await asyncio.sleep(wait_s)
                untried = [
                    each
                    for each in everybody
                    if each is soonest
                    or each not in failures
                    or (each in again and failures[each].due_s <= deadline.elapsed_s)
                ]
                found = self._choose(untried, always_ask)
                if found is None:
                    raise failures[soonest].error
        raise AssertionError

    async def models(self, names: Sequence[str], deadline: Deadline) -> list[ModelInfo]:
        """The metadata of these models, of the first server that answers.

        Raises:
            CutawayError: of the last one, where none answers.
        """
        *others, last = self._round()
        for server in others:
            with suppress(ServiceError):
                return await server.transport.models(names, deadline.left_s / 2)
        return await last.transport.models(names, deadline.left_s)

    async def aclose(self) -> None:
        """Close the connections."""
        for server in self.members:
            await server.transport.aclose()

    def _round(self) -> list[Server]:
        """The servers in the order in which the next call tries them."""
        first = next(self._calls) % len(self.members)
        return list(self.members[first:] + self.members[:first])

    def _choose(self, among: Sequence[Server], always_ask: bool) -> _Attempt | None:
        """The next attempt; None where no server is available."""
        for server in among:
            ticket = server.availability.ticket()
            if ticket is None:
                continue
            permit = server.breaker.permit()
            if permit is not None:
                return _Attempt(server, permit, ticket)
            server.availability.dropped(ticket)
        # Those that will soon be probed keep their order, since one alone could not serve the load of all.
        for server in sorted(among, key=lambda each: max(limits.ENDPOINT_BACK_S, each.availability.backs_off_for_s)):
            permit = server.breaker.permit()
            if permit is not None:
                return _Attempt(server, permit, server.availability.ticket_anyway())
        if not always_ask:
            return None
        server = min(among, key=lambda each: each.breaker.open_for_s)
        return _Attempt(server, server.breaker.permit_anyway(), server.availability.ticket_anyway())

    def _moves_on(self, error: BaseException, deadline: Deadline) -> TypeGuard[CutawayError]:
        if isinstance(error, ProcessingTimeout):
            return _gave_up(deadline) and (self._latency_s is None or deadline.left_s >= self._latency_s)
        return isinstance(error, ServerRefused) or (isinstance(error, CutawayError) and error.retry)

    def _record(self, attempt: _Attempt, error: BaseException, deadline: Deadline, began_s: float) -> None:
        """Record the failure for the server."""
        server, permit, ticket = attempt
        took_s = deadline.elapsed_s - began_s
        if isinstance(error, InputError):
            self._succeeded(attempt)
        elif isinstance(error, _SHED):
            permit.succeeded()
            server.availability.shed(ticket, asked_to_wait_s(error))
        elif isinstance(error, ProcessingTimeout):
            silent = took_s >= limits.ENDPOINT_SILENT_S
            if silent or _gave_up(deadline) or (self._latency_s is not None and took_s >= self._latency_s):
                permit.failed() if silent else permit.dropped()
                server.availability.late(ticket)
            else:
                self._dropped(attempt)
        elif isinstance(error, (ServerUnavailable, InferenceError)):
            before = server.breaker.state
            permit.failed()
            server.availability.failed(ticket)
            if server.breaker.state == "open" and before != "open":
                logger.warning("%s failed repeatedly; its circuit breaker is open: %s", server.url, error)
        else:
            self._dropped(attempt)

    def _succeeded(self, attempt: _Attempt) -> None:
        attempt.permit.succeeded()
        attempt.server.availability.succeeded(attempt.ticket)

    def _dropped(self, attempt: _Attempt) -> None:
        attempt.permit.dropped()
        attempt.server.availability.dropped(attempt.ticket)

    def _all_open(self) -> ServerUnavailable:
        open_for_s = min(each.breaker.open_for_s for each in self.members)
        who = self.members[0].url if len(self.members) == 1 else f"Each of {len(self.members)} servers"
        return ServerUnavailable(
            f"{who} failed repeatedly; the circuit breaker is open for {open_for_s:.0f} s more.",
            retry_after=open_for_s,
            details={"requests": 0},
        )


def _gave_up(deadline: Deadline) -> bool:
    """Whether a call timed out at the server, and not by its deadline."""
    return deadline.elapsed_s < 0.99 * deadline.budget_s
