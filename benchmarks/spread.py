"""How sure a figure is that was measured in rounds: bootstrap intervals over whole rounds.

Requests of one round saw the same minute of the machine and are not independent of each other, so rounds are drawn and
not requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

DRAWS = 2000
SURE = 0.95
Statistic = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Figure:
    """A value and the interval that holds it in 95 of 100 such runs."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def percentile_99(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99))


def figure(rounds: Sequence[Sequence[float]], statistic: Statistic = median) -> Figure:
    """A statistic of all values together.

    Args:
        rounds: the values of each round, at least one round with a value.
        statistic: of the values of several rounds.
    """
    return _interval(len(rounds), lambda drawn: statistic(_pooled(rounds, drawn)))


def ratio(above: Sequence[Sequence[float]], below: Sequence[Sequence[float]], statistic: Statistic = median) -> Figure:
    """A statistic of some values against that of others, measured in the same rounds."""
    return _interval(len(above), lambda drawn: statistic(_pooled(above, drawn)) / statistic(_pooled(below, drawn)))


def _pooled(rounds: Sequence[Sequence[float]], drawn: Sequence[int]) -> list[float]:
    return [value for index in drawn for value in rounds[index]]


def _interval(rounds: int, of: Callable[[Sequence[int]], float]) -> Figure:
    rng = np.random.default_rng(0)
    draws = [of(drawn.tolist()) for drawn in rng.integers(0, rounds, (DRAWS, rounds))]
    low, high = np.quantile(draws, [(1 - SURE) / 2, (1 + SURE) / 2])
    return Figure(of(range(rounds)), float(low), float(high))
