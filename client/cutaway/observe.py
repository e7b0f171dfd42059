"""Observers of calls, and the logger "cutaway": a DEBUG line per call and a WARNING where a hosted tier served. Neither
gets a token, a picture's content or the name of a caller's file. An observer fails no call."""

from __future__ import annotations

import logging
import time
import traceback
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from cutaway.contract.errors import CutawayError
from cutaway.contract.options import CutOptions
from cutaway.result import Origin

logger = logging.getLogger("cutaway")


@dataclass(frozen=True)
class ServedFacts(Origin):
    """The origin of an answer, the size of its cut-outs, and the report's figures and codes of warnings."""

    n_bytes: int = 0
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    people: int = 0
    warnings: tuple[str, ...] = ()


class Unobserved:
    """The events of one call, for observations that handle only some of them; these do nothing."""

    def headers(self) -> Mapping[str, str]:
        """Headers for the requests to own servers, such as a traceparent; names in lower case."""
        return {}

    def sent(self, n_bytes: int, options: CutOptions) -> None:
        """The picture (encoded bytes) and the options passed the checks."""

    def served(self, facts: ServedFacts) -> None:
        """Somebody served; not called where the call fails."""


class Observer(Protocol):
    """Makes an observation of each call; shared between threads and tasks."""

    def call(self, operation: str, request_id: str) -> AbstractContextManager[Unobserved]:
        """The call, "cut" (composites too), "detect" or "upscale"; its error passes through the context manager."""
        ...


@contextmanager
def observed(observers: Sequence[Observer], operation: str, request_id: str) -> Iterator[Unobserved]:
    """The log and all observers as one, entered in the caller's context; raises nothing of its own."""
    log = {"operation": operation, "request_id": request_id, "provider": "", "sent_bytes": 0, "received_bytes": 0}
    call, started, error = _Call(log, []), time.monotonic(), None
    for observer in observers:
        with _log_failure(observer):
            manager = observer.call(operation, request_id)
            call.observations.append((observer, manager, manager.__enter__()))
    try:
        yield call
    except BaseException as raised:
        error = raised
        raise
    finally:
        for observer, manager, _ in reversed(call.observations):
            with _log_failure(observer, besides=error):
                manager.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)
        log |= {"code": code_of(error), "elapsed_ms": round((time.monotonic() - started) * 1000, 1)}
        words = "%(operation)s %(request_id)s: %(code)s" + " from %(provider)s" * bool(log["provider"])
        words += " in %(elapsed_ms).1f ms, %(sent_bytes)d bytes sent, %(received_bytes)d received"
        logger.debug(words, log, extra=log)


@dataclass
class _Call(Unobserved):
    log: dict[str, Any]
    observations: list[tuple[Observer, AbstractContextManager[Unobserved], Unobserved]]

    def headers(self) -> Mapping[str, str]:
        merged: dict[str, str] = {}
        self._each(lambda one: merged.update({str(name).lower(): str(value) for name, value in one.headers().items()}))
        return merged

    def sent(self, n_bytes: int, options: CutOptions) -> None:
        self.log["sent_bytes"] = n_bytes
        self._each(lambda one: one.sent(n_bytes, options))

    def served(self, facts: ServedFacts) -> None:
        self.log |= {"provider": "cache" if facts.from_cache else facts.provider, "received_bytes": facts.n_bytes}
        if facts.tier > 1:
            why = ", ".join(f"{entry.provider}: {entry.code}" for entry in facts.tried) or "no tier before it was tried"
            words = "%(operation)s %(request_id)s was served by %(provider)s (tier %(tier)d); %(why)s"
            logger.warning(words, self.log | {"tier": facts.tier, "why": why})
        self._each(lambda one: one.served(facts))

    def _each(self, event: Callable[[Unobserved], None]) -> None:
        for observer, _, observation in self.observations:
            with _log_failure(observer):
                event(observation)


@contextmanager
def _log_failure(observer: Observer, *, besides: BaseException | None = None) -> Iterator[None]:
    """Log an observer's exception instead of raising it; `besides` is the call's own error."""
    try:
        yield
    except Exception as error:
        if error is not besides:
            # Without the messages of errors, which may name a caller's file.
            where = "".join(traceback.format_tb(error.__traceback__))
            words = "the observer %s failed with %s\n%s"
            logger.warning(words, type(observer).__name__, type(error).__name__, where)


def code_of(error: BaseException | None) -> str:
    """ "OK", the code in :data:`cutaway.contract.limits.ERROR_CODES`, or the exception's type: no message, no file."""
    if isinstance(error, CutawayError):
        return error.code
    return {type(None): "OK", CancelledError: "CANCELLED"}.get(type(error), type(error).__name__)
