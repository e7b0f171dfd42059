"""The matting network's pace, and mattes within a deadline: short calls, each only where the rest can be in time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np
from cutaway.contract.limits import MODEL_MAX_BATCH
from numpy.typing import NDArray

from pipeline.matte import Matter

CALL_S = 1.0
"""Seconds that one call should take at most: a network does not stop in the middle of a batch, so that this is how long
it goes on for a caller who has left. A CPU takes as long for eight crops together as one by one."""

REMEMBERED = 8
"""Calls that the estimate is made of."""


class Pace:
    """A running estimate of the network's seconds per crop: the fastest of its last calls.

    The fastest one, because a call that had to wait for others says little about the next, and work that could be in
    time must not be refused.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)

    def took(self, crops: int, seconds: float) -> None:
        self._seconds.append(seconds / crops)

    def needs_s(self, crops: int) -> float:
        """Seconds that so many crops will take at least; 0 where nothing is known."""
        return crops * min(self._seconds, default=0.0)

    def doubt(self) -> None:
        """Forget the oldest call: a refusal brings no new figure, and must not be the last word."""
        if self._seconds:
            self._seconds.popleft()

    def crops_per_call(self, crops: int) -> int:
        """How many of so many crops the next call takes: a single one where there is much to do at an unknown pace."""
        one_s = self.needs_s(1)
        if one_s == 0:
            return 1 if crops > 2 * MODEL_MAX_BATCH else MODEL_MAX_BATCH
        return min(MODEL_MAX_BATCH, max(1, int(CALL_S / one_s)))


def in_time(matter: Matter, pace: Pace, crops: int, check: Callable[[float], None]) -> Matter:
    """The network, called by its pace.

    Args:
        matter: the matting network.
        pace: its estimate, updated here.
        crops: how many there are to do in all.
        check: called before each call with the seconds that what is left will take; raises where that is too long.
    """

    def matte(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        nonlocal crops
        alphas: list[NDArray[np.uint8]] = []
        start = 0
        while start < len(images):
            check(pace.needs_s(crops))
            part = images[start : start + pace.crops_per_call(crops)]
            begun = time.monotonic()
            alphas.append(matter(part))
            pace.took(len(part), time.monotonic() - begun)
            start += len(part)
            crops -= len(part)
        return alphas[0] if len(alphas) == 1 else np.concatenate(alphas)

    return matte
