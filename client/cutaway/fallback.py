"""The chain: your own server first, then the hosted providers that you named, until one serves or time is up.

    fallback = Fallback([HuggingFace("briaai/RMBG-1.4", accept_noncommercial=True), Replicate(), Space()])
    served = fallback.infer(picture, options=options, deadline=Deadline(60), primary=ask_triton, detect=ask_who)
    served.value       # {"images", "boxes", "scores", "report"}, whoever made it
    served.provider    # "triton", "huggingface", "replicate" or "space"
    served.tried       # why those before did not serve

What is wrong with the picture or the options ends the chain at once: it would fail everywhere and cost money.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from cutaway.breaker import CircuitBreaker, Clock, Experience, steered
from cutaway.cancel import Cancel
from cutaway.chain import Attempt, NeedsDetection, NobodyServed, Served, Tried, run_chain, run_chain_async
from cutaway.contract import limits
from cutaway.contract.errors import CutawayError, InputError, InvalidOption, RequestCancelled
from cutaway.contract.options import CutOptions
from cutaway.providers.answers import Matte, Upscaled
from cutaway.providers.apart import Check, apart, apart_async
from cutaway.providers.base import Provider
from cutaway.providers.closing import ended_by, ended_by_async
from cutaway.providers.compose import outputs_of
from cutaway.providers.people import Person, given_people, people_of
from cutaway.providers.sending import Sendable, sendable
from cutaway.resilience import Deadline

__all__ = ["Fallback", "NeedsDetection", "NobodyServed", "Outputs", "Served", "Tried"]

Outputs: TypeAlias = "Mapping[str, Any]"

DETECT_SHARE = 1 / 3
"""Of a hosted tier's time so much may go into asking the server who is where."""

DECODING, COMPOSING = "decoding the picture", "putting the cut-out together"


class Fallback:
    """Hosted providers behind your own server, with what is remembered about each; safe to share between threads.

    Args:
        providers: in the order in which to ask.
        steer: let experience change that order: one that fails more often than not goes last, and one that is twice
            as fast overtakes. Your own server stays first in any case. False keeps the order as composed.
        fail_max: failures in a row after which a provider rests.
        reset_s: seconds that it rests.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        *,
        steer: bool = True,
        fail_max: int = limits.BREAKER_FAIL_MAX,
        reset_s: float = limits.BREAKER_RESET_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self.providers = tuple(providers)
        self._steer = steer
        # What a provider does well and badly is a matter of the model, and each of these is another one.
        self._books = {
            operation: _Books(len(self.providers), fail_max, reset_s, clock)
            for operation in ("matte", *map(_upscaling, limits.UPSCALE_SCALES))
        }

    def close(self) -> None:
        """Close idle connections of all providers; calls that others have running are not disturbed."""
        for provider in self.providers:
            provider.close()

    @property
    def breakers(self) -> tuple[CircuitBreaker, ...]:
        """Those of the providers' mattes; upscaling has its own."""
        return self._books["matte"].breakers

    @property
    def order(self) -> list[Provider]:
        """The providers as they would be asked for a matte now."""
        return [self.providers[index] for index in self._order("matte")]

    def infer(
        self,
        data: bytes,
        media_type: str | None = None,
        *,
        options: CutOptions,
        deadline: Deadline,
        primary: Callable[[Deadline], Outputs] | None = None,
        detect: Callable[[Deadline], Outputs] | None = None,
        cancel: Cancel | None = None,
        closing: Cancel | None = None,
    ) -> Served[Outputs]:
        """Cut a picture out by whoever serves first.

        Args:
            data: the encoded picture, which has passed the input checks.
            media_type: what it is declared to be, if anything.
            options: checked options.
            deadline: for everything together.
            primary: asks your own server for "images", "boxes", "scores" and "report" within the given deadline.
            detect: asks it for "boxes", "scores" and "report" only. Needed where single people are wanted
                (`subject` "each", or `select`) and no boxes are given.
            cancel: ends waiting for a hosted model; `primary` and `detect` look after it themselves.
            closing: the same, for a client that is closed: the error says so.

        Returns:
            The outputs of the wire contract. A hosted report says under "fallback" who was tried before, and warns of
            what a hosted matte does not do.

        Raises:
            InputError: the picture or the options are at fault.
            NeedsDetection: single people are wanted, only hosted tiers are left, and nobody says where the people are.
            RequestCancelled: by `cancel` or `closing`.
            ProcessingTimeout, NobodyServed: see :func:`run_chain`.
        """
        job = _Job(data, media_type, options)

        with ended_by(cancel, closing) as stop:

            def hosted(provider: Provider) -> Callable[[Deadline], Outputs]:
                def call(turn: Deadline) -> Outputs:
                    picture = apart(job.picture, deadline, DECODING, stop)
                    if job.needs_detection:
                        job.take_people(_detected(detect, turn.capped(provider.timeout_s)))
                    matte = provider.matte(picture.data, picture.media_type, turn, stop)
                    return apart(job.composing(matte), deadline, COMPOSING, stop)

                return call

            return job.finished(run_chain(self._attempts("matte", primary, hosted, _cannot_matte), deadline))

    async def infer_async(
        self,
        data: bytes,
        media_type: str | None = None,
        *,
        options: CutOptions,
        deadline: Deadline,
        primary: Callable[[Deadline], Awaitable[Outputs]] | None = None,
        detect: Callable[[Deadline], Awaitable[Outputs]] | None = None,
        closing: Cancel | None = None,
    ) -> Served[Outputs]:
        """The same as :meth:`infer` with asyncio; what is computed here runs in a thread of the loop's executor."""
        job = _Job(data, media_type, options)

        def hosted(provider: Provider) -> Callable[[Deadline], Awaitable[Outputs]]:
            async def call(turn: Deadline) -> Outputs:
                picture = await apart_async(job.picture, deadline, DECODING)
                if job.needs_detection:
                    job.take_people(await _detected_async(detect, turn.capped(provider.timeout_s)))
                matte = await provider.matte_async(picture.data, picture.media_type, turn)
                return await apart_async(job.composing(matte), deadline, COMPOSING)

            return call

        chain = run_chain_async(self._attempts("matte", primary, hosted, _cannot_matte), deadline)
        return job.finished(await ended_by_async(closing, chain))

    def upscale(
        self,
        data: bytes,
        media_type: str | None = None,
        *,
        scale: int,
        deadline: Deadline,
        cancel: Cancel | None = None,
        closing: Cancel | None = None,
    ) -> Served[Upscaled]:
        """Enlarge a picture by 2 or 4 along each side, by whichever provider serves first.

        Args:
            data: an encoded picture of at most 1440p in either orientation.
            cancel: gives it up from another thread.
            closing: the same, for a client that is closed: the error says so.

        Raises:
            InvalidOption: another scale.
            InputError: the picture is refused, ResolutionTooLarge above 1440p.
            RequestCancelled: by `cancel` or `closing`.
            ProcessingTimeout, NobodyServed: see :func:`run_chain`.
        """
        _check_scale(scale)
        with ended_by(cancel, closing) as stop:
            picture = apart(_upscalable(data, media_type), deadline, DECODING, stop)

            def hosted(provider: Provider) -> Callable[[Deadline], Upscaled]:
                return lambda turn: provider.upscale(picture.data, picture.media_type, scale, turn, stop)

            return run_chain(self._attempts(_upscaling(scale), None, hosted, _cannot_upscale(scale)), deadline)

    async def upscale_async(
        self,
        data: bytes,
        media_type: str | None = None,
        *,
        scale: int,
        deadline: Deadline,
        closing: Cancel | None = None,
    ) -> Served[Upscaled]:
        """The same as :meth:`upscale` with asyncio."""
        _check_scale(scale)

        async def work() -> Served[Upscaled]:
            picture = await apart_async(_upscalable(data, media_type), deadline, DECODING)

            def hosted(provider: Provider) -> Callable[[Deadline], Awaitable[Upscaled]]:
                return lambda turn: provider.upscale_async(picture.data, picture.media_type, scale, turn)

            attempts = self._attempts(_upscaling(scale), None, hosted, _cannot_upscale(scale))
            return await run_chain_async(attempts, deadline)

        return await ended_by_async(closing, work())

    def _order(self, operation: str) -> list[int]:
        return steered(self._books[operation].experiences) if self._steer else list(range(len(self.providers)))

    def _attempts(
        self,
        operation: str,
        primary: Callable[[Deadline], Any] | None,
        hosted: Callable[[Provider], Callable[[Deadline], Any]],
        cannot: Callable[[Provider], str],
    ) -> list[Attempt]:
        books = self._books[operation]
        own = [] if primary is None else [Attempt("triton", 1, limits.TIER_TIMEOUTS_S["triton"], primary)]
        return own + [
            Attempt(
                provider.name,
                provider.tier,
                provider.timeout_s,
                hosted(provider),
                books.breakers[index],
                books.experiences[index],
                cannot(provider),
                patient=True,
            )
            for index in self._order(operation)
            for provider in (self.providers[index],)
        ]


class _Books:
    """What is remembered of each provider about one operation."""

    def __init__(self, providers: int, fail_max: int, reset_s: float, clock: Clock) -> None:
        self.breakers = tuple(CircuitBreaker(fail_max=fail_max, reset_s=reset_s, clock=clock) for _ in range(providers))
        self.experiences = tuple(Experience(clock=clock) for _ in range(providers))


class _Job:
    """One picture on its way through the chain: decoded once, people looked for once."""

    def __init__(self, data: bytes, media_type: str | None, options: CutOptions) -> None:
        self._data = data
        self._media_type = media_type
        self._options = options
        self._picture: Sendable | None = None
        self._people: list[Person] | None = None
        self._report: dict[str, Any] | None = None

    @property
    def needs_detection(self) -> bool:
        single = self._options.subject == "each" or self._options.select is not None
        return single and self._options.boxes is None and self._people is None

    def picture(self, check: Check) -> Sendable:
        if self._picture is None:
            picture = sendable(self._data, self._media_type, check=check)
            if self._options.boxes is not None:
                self._people = given_people(self._options.boxes, self._options, picture.size_wh)
            self._picture = picture
        return self._picture

    def take_people(self, outputs: Outputs) -> None:
        report = json.loads(outputs["report"][0])
        self._people = people_of(outputs, report if isinstance(report, dict) else {}, self._options)

    def composing(self, matte: Matte) -> Callable[[Check], Outputs]:
        def compose(check: Check) -> Outputs:
            outputs, self._report = outputs_of(self.picture(check), matte, self._options, self._people, check)
            return outputs

        return compose

    def finished(self, served: Served[Any]) -> Served[Outputs]:
        """With the report of a hosted answer, which tells of the tiers before it."""
        if self._report is None:
            return served
        told = {"provider": served.provider, "tier": served.tier, "tried": [entry.to_dict() for entry in served.tried]}
        report = json.dumps(self._report | {"fallback": told}, ensure_ascii=False).encode()
        return Served({**served.value, "report": [report]}, served.provider, served.tier, served.tried)


def _detected(detect: Callable[[Deadline], Outputs] | None, turn: Deadline) -> Outputs:
    if detect is None:
        raise _needs_detection()
    try:
        return detect(turn.capped(turn.left_s * DETECT_SHARE))
    except (InputError, RequestCancelled):
        raise
    except CutawayError as error:
        raise _needs_detection() from error


async def _detected_async(detect: Callable[[Deadline], Awaitable[Outputs]] | None, turn: Deadline) -> Outputs:
    if detect is None:
        raise _needs_detection()
    try:
        return await detect(turn.capped(turn.left_s * DETECT_SHARE))
    except (InputError, RequestCancelled):
        raise
    except CutawayError as error:
        raise _needs_detection() from error


def _needs_detection() -> NeedsDetection:
    return NeedsDetection(
        "Hosted models do not tell people apart, and the server that does is not there.",
        user_action="Give boxes, or ask for subject people or all; or try again when the server is back.",
    )


def _upscaling(scale: int) -> str:
    return f"upscale {scale}"


def _upscalable(data: bytes, media_type: str | None) -> Callable[[Check], Sendable]:
    return lambda check: sendable(data, media_type, input_limits=limits.UPSCALE_LIMITS, check=check)


def _cannot_matte(provider: Provider) -> str:
    return "" if provider.mattes else "It was set up for upscaling only."


def _cannot_upscale(scale: int) -> Callable[[Provider], str]:
    return lambda provider: "" if scale in provider.scales else f"It does not upscale by {scale}."


def _check_scale(scale: int) -> None:
    if scale not in limits.UPSCALE_SCALES:
        allowed = ", ".join(map(str, limits.UPSCALE_SCALES))
        raise InvalidOption(
            f"Option 'scale' cannot be {scale!r}: allowed is {allowed}.",
            details={"name": "scale", "value": repr(scale), "allowed": allowed},
        )
