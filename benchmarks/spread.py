"""How sure a figure is that was measured in rounds: bootstrap intervals over whole rounds.

Requests of one round saw the same minute of the machine and are not independent of each other, so rounds are drawn and
not requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
SURE = 0.95
Statistic = Callable[[Sequence[float]], float]
Rounds = Sequence[Sequence[float]]
"""The values of each round, at least one round with a value."""


class Figure(NamedTuple):
    """A value and the interval that holds it in 95 of 100 such runs."""

    value: float
    low: float
    high: float


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def percentile_99(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99))


def figure(rounds: Rounds, statistic: Statistic = median) -> Figure:
    """A statistic of all values together."""
    return _interval(rounds, lambda drawn: statistic(_pooled(rounds, drawn)))


def ratio(above: Rounds, below: Rounds, statistic: Statistic = median) -> Figure:
    """A statistic of some values against that of others, measured in the same rounds."""
    return _interval(above, lambda drawn: statistic(_pooled(above, drawn)) / statistic(_pooled(below, drawn)))


def _pooled(rounds: Rounds, drawn: Sequence[int]) -> list[float]:
    return [value for index in drawn for value in rounds[index]]


def _interval(rounds: Rounds, of: Callable[[Sequence[int]], float]) -> Figure:
    draws = [of(drawn.tolist()) for drawn in np.random.default_rng(0).integers(0, len(rounds), (DRAWS, len(rounds)))]
    low, high = np.quantile(draws, [(1 - SURE) / 2, (1 + SURE) / 2])
    return Figure(of(range(len(rounds))), float(low), float(high))
