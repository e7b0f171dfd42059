"""The fallback rule: tiers are tried in order until one serves, whatever the call and the tier."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from textwrap import shorten
from typing import Any, Generic, TypeVar

from cutaway.breaker import CircuitBreaker
from cutaway.contract.errors import CutawayError, InputError, ProcessingTimeout, RequestCancelled, ServerUnavailable
from cutaway.resilience import Deadline

T = TypeVar("T")


class NobodyServed(ServerUnavailable):
    """Every tier failed or was passed over. Details: tried, a list of {provider, tier, code, message, elapsed_ms}."""


class NeedsDetection(ServerUnavailable):
    """Single people were requested and the server does not detect them: a hosted matte does not separate people."""


class OutOfTime(ProcessingTimeout):
    """The deadline was exceeded by this machine's own work (decoding, composing): no tier failed."""


@dataclass(frozen=True)
class Tried:
    """Why a tier did not serve.

    Attributes:
        provider: "triton", "huggingface", "replicate" or "space"; `tier` is its number, 1 to 4.
        code: one of :data:`cutaway.contract.limits.ERROR_CODES`; `message` is one sentence.
        elapsed_ms: milliseconds that it took; 0 where it was not called.
    """

    provider: str
    tier: int
    code: str
    message: str
    elapsed_ms: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"elapsed_ms": round(self.elapsed_ms, 1)}


@dataclass(frozen=True)
class Served(Generic[T]):
    """The result, the tier that served it, and the tiers that failed before."""

    value: T
    provider: str
    tier: int
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """One tier: `call` returns the result within its deadline, or raises a CutawayError.

    Attributes:
        timeout_s: its timeout, which is reserved for it while the tiers before are tried.
        passed_over: why it is not called at all; "" where it is.
        patient: whether it applies `timeout_s` itself, and may take longer (for a model that loads).
    """

    provider: str
    tier: int
    timeout_s: float
    call: Callable[[Deadline], Awaitable[Any]] = field(repr=False)
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker, repr=False)
    passed_over: str = ""
    patient: bool = False


async def run_chain(attempts: Sequence[Attempt], deadline: Deadline) -> Served[Any]:
    """Call one tier after the other, each once, until one serves.

    A tier has its own timeout, or less where it would take the time of later ones: their timeouts are reserved, up to
    half of the time left. Nothing is reserved for tiers whose circuit breaker is open.

    Raises:
        InputError: a tier refuses the picture or an option; no further one is called.
        ProcessingTimeout: the deadline was exceeded.
        NobodyServed: all failed; a single one's own error where there was only one.
    """
    tried: list[Tried] = []
    errors: list[CutawayError] = []
    for place, tier in enumerate(attempts):
        why = tier.passed_over or ("No time was left to ask." if deadline.over else "")
        permit = None if why else tier.breaker.permit()
        if permit is None:
            why = why or f"Its circuit breaker is open for {tier.breaker.open_for_s:.0f} s more."
            tried.append(Tried(tier.provider, tier.tier, "UNAVAILABLE", why))
            continue
        later = [each for each in attempts[place + 1 :] if not each.passed_over and not each.breaker.open_for_s]
        share_s = max(deadline.left_s / 2, deadline.left_s - sum(each.timeout_s for each in later))
        turn = deadline.capped(share_s if tier.patient else min(tier.timeout_s, share_s))
        settle = permit.dropped
        try:
            value = await tier.call(turn)
            settle = permit.succeeded
            return Served(value, tier.provider, tier.tier, tuple(tried))
        except CutawayError as error:
            own = isinstance(error, OutOfTime)
            if isinstance(error, (InputError, NeedsDetection, RequestCancelled)) or (own and deadline.over):
                settle = permit.succeeded if isinstance(error, InputError) else permit.dropped
                error.details["tried"] = [entry.to_dict() for entry in tried]
                raise
            settle = permit.dropped if own else permit.failed
            errors.append(error)
            tried.append(Tried(tier.provider, tier.tier, error.code, error.message, turn.elapsed_s * 1000))
        finally:
            settle()
    final: CutawayError = deadline.exceeded("No tier")
    if len(attempts) == 1 and errors:
        final = errors[0]
    elif not deadline.over:
        waits = [error.retry_after for error in errors if error.retry and error.retry_after is not None]
        said = [f"{entry.provider} ({entry.code}): {shorten(entry.message, 120).rstrip('.')}" for entry in tried]
        message = f"No tier served: {'; '.join(said) or 'there is none'}."
        final = NobodyServed(message, retry_after=min(waits, default=None))
    final.details["tried"] = [entry.to_dict() for entry in tried]
    raise final


async def in_thread(deadline: Deadline, doing: str, work: Callable[..., T], *arguments: Any) -> T:
    """This machine's own work on a hosted call, in a thread; OutOfTime where it exceeds the deadline."""
    try:
        async with deadline.limit(doing):
            return await asyncio.to_thread(work, *arguments)
    except ProcessingTimeout:
        details = {"elapsed_seconds": round(deadline.elapsed_s, 3)}
        raise OutOfTime(f"The {deadline.budget_s:.1f} s were over while {doing}.", details=details) from None
