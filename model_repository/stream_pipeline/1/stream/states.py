"""The states of an instance's streams, bounded in number and time, and shared fairly among callers."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from cutaway.contract.errors import Overloaded
from cutaway.contract.options import StreamOptions
from numpy.typing import NDArray

from stream.backdrop import Backdrop
from stream.smooth import Smoother


@dataclass
class State:
    """One stream between two of its frames.

    Attributes:
        options: those of the first frame.
        backdrop: the background.
        smoother: the smoothed mask so far.
        known: (N, 4) float32, people's boxes in the last frame, in pixels of the network's input.
    """

    options: StreamOptions
    backdrop: Backdrop
    smoother: Smoother
    known: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))


def begin(options: StreamOptions, picture: bytes | None) -> State:
    """A stream before its first frame.

    Raises:
        InputError: it is no supported picture.
    """
    return State(options, Backdrop(options, picture), Smoother(options.smoothing))


class States:
    """States by stream, in order of their last use.

    Triton ends an idle stream without an event to the model, so that idle states are removed here, too. Where all
    places are taken, a new stream gets that of an idle one, or one of the caller's who has most, if that one then still
    has as many as the new one's caller. Nobody reaches another caller's stream by its id.

    Args:
        most: maximum number of streams.
        idle_s: a stream without a frame for so long is removed.
        clock: seconds.
        gives_way_s: a stream without a frame for so long gives its place to a new one; `idle_s` where None.
    """

    def __init__(
        self,
        most: int,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
        gives_way_s: float | None = None,
    ) -> None:
        self._most, self._idle_s, self._clock = most, idle_s, clock
        self._gives_way_s = idle_s if gives_way_s is None else gives_way_s
        self._states: OrderedDict[tuple[str, int], tuple[float, State]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def open(self, stream: int, begin: Callable[[], State], caller: str = "") -> State:
        """A new state for a stream, which replaces its old one.

        Args:
            stream: its id.
            begin: makes the state; only called where there is a place, since a background takes time to decode.
            caller: who sends it.

        Raises:
            Overloaded: there are as many streams as the maximum, and none gives way.
        """
        self.drop(stream, caller)
        self._forget_rested()
        loser = self._loser(caller) if len(self._states) >= self._most else None
        if len(self._states) >= self._most and loser is None:
            raise Overloaded(
                f"Too many streams are open: all {self._most} places are taken.",
                user_action=f"End streams that are not needed, or use another server. A place is free again when a "
                f"stream ends, or has sent nothing for {self._gives_way_s:g} s.",
                details={"max_streams": self._most},
            )
        state = begin()
        if loser is not None:
            del self._states[loser]
        self._states[caller, stream] = self._clock(), state
        return state

    def get(self, stream: int, caller: str = "") -> State | None:
        """The stream's state, which is used now; None where it never started or was removed."""
        self._forget_rested()
        found = self._states.get((caller, stream))
        if found is None:
            return None
        self._states[caller, stream] = self._clock(), found[1]
        self._states.move_to_end((caller, stream))
        return found[1]

    def drop(self, stream: int, caller: str = "") -> None:
        self._states.pop((caller, stream), None)

    def _loser(self, caller: str) -> tuple[str, int] | None:
        """The stream whose place a new one of this caller gets; None where there is none."""
        idlest, (used_at, _) = next(iter(self._states.items()))
        if self._clock() - used_at >= self._gives_way_s:
            return idlest
        places = Counter(owner for owner, _ in self._states)
        richest, most = places.most_common(1)[0]
        if places[caller] + 1 >= most:
            return None
        return next(stream for stream in self._states if stream[0] == richest)

    def _forget_rested(self) -> None:
        now = self._clock()
        while self._states and now - next(iter(self._states.values()))[0] > self._idle_s:
            self._states.popitem(last=False)
