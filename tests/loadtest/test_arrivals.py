"""Poisson arrivals: the right rate, the right gaps, and growth where it is asked for."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest

from loadtest.arrivals import poisson
from loadtest.pictures import portrait
from loadtest.scenarios import MIXES, Ask, Sizes, endless


def until(end_s: float, **arguments: float) -> list[float]:
    arrivals = poisson(arguments.pop("rate_per_s"), int(arguments.pop("seed", 1)), **arguments)
    return list(itertools.takewhile(lambda at_s: at_s < end_s, arrivals))


@pytest.mark.parametrize("rate_per_s", [0.5, 7.0, 200.0])
def test_rate_and_gaps(rate_per_s: float) -> None:
    seconds = 4000 / rate_per_s
    times = until(seconds, rate_per_s=rate_per_s)
    assert abs(len(times) - 4000) < 4 * math.sqrt(4000)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    # Exponential gaps: the spread is the mean, and 1 - 1/e of them are shorter than it.
    mean = statistics.fmean(gaps)
    assert statistics.stdev(gaps) == pytest.approx(mean, rel=0.1)
    assert sum(gap < mean for gap in gaps) / len(gaps) == pytest.approx(1 - 1 / math.e, abs=0.03)


def test_a_growing_rate() -> None:
    """Half the arrivals of a steady rate, a quarter of them in the first half, and steady from then on."""
    times = until(200.0, rate_per_s=80.0, grow_s=100.0)
    growing = [at_s for at_s in times if at_s < 100]
    assert abs(len(growing) - 4000) < 4 * math.sqrt(4000)
    assert sum(at_s < 50 for at_s in growing) / len(growing) == pytest.approx(0.25, abs=0.03)
    assert abs(len(times) - len(growing) - 8000) < 4 * math.sqrt(8000)


def test_the_seed_decides() -> None:
    assert until(10.0, rate_per_s=5.0) == until(10.0, rate_per_s=5.0)
    assert until(10.0, rate_per_s=5.0) != until(10.0, rate_per_s=5.0, seed=2)


def test_streams_add_up() -> None:
    """Several processes share a rate: what they send together is Poisson again."""
    times = sorted(at_s for seed in range(4) for at_s in until(1000.0, rate_per_s=1.0, seed=seed))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert abs(len(times) - 4000) < 4 * math.sqrt(4000)
    assert statistics.stdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.1)


def test_no_rate_is_no_rate() -> None:
    with pytest.raises(ValueError, match="above 0"):
        next(poisson(0.0, 1))


def test_requests_come_as_often_as_their_weights_say() -> None:
    often, seldom = Ask("often", b"1"), Ask("seldom", b"2")
    asked = list(itertools.islice(endless([(3, often), (1, seldom)], seed=5), 40))
    assert [sum(ask is seldom for ask in asked[start : start + 4]) for start in range(0, 40, 4)] == [1] * 10


def test_sizes_of_pictures_are_those_asked_for() -> None:
    asked = [ask for _, ask in MIXES["single"](Sizes((0.3, 0.6)))]
    assert {ask.kind for ask in asked} == {"one person, 0.3 MP", "one person, 0.6 MP"}
    assert portrait(0.3) in {ask.data for ask in asked}
