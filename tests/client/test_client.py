"""The client: refuses what is wrong before it sends, sends what was asked for, and keeps working after any failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutaway import (
    Client,
    CutawayError,
    ImageBomb,
    InferenceError,
    InvalidFormat,
    InvalidOption,
    NoPersonDetected,
    ProcessingTimeout,
    ServerUnavailable,
)
from cutaway.transports.base import InferRequest
from PIL import Image

from tests.client import peers
from tests.client.answers import REPORT, outputs
from tests.client.driving import DRIVERS, driven
from tests.integration import picture_files as make


class Recorder:
    """A transport that answers everything alike and keeps what it was asked."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = outputs() if answer is None else answer
        self.requests: list[InferRequest] = []
        self.closed = False
        self.ready = (True, True)

    async def infer(self, request: InferRequest) -> dict[str, Any]:
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return dict(self.answer)

    async def server_ready(self, timeout_s: float) -> bool:
        return self.ready[0]

    async def model_ready(self, model: str, timeout_s: float) -> bool:
        return self.ready[1]

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def client(recorder: Recorder) -> Iterator[Client]:
    with Client("grpc://unused", transport=recorder) as client:
        yield client


# ------------------------------------------------------------------------------------------------------ before sending


def test_sends_what_was_asked_for(client: Client, recorder: Recorder) -> None:
    data = make.jpeg()
    result = client.cut(data, subject="each", select=[0, 2], min_confidence=0.5, decontaminate=None, timeout_s=7)
    (request,) = recorder.requests
    assert request.image == data
    assert request.parameters == {"subject": "each", "select": "[0, 2]", "min_confidence": "0.5"}
    assert request.outputs == ("images", "boxes", "scores", "report")
    assert request.model == "ensemble_pipeline"
    assert 6.5 < request.timeout_s <= 7
    assert request.request_id == result.request_id
    assert len(request.request_id) == 32


def test_a_detection_asks_for_no_images(client: Client, recorder: Recorder) -> None:
    client.detect(make.jpeg())
    assert recorder.requests[0].outputs == ("boxes", "scores", "report")


def test_request_ids(client: Client, recorder: Recorder) -> None:
    assert client.cut(make.jpeg(), request_id="order 66").request_id == "order 66"
    assert client.cut(make.jpeg()).request_id != client.cut(make.jpeg()).request_id
    for bad in ("", "x" * 129, "a\nb", "ü"):
        with pytest.raises(ValueError, match="request id"):
            client.cut(make.jpeg(), request_id=bad)


@pytest.mark.parametrize(
    ("image", "arguments", "error"),
    [
        (b"%PDF-1.7", {}, InvalidFormat),
        (make.jpeg_header(7000, 4000), {}, ImageBomb),
        (make.jpeg(), {"feather_px": 51}, InvalidOption),
        (make.jpeg(), {"fether_px": 1}, InvalidOption),
        (np.zeros((80, 80), np.uint8), {}, InvalidFormat),
    ],
)
def test_what_is_wrong_is_never_sent(
    client: Client, recorder: Recorder, image: Any, arguments: dict[str, Any], error: type[CutawayError]
) -> None:
    for call in (client.cut, client.detect):
        with pytest.raises(error) as refusal:
            call(image, request_id="r7", **arguments)
        assert refusal.value.request_id == "r7"
    assert recorder.requests == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_type_that_disagrees_is_a_warning_and_an_error_for_a_strict_client(driver: str) -> None:
    recorder = Recorder()
    with driven(driver, "grpc://unused", transport=recorder) as client:
        for call in (client.cut, client.detect):
            codes = [warning.code for warning in call(make.jpeg(), media_type="image/png").warnings]
            assert "MEDIA_TYPE_MISMATCH" in codes
    with driven(driver, "grpc://unused", transport=recorder, strict=True) as client, pytest.raises(InvalidFormat):
        client.cut(make.jpeg(), media_type="image/png")
    assert len(recorder.requests) == 2


def test_the_ratio_can_be_raised(recorder: Recorder) -> None:
    flat = make.bmp(5000, 4000, 24, bytes(60_000), compression=1)
    with Client("grpc://unused", transport=recorder, max_decompression_ratio=2000) as client:
        client.cut(flat)
    with pytest.raises(ImageBomb), Client("grpc://unused", transport=recorder) as client:
        client.cut(flat)


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout_s": 0},
        {"timeout_s": -1},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
        {"max_decompression_ratio": 0},
        {"max_decompression_ratio": float("nan")},
    ],
)
def test_numbers_that_make_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Client("grpc://host", **arguments)


def test_a_failure_carries_the_request_id() -> None:
    for answer in (NoPersonDetected("Nobody."), {**outputs(), "images": []}):
        client = Client("grpc://unused", transport=Recorder(answer))
        with pytest.raises((NoPersonDetected, InferenceError)) as failure:
            client.cut(make.jpeg(), request_id="r8")
        assert failure.value.request_id == "r8"


def test_closing(client: Client, recorder: Recorder) -> None:
    client.close()
    client.close()
    assert recorder.closed
    for call in (lambda: client.cut(make.jpeg()), lambda: client.detect(make.jpeg()), client.health):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_repr_shows_the_address_only() -> None:
    with Client("https://host/triton") as client:
        assert repr(client) == "<cutaway.Client https://host:443/triton>"


# -------------------------------------------------------------------------------------------------------------- health


def test_healthy(client: Client) -> None:
    health = client.health()
    assert health.ok
    assert health.server_ready
    assert health.model_ready
    assert health.error is None
    assert (health.profile, health.device) == (REPORT["models"]["profile"], REPORT["device"])
    assert health.round_trip_ms is not None


@pytest.mark.parametrize("ready", [(False, False), (True, False)])
def test_not_ready(client: Client, recorder: Recorder, ready: tuple[bool, bool]) -> None:
    recorder.ready = ready
    health = client.health()
    assert not health.ok
    assert (health.server_ready, health.model_ready) == ready
    assert isinstance(health.error, ServerUnavailable)
    assert recorder.requests == []


def test_ready_is_not_enough(client: Client, recorder: Recorder) -> None:
    """Triton says ready although the pipeline's process is dead; only a picture tells."""
    recorder.answer = InferenceError("Stub process is not healthy.")
    health = client.health()
    assert health.server_ready
    assert health.model_ready
    assert not health.ok
    assert health.error is recorder.answer


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_there(scheme: str) -> None:
    with Client(f"{scheme}://127.0.0.1:{peers.dead_port()}") as client:
        health = client.health()
    assert not health.ok
    assert not health.server_ready
    assert isinstance(health.error, ServerUnavailable)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_answers(scheme: str) -> None:
    with peers.tcp_peer(peers.silent) as port, Client(f"{scheme}://127.0.0.1:{port}") as client:
        started = time.monotonic()
        health = client.health(timeout_s=0.4)
    assert isinstance(health.error, ProcessingTimeout)
    assert time.monotonic() - started < 2


# ----------------------------------------------------------------------------------------------- against a real server


@pytest.fixture(scope="module", params=["grpc", "http"])
def real(server: Any, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(server.grpc_url if request.param == "grpc" else server.http_url) as client:
        yield client


@pytest.fixture(scope="module")
def photo(samples: list[Path]) -> Path:
    return next(sample for sample in samples if sample.stem == "astronaut")


@pytest.mark.triton
def test_every_kind_of_input_gives_the_same_cutout(real: Client, photo: Path) -> None:
    with Image.open(photo) as image:
        image.load()
    pixels = np.asarray(image)
    results = [real.cut(kind, output="mask") for kind in (photo, str(photo), photo.read_bytes(), image, pixels)]
    first = results[0].cutouts[0].numpy()
    assert first.shape == pixels.shape[:2]
    assert (first > 250).mean() > 0.1
    for result in results[1:]:
        np.testing.assert_array_equal(result.cutouts[0].numpy(), first)


@pytest.mark.triton
def test_answers_tell_everything(real: Client, photo: Path) -> None:
    result = real.cut(photo, subject="each", request_id="order-66")
    assert result.request_id == "order-66"
    assert (result.report.width_px, result.report.height_px) == (512, 512)
    assert result.report.profile == "nano"
    assert result.report.device
    assert set(result.timings_ms) == {"decode", "detect", "matte", "refine", "encode", "total"}
    assert 0 < result.timings_ms["total"] < result.elapsed_ms
    for cutout, person in zip(result.cutouts, result.report.people, strict=True):
        x1, y1, x2, y2 = cutout.frame
        assert cutout.pil().size == (x2 - x1, y2 - y1)
        assert cutout.id == person.id
    np.testing.assert_allclose(result.boxes[0], result.report.people[0].box, atol=0.01)


@pytest.mark.triton
def test_detection(real: Client, photo: Path) -> None:
    found = real.detect(photo)
    assert len(found) >= 1
    assert found.scores[0] > 0.5
    assert found.timings_ms["matte"] == 0
    assert len(real.detect(make.picture())) == 0


@pytest.mark.triton
def test_errors_of_the_server_are_typed(real: Client) -> None:
    with pytest.raises(NoPersonDetected) as nobody:
        real.cut(make.picture(), request_id="r9")
    assert nobody.value.request_id == "r9"
    assert nobody.value.details["min_confidence"] == 0.35
    with pytest.raises(InvalidOption):
        real.cut(make.picture(), boxes=[[5000, 5000, 6000, 6000]])


@pytest.mark.triton
def test_a_deadline_of_a_millisecond_and_then_a_normal_call(real: Client, photo: Path) -> None:
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(ProcessingTimeout) as timeout:
            real.cut(photo, timeout_s=0.001)
        assert time.monotonic() - started < 1
        assert timeout.value.details["elapsed_seconds"] < 1
        assert real.cut(photo, output="mask").images


@pytest.mark.triton
def test_healthy_for_real(real: Client) -> None:
    health = real.health()
    assert health.ok, health
    assert health.round_trip_ms is not None
    assert 0 < health.round_trip_ms < 30_000
    assert health.profile == "nano"
    assert health.device


@pytest.mark.triton
def test_results_in_threads_are_those_of_one_thread(real: Client, photo: Path) -> None:
    with Image.open(photo) as image:
        pictures = [np.asarray(image.rotate(90 * turn).crop((0, 0, 512, 300 + 50 * turn))) for turn in range(4)]

    def cut(index: int) -> bytes:
        return real.cut(pictures[index % 4], subject="all", output="mask").images[0]

    expected = [cut(index) for index in range(4)]
    with ThreadPoolExecutor(8) as threads:
        for index, image_bytes in enumerate(threads.map(cut, range(16))):
            assert image_bytes == expected[index % 4]


@pytest.mark.triton
def test_nothing_is_left_running(server: Any, photo: Path) -> None:
    with Client(server.grpc_url) as client:
        client.detect(photo)  # starts the loop thread, of which there is one per process
    before = threading.active_count()
    for url in (server.grpc_url, server.http_url):
        with Client(url) as client:
            client.detect(photo)
    ends_at = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < ends_at:
        time.sleep(0.05)
    assert threading.active_count() <= before
