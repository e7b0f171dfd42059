"""Thresholds decide the verdict, the missing figure included."""

from __future__ import annotations

import argparse

import pytest

from loadtest import figures, thresholds
from tests.loadtest.logs import row, sample, seen, sent


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    thresholds.add_options(parser)
    return parser.parse_args(words)


def run_of(peak: int, served: int, *, failures: int = 0) -> dict:
    """Two phases of ten seconds with so many pictures each, all of 100 ms; refusals of 10 ms in the second."""
    seconds = [0, 10]
    first = figures.figures(
        seen([sent(seconds), row([100] * peak, [1 + number * 9 // peak for number in range(peak)])])
    )
    rows = [sent(seconds), row([100] * served, [1 + number * 9 // served for number in range(served)])]
    rows += [row([10], [1], "one person → OVERLOADED")]
    rows += [row([50] * failures, [2] * failures, "one person → INFERENCE_ERROR", failures=failures)]
    second = figures.figures(seen(rows, [sample(0, 1), sample(10, 20, rss_mb=530)]))
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
        ("--max-rss-mb-per-minute", 181, 179),
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


def test_a_missing_figure_is_missed() -> None:
    run = run_of(100, 80)
    run["result"]["server"] = None
    (verdict,) = thresholds.judge(run, options("--max-rss-growth-mb", "1000"))
    assert not verdict.kept
    assert "no such figure" in verdict.text
