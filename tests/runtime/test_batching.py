"""Requests that arrive together run together: Triton's own counts say so, and the answers do not change."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from cutaway.limits import DETECTOR_SIDE_PX

from runtime.health import statistics
from runtime.server import Server

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


def test_concurrent_requests_share_runs(server: Server) -> None:
    different = pictures(4)
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        alone = [scores(client, picture[None])[0] for picture in different]
        before = statistics(server.probe, MODEL)
        with ThreadPoolExecutor(REQUESTS) as pool:
            together = list(pool.map(lambda i: scores(client, different[i % 4][None])[0], range(REQUESTS)))
    after = statistics(server.probe, MODEL)
    served = after["inference_count"] - before["inference_count"]
    runs = after["execution_count"] - before["execution_count"]
    assert REQUESTS <= served <= REQUESTS + 2  # the server's own small picture may come in between
    assert runs <= REQUESTS // 2, f"{served} pictures took {runs} runs"
    assert max(entry["batch_size"] for entry in after["batch_stats"]) > 1
    for index, result in enumerate(together):
        np.testing.assert_allclose(result, alone[index % 4], atol=1e-3)


def test_batch_of_one_caller_is_one_run(server: Server) -> None:
    """All people of a picture go through a network at once."""
    before = statistics(server.probe, MODEL)
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        assert scores(client, pictures(3)).shape == (3, 300)
    after = statistics(server.probe, MODEL)
    served = after["inference_count"] - before["inference_count"]
    assert served - (after["execution_count"] - before["execution_count"]) == 2
