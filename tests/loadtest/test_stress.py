"""The stress scripts in short: what they claim holds, and they notice where it does not."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from loadtest.__main__ import main
from loadtest.running import Target
from loadtest.scenarios import Ask
from loadtest.stress import same, soak
from loadtest.ways import Reply
from runtime.server import Server
from tests.loadtest.logs import needs_locust


@pytest.mark.triton
def test_answers_under_load_are_those_given_alone(server: Server) -> None:
    target = Target(server.grpc_address, server.http_address, server.metrics_url, server.process.pid)
    found = same.compare(target, same.asks(), threads=3, rounds=1)
    assert [claim.what for claim in found.claims if not claim.holds] == []
    assert found.figures["compared"]["answers"] == 3 * len(same.asks())


def test_an_answer_that_went_astray_is_noticed() -> None:
    import numpy as np

    def reply(box: float, image: bytes) -> Reply:
        outputs = {"boxes": np.full((1, 4), box, np.float32), "scores": np.ones(1, np.float32), "images": [image]}
        return Reply(outputs=outputs)

    small, large = (ask for ask in same.asks()[:2])
    mine, other = small.data, large.data  # pictures of different sizes will do for cut-outs
    found = same.Compared()
    same.add(found, "one", reply(1, mine), reply(1, mine))
    assert (found.answers, found.identical, found.strange) == (1, 1, [])
    same.add(found, "one", reply(1, mine), reply(3, other))
    assert found.box_px == 2
    assert len(found.strange) == 1 and "shape" in found.strange[0]
    same.add(found, "one", reply(1, mine), Reply("OVERLOADED", "full"))
    assert "OVERLOADED instead of served" in found.strange[1]
    assert not same.judge(found, {}).claims[0].holds


@pytest.mark.triton
@needs_locust
def test_overload(tmp_path: Path) -> None:
    """Times are for `make stress-overload` itself: here only who is served and who is refused."""
    words = ["overload", "--queue-size=3", "--seconds=8", "--factor=6", "--max-error-rate=0", f"--output={tmp_path}"]
    status = main(words)
    (report,) = tmp_path.glob("*/run.json")
    found = json.loads(report.read_text())
    assert [phase["phase"]["phase"] for phase in found["phases"]] == ["peak", ""]
    result = found["result"]
    assert result["expected_refusals"] > 0
    # On a busy machine the sender may not come to all requests, and the run misses its bound by those: no answers.
    not_sent = result["codes"].pop("NOT_SENT", {"wrong": 0})["wrong"]
    assert set(result["codes"]) == {"OVERLOADED"}
    assert result["failures"] == not_sent
    assert status == (1 if not_sent else 0)
    assert result["served"] > 0
    assert result["models"]["ensemble_pipeline"]["most_pending"] <= 3


@pytest.mark.triton
@needs_locust
def test_soak(tmp_path: Path) -> None:
    """All but the slope of memory, for which this is too short. What an earlier run left there is not counted."""
    (tmp_path / "soak.json").write_text("[]")
    found = soak.measure(argparse.Namespace(profile="nano", requests=30, users=2, warm_up=1), tmp_path)
    missed = [f"{claim.what}: {claim.figure}" for claim in found.claims if not claim.holds]
    assert [claim for claim in missed if "memory grows" not in claim] == []
    assert found.figures["answers"] == 30


def test_asks_of_the_comparison_differ_in_size() -> None:
    """So that an answer that belongs to another request cannot look right."""
    wanted: list[Ask] = same.asks()
    assert len({len(ask.data) for ask in wanted}) == len(wanted)
