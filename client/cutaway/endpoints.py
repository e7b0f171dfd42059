"""Several servers that do the same work: whose turn it is, who rests, and what is worth another try.

- Calls go round. A server that fails several times in a row rests (:class:`cutaway.breaker.CircuitBreaker`).
- A failure moves the call on to the next server at once, as long as there are some that it has not asked; after that it
  waits as :class:`cutaway.resilience.RetryPolicy` says and goes round again.
- Whatever is sent again, to whichever server, costs a token of the retry budget.
- What is wrong with the picture is wrong everywhere: it never moves on. A server that refused (unknown model, wrong
  token, see :class:`cutaway.errors.ServerRefused`) is not asked again in the same call, but others are.

The rules are a generator that yields whom to ask and how long to wait, so they are written once, for threads and
asyncio.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeGuard, TypeVar

from cutaway import limits
from cutaway.breaker import CircuitBreaker, Permit
from cutaway.cancel import Cancel
from cutaway.errors import (
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
from cutaway.resilience import Deadline, Retries, asked_to_wait_s, drive, drive_async
from cutaway.transports.base import AsyncTransport, InferRequest, ModelInfo, Transport
from cutaway.wire import Tensor

logger = logging.getLogger("cutaway")


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One server.

    Attributes:
        url: its address, for messages.
        transport: the way to it; closed together with the :class:`Endpoints` that it is given to.
        breaker: rests it when it fails.
    """

    url: str
    transport: Transport = field(repr=False)
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker, repr=False)


@dataclass(frozen=True, eq=False)
class AsyncEndpoint:
    """The same as :class:`Endpoint` for asyncio."""

    url: str
    transport: AsyncTransport = field(repr=False)
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker, repr=False)


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes:
        outputs: the model's, by name.
        url: the server's address.
        requests: how many were sent in all, to any server; 1 where the first succeeded.
    """

    outputs: dict[str, Tensor]
    url: str
    requests: int


M = TypeVar("M", Endpoint, AsyncEndpoint)


class _Rules(Generic[M]):
    """Who is asked, and what follows a failure.

    Args:
        members: servers that do the same work.
        always_ask: where all of them rest, ask the one that rests the shortest: there is nobody else. False fails at
            once instead, which leaves the time to somebody else.
    """

    def __init__(self, members: Sequence[M], *, always_ask: bool = True) -> None:
        if not members:
            raise ValueError("there has to be a server")
        self.members: tuple[M, ...] = tuple(members)
        self._always_ask = always_ask
        self._turns = itertools.count()

    def _round(self) -> list[M]:
        """The servers in the order in which the next call asks them."""
        first = next(self._turns) % len(self.members)
        return list(self.members[first:] + self.members[:first])

    def _asking(self, deadline: Deadline, retries: Retries, nobody_else: bool) -> Generator[M | float, Any, Answer]:
        """Yields a server to ask, and seconds to wait."""
        everybody = self._round()
        untried = list(everybody)
        failures: dict[M, _Failure] = {}
        deadline.check(everybody[0].url)
        always_ask = self._always_ask or nobody_else
        found = self._choose(untried, always_ask)
        if found is None:
            raise self._all_rest()
        for requests in itertools.count(1):
            member, permit = found
            began_s = deadline.elapsed_s
            try:
                outputs = yield member
            except BaseException as error:
                _settle(member, permit, error, deadline.elapsed_s - began_s)
                if isinstance(error, CutawayError):
                    error.details.setdefault("requests", requests)
                if not _moves_on(error):
                    raise
                failure = _Failure(error, due_s=deadline.elapsed_s + (asked_to_wait_s(error) or 0.0))
            else:
                permit.succeeded()
                retries.budget.succeeded()
                return Answer(outputs, member.url, requests)
            failures[member] = failure
            found = None
            if retries.policy.retries > 0 and not deadline.over:
                found = self._choose(untried, always_ask=False)
                if found is not None and not retries.budget.take():
                    found[1].dropped()
                    raise failure.error
            if found is None:
                again = [each for each in everybody if each in failures and failures[each].error.retry]
                if not again:
                    raise failure.error
                soonest = min(again, key=lambda each: failures[each].due_s)
                wait_s = retries.delay_s(failures[soonest].error)
                if wait_s is None:
                    raise (failure if failure.error.retry else failures[again[-1]]).error
                yield wait_s
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

    def _choose(self, untried: list[M], always_ask: bool) -> tuple[M, Permit] | None:
        """The next server, taken out of the list, and leave to ask it; None where there is none to be asked."""
        for member in untried:
            permit = member.breaker.permit()
            if permit is not None:
                untried.remove(member)
                return member, permit
        if not always_ask:
            return None
        member = min(untried, key=lambda each: each.breaker.rests_for_s)
        untried.remove(member)
        return member, member.breaker.permit_anyway()

    def _all_rest(self) -> ServerUnavailable:
        rests_for_s = min(each.breaker.rests_for_s for each in self.members)
        who = self.members[0].url if len(self.members) == 1 else f"Each of {len(self.members)} servers"
        return ServerUnavailable(
            f"{who} failed repeatedly and rests for {rests_for_s:.0f} s more.",
            retry_after=rests_for_s,
            details={"requests": 0},
        )


class Endpoints(_Rules[Endpoint]):
    """Equal servers, asked in turn; safe to share between threads."""

    def infer(
        self,
        request: InferRequest,
        deadline: Deadline,
        retries: Retries,
        cancel: Cancel | None = None,
        *,
        nobody_else: bool = False,
    ) -> Answer:
        """Ask one server after the other until one answers or another try is not worth it.

        Args:
            request: its `timeout_s` is replaced by what is left of the deadline.
            deadline: for everything together.
            retries: of this call; their budget is shared between calls.
            cancel: ends the request at the server, and waiting.
            nobody_else: does this kind of work, so that servers which all rest are asked nevertheless.

        Raises:
            InputError: the picture or the options are at fault; nobody else is asked.
            ProcessingTimeout: the deadline passed.
            RequestCancelled: by `cancel`.
            ServerRefused: all servers refused.
            ServerUnavailable, InferenceError: of a server that was asked last. Details of every error tell under
                "requests" how many were sent.
        """

        def perform(step: Endpoint | float) -> dict[str, Tensor] | None:
            if cancel is not None:
                cancel.check()
            if isinstance(step, Endpoint):
                return step.transport.infer(replace(request, timeout_s=deadline.left_s), cancel)
            if cancel is None:
                time.sleep(step)
            elif cancel.wait(step):
                cancel.check()
            return None

        return drive(self._asking(deadline, retries, nobody_else), perform)

    def models(self, names: Sequence[str], deadline: Deadline) -> list[ModelInfo]:
        """What the first server that answers says of these models.

        Raises:
            CutawayError: of the last one, where none answers.
        """
        *others, last = self._round()
        for member in others:
            with suppress(ServiceError):
                return member.transport.models(names, deadline.left_s / 2)
        return last.transport.models(names, deadline.left_s)

    def close(self) -> None:
        for member in self.members:
            member.transport.close()


class AsyncEndpoints(_Rules[AsyncEndpoint]):
    """The same as :class:`Endpoints` for asyncio; cancelling the task ends the request at the server."""

    async def infer(
        self, request: InferRequest, deadline: Deadline, retries: Retries, *, nobody_else: bool = False
    ) -> Answer:
        """See :meth:`Endpoints.infer`."""

        async def perform(step: AsyncEndpoint | float) -> dict[str, Tensor] | None:
            if isinstance(step, AsyncEndpoint):
                return await step.transport.infer(replace(request, timeout_s=deadline.left_s))
            await asyncio.sleep(step)
            return None

        return await drive_async(self._asking(deadline, retries, nobody_else), perform)

    async def models(self, names: Sequence[str], deadline: Deadline) -> list[ModelInfo]:
        """See :meth:`Endpoints.models`."""
        *others, last = self._round()
        for member in others:
            with suppress(ServiceError):
                return await member.transport.models(names, deadline.left_s / 2)
        return await last.transport.models(names, deadline.left_s)

    async def aclose(self) -> None:
        for member in self.members:
            await member.transport.aclose()


@dataclass(frozen=True)
class _Failure:
    """What a server did to a call, and how many seconds after the call's beginning it may be asked again."""

    error: CutawayError
    due_s: float


def _moves_on(error: BaseException) -> TypeGuard[CutawayError]:
    return isinstance(error, ServerRefused) or (isinstance(error, CutawayError) and error.retry)


def _settle(member: Endpoint | AsyncEndpoint, permit: Permit, error: BaseException, took_s: float) -> None:
    """Tell the breaker what the failure says about the server: much to do is no reason to rest it."""
    if isinstance(error, (InputError, Overloaded, RateLimitExceeded)):
        permit.succeeded()
        return
    silent = isinstance(error, ProcessingTimeout) and took_s >= limits.ENDPOINT_SILENT_S
    if not isinstance(error, (ServerUnavailable, InferenceError)) and not silent:
        permit.dropped()
        return
    before = member.breaker.state
    permit.failed()
    if member.breaker.state == "open" and before != "open":
        logger.warning("%s failed repeatedly and rests: %s", member.url, error)
