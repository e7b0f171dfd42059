"""The fallback chain: your own server first, then the hosted providers in order, until one serves or the deadline.

An error of the picture or the options ends the chain at once: it would fail at every provider and cost money.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cutaway.contract import errors, limits
from cutaway.contract.errors import CutawayError, InputError, RequestCancelled, ServerUnavailable
from cutaway.contract.options import CutOptions
from cutaway.fallback.answers import LocalTimeout, Upscaled, run_locally
from cutaway.fallback.cutouts import Person, Picture, given_people, outputs_of, prepare
from cutaway.resilience import CircuitBreaker, Clock, Deadline

if TYPE_CHECKING:
    from cutaway.fallback.base import Provider

T = TypeVar("T")
Outputs = Mapping[str, Any]
Ask = Callable[[Deadline], Awaitable[Outputs]]

DETECT_SHARE = 1 / 3  # of a hosted tier's time, for the own server's detection of people


class NobodyServed(ServerUnavailable):
    """Every tier failed or was passed over. Details: tried, a list of {provider, tier, code, message, elapsed_ms}."""


class NeedsDetection(ServerUnavailable):
    """Single people were requested and the server does not detect them: a hosted matte does not separate people."""


@dataclass(frozen=True)
class Tried:
    """Why a tier ("triton", "huggingface", "replicate" or "space"; 1 to 4) did not serve: one of
    :data:`cutaway.contract.limits.ERROR_CODES`, one sentence, and the milliseconds until then; 0 where not called."""

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
    """One tier: `call` returns the result within its deadline, or raises a CutawayError. It is `patient` where it keeps
    `timeout_s` itself, which does not count while a model is loading; `unable` says why it is not called."""

    provider: str
    tier: int
    timeout_s: float
    call: Callable[[Deadline], Awaitable[Any]]
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    patient: bool = False
    unable: str = ""


async def run_chain(attempts: Sequence[Attempt], deadline: Deadline) -> Served[Any]:
    """Call one tier after the other, each once, until one serves.

    The timeouts of later tiers are reserved, up to half of the time left, unless their circuit breaker is open.

    Raises:
        InputError: a tier refuses the picture or an option; no further one is called.
        ProcessingTimeout: the deadline was exceeded.
        NobodyServed: all failed; a single one's own error where there was only one.
    """
    tried: list[Tried] = []
    failures: list[CutawayError] = []
    for place, tier in enumerate(attempts):
        why = tier.unable or ("No time was left to ask." if deadline.over else "")
        permit = None if why else tier.breaker.permit()
        if permit is None:
            why = why or f"Its circuit breaker is open for {tier.breaker.open_for_s:.0f} s more."
            tried.append(Tried(tier.provider, tier.tier, "UNAVAILABLE", why))
            continue
        later_s = sum(it.timeout_s for it in attempts[place + 1 :] if not it.unable and not it.breaker.open_for_s)
        share_s = max(deadline.left_s / 2, deadline.left_s - later_s)
        turn = deadline.capped(share_s if tier.patient else min(tier.timeout_s, share_s))
        settle = permit.dropped
        try:
            value = await tier.call(turn)
            settle = permit.succeeded
            return Served(value, tier.provider, tier.tier, tuple(tried))
        except CutawayError as error:
            local = isinstance(error, LocalTimeout)
            if isinstance(error, (InputError, NeedsDetection, RequestCancelled)) or (local and deadline.over):
                settle = permit.succeeded if isinstance(error, InputError) else permit.dropped
                error.details["tried"] = [entry.to_dict() for entry in tried]
                raise
            settle = permit.dropped if local else permit.failed
            failures.append(error)
            tried.append(Tried(tier.provider, tier.tier, error.code, error.message, turn.elapsed_s * 1000))
        finally:
            settle()
    final: CutawayError = deadline.exceeded("No tier")
    if len(attempts) == 1 and failures:
        final = failures[0]
    elif not deadline.over:
        waits = [error.retry_after for error in failures if error.retry and error.retry_after is not None]
        said = [f"{entry.provider} ({entry.code}): {shorten(entry.message, 120).rstrip('.')}" for entry in tried]
        message = f"No tier served: {'; '.join(said) or 'there is none'}."
        final = NobodyServed(message, retry_after=min(waits, default=None))
    final.details["tried"] = [entry.to_dict() for entry in tried]
    raise final


class Fallback:
    """Hosted providers behind your own server, in the order of the tiers; safe to share between threads and clients.

    After `fail_max` failures in a row a provider's circuit breaker opens; after `reset_s` seconds it is half-open.

    >>> fallback = Fallback([HuggingFace("briaai/RMBG-1.4", accept_noncommercial=True), Replicate(), Space()])
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        fail_max: int = limits.BREAKER_FAIL_MAX,
        reset_s: float = limits.BREAKER_RESET_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self.providers = tuple(providers)
        self._breaker = partial(CircuitBreaker, fail_max=fail_max, reset_s=reset_s, clock=clock)
        # By factor, since each has another model; 1 is the matte.
        self._breakers = {scale: tuple(self._breaker() for _ in providers) for scale in (1, *limits.UPSCALE_SCALES)}
        self.breakers = self._breakers[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Fallback, self.providers, **self._breaker.keywords), ()

    async def infer(
        self,
        data: bytes,
        media_type: str | None = None,
        *,
        options: CutOptions,
        deadline: Deadline,
        primary: Ask | None = None,
        detect: Ask | None = None,
    ) -> Served[Outputs]:
        """Cut an encoded picture out by the first tier that serves; the outputs are those of the wire contract.

        `primary` requests them from your own server, and `detect` all but "images", which single people need.

        Raises:
            NeedsDetection: single people were requested without boxes, only hosted tiers are left, and none detects.
            Others as :func:`run_chain`.
        """
        picture: Picture | None = None
        people: list[Person] | None = None

        async def matte(provider: Provider, turn: Deadline) -> tuple[dict[str, Any], dict[str, Any]]:
            nonlocal picture, people
            if picture is None:
                decoded = await run_locally("decoding the picture", deadline, partial(prepare, data, media_type))
                people = given_people(options, decoded.rgb.size)
                picture = decoded
            if people is None and (options.subject == "each" or options.select is not None):
                detect_s = min(provider.timeout_s, turn.left_s) * DETECT_SHARE
                people = await _detected(detect, turn.capped(detect_s), options)
            made = await provider.matte(picture.data, picture.media_type, turn)
            compose = partial(outputs_of, picture, made, options, people, deadline)
            return await run_locally("putting the cut-out together", deadline, compose)

        attempts = [] if primary is None else [Attempt("triton", 1, limits.TIER_TIMEOUTS_S["triton"], primary)]
        served = await run_chain(attempts + self._attempts(1, lambda it: partial(matte, it)), deadline)
        if served.tier == 1:
            return served
        outputs, report = served.value
        told = {"provider": served.provider, "tier": served.tier, "tried": [entry.to_dict() for entry in served.tried]}
        written = json.dumps(report | {"fallback": told}, ensure_ascii=False).encode()
        return replace(served, value=outputs | {"report": [written]})

    async def upscale(
        self, data: bytes, media_type: str | None = None, *, scale: int, deadline: Deadline
    ) -> Served[Upscaled]:
        """Enlarge an encoded picture of at most 1440p by 2 or 4 along each side, by the first provider that serves."""
        if scale not in limits.UPSCALE_SCALES:
            raise errors.invalid_option("scale", scale, ", ".join(map(str, limits.UPSCALE_SCALES)))
        decode = partial(prepare, data, media_type, limits.UPSCALE_LIMITS)
        picture = await run_locally("decoding the picture", deadline, decode)
        sent = picture.data, picture.media_type, scale
        return await run_chain(self._attempts(scale, lambda it: partial(it.upscale, *sent)), deadline)

    def _attempts(self, scale: int, call: Callable[[Provider], Callable[..., Awaitable[Any]]]) -> list[Attempt]:
        unable = "It was set up for upscaling only." if scale == 1 else f"It does not upscale by {scale}."
        found = []
        for it, breaker in zip(self.providers, self._breakers[scale], strict=True):
            able = it.mattes if scale == 1 else scale in it.scales
            found.append(Attempt(it.name, it.tier, it.timeout_s, call(it), breaker, True, "" if able else unable))
        return found


async def _detected(detect: Ask | None, turn: Deadline, options: CutOptions) -> list[Person]:
    action = "Give boxes, or ask for subject people or all; or try again when the server is back."
    needed = NeedsDetection("Hosted models do not tell people apart, and no server does.", user_action=action)
    if detect is None:
        raise needed
    try:
        outputs = await detect(turn)
    except (InputError, RequestCancelled):
        raise
    except CutawayError as error:
        raise needed from error
    ids = [entry["id"] for entry in json.loads(outputs["report"][0])["people"]]  # `select` is applied already
    if not ids:
        details = {"min_confidence": options.min_confidence, "tips": []}
        raise errors.NoPersonDetected("Nobody was found in the picture.", details=details)
    return list(map(Person, ids, map(tuple, outputs["boxes"].tolist()), outputs["scores"].tolist()))
