"""The fallback chain: your own server first, then the hosted providers in order, until one serves or the deadline.

An error of the picture or the options ends the chain at once: it would fail at every provider and cost money.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from cutaway.breaker import CircuitBreaker, Clock
from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, InputError, RequestCancelled, invalid_option
from cutaway.contract.options import CutOptions
from cutaway.fallback.chain import Attempt, NeedsDetection, Served, in_thread, run_chain
from cutaway.fallback.compose import Person, Picture, detected_people, given_people, outputs_of, prepare
from cutaway.resilience import Deadline

if TYPE_CHECKING:
    from cutaway.fallback.answers import Upscaled
    from cutaway.fallback.base import Provider

Outputs: TypeAlias = Mapping[str, Any]
Ask: TypeAlias = Callable[[Deadline], Awaitable[Outputs]]

DETECT_SHARE = 1 / 3  # share of a hosted tier's time for the server's detection of people
MATTE = 1  # its key among the factors, each of which has circuit breakers of its own, since it has another model
DECODING, COMPOSING = "decoding the picture", "putting the cut-out together"


class Fallback:
    """Hosted providers behind your own server; safe to share between threads, event loops and clients.

    >>> fallback = Fallback([HuggingFace("briaai/RMBG-1.4", accept_noncommercial=True), Replicate(), Space()])

    Args:
        providers: in the order of the tiers.
        fail_max: failures in a row after which a provider's circuit breaker opens.
        reset_s: seconds until an open circuit breaker is half-open.
        clock: seconds that only grow.
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
        self._made_with: dict[str, Any] = {"fail_max": fail_max, "reset_s": reset_s, "clock": clock}
        self._breakers = {
            scale: tuple(CircuitBreaker(fail_max=fail_max, reset_s=reset_s, clock=clock) for _ in providers)
            for scale in (MATTE, *limits.UPSCALE_SCALES)
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Fallback, self.providers, **self._made_with), ()

    @property
    def breakers(self) -> tuple[CircuitBreaker, ...]:
        """The circuit breakers of the providers' mattes; upscaling has others."""
        return self._breakers[MATTE]

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
        """Cut a picture out by the first tier that serves.

        Args:
            data: the encoded picture; `media_type` is its declared type, if any.
            deadline: of the whole call.
            primary: requests "images", "boxes", "scores" and "report" from your own server within the given deadline.
            detect: requests all but "images". Single people (`subject` "each", or `select`) need it, or boxes.

        Returns:
            The outputs of the wire contract. A hosted report has the tiers that failed before under "fallback", and
            warnings about what a hosted matte does not do.

        Raises:
            NeedsDetection: single people were requested, only hosted tiers are left, and there is no detection.
            InputError, ProcessingTimeout, NobodyServed: see :func:`cutaway.fallback.chain.run_chain`.
        """
        picture: Picture | None = None
        people: list[Person] | None = None
        report: dict[str, Any] = {}

        async def matte(provider: Provider, turn: Deadline) -> Outputs:
            nonlocal picture, people, report
            if picture is None:
                decoded = await in_thread(deadline, DECODING, prepare, data, media_type)
                people = given_people(options, decoded.rgb.size)
                picture = decoded
            if people is None and (options.subject == "each" or options.select is not None):
                people = await _detected(detect, turn.capped(provider.timeout_s), options)
            made = await provider.matte(picture.data, picture.media_type, turn), options, people, deadline
            outputs, report = await in_thread(deadline, COMPOSING, outputs_of, picture, *made)
            return outputs

        attempts = [] if primary is None else [Attempt("triton", 1, limits.TIER_TIMEOUTS_S["triton"], primary)]
        attempts += self._attempts(MATTE, matte, lambda it: "" if it.mattes else "It was set up for upscaling only.")
        served = await run_chain(attempts, deadline)
        if not report:
            return served
        told = {"provider": served.provider, "tier": served.tier, "tried": [entry.to_dict() for entry in served.tried]}
        written = json.dumps(report | {"fallback": told}, ensure_ascii=False).encode()
        return replace(served, value={**served.value, "report": [written]})

    async def upscale(
        self, data: bytes, media_type: str | None = None, *, scale: int, deadline: Deadline
    ) -> Served[Upscaled]:
        """Enlarge an encoded picture of at most 1440p by 2 or 4 along each side, by the first provider that serves.

        Raises:
            InvalidOption, ResolutionTooLarge; others as :meth:`infer`.
        """
        if scale not in limits.UPSCALE_SCALES:
            raise invalid_option("scale", scale, ", ".join(map(str, limits.UPSCALE_SCALES)))
        picture = await in_thread(deadline, DECODING, prepare, data, media_type, limits.UPSCALE_LIMITS)

        async def upscale(provider: Provider, turn: Deadline) -> Upscaled:
            return await provider.upscale(picture.data, picture.media_type, scale, turn)

        cannot = f"It does not upscale by {scale}."
        return await run_chain(
            self._attempts(scale, upscale, lambda it: "" if scale in it.scales else cannot), deadline
        )

    def _attempts(
        self, scale: int, call: Callable[..., Awaitable[Any]], passed_over: Callable[[Provider], str]
    ) -> list[Attempt]:
        return [
            Attempt(it.name, it.tier, it.timeout_s, partial(call, it), breaker, passed_over(it), patient=True)
            for it, breaker in zip(self.providers, self._breakers[scale], strict=True)
        ]


async def _detected(detect: Ask | None, turn: Deadline, options: CutOptions) -> list[Person]:
    action = "Give boxes, or ask for subject people or all; or try again when the server is back."
    needed = NeedsDetection("Hosted models do not tell people apart, and no server does.", user_action=action)
    if detect is None:
        raise needed
    try:
        outputs = await detect(turn.capped(turn.left_s * DETECT_SHARE))
        return detected_people(outputs, json.loads(outputs["report"][0]), options)
    except (InputError, RequestCancelled):
        raise
    except CutawayError as error:
        raise needed from error
