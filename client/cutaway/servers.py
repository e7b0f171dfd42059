"""Several servers that do the same work: round robin, circuit breakers, load shedding, retries, and health checks.

A failure moves the call on to the next server at once; when all were tried, it waits and goes round again. Each retry
costs a token of the retry budget; without one, a call that was shed still moves on to a server whose last answer was a
success: in an outage there is none. A server that refused, or timed out, is not tried again in the same call.

A server that sheds all calls, or misses deadlines in a row (one picture may be slow), is tried last: a second circuit
breaker, whose time doubles with each failed probe. All runs in one event loop, without locks.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from cutaway.contract import errors, limits
from cutaway.contract.errors import CutawayError, InputError, ProcessingTimeout
from cutaway.contract.options import to_parameters
from cutaway.resilience import CircuitBreaker, Clock, Deadline, Permit, Retries, retry_after_of
from cutaway.result import CUT_OUTPUTS, Origin, read_cut
from cutaway.transports.base import InferRequest, ModelInfo, Tensor, Transport

logger = logging.getLogger("cutaway")

PIPELINE = "ensemble_pipeline"

SHED = (errors.Overloaded, errors.RateLimitExceeded)  # the server is healthy
LATENCY_WEIGHT = 0.2  # of the newest call in the moving average


@dataclass(frozen=True)
class Health:
    """The health of a server, from a picture that it processed: Triton's readiness, the pipeline's (which Triton also
    reports for a dead process), milliseconds of a small picture through it (None where it failed), the pair of models
    and their device, and the failure. Where there are several `servers`, the quickest healthy one's."""

    url: str
    server_ready: bool = False
    model_ready: bool = False
    round_trip_ms: float | None = None
    profile: str = ""
    device: str = ""
    error: CutawayError | None = None
    servers: tuple[Health, ...] = ()

    @property
    def ok(self) -> bool:
        return self.round_trip_ms is not None


@dataclass(eq=False)
class Server:
    """One server and its state from the calls' outcomes; it is tried last where its breaker `in_order` is open."""

    url: str
    transport: Transport
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    in_order: CircuitBreaker = field(init=False)
    healthy: bool = False
    shed_since: float | None = None


class Answer(NamedTuple):
    """The outputs by name, the server's address, and the number of requests to all servers."""

    outputs: dict[str, Tensor]
    url: str
    requests: int


class _Attempt(NamedTuple):
    server: Server
    permit: Permit
    in_order: Permit

    def drop(self) -> None:
        self.permit.dropped()
        self.in_order.dropped()


class Servers:
    """The servers of one client; where all breakers are open, `always_ask` tries the one that closes first, and False
    fails at once, which leaves the time to a fallback."""

    def __init__(self, members: Sequence[Server], *, always_ask: bool = True, clock: Clock = time.monotonic) -> None:
        self.members, self._always_ask, self._clock = tuple(members), always_ask, clock
        for server in self.members:
            first_s, fail_max = limits.SERVER_BACK_S, limits.SERVER_LATE_MAX
            server.in_order = CircuitBreaker(fail_max=fail_max, first_reset_s=first_s, clock=clock)
        self._calls = itertools.count()
        self._latency_s = 0.0

    async def infer(
        self, request: InferRequest, deadline: Deadline, retries: Retries, *, nobody_else: bool = False
    ) -> Answer:
        """Try one server after the other until one answers or no retry is left; `nobody_else`: no fallback serves this.
        Errors are the last server's, with the number of "requests" in their details."""
        everybody = untried = self._round()
        failures: dict[Server, CutawayError] = {}
        deadline.check(everybody[0].url)
        always_ask = self._always_ask or nobody_else
        attempt = self._choose(untried, always_ask)
        if attempt is None:
            open_for_s = min(each.breaker.open_for_s for each in everybody)
            who = everybody[0].url if len(everybody) == 1 else f"Each of {len(everybody)} servers"
            message = f"{who} failed repeatedly; the circuit breaker is open for {open_for_s:.0f} s more."
            raise errors.ServerUnavailable(message, retry_after=open_for_s, details={"requests": 0})
        for requests in itertools.count(1):
            server = attempt.server
            untried = [each for each in untried if each is not server]
            try:
                outputs = await self._send(attempt, request, deadline)
            except CutawayError as error:
                error.details["requests"] = requests
                gave_up = isinstance(error, ProcessingTimeout) and self._latency_s <= deadline.left_s > 0
                if not (gave_up or error.retry or isinstance(error, errors.ServerRefused)) or deadline.over:
                    raise
                failures[server] = error
                attempt = self._choose(untried, always_ask=False) if retries.policy.retries > 0 else None
                if attempt is not None and not retries.budget.take():
                    attempt.drop()
                    healthy = [each for each in untried if each.healthy and isinstance(error, SHED)]
                    attempt = self._choose(healthy, always_ask=False)
                    if attempt is None:
                        raise
                if attempt is None:
                    untried = [each for each in everybody if each not in failures or failures[each].retry]
                    soonest = min(failures.values(), key=lambda each: (not each.retry, retry_after_of(each) or 0.0))
                    wait_s = retries.delay_s(soonest)
                    if wait_s is None:
                        raise (soonest if soonest.retry and not error.retry else error) from None
                    await asyncio.sleep(wait_s)
                    attempt = self._choose(untried, always_ask)
                    if attempt is None:
                        raise soonest from None
            else:
                retries.budget.succeeded()
                return Answer(outputs, server.url, requests)
        raise AssertionError

    async def health(self, deadline: Deadline) -> Health:
        """The health of all servers."""
        each = await asyncio.gather(*(_health_of(server, deadline) for server in self.members))
        if len(each) == 1:
            return each[0]
        best = min(each, key=lambda one: one.round_trip_ms if one.round_trip_ms is not None else float("inf"))
        return replace(best, url=",".join(one.url for one in each), servers=tuple(each))

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

    async def _send(self, attempt: _Attempt, request: InferRequest, deadline: Deadline) -> dict[str, Tensor]:
        """One request, whose outcome is recorded."""
        began_s = deadline.elapsed_s
        try:
            outputs = await attempt.server.transport.infer(replace(request, timeout_s=deadline.left_s))
            took_s = deadline.elapsed_s - began_s
            self._latency_s += LATENCY_WEIGHT * (took_s - self._latency_s) if self._latency_s else took_s
            self._record(attempt, None, took_s, False)
        except CutawayError as error:
            self._record(attempt, error, deadline.elapsed_s - began_s, deadline.elapsed_s < 0.99 * deadline.budget_s)
            raise
        else:
            return outputs
        finally:
            attempt.drop()  # where no outcome was recorded

    def _round(self) -> list[Server]:
        first = next(self._calls) % len(self.members)
        return list(self.members[first:] + self.members[:first])

    def _choose(self, among: Sequence[Server], always_ask: bool) -> _Attempt | None:
        """The next attempt; None where all breakers are open."""
        for server in among:
            if in_order := server.in_order.permit():
                if permit := server.breaker.permit():
                    return _Attempt(server, permit, in_order)
                in_order.dropped()
        # Those that will soon be probed keep their order, since one alone could not serve the load of all.
        last = sorted(among, key=lambda each: max(limits.SERVER_BACK_S, each.in_order.open_for_s))
        soonest = sorted(among, key=lambda each: each.breaker.open_for_s)[: int(always_ask)]
        for server, anyway in (*((each, False) for each in last), *((each, True) for each in soonest)):
            permit, in_order = server.breaker.permit(anyway=anyway), server.in_order.permit(anyway=True)
            if permit and in_order:
                return _Attempt(server, permit, in_order)
        return None

    def _record(self, attempt: _Attempt, error: CutawayError | None, took_s: float, gave_up: bool) -> None:
        """Record the outcome; `gave_up`: a timeout came from the server, and not from the deadline."""
        server, permit, in_order = attempt
        if error is None or isinstance(error, InputError):
            permit.succeeded()
            in_order.succeeded()
            server.shed_since, server.healthy = None, True
        elif isinstance(error, SHED):
            permit.succeeded()
            server.healthy, asked_s, now = False, retry_after_of(error), self._clock()
            server.shed_since = now if server.shed_since is None else server.shed_since
            sheds_all = now - server.shed_since >= limits.SERVER_BACK_S
            if asked_s is not None or sheds_all or server.in_order.state != "closed":
                in_order.failed(opens=True, for_s=min(asked_s or 0.0, limits.RETRY_AFTER_MAX_S))
        elif isinstance(error, ProcessingTimeout):
            silent = took_s >= limits.SERVER_SILENT_S
            if silent or gave_up or took_s >= (self._latency_s or float("inf")):  # else the caller had little time
                permit.failed() if silent else permit.dropped()
                in_order.failed()
                server.healthy = False
        elif isinstance(error, (errors.ServerUnavailable, errors.InferenceError)):
            before = server.breaker.state
            permit.failed()
            server.healthy = False
            if server.breaker.state == "open" and before != "open":
                logger.warning("%s failed repeatedly; its circuit breaker is open: %s", server.url, error)


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


async def _health_of(server: Server, deadline: Deadline) -> Health:
    health, transport = Health(server.url), server.transport
    try:
        ready = await transport.server_ready(deadline.left_s)
        health = replace(health, server_ready=ready, model_ready=await transport.model_ready(PIPELINE, deadline.left_s))
        if not (ready and health.model_ready):
            raise errors.ServerUnavailable(f"The {'pipeline' if ready else 'server'} at {server.url} is not ready.")
        begun, options = Deadline(deadline.left_s), to_parameters({"subject": "all"})
        request = InferRequest(PIPELINE, health_picture(), CUT_OUTPUTS, options, "health", begun.left_s)
        outputs = await transport.infer(request)
        elapsed_ms = begun.elapsed_s * 1000
        report = read_cut(outputs, Origin("triton", "health", elapsed_ms)).report
        return replace(health, round_trip_ms=elapsed_ms, profile=report.profile, device=report.device)
    except CutawayError as error:
        return replace(health, error=error)


@cache
def health_picture() -> bytes:
    """A 64×64 PNG with some texture: the smallest valid picture."""
    file = BytesIO()
    Image.radial_gradient("L").resize((64, 64)).save(file, "PNG")
    return file.getvalue()
