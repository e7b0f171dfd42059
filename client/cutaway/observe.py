"""What is told about calls, and to whom.

Always: the logger "cutaway" gets one DEBUG line per call, and a WARNING where a hosted tier had to serve. On request:
observers (:mod:`cutaway.observers` has OpenTelemetry and Prometheus), which are told of each call while it runs.

Neither gets to see a token, a picture's content or the name of a caller's file. What an observer does wrong is logged
once and never fails a call.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from cutaway.contract.errors import CutawayError

if TYPE_CHECKING:
    from cutaway.chain import Tried
    from cutaway.contract.options import CutOptions

logger = logging.getLogger("cutaway")


@dataclass(frozen=True)
class ServedFacts:
    """Who served a call, and what that took.

    Attributes:
        provider: "triton", "huggingface", "replicate" or "space".
        tier: 1 for servers of one's own, 2 to 4 for hosted models.
        url: which of one's own servers answered; "" for hosted models and the cache.
        requests: how many were sent, repeats included.
        from_cache: whether the answer lay in the cache; then nothing was sent.
        tried: why those before did not serve.
        n_bytes: bytes of the cut-outs.
        stage_ms: milliseconds of each stage inside the server, as its report says.
        people: how many the report knows of.
        warnings: codes of the report's warnings.
    """

    provider: str
    tier: int
    url: str = ""
    requests: int = 1
    from_cache: bool = False
    tried: tuple[Tried, ...] = ()
    n_bytes: int = 0
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    people: int = 0
    warnings: tuple[str, ...] = ()


class Observation(Protocol):
    """One call, as an observer follows it."""

    def headers(self) -> Mapping[str, str]:
        """What to send along with requests to one's own servers, such as a traceparent; names in lower case."""
        ...

    def sent(self, n_bytes: int, options: CutOptions) -> None:
        """The picture was read and found in order: so many encoded bytes, with these options."""
        ...

    def served(self, facts: ServedFacts) -> None:
        """Somebody served. Not called where the call fails."""
        ...


class Observer(Protocol):
    """Is told of every call; shared between threads and tasks.

    A class with one method suffices. The context manager is entered where the call begins and left where it ends; an
    error that leaves the call passes through its ``__exit__``, which cannot swallow it. :class:`Unobserved` has the
    methods of an observation, doing nothing, to inherit from.
    """

    def call(self, operation: str, request_id: str) -> AbstractContextManager[Observation]:
        """A call begins.

        Args:
            operation: "cut" (composites too), "detect" or "upscale".
            request_id: the id that the server logs as well.
        """
        ...


class Unobserved:
    """An observation that takes no notice; a base for those that care about less than all."""

    def headers(self) -> Mapping[str, str]:
        return {}

    def sent(self, n_bytes: int, options: CutOptions) -> None:
        """Takes no notice."""

    def served(self, facts: ServedFacts) -> None:
        """Takes no notice."""


def observed(observers: Sequence[Observer], operation: str, request_id: str) -> AbstractContextManager[Observation]:
    """All observers and the log as one; a ``with`` serves synchronous and asynchronous calls alike.

    Leaving it never raises anything of its own. Observers are entered and left in the context of the caller, so what
    they put into context variables is there for everything that the call does.
    """
    return _Observed(observers, operation, request_id)


def code_of(error: BaseException | None) -> str:
    """What to call an outcome: "OK", one of :data:`cutaway.contract.limits.ERROR_CODES`, or the exception's type.

    Never its message, which may name a file.
    """
    if error is None:
        return "OK"
    if isinstance(error, CutawayError):
        return error.code
    if isinstance(error, asyncio.CancelledError):
        return "CANCELLED"
    return type(error).__name__


def requests_of(error: BaseException | None) -> int:
    """How many requests a failed call sent to servers of one's own, as far as the error says."""
    said = error.details.get("requests") if isinstance(error, CutawayError) else None
    return said if isinstance(said, int) else 0


class _Observed:
    def __init__(self, observers: Sequence[Observer], operation: str, request_id: str) -> None:
        self._observers = tuple(observers)
        self._operation = operation
        self._request_id = request_id
        self._entered: list[tuple[Observer, AbstractContextManager[Observation], Observation]] = []
        self._log = _Log(operation, request_id)

    def __enter__(self) -> Observation:
        for observer in self._observers:
            with _harmless(observer):
                manager = observer.call(self._operation, self._request_id)
                self._entered.append((observer, manager, manager.__enter__()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for observer, manager, _ in reversed(self._entered):
            with _harmless(observer, passing=error):
                manager.__exit__(kind, error, trace)
        self._entered.clear()
        self._log.ended(error)

    def headers(self) -> Mapping[str, str]:
        merged: dict[str, str] = {}
        for observer, _, observation in self._entered:
            with _harmless(observer):
                merged.update({str(name).lower(): str(value) for name, value in observation.headers().items()})
        return merged

    def sent(self, n_bytes: int, options: CutOptions) -> None:
        self._log.sent(n_bytes)
        self._tell(lambda observation: observation.sent(n_bytes, options))

    def served(self, facts: ServedFacts) -> None:
        self._log.served(facts)
        self._tell(lambda observation: observation.served(facts))

    def _tell(self, what: Callable[[Observation], None]) -> None:
        for observer, _, observation in self._entered:
            with _harmless(observer):
                what(observation)


class _Log:
    """The lines that are always written."""

    def __init__(self, operation: str, request_id: str) -> None:
        self._operation = operation
        self._request_id = request_id
        self._started = time.monotonic()
        self._sent = 0
        self._facts: ServedFacts | None = None

    def sent(self, n_bytes: int) -> None:
        self._sent = n_bytes

    def served(self, facts: ServedFacts) -> None:
        self._facts = facts
        if facts.tier > 1:
            why = (
                ", ".join(f"{entry.provider}: {entry.code}" for entry in facts.tried) or "nobody else was there to ask"
            )
            logger.warning(
                "%s %s was served by %s (tier %d); %s",
                self._operation,
                self._request_id,
                facts.provider,
                facts.tier,
                why,
            )

    def ended(self, error: BaseException | None) -> None:
        if not logger.isEnabledFor(logging.DEBUG):
            return
        elapsed_ms = (time.monotonic() - self._started) * 1000
        facts = self._facts
        provider = "" if facts is None else "cache" if facts.from_cache else facts.provider
        received = 0 if facts is None else facts.n_bytes
        what = f"{self._operation} {self._request_id}: {code_of(error)}" + (f" from {provider}" if provider else "")
        logger.debug(
            "%s in %.1f ms, %d bytes sent, %d received",
            what,
            elapsed_ms,
            self._sent,
            received,
            extra={
                "operation": self._operation,
                "request_id": self._request_id,
                "code": code_of(error),
                "provider": provider,
                "elapsed_ms": round(elapsed_ms, 1),
                "sent_bytes": self._sent,
                "received_bytes": received,
            },
        )


_complained: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""Observers whose failure stands in the log already; weak, so that nothing is kept for it."""


@contextmanager
def _harmless(observer: Observer, *, passing: BaseException | None = None) -> Iterator[None]:
    """Log what an observer does wrong, once, and go on.

    Args:
        passing: the error that it was told of, which it may raise again.
    """
    try:
        yield
    except Exception as error:
        if error is passing:
            return
        try:
            known = _complained.get(observer, False)
            _complained[observer] = True
        except TypeError:  # not hashable, or nothing to refer to weakly
            known = False
        if not known:
            # Without the errors before this one, which may name a caller's file.
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.warning(
                "the observer %s failed with %s: calls go on, and this is not said again\n%s",
                type(observer).__name__,
                type(error).__name__,
                where,
            )
