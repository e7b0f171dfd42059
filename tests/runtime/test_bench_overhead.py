"""`make bench-overhead`: the same work both ways, in turn, and a verdict that follows from the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import overhead
from benchmarks.overhead import Times


@pytest.mark.triton
def test_report(server, samples: list[Path]) -> None:
    """Every way does every piece of work as often as the other, and the SDK's answer is tritonclient's."""
    said: list[str] = []
    report = overhead.measure(server, samples[:1], rounds=1, warm_up=0, say=said.append)
    assert [(row["work"], row["way"]) for row in report["rows"]] == [
        (work, way)
        for work in ("no networks", f"cut {samples[0].name}")
        for way in ("gRPC", "HTTP", "gRPC, asyncio", "HTTP, asyncio")
    ]
    for row in report["rows"]:
        assert len(row["ms"]["bare"]) == len(row["ms"]["sdk"]) == (5 if row["work"] == "no networks" else 1)
        assert min(*row["ms"]["bare"], *row["ms"]["sdk"]) > 0.1
    assert {"cpu", "cores", "load_before"} <= set(report["machine"])
    assert {"triton", "tritonclient", "cutaway", "python"} <= set(report["versions"])
    page = overhead.markdown(json.loads(json.dumps(report)))
    assert page.count(f"| cut {samples[0].name} |") == 4
    assert "At most 2 ms or 3% of the call are wanted: " in page


@pytest.mark.parametrize(
    ("bare_ms", "added_ms", "verdict"),
    [
        (10.0, [1.9] * 40, "met"),
        (10.0, [2.1] * 40, "missed"),
        (200.0, [5.9] * 40, "met"),
        (200.0, [6.1] * 40, "missed"),
        (200.0, [-40.0, 60.0] * 20, "unclear"),
        (10.0, [1.0] * 39 + [500.0], "met"),
    ],
)
def test_verdict(bare_ms: float, added_ms: list[float], verdict: str) -> None:
    times = Times([bare_ms] * len(added_ms), [bare_ms + added for added in added_ms])
    assert overhead._figures(times)["verdict"] == verdict


def test_ways_take_turns() -> None:
    """Neither the bare call nor the SDK's always finds what the other left behind."""
    order: list[str] = []

    def call(name: str) -> overhead.Way:
        def one(who: str):
            return lambda work: (order.append(who), (0.001, []))[1]

        return overhead.Way(name, one("bare"), one("sdk"))

    work, way, kept = overhead.Work("x", b"", False, {}), call("x"), Times()
    for number in range(4):
        overhead._once(work, way, kept, bare_first=number % 2 == 0)
    assert order == ["bare", "sdk", "sdk", "bare"] * 2
    assert len(kept.bare) == len(kept.sdk) == 4
