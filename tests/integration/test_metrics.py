"""What the pipeline says on Triton's metrics endpoint: outcomes by code, where Triton itself counts successes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cutaway import Client

from tests.integration.kserve import asking

pytestmark = pytest.mark.triton

WAIT_S = 30.0
"""The pipeline sends what it counted once a second; a busy machine may take longer."""


def values(server: Any, prefix: str) -> dict[str, float]:
    """The lines of a metric, by name and labels."""
    lines = httpx.get(server.metrics_url).text.splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(prefix)}


def since(server: Any, before: dict[str, float], prefix: str, key: str, wanted: float) -> float:
    """How much a metric has grown, as soon as that is what is wanted, or in the end."""
    give_up_at = time.monotonic() + WAIT_S
    while True:
        grown = values(server, prefix).get(key, 0.0) - before.get(key, 0.0)
        if grown >= wanted or time.monotonic() > give_up_at:
            return grown
        time.sleep(0.1)


def test_ten_refused_pictures_are_no_successes(server: Any) -> None:
    before = values(server, "cutaway_")
    with asking(server, "http") as ask:
        assert [ask(b"no picture").code for _ in range(10)] == ["INVALID_FORMAT"] * 10
    key = 'cutaway_requests_total{code="INVALID_FORMAT"}'
    assert since(server, before, "cutaway_requests_total", key, 10) == 10


def test_stages_people_and_instances(server: Any, samples: list[Path]) -> None:
    before = values(server, "cutaway_")
    with Client(server.grpc_url) as client:
        people = len(client.cut(samples[0]).report.people)
    assert since(server, before, "cutaway_people", "cutaway_people_sum", people) >= people
    for stage in ("decode", "detect", "matte", "refine", "encode", "total"):
        assert since(server, before, "cutaway_stage_seconds", f'cutaway_stage_seconds_count{{stage="{stage}"}}', 1) >= 1
        buckets = [
            value for key, value in values(server, "cutaway_stage_seconds_bucket").items() if f'"{stage}"' in key
        ]
        assert max(buckets) == values(server, "cutaway_")[f'cutaway_stage_seconds_count{{stage="{stage}"}}']
    assert values(server, "cutaway_pictures_in_flight")


def test_health_checks_are_no_pictures(server: Any, samples: list[Path]) -> None:
    before = values(server, "cutaway_")
    assert {answer.status.name for answer in server.probe.round(60.0).values()} == {"HEALTHY"}
    with Client(server.grpc_url) as client:
        client.cut(samples[0])
    key = 'cutaway_requests_total{code="OK"}'
    assert since(server, before, "cutaway_requests_total", key, 1) == 1
    time.sleep(1.5)  # a canary's would be sent by now
    assert since(server, before, "cutaway_requests_total", key, 1) == 1
