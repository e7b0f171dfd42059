"""Requests that arrive together run together: Triton's own counts say so, and the answers do not change."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from cutaway.contract.limits import DETECTOR_SIDE_PX

from runtime.health import statistics
from runtime.server import Server
from tests.runtime.leftovers import wait_for

pytestmark = pytest.mark.triton

MODEL = "yolov8_seg"
REQUESTS = 16


def pictures(count: int) -> np.ndarray[Any, Any]:
    """(count, 640, 640, 3) uint8 noise, each different."""
    return np.random.default_rng(7).integers(0, 255, (count, DETECTOR_SIDE_PX, DETECTOR_SIDE_PX, 3), np.uint8)


def scores(client: Any, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    images = tritonclient.grpc.InferInput("images", batch.shape, "UINT8")
    images.set_data_from_numpy(batch)
    wanted = [tritonclient.grpc.InferRequestedOutput("scores")]
    result: np.ndarray[Any, Any] = client.infer(MODEL, [images], outputs=wanted).as_numpy("scores")
    return result


def counts(server: Server) -> tuple[int, int]:
    """How many pictures went through the network, in how many runs."""
    found = statistics(server.probe, MODEL)
    return found["inference_count"], found["execution_count"]


def counts_since(server: Server, before: tuple[int, int], expected: int) -> tuple[int, int]:
    """The difference to `before`, once it holds what is expected: Triton counts a moment after it answers."""
    wait_for(lambda: counts(server)[0] - before[0] >= expected)
    now = counts(server)
    return now[0] - before[0], now[1] - before[1]


def test_concurrent_requests_share_runs(server: Server) -> None:
    different = pictures(4)
    before = counts(server)
    with tritonclient.grpc.InferenceServerClient(server.triton_grpc_address) as client:
        alone = [scores(client, picture[None])[0] for picture in different]
        counts_since(server, before, len(different))
        before = counts(server)
        with ThreadPoolExecutor(REQUESTS) as pool:
            together = list(pool.map(lambda i: scores(client, different[i % 4][None])[0], range(REQUESTS)))
    served, runs = counts_since(server, before, REQUESTS)
    assert REQUESTS <= served <= REQUESTS + 2  # the server's own small picture may come in between
    assert runs <= REQUESTS // 2, f"{served} pictures took {runs} runs"
    assert max(entry["batch_size"] for entry in statistics(server.probe, MODEL)["batch_stats"]) > 1
    for index, result in enumerate(together):
        np.testing.assert_allclose(result, alone[index % 4], atol=1e-3)


def test_batch_of_one_caller_is_one_run(server: Server) -> None:
    """All people of a picture go through a network at once."""
    before = counts(server)
    with tritonclient.grpc.InferenceServerClient(server.triton_grpc_address) as client:
        assert scores(client, pictures(3)).shape == (3, 300)
    served, runs = counts_since(server, before, 3)
    assert served - runs == 2
