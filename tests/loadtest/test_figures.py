"""A report's figures are right for statistics whose figures are known."""

from __future__ import annotations

import pytest

from loadtest import figures, report
from loadtest.figures import Row, Seen
from loadtest.watching import Processes, Sample, parse_metrics
from tests.loadtest.logs import BEGUN_S, row, sample, seen, sent, stage


def run_of(found: dict, **changes: object) -> dict:
    """As `running.run` puts it together."""
    return {
        "scenario": "single",
        "date": "2026-11-21T12:00:00+00:00",
        "target": "gRPC localhost:8001",
        "machine": {"cpu": "a CPU", "cores": 2, "memory_gib": 8, "load_before": 0.1},
        "versions": {"python": "3.11"},
        "phases": [found],
        "result": found,
        "thresholds": [],
        **changes,
    }


def hundred() -> list[Row]:
    """100 pictures, ten sent in each second from the first to the tenth, of 1 to 100 ms, over both ways."""
    seconds = [number // 10 for number in range(100)]
    return [
        sent([*seconds, 10]),
        row([float(ms) for ms in range(1, 51)], seconds[:50]),
        row([float(ms) for ms in range(51, 101)], seconds[50:], method="HTTP"),
    ]


def test_times_and_rates() -> None:
    found = figures.figures(seen(hundred()))
    latency = found["latency_ms"]
    assert {name: latency[name] for name in ("p50", "p95", "p99", "max")} == {
        "p50": 50,
        "p95": 95,
        "p99": 99,
        "max": 100,
    }
    assert latency["mean"] == pytest.approx(50.5)
    assert found["answers"] == found["served"] == 100
    # The first second is left out, since it is seldom whole: 90 pictures in ten seconds.
    assert found["throughput_per_s"] == found["answers_per_s"] == pytest.approx(9.0)
    assert found["sent_per_s"] == pytest.approx(9.1)
    assert found["failures"] == 0


def test_answers_after_the_end_count_for_times_and_not_for_rates() -> None:
    found = figures.figures(seen([sent([0, 5, 10]), row([100, 100, 5000], [1, 6, 15])]))
    assert found["throughput_per_s"] == pytest.approx(0.2)
    assert found["latency_ms"]["max"] == 5000


def test_waiting_before_it_was_sent_is_told() -> None:
    found = figures.figures(seen([sent([0, 3], late_ms=2000), row([2100, 2100], [1, 5])], loop="open"))
    assert found["late_ms"]["p99"] == 2000
    assert "Requests went out 2000 ms late" in report.markdown(run_of(found))


def test_errors_by_code() -> None:
    rows = [
        sent([0, 1, 2, 3, 4, 5]),
        row([100, 40], [0, 5], failures=1),  # one of the two should have been refused
        row([5, 7], [1, 2], "one person → OVERLOADED"),
        row([20], [3], "bad: CORRUPT_IMAGE → CORRUPT_IMAGE"),
        row([30], [4], "one person → INFERENCE_ERROR", failures=1),
    ]
    found = figures.figures(seen(rows))
    assert found["codes"] == {
        "CORRUPT_IMAGE": {"answers": 1, "wrong": 0},
        "INFERENCE_ERROR": {"answers": 1, "wrong": 1},
        "OVERLOADED": {"answers": 2, "wrong": 0},
    }
    assert (found["served"], found["expected_refusals"], found["failures"]) == (2, 3, 2)
    assert found["failure_share"] == pytest.approx(2 / 6)
    assert found["refusal_ms"]["p50"] == 5
    text = report.markdown(run_of(found))
    assert "| INFERENCE_ERROR | 1 | 1 |" in text
    assert "Refusals took 5 ms" in text
    assert "not on this machine" in text


def test_stages_and_what_is_outside_of_them() -> None:
    rows = [sent([0, 1]), row([180, 200], [0, 1]), stage("matte", [100, 100]), stage(figures.OUTSIDE, [30, 50])]
    found = figures.figures(seen(rows))
    assert found["answers"] == 2, "stages are no answers"
    assert found["stages_ms"]["matte"]["p50"] == 100
    assert found["stages_ms"][figures.OUTSIDE]["mean"] == pytest.approx(40)
    assert f"| {figures.OUTSIDE} | 40.0 | 30 |" in report.markdown(run_of(found))


def test_batches_queues_and_processes() -> None:
    samples = [sample(0, 10, cpu_s=5), sample(5, 30, rss_mb=700), sample(10, 60, cpu_s=20)]
    found = figures.figures(seen([sent([0, 9]), row([100, 100], [0, 9])], samples))
    matting = found["models"]["birefnet_trt"]
    assert (matting["requests"], matting["mean_batch"]) == (100, 2)
    assert (matting["queue_ms"], matting["compute_ms"]) == (pytest.approx(3), pytest.approx(90))
    assert found["server"]["cpu_percent"] == pytest.approx(150)
    assert found["server"]["rss_mb_most"] == 700
    text = report.markdown(run_of(found))
    assert "| birefnet_trt | 100.0 | 2.0 |" in text
    assert "150 % of one core" in text


def steady() -> list[Row]:
    """4,000 answers, a hundred in each of 40 seconds."""
    seconds = [number // 100 for number in range(4000)]
    return [sent(seconds), row([1.0] * 4000, seconds)]


def test_memory_rise_leaves_the_start_out() -> None:
    """After a jump in the first quarter memory grows by 2 MB in 1,000 answers."""
    samples = [sample(s / 10, s, rss_mb=(300 if s < 50 else 500 + 2 * s / 100)) for s in range(401)]
    found = figures.memory_rise(seen(steady(), samples), 0.25)
    assert found is not None
    assert found.mb == pytest.approx(2.0, abs=0.1)
    assert found.error_mb < 0.1
    assert figures.memory_rise(seen(steady()), 0.25) is None


def test_memory_rise_tells_how_sure_it_is() -> None:
    """Floors that jump up and down by 10 MB say little about 3,000 answers."""
    samples = [sample(s / 10, s, rss_mb=500 + 10 * (s // 60 % 2)) for s in range(401)]
    found = figures.memory_rise(seen(steady(), samples), 0.25)
    assert found is not None
    assert found.error_mb > 1
    assert abs(found.mb) < 2 * found.error_mb


def test_levels_of_the_halves() -> None:
    """One thread more while the run is still young is no growth, one in its second half is; files grow all the time."""

    def looks(thread_from: int) -> Seen:
        samples = [
            Sample(BEGUN_S + s, {}, Processes(0.0, 500.0, 40 + (s >= thread_from), 90 + s, 64.0)) for s in range(41)
        ]
        return seen(steady(), samples)

    found = figures.levels(looks(15), 0.25)
    assert found is not None
    assert (found[0]["threads"], found[1]["threads"]) == (41, 41)
    assert found[0]["fds"] < found[1]["fds"]
    assert found[0]["shm_mb"] == found[1]["shm_mb"] == 64.0
    late = figures.levels(looks(30), 0.25)
    assert late is not None
    assert (late[0]["threads"], late[1]["threads"]) == (40, 41)
    assert figures.levels(seen(steady()), 0.25) is None


def test_memory_rise_sees_a_leak_under_what_comes_and_goes() -> None:
    """One process leaks 2 MB in 1,000 answers; both take 300 MB now and then, and never at the same time."""
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
        figures.memory_rise(seen(steady(), samples), 0.25, which)
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
