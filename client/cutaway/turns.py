"""Several servers that do the same work: whose turn it is, who rests, and what is worth another try.

- Calls go round. A server that fails several times in a row rests (:class:`cutaway.breaker.CircuitBreaker`); one that
  has no room, or lets deadlines pass, stands back behind the others (:class:`cutaway.standing.Standing`).
- A failure moves the call on to the next server at once, as long as there are some that it has not asked; after that it
  waits as :class:`cutaway.resilience.RetryPolicy` says and goes round again. A server that gave the picture up before
  the deadline is not asked again, but others are, as long as there is time.
- Whatever is sent again, to whichever server, costs a token of the retry budget. Where there is none left, a server
  that has no room is still left for one whose last answer was a good one: in an outage there is no such server.
- What is wrong with the picture is wrong everywhere: it never moves on. A server that refused (unknown model, wrong
  token, see :class:`cutaway.contract.errors.ServerRefused`) is not asked again in the same call, but others are.

The rules are a generator that yields whom to ask and how long to wait, so they are written once, for threads and
asyncio.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeGuard, TypeVar

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
)
from cutaway.resilience import Deadline, Retries, asked_to_wait_s
from cutaway.standing import Pace, Standing, Turn
from cutaway.transports.base import AsyncTransport, Transport
from cutaway.wire import Tensor

logger = logging.getLogger("cutaway")


@dataclass(frozen=True, eq=False)
class Endpoint:
    """One server.

    Attributes:
        url: its address, for messages.
        transport: the way to it; closed together with the :class:`Endpoints` that it is given to.
        breaker: rests it when it fails.
        standing: puts it behind others when it has no room or lets deadlines pass.
    """

    url: str
    transport: Transport = field(repr=False)
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker, repr=False)
    standing: Standing = field(default_factory=Standing, repr=False)


@dataclass(frozen=True, eq=False)
class AsyncEndpoint:
    """The same as :class:`Endpoint` for asyncio."""

    url: str
    transport: AsyncTransport = field(repr=False)
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker, repr=False)
    standing: Standing = field(default_factory=Standing, repr=False)


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

_NO_ROOM = (Overloaded, RateLimitExceeded)
"""The server is well and did not begin."""


@dataclass(frozen=True)
class _Leave(Generic[M]):
    """Leave to ask a server once."""

    member: M
    permit: Permit
    turn: Turn

    def succeeded(self) -> None:
        self.permit.succeeded()
        self.member.standing.succeeded(self.turn)

    def no_room(self, asked_s: float | None) -> None:
        self.permit.succeeded()
        self.member.standing.shed(self.turn, asked_s)

    def late(self, *, silent: bool) -> None:
        self.permit.failed() if silent else self.permit.dropped()
        self.member.standing.late(self.turn)

    def failed(self) -> None:
        self.permit.failed()
        self.member.standing.failed(self.turn)

    def dropped(self) -> None:
        self.permit.dropped()
        self.member.standing.dropped(self.turn)


class Rules(Generic[M]):
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
        self._pace = Pace()

    def _round(self) -> list[M]:
        """The servers in the order in which the next call asks them."""
        first = next(self._turns) % len(self.members)
        return list(self.members[first:] + self.members[:first])

    def asking(self, deadline: Deadline, retries: Retries, nobody_else: bool) -> Generator[M | float, Any, Answer]:
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
            leave, began_s = found, deadline.elapsed_s
            if leave.member in untried:
                untried.remove(leave.member)
            try:
                outputs = yield leave.member
            except BaseException as error:
                self._settle(leave, error, deadline, began_s)
                if isinstance(error, CutawayError):
                    error.details.setdefault("requests", requests)
                if not self._moves_on(error, deadline):
                    raise
                failure = _Failure(error, due_s=deadline.elapsed_s + (asked_to_wait_s(error) or 0.0))
            else:
                leave.succeeded()
                self._pace.succeeded(deadline.elapsed_s - began_s)
                retries.budget.succeeded()
                return Answer(outputs, leave.member.url, requests)
            failures[leave.member] = failure
            found = None
            if retries.policy.retries > 0 and not deadline.over:
                found = self._choose(untried, always_ask=False)
                if found is not None and not retries.budget.take():
                    found.dropped()
                    healthy = [each for each in untried if each.standing.healthy]
                    found = self._choose(healthy, always_ask=False) if isinstance(failure.error, _NO_ROOM) else None
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

    def _choose(self, among: Sequence[M], always_ask: bool) -> _Leave[M] | None:
        """Leave to ask the next server; None where there is none to be asked."""
        for member in among:
            turn = member.standing.turn()
            if turn is None:
                continue
            permit = member.breaker.permit()
            if permit is not None:
                return _Leave(member, permit, turn)
            member.standing.dropped(turn)
        # Those that will soon be back take turns: one alone could not take what was too much for all.
        for member in sorted(among, key=lambda each: max(limits.ENDPOINT_BACK_S, each.standing.back_for_s)):
            permit = member.breaker.permit()
            if permit is not None:
                return _Leave(member, permit, member.standing.turn_anyway())
        if not always_ask:
            return None
        member = min(among, key=lambda each: each.breaker.rests_for_s)
        return _Leave(member, member.breaker.permit_anyway(), member.standing.turn_anyway())

    def _moves_on(self, error: BaseException, deadline: Deadline) -> TypeGuard[CutawayError]:
        if isinstance(error, ProcessingTimeout):
            return _gave_up(deadline) and self._pace.is_enough(deadline.left_s, unknown=True)
        return isinstance(error, ServerRefused) or (isinstance(error, CutawayError) and error.retry)

    def _settle(self, leave: _Leave[M], error: BaseException, deadline: Deadline, began_s: float) -> None:
        """Note what the failure says about the server."""
        took_s = deadline.elapsed_s - began_s
        if isinstance(error, InputError):
            leave.succeeded()
        elif isinstance(error, _NO_ROOM):
            leave.no_room(asked_to_wait_s(error))
        elif isinstance(error, ProcessingTimeout):
            silent = took_s >= limits.ENDPOINT_SILENT_S
            if silent or _gave_up(deadline) or self._pace.is_enough(took_s, unknown=False):
                leave.late(silent=silent)
            else:
                leave.dropped()
        elif isinstance(error, (ServerUnavailable, InferenceError)):
            before = leave.member.breaker.state
            leave.failed()
            if leave.member.breaker.state == "open" and before != "open":
                logger.warning("%s failed repeatedly and rests: %s", leave.member.url, error)
        else:
            leave.dropped()

    def _all_rest(self) -> ServerUnavailable:
        rests_for_s = min(each.breaker.rests_for_s for each in self.members)
        who = self.members[0].url if len(self.members) == 1 else f"Each of {len(self.members)} servers"
        return ServerUnavailable(
            f"{who} failed repeatedly and rests for {rests_for_s:.0f} s more.",
            retry_after=rests_for_s,
            details={"requests": 0},
        )


@dataclass(frozen=True)
class _Failure:
    """What a server did to a call, and how many seconds after the call's beginning it may be asked again."""

    error: CutawayError
    due_s: float


def _gave_up(deadline: Deadline) -> bool:
    """Whether a call that timed out was given up by the server, and not by the deadline."""
    return deadline.elapsed_s < 0.99 * deadline.budget_s
