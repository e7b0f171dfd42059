"""A report's figures are right for a log whose figures are known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadtest import figures, page, plots, records
from loadtest.driving import Seen
from loadtest.stress import growth
from loadtest.watching import Processes, Sample, parse_metrics
from tests.loadtest.logs import BEGUN_S, record, sample, seen


def run_of(found: dict, **changes: object) -> dict:
    """As `running.run` puts it together."""
    return {
        "scenario": "single",
        "date": "2026-11-21T12:00:00+00:00",
        "target": "gRPC localhost:8001",
        "sent_from": "1 sending process",
        "machine": {"cpu": "a CPU", "cores": 2, "memory_gib": 8, "load_before": 0.1},
        "versions": {"python": "3.11"},
        "phases": [found],
        "result": found,
        **changes,
    }


def hundred() -> list[records.Record]:
    """100 pictures, ten a second, of 1 to 100 ms."""
    return [record(number / 10, number + 1) for number in range(100)]


def test_times_and_rates() -> None:
    found = figures.figures(seen(hundred()))
    latency = found["latency_ms"]
    assert {name: round(latency[name]) for name in ("p50", "p95", "p99", "max")} == {
        "p50": 50,
        "p95": 95,
        "p99": 99,
        "max": 100,
    }
    assert latency["mean"] == pytest.approx(50.5, abs=0.01)
    # The last one, to be sent after 9.9 s and answered in 100 ms, is just inside the ten seconds.
    assert found["throughput_per_s"] == pytest.approx(10.0)
    assert found["offered_per_s"] == pytest.approx(10.0)
    assert found["sent_mb_per_s"] == pytest.approx(2.0)
    assert found["failures"] == 0


def test_answers_after_the_end_count_for_times_and_not_for_rates() -> None:
    found = figures.figures(seen([record(0, 100), record(9, 100), record(9.5, 5000)]))
    assert found["throughput_per_s"] == pytest.approx(0.2)
    assert found["latency_ms"]["max"] == pytest.approx(5000, abs=0.01)


def test_waiting_before_it_was_sent_counts() -> None:
    """A request that was to be sent at 1 s, went out at 3 s and took 100 ms has taken 2.1 s."""
    found = figures.figures(seen([record(0, 100), record(1, 2100, late_ms=2000)], loop="open"))
    assert found["latency_ms"]["max"] == pytest.approx(2100, abs=0.01)
    assert found["late_ms"]["p99"] == pytest.approx(2000, abs=0.01)
    assert "Requests went out 2000 ms late" in page.markdown(run_of(found), [])


def test_errors_by_code() -> None:
    log = [
        record(0, 100),
        record(1, 5, "OVERLOADED"),
        record(2, 7, "OVERLOADED"),
        record(3, 20, "CORRUPT_IMAGE"),
        record(4, 30, "INFERENCE_ERROR", expected=False),
        record(5, 40, expected=False),
    ]
    found = figures.figures(seen(log))
    assert [(error["code"], error["expected"], error["count"]) for error in found["errors"]] == [
        ("CORRUPT_IMAGE", True, 1),
        ("INFERENCE_ERROR", False, 1),
        ("OVERLOADED", True, 2),
        ("served", False, 1),
    ]
    assert (found["served"], found["expected_refusals"], found["failures"]) == (2, 3, 2)
    assert found["failure_share"] == pytest.approx(2 / 6)
    text = page.markdown(run_of(found), [])
    assert "| INFERENCE_ERROR | NO | 1 | 30 |" in text
    assert "said what it should not" in text


def test_stages_and_what_is_outside_of_them() -> None:
    found = figures.figures(seen([record(0, 180), record(1, 200)]))["stages_ms"]
    assert found["matte"]["p50"] == 100.0
    assert found[figures.OUTSIDE]["mean"] == pytest.approx(40.0, abs=0.01)


def test_batches_queues_and_processes() -> None:
    log = [record(0, 100), record(9, 100)]
    found = figures.figures(seen(log, [sample(0, 10, cpu_s=5), sample(5, 30, rss_mb=700), sample(10, 60, cpu_s=20)]))
    matting = found["models"]["birefnet_trt"]
    assert (matting["requests"], matting["mean_batch"]) == (100, 2)
    assert (matting["queue_ms"], matting["compute_ms"]) == (pytest.approx(3), pytest.approx(90))
    assert found["server"]["cpu_percent"] == pytest.approx(150)
    assert found["server"]["rss_mb_most"] == 700


def test_memory_rise_leaves_the_start_out() -> None:
    """After a jump in the first quarter memory grows by 2 MB in 1,000 answers."""
    log = [record(number / 100, 0.0) for number in range(4000)]
    samples = [sample(s / 10, s, rss_mb=(300 if s < 50 else 500 + 2 * s / 100)) for s in range(401)]
    found = figures.memory_rise(seen(log, samples, seconds=40.0), 0.25)
    assert found is not None
    assert found.mb == pytest.approx(2.0, abs=0.05)
    assert found.error_mb < 0.1
    assert figures.memory_rise(seen(log, [], seconds=40.0), 0.25) is None


def test_memory_rise_tells_how_sure_it_is() -> None:
    """Floors that jump up and down by 10 MB say little about 3,000 answers."""
    log = [record(number / 100, 0.0) for number in range(4000)]
    samples = [sample(s / 10, s, rss_mb=500 + 10 * (s // 60 % 2)) for s in range(401)]
    found = figures.memory_rise(seen(log, samples, seconds=40.0), 0.25)
    assert found is not None
    assert found.error_mb > 1
    assert abs(found.mb) < 2 * found.error_mb


def test_levels_of_the_halves() -> None:
    """One thread more while the run is still young is no growth, one in its second half is; files grow all the time."""

    def looks(thread_from: int) -> Seen:
        samples = [
            Sample(BEGUN_S + s, {}, Processes(0.0, 500.0, 40 + (s >= thread_from), 90 + s, 64.0)) for s in range(41)
        ]
        return seen([record(number / 100, 0.0) for number in range(4000)], samples, seconds=40.0)

    found = figures.levels(looks(15), 0.25)
    assert found is not None
    assert (found[0]["threads"], found[1]["threads"]) == (41, 41)
    assert found[0]["fds"] < found[1]["fds"]
    assert found[0]["shm_mb"] == found[1]["shm_mb"] == 64.0
    late = figures.levels(looks(30), 0.25)
    assert late is not None
    assert (late[0]["threads"], late[1]["threads"]) == (40, 41)
    assert figures.levels(seen([record(0, 0)], []), 0.25) is None


def test_memory_rise_sees_a_leak_under_what_comes_and_goes() -> None:
    """One process leaks 2 MB in 1,000 answers; both take 300 MB now and then, and never at the same time."""
    log = [record(number / 100, 0.0) for number in range(4000)]
    samples = []
    for number in range(401):
        busy = number % 3
        parts = {
            "triton 1": 100 + 2 * number / 100 + (300 if busy == 0 else 0),
            "ensemble_pipeline 2": 200 + (300 if busy == 1 else 0),
        }
        processes = Processes(0.0, sum(parts.values()), 40, 90, 64.0, parts)
        samples.append(Sample(BEGUN_S + number / 10, {}, processes))
    whole, alone, other = (
        figures.memory_rise(seen(log, samples, seconds=40.0), 0.25, which)
        for which in (lambda _: True, lambda name: name.startswith("triton"), lambda name: name.startswith("ensemble"))
    )
    assert whole is not None and alone is not None and other is not None
    assert whole.mb == pytest.approx(2.0, abs=0.1)
    assert alone.mb == pytest.approx(2.0, abs=0.1)
    assert other.mb == pytest.approx(0.0, abs=0.01)


def test_metrics_of_triton() -> None:
    text = (
        "# HELP nv_inference_count Number of inferences performed\n"
        'nv_inference_count{model="yolov8_seg",version="1"} 12\n'
        'nv_inference_queue_duration_us{model="yolov8_seg",version="1"} 3.5e+03\n'
        'nv_inference_request_failure{model="yolov8_seg",reason="OTHER",version="1"} 3\n'
    )
    assert parse_metrics(text) == {"yolov8_seg": {"count": 12.0, "queue_duration_us": 3500.0}}


def test_page_needs_no_other_file_and_leaves_out_what_was_not_measured() -> None:
    remote = seen(hundred())
    found = figures.figures(remote)
    drawn = plots.plots(remote)
    assert "The server's CPU and memory" not in drawn
    html = page.page(run_of(found), [], {"single": drawn})
    assert html.count("<svg") == len(drawn) >= 4
    assert not re.search(r'(?:src|href)="(?!#|data:)', html)
    assert "not on this machine" in html


def test_comparison_with_an_earlier_run() -> None:
    then = run_of(figures.figures(seen([record(number, 200) for number in range(10)])))
    now = run_of(figures.figures(seen([record(number, 100) for number in range(10)], users=4)))
    text = page.markdown(now, [], then)
    assert re.search(r"\| p50, ms \| 200 \| 100 \| -50\.0% \|", text)
    assert "Beware, the earlier run is of another number of users." in text


def test_a_log_is_read_while_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    written = hundred()
    records.write(log, written)
    assert records.read(log) == written
    tail = records.Tail(log)
    assert len(tail.more()) == 100
    with log.open("a") as file:
        file.write('{"kind": "half a li')
    assert tail.more() == []


def test_outcomes_per_second() -> None:
    log = [
        record(0, 100),
        record(0.5, 100),
        record(1.2, 5, "OVERLOADED"),
        record(2.1, 5, "UNAVAILABLE", expected=False),
    ]
    counts = figures.per_second(log, BEGUN_S)
    assert counts["served"] == [2, 0, 0]
    assert counts["overloaded"] == [0, 1, 0]
    assert counts["wrong"] == [0, 0, 1]


def test_a_cliff_is_found() -> None:
    xs = [1.0, 2.0, 3.0, 4.0, 5.0]
    straight = growth._line("people", "ms", xs, [[100 + 50 * x] for x in xs])
    assert (straight["rise_ms"], straight["height_ms"]) == (pytest.approx(50), pytest.approx(100))
    assert straight["claims"][0].holds
    cliff = growth._line("people", "ms", xs, [[100 + 50 * x + (400 if x > 3 else 0)] for x in xs])
    assert not cliff["claims"][0].holds
