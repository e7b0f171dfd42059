"""Thresholds decide the verdict, the missing figure included."""

from __future__ import annotations

import argparse

import pytest

from loadtest import figures, thresholds
from tests.loadtest.logs import record, sample, seen


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    thresholds.add_options(parser)
    return parser.parse_args(words)


def run_of(peak: int, served: int, *, failures: int = 0) -> dict:
    """Two phases of ten seconds with so many pictures each, all of 100 ms; refusals of 10 ms in the second."""
    first = figures.figures(seen([record(number * 9 / peak, 100) for number in range(peak)]))
    log = [record(number * 9 / served, 100) for number in range(served)] + [record(1, 10, "OVERLOADED")]
    log += [record(2, 50, "INFERENCE_ERROR", expected=False)] * failures
    second = figures.figures(seen(log, [sample(0, 1), sample(10, 20, rss_mb=530)]))
    return {"phases": [first, second], "result": second}


@pytest.mark.parametrize(
    ("option", "kept", "missed"),
    [
        ("--max-p50-ms", 101, 99),
        ("--max-p95-ms", 101, 99),
        ("--max-p99-ms", 101, 99),
        ("--max-refusal-p99-ms", 11, 9),
        ("--min-throughput", 7.9, 8.1),
        ("--max-error-rate", 0.02, 0.01),
        ("--min-peak-share", 0.79, 0.81),
        ("--max-rss-growth-mb", 31, 29),
    ],
)
def test_limits(option: str, kept: float, missed: float) -> None:
    run = run_of(100, 80, failures=1)  # 1 of 82 is wrong
    for limit, wanted in ((kept, True), (missed, False)):
        (verdict,) = thresholds.judge(run, options(option, str(limit)))
        assert verdict.kept is wanted, verdict.text
        assert ("MISSED" in verdict.text) is not wanted


def test_only_what_was_asked_for_is_judged_and_one_is_enough_to_miss() -> None:
    run = run_of(100, 80)
    assert thresholds.judge(run, options()) == []
    verdicts = thresholds.judge(run, options("--max-p50-ms", "500", "--min-throughput", "50"))
    assert [verdict.kept for verdict in verdicts] == [True, False]
    assert not thresholds.all_kept(verdicts)


def test_a_missing_figure_is_missed() -> None:
    run = run_of(100, 80)
    run["result"]["server"] = None
    (verdict,) = thresholds.judge(run, options("--max-rss-growth-mb", "1000"))
    assert not verdict.kept
    assert "no such figure" in verdict.text
