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
    report = overhead.measure(server, samples[:1], rounds=1, warm_up=0)
    assert [(row["work"], row["way"]) for row in report["rows"]] == [
        (work, way) for work in ("no networks", f"cut {samples[0].name}") for way in overhead.BOUNDS_MS
    ]
    for row in report["rows"]:
        assert len(row["ms"]["bare"]) == len(row["ms"]["sdk"]) == (5 if row["work"] == "no networks" else 1)
    assert {"cpu", "cores", "load_before"} <= set(report["machine"])
    assert {"triton", "tritonclient", "cutaway", "python"} <= set(report["versions"])
    page = overhead.markdown(json.loads(json.dumps(report)))
    assert page.count(f"| cut {samples[0].name} |") == 4
    assert page.count("| 1: ") == 3 and page.count("| 2: ") == 1


@pytest.mark.parametrize(
    ("way", "added_ms", "verdict"),
    [
        ("HTTP", [1.9] * 40, "met"),
        ("HTTP", [2.1] * 40, "missed"),
        ("HTTP, asyncio", [1.1] * 40, "missed"),
        ("gRPC", [0.9] * 40, "met"),
        ("gRPC, asyncio", [1.1] * 40, "missed"),
        ("gRPC", [-40.0, 60.0] * 20, "unclear"),
        ("gRPC", [0.9] * 39 + [500.0], "met"),
    ],
)
def test_verdict(way: str, added_ms: list[float], verdict: str) -> None:
    times = Times([10.0] * len(added_ms), [10.0 + added for added in added_ms])
    assert overhead.figures(way, times)["verdict"] == verdict


def test_ways_take_turns() -> None:
    """Neither the bare call nor the SDK's always finds what the other left behind."""
    order: list[str] = []

    def one(who: str) -> overhead.Call:
        return lambda work: (order.append(who), (0.001, []))[1]

    work, way, kept = overhead.Work("x", b"", False, "all"), overhead.Way("x", one("bare"), one("sdk")), Times()
    for number in range(4):
        overhead.once(work, way, kept, bare_first=number % 2 == 0)
    assert order == ["bare", "sdk", "sdk", "bare"] * 2
    assert len(kept.bare) == len(kept.sdk) == 4
