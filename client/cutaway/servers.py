"""Several servers that do the same work: round robin, circuit breakers, load shedding, and retries.

- A failure moves the call on to the next server at once; when all were tried, it waits by
  :class:`cutaway.resilience.RetryPolicy` and goes round again. Each retry costs a token of the retry budget; without
  one, a call that was shed still moves on to a server whose last answer was a success: in an outage there is none.
- An error of the picture never moves on. A server that refused, or timed out, is not tried again in the same call.
- A server is tried last for `contract.limits.SERVER_BACK_S`, or its ``Retry-After``, when it has shed all calls for
  that long, or missed `contract.limits.SERVER_LATE_MAX` deadlines in a row: one picture may be slow. Then one call is
  its probe; each failed probe doubles the time, up to a breaker's.

All of it runs in one event loop, so that there are no locks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cutaway.contract import errors, limits
from cutaway.contract.errors import CutawayError, InputError, ProcessingTimeout
from cutaway.resilience import CircuitBreaker, Clock, Deadline, Permit, Retries, retry_after_of
from cutaway.transports.base import InferRequest, ModelInfo, Tensor, Transport

logger = logging.getLogger("cutaway")

SHED = (errors.Overloaded, errors.RateLimitExceeded)  # the server is healthy
LATENCY_WEIGHT = 0.2  # of the newest call in the moving average


@dataclass(eq=False)
class Server:
    """One server and its state from the calls' outcomes; `last_s` is 0 where it is tried in its order."""

    url: str
    transport: Transport
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    healthy: bool = False
    last_s: float = 0.0
    last_since: float = 0.0
    last_until: float = 0.0
    shed_since: float | None = None
    late: int = 0


class Answer(NamedTuple):
    """The outputs by name, the server's address, and the number of requests to all servers."""

    outputs: dict[str, Tensor]
    url: str
    requests: int


class _Attempt(NamedTuple):
    server: Server
    permit: Permit
    began: float
    probes: bool = False


class Servers:
    """The servers of one client; where all breakers are open, `always_ask` tries the one that closes first, and False
    fails at once, which leaves the time to a fallback."""

    def __init__(self, members: Sequence[Server], *, always_ask: bool = True, clock: Clock = time.monotonic) -> None:
        self.members = tuple(members)
        self._always_ask = always_ask
        self._clock = clock
        self._calls = itertools.count()
        self._latency_s = 0.0

    async def infer(
        self, request: InferRequest, deadline: Deadline, retries: Retries, *, nobody_else: bool = False
    ) -> Answer:
        """Try one server after the other until one answers or no retry is left; `nobody_else`: no fallback serves this.

        Raises:
            InputError: the picture or an option is invalid.
            ProcessingTimeout: the deadline is exceeded.
            ServerUnavailable, InferenceError: of the last server; every error's details have the number of "requests".
        """
        everybody = self._round()
        untried = everybody
        failures: dict[Server, tuple[CutawayError, float]] = {}  # and when to try again, after the call's beginning
        deadline.check(everybody[0].url)
        always_ask = self._always_ask or nobody_else
        attempt = self._choose(untried, always_ask)
        if attempt is None:
            open_for_s = min(each.breaker.open_for_s for each in everybody)
            who = everybody[0].url if len(everybody) == 1 else f"Each of {len(everybody)} servers"
            message = f"{who} failed repeatedly; the circuit breaker is open for {open_for_s:.0f} s more."
            raise errors.ServerUnavailable(message, retry_after=open_for_s, details={"requests": 0})
        for requests in itertools.count(1):
            server, began_s = attempt.server, deadline.elapsed_s
            untried = [each for each in untried if each is not server]
            try:
                outputs = await server.transport.infer(replace(request, timeout_s=deadline.left_s))
            except CutawayError as raised:
                error = raised
                error.details.setdefault("requests", requests)
                gave_up = deadline.elapsed_s < 0.99 * deadline.budget_s
                self._record(attempt, error, deadline.elapsed_s - began_s, gave_up)
                is_late = isinstance(error, ProcessingTimeout)
                if is_late and not (gave_up and deadline.left_s >= self._latency_s):
                    raise
                if not (is_late or error.retry or isinstance(error, errors.ServerRefused)):
                    raise
                failures[server] = error, deadline.elapsed_s + (retry_after_of(error) or 0.0)
            except BaseException:
                self._drop(attempt)
                raise
            else:
                took_s = deadline.elapsed_s - began_s
                self._record(attempt, None, took_s, False)
                self._latency_s += LATENCY_WEIGHT * (took_s - self._latency_s) if self._latency_s else took_s
                retries.budget.succeeded()
                return Answer(outputs, server.url, requests)
            attempt = None
            if retries.policy.retries > 0 and not deadline.over:
                attempt = self._choose(untried, always_ask=False)
                if attempt is not None and not retries.budget.take():
                    self._drop(attempt)
                    healthy = [each for each in untried if each.healthy and isinstance(error, SHED)]
                    attempt = self._choose(healthy, always_ask=False)
                    if attempt is None:
                        raise error
            if attempt is None:
                again = {each: due_s for each, (failure, due_s) in failures.items() if failure.retry}
                if not again:
                    raise error
                soonest = min(again, key=again.__getitem__)
                wait_s = retries.delay_s(failures[soonest][0])
                if wait_s is None:
                    raise error if error.retry else failures[soonest][0]
                await asyncio.sleep(wait_s)
                due = {soonest, *(each for each, due_s in again.items() if due_s <= deadline.elapsed_s)}
                untried = [each for each in everybody if each in due or each not in failures]
                attempt = self._choose(untried, always_ask)
                if attempt is None:
                    raise failures[soonest][0]
        raise AssertionError

    async def models(self, names: Sequence[str], deadline: Deadline) -> tuple[ModelInfo, ...]:
        """The metadata of these models, in their order, of the first server that answers."""
        *others, last = self._round()
        for server in others:
            with suppress(errors.ServiceError):
                return await _models_of(server.transport, names, deadline.capped(deadline.left_s / 2))
        return await _models_of(last.transport, names, deadline)

    async def aclose(self) -> None:
        for server in self.members:
            await server.transport.aclose()

    def _round(self) -> list[Server]:
        first = next(self._calls) % len(self.members)
        return list(self.members[first:] + self.members[:first])

    def _choose(self, among: Sequence[Server], always_ask: bool) -> _Attempt | None:
        """The next attempt; None where all breakers are open."""
        now = self._clock()
        for server in among:
            if (not server.last_s or now >= server.last_until) and (permit := server.breaker.permit()):
                if server.last_s:  # a probe; without an outcome it expires, and outcomes of earlier calls are outdated
                    server.last_since, server.last_until = now, now + limits.BREAKER_RESET_S
                return _Attempt(server, permit, now, probes=bool(server.last_s))
        # Those that will soon be probed keep their order, since one alone could not serve the load of all.
        for server in sorted(among, key=lambda each: max(limits.SERVER_BACK_S, each.last_until - now)):
            if permit := server.breaker.permit():
                return _Attempt(server, permit, now)
        if always_ask:
            server = min(among, key=lambda each: each.breaker.open_for_s)
            if permit := server.breaker.permit(anyway=True):
                return _Attempt(server, permit, now)
        return None

    def _record(self, attempt: _Attempt, error: CutawayError | None, took_s: float, gave_up: bool) -> None:
        """Record the outcome; `gave_up`: a timeout came from the server, and not from the deadline."""
        server, permit, began, _ = attempt
        if error is None or isinstance(error, InputError):
            permit.succeeded()
            server.shed_since = None
            if began >= server.last_since:
                server.last_s, server.late, server.healthy = 0.0, 0, True
            return
        if isinstance(error, SHED):
            permit.succeeded()
            server.healthy = False
            now, asked_s = self._clock(), retry_after_of(error)
            server.shed_since = now if server.shed_since is None else server.shed_since
            if asked_s is not None or server.last_s or now - server.shed_since >= limits.SERVER_BACK_S:
                self._try_last(attempt, asked_s or 0.0)
            return
        if isinstance(error, ProcessingTimeout):
            silent = took_s >= limits.SERVER_SILENT_S
            if not (silent or gave_up or took_s >= (self._latency_s or float("inf"))):
                self._drop(attempt)  # the caller had little time
                return
            permit.failed() if silent else permit.dropped()
            server.healthy = False
            server.late += began >= server.last_since
            if server.late >= limits.SERVER_LATE_MAX or server.last_s:
                self._try_last(attempt, 0.0)
            return
        if isinstance(error, (errors.ServerUnavailable, errors.InferenceError)):
            before = server.breaker.state
            permit.failed()
            server.healthy = False
            if server.breaker.state == "open" and before != "open":
                logger.warning("%s failed repeatedly; its circuit breaker is open: %s", server.url, error)
        self._drop(attempt)

    def _try_last(self, attempt: _Attempt, asked_s: float) -> None:
        server, now = attempt.server, self._clock()
        if attempt.probes or not server.last_s:
            server.last_s = min(max(2 * server.last_s, limits.SERVER_BACK_S), limits.BREAKER_RESET_S)
            server.last_since, server.last_until = now, now + server.last_s
        server.last_until = max(server.last_until, now + min(asked_s, limits.RETRY_AFTER_MAX_S))

    def _drop(self, attempt: _Attempt) -> None:
        """Without an outcome, another call is the probe."""
        attempt.permit.dropped()
        if attempt.probes and attempt.began >= attempt.server.last_since:
            attempt.server.last_until = self._clock()


async def _models_of(transport: Transport, names: Sequence[str], deadline: Deadline) -> tuple[ModelInfo, ...]:
    found = []
    for name in names:
        ready = await transport.model_ready(name, deadline.left_s)
        try:
            found.append(await transport.metadata(name, deadline.left_s))
        except errors.ServerUnavailable as error:
            if ready:
                raise
            state = "NOT_FOUND" if isinstance(error, errors.ServerRefused) else "UNAVAILABLE"
            found.append(ModelInfo(name, state=state))
    return tuple(found)
