"""When requests of an open loop arrive: by chance, as those of people who know nothing of each other (Poisson)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator


def poisson(rate_per_s: float, seed: int, *, grow_s: float = 0.0) -> Iterator[float]:
    """Times of arrival in seconds from the start, for ever.

    Args:
        rate_per_s: arrivals per second on average.
        seed: the same times come for the same seed.
        grow_s: the rate grows evenly from 0 to `rate_per_s` over so many seconds and stays there.
    """
    if not rate_per_s > 0:
        raise ValueError("the rate must be above 0")
    chance = random.Random(seed)
    expected = 0.0
    while True:
        # The expected number of arrivals up to the next one grows in steps drawn from the exponential distribution;
        # the time at which it is reached is the arrival.
        expected += chance.expovariate(1.0)
        while_growing = rate_per_s * grow_s / 2
        if expected < while_growing:
            yield math.sqrt(2 * expected * grow_s / rate_per_s)
        else:
            yield grow_s + (expected - while_growing) / rate_per_s
