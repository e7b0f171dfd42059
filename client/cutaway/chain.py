"""One tier after the other until one serves: the rule, without knowing what is asked or of whom."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from cutaway.breaker import CircuitBreaker, Experience
from cutaway.contract.errors import CutawayError, InputError, ProcessingTimeout, RequestCancelled, ServerUnavailable
from cutaway.resilience import Deadline, drive, drive_async

T = TypeVar("T")


class NobodyServed(ServerUnavailable):
    """Every tier failed or was passed over. Details: tried, a list of {provider, tier, code, message, elapsed_ms}."""


class NeedsDetection(ServerUnavailable):
    """Single people were asked for, and the server does not even detect: a hosted matte does not tell them apart."""


class OutOfTime(ProcessingTimeout):
    """The time was over in this machine's own work (decoding, composing): no tier is at fault."""


SAID_CHARS = 120
"""So much of what each tier said goes into the message of :class:`NobodyServed`; `details` have all of it."""


@dataclass(frozen=True)
class Tried:
    """Why a tier did not serve.

    Attributes:
        provider: "triton", "huggingface", "replicate" or "space".
        tier: 1 to 4.
        code: one of :data:`cutaway.contract.limits.ERROR_CODES`.
        message: one sentence.
        elapsed_ms: milliseconds that it took; 0 where it was not asked.
    """

    provider: str
    tier: int
    code: str
    message: str
    elapsed_ms: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "provider": self.provider,
            "tier": self.tier,
            "code": self.code,
            "message": self.message,
            "elapsed_ms": round(self.elapsed_ms, 1),
        }


@dataclass(frozen=True)
class Served(Generic[T]):
    """What was served, by whom, and why not by those before."""

    value: T
    provider: str
    tier: int
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """One tier's turn.

    Attributes:
        timeout_s: what it usually takes at most; that much is kept for it while those before it are asked.
        call: given its deadline, returns the result or raises a CutawayError; a coroutine function in
            :func:`run_chain_async`.
        passed_over: why it is not asked at all; "" where it is.
        patient: it heeds `timeout_s` itself, and may wait for longer where that is agreed upon (a model that loads):
            its deadline is all that those after it leave.
    """

    provider: str
    tier: int
    timeout_s: float
    call: Callable[[Deadline], Any] = field(repr=False)
    breaker: CircuitBreaker | None = field(default=None, repr=False)
    experience: Experience | None = field(default=None, repr=False)
    passed_over: str = ""
    patient: bool = False

    @property
    def resting(self) -> bool:
        return self.breaker is not None and self.breaker.rests_for_s > 0.0


def run_chain(attempts: Sequence[Attempt], deadline: Deadline) -> Served[Any]:
    """Ask one after the other, each once, until one serves.

    A tier may take its own timeout, or less where later ones would be left without time: they keep what they may
    take, up to half of what is left. For those that rest nothing is kept.

    Raises:
        InputError: a tier says that the picture or the options are at fault; nobody else is asked.
        ProcessingTimeout: the deadline passed.
        NobodyServed: all failed; a single one's own error where there was only one.
    """
    return drive(_chain(attempts, deadline), lambda turn: turn[0].call(turn[1]))


async def run_chain_async(attempts: Sequence[Attempt], deadline: Deadline) -> Served[Any]:
    """The same as :func:`run_chain` where calls are awaited."""
    return await drive_async(_chain(attempts, deadline), lambda turn: turn[0].call(turn[1]))


def _chain(attempts: Sequence[Attempt], deadline: Deadline) -> Generator[tuple[Attempt, Deadline], Any, Served[Any]]:
    tried: list[Tried] = []
    errors: list[CutawayError] = []

    def pass_over(attempt: Attempt, why: str) -> None:
        tried.append(Tried(attempt.provider, attempt.tier, "UNAVAILABLE", why))

    for place, attempt in enumerate(attempts):
        if attempt.passed_over:
            pass_over(attempt, attempt.passed_over)
            continue
        if deadline.over:
            pass_over(attempt, "No time was left to ask.")
            continue
        permit = None
        if attempt.breaker is not None:
            permit = attempt.breaker.permit()
            if permit is None:
                pass_over(attempt, f"It failed repeatedly and rests for {attempt.breaker.rests_for_s:.0f} s more.")
                continue
        later_s = sum(later.timeout_s for later in attempts[place + 1 :] if not later.passed_over and not later.resting)
        share_s = max(deadline.left_s / 2, deadline.left_s - later_s) if later_s else deadline.left_s
        turn = deadline.capped(share_s if attempt.patient else min(attempt.timeout_s, share_s))
        try:
            value = yield attempt, turn
        except (InputError, NeedsDetection, RequestCancelled) as error:
            if permit is not None:
                permit.succeeded() if isinstance(error, InputError) else permit.dropped()
            error.details["tried"] = [entry.to_dict() for entry in tried]
            raise
        except CutawayError as error:
            own = isinstance(error, OutOfTime)
            if permit is not None:
                permit.dropped() if own else permit.failed()
            if own and deadline.left_s <= 0.0:
                error.details["tried"] = [entry.to_dict() for entry in tried]
                raise
            if attempt.experience is not None:
                attempt.experience.add(False, turn.elapsed_s)
            errors.append(error)
            tried.append(Tried(attempt.provider, attempt.tier, error.code, error.message, turn.elapsed_s * 1000))
        except BaseException:
            if permit is not None:
                permit.dropped()
            raise
        else:
            if permit is not None:
                permit.succeeded()
            if attempt.experience is not None:
                attempt.experience.add(True, turn.elapsed_s)
            return Served(value, attempt.provider, attempt.tier, tuple(tried))
    raise _nobody(attempts, tried, errors, deadline)


def _nobody(
    attempts: Sequence[Attempt], tried: list[Tried], errors: list[CutawayError], deadline: Deadline
) -> CutawayError:
    entries = [entry.to_dict() for entry in tried]
    if len(attempts) == 1 and errors:
        error = errors[0]
    elif deadline.over:
        error = deadline.exceeded("No tier")
    else:
        waits = [error.retry_after for error in errors if error.retry and error.retry_after is not None]
        why = "; ".join(f"{entry.provider} ({entry.code}): {_short(entry.message)}" for entry in tried)
        error = NobodyServed(f"No tier served: {why or 'there is none'}.", retry_after=min(waits, default=None))
    error.details["tried"] = entries
    return error


def _short(message: str) -> str:
    words = " ".join(message.split()).rstrip(". ")
    return words if len(words) <= SAID_CHARS else words[: SAID_CHARS - 1].rstrip() + "…"
