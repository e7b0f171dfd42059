"""Streams through a real server: frames in, people before a colour out, in order, and nothing ever in silence."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cutaway
import numpy as np
import pytest
import tritonclient.grpc
from cutaway.contract.errors import (
    CorruptImage,
    InvalidFormat,
    InvalidOption,
    Overloaded,
    ResolutionTooSmall,
    ServerUnavailable,
)
from cutaway.contract.limits import STREAM_BACK_OFF_MAX_S, STREAM_RESULTS_KEPT, STREAM_TIMEOUT_S, UNTOUCHED
from numpy.typing import NDArray
from stream.tuning import STREAMS_MAX
from tritonclient.utils import InferenceServerException

from runtime.compose import SOURCE
from runtime.server import Server, ServerOptions
from tests.integration import video
from tests.runtime.leftovers import wait_for

pytestmark = pytest.mark.triton

GREEN = np.array([0, 255, 0], np.uint8)
PATIENCE_S = 30.0
"""A frame on a machine that has much else to do; the streams' own two seconds are for videos."""


@pytest.fixture(scope="module")
def frame(samples: list[Path]) -> NDArray[np.uint8]:
    """Somebody before a plain wall."""
    return video.still(next(sample for sample in samples if sample.stem == "astronaut"))


def opened(server: Any, **options: Any) -> cutaway.Stream:
    return cutaway.Stream(server.grpc_url, timeout_s=PATIENCE_S, **options)


def one(stream: cutaway.Stream, image: Any) -> cutaway.StreamFrame:
    """A frame, waited for."""
    number = stream.submit(image)
    done = stream.latest(PATIENCE_S)
    assert done is not None
    assert done.id == number
    return done


def is_green(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.abs(image.astype(np.int16) - GREEN).max(axis=2) < 8


# ---------------------------------------------------------------------------------------------------- what comes out


def test_person_before_green(server: Any, frame: NDArray[np.uint8]) -> None:
    with opened(server) as stream:
        done = one(stream, frame)
    assert not done.untouched
    assert done.error is None
    assert isinstance(done.image, np.ndarray)
    assert done.image.shape == frame.shape
    green = is_green(done.image)
    assert 0.2 < green.mean() < 0.8
    assert green[:100, -60:].all()  # the wall
    face = (slice(90, 130), slice(270, 310))
    assert np.array_equal(done.image[face], frame[face])
    assert done.report is not None
    assert [person.score > 0.5 for person in done.report.people] == [True]
    assert set(done.report.timings_ms) == {"decode", "detect", "mask", "composite", "encode", "total"}
    assert done.latency_ms > done.report.timings_ms["total"]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_jpeg_in_jpeg_out(server: Any, frame: NDArray[np.uint8], scheme: str) -> None:
    url = server.grpc_url if scheme == "grpc" else server.http_url
    with cutaway.Stream(url, timeout_s=PATIENCE_S, quality=95) as stream:
        done = one(stream, video.jpeg(frame))
        raw = one(stream, frame)
    assert isinstance(done.image, bytes)
    assert done.image.startswith(b"\xff\xd8")
    decoded = video.cv2.imdecode(np.frombuffer(done.image, np.uint8), video.cv2.IMREAD_COLOR)[..., ::-1]
    assert isinstance(raw.image, np.ndarray)
    assert np.abs(decoded.astype(int) - raw.image).mean() < 4


def test_channels_as_opencv_has_them(server: Any, frame: NDArray[np.uint8]) -> None:
    with opened(server) as rgb, opened(server, channels="bgr") as bgr:
        first, second = one(rgb, frame), one(bgr, np.ascontiguousarray(frame[..., ::-1]))
    assert isinstance(first.image, np.ndarray)
    assert isinstance(second.image, np.ndarray)
    assert np.array_equal(first.image, second.image[..., ::-1])


def test_backgrounds(server: Any, frame: NDArray[np.uint8], samples: list[Path]) -> None:
    with opened(server) as green:
        behind = is_green(np.asarray(one(green, frame).image))
    with opened(server, background="blur:15") as blurred:
        image = np.asarray(one(blurred, frame).image)
        assert 0 < np.abs(image[behind].astype(int) - frame[behind]).mean() < 40
    admiral = next(sample for sample in samples if sample.stem == "admiral")
    with opened(server, background=admiral) as pictured:
        image = np.asarray(one(pictured, frame).image)
        again = np.asarray(one(pictured, frame).image)  # the picture went with the first frame only
        assert np.array_equal(image[behind], again[behind])
        assert len(np.unique(image[behind], axis=0)) > 1000
        small = np.asarray(one(pictured, frame[::2, ::2]).image)  # another size: fitted anew
        assert small.shape == (240, 320, 3)
        assert not is_green(small).any()


def test_empty_room_is_all_background(server: Any) -> None:
    with opened(server) as stream:
        done = one(stream, np.full((480, 640, 3), 120, np.uint8))
    assert not done.untouched
    assert is_green(np.asarray(done.image)).all()


# ---------------------------------------------------------------------------------------------- order, late frames


def test_late_frames_are_dropped_and_counted(server: Any, frame: NDArray[np.uint8]) -> None:
    with opened(server) as stream:
        one(stream, frame)
        numbers = [stream.submit(frame) for _ in range(6)]
        stream.finish()
        done = [each.id for each in stream]
        told = stream.statistics
    assert done == sorted(done)
    assert done[-1] == numbers[-1]  # the latest frame wins
    assert len(done) <= 2  # the one that was under way at once, and the last
    assert told.submitted == 7
    assert told.done == 1 + len(done)
    assert told.dropped == 7 - told.done
    assert told.untouched == told.skipped == 0
    with pytest.raises(RuntimeError, match="finished"):
        stream.submit(frame)


def test_nobody_takes_what_is_done(server: Any, frame: NDArray[np.uint8]) -> None:
    small = np.ascontiguousarray(frame[::4, ::4])
    with opened(server) as stream:
        for number in range(1, STREAM_RESULTS_KEPT + 4):
            stream.submit(small)
            assert wait_for(lambda number=number: stream.statistics.done == number, PATIENCE_S)
        stream.finish()
        assert [each.id for each in stream] == list(range(4, STREAM_RESULTS_KEPT + 4))
        assert stream.statistics.skipped == 3


def test_submit_keeps_its_own_copy(server: Any, frame: NDArray[np.uint8]) -> None:
    reused = frame.copy()
    with opened(server) as stream:
        stream.submit(reused)
        reused[:] = 0  # as a camera's library does with its next frame
        done = stream.latest(PATIENCE_S)
    assert done is not None
    assert np.asarray(done.image)[100, 290].any()


def test_under_asyncio(server: Any, frame: NDArray[np.uint8]) -> None:
    async def main() -> tuple[list[int], cutaway.StreamFrame | None, cutaway.StreamStatistics]:
        async with cutaway.AsyncStream(server.grpc_url, timeout_s=PATIENCE_S) as stream:
            stream.submit(frame)
            first = await stream.latest(PATIENCE_S)
            for _ in range(4):
                stream.submit(frame)
            stream.finish()
            return [each.id async for each in stream], first, stream.statistics

    rest, first, told = asyncio.run(main())
    assert first is not None
    assert first.id == 1
    assert is_green(np.asarray(first.image)).mean() > 0.2
    assert rest == [5]
    assert (told.submitted, told.done, told.dropped) == (5, 2, 3)


# ------------------------------------------------------------------------------------------------------- over time


def alpha_of(image: Any, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How much of the frame is seen, from a composite on black and white: 0 to 1."""
    return 1 - (image[1].astype(np.float32) - image[0]).mean(axis=2) / 255


def alphas(server: Any, frames: list[NDArray[np.uint8]], **options: Any) -> list[NDArray[np.float32]]:
    with (
        opened(server, background="#000000", **options) as black,
        opened(server, background="#FFFFFF", **options) as white,
    ):
        return [alpha_of([np.asarray(one(each, frame).image) for each in (black, white)], frame) for frame in frames]


def test_still_scene_does_not_flicker(server: Any, frame: NDArray[np.uint8]) -> None:
    frames = [video.noisy(frame, seed) for seed in range(8)]
    changes = {}
    for smoothing in (0.0, 0.8):
        found = alphas(server, frames, smoothing=smoothing)[2:]
        changes[smoothing] = np.mean([np.abs(b - a).mean() for a, b in itertools.pairwise(found)])
    assert changes[0.8] < 0.5 * changes[0.0]


def test_moving_person_leaves_no_ghost(server: Any, frame: NDArray[np.uint8]) -> None:
    """The last frame's mask, smoothed, is nearly the one that it has alone, though all before it differ."""
    frames = [video.noisy(video.shifted(frame, 16 * step), step) for step in range(5)]
    smoothed = alphas(server, frames, smoothing=0.8)[-1]
    alone = alphas(server, frames[-1:], smoothing=0.8)[0]
    before = alphas(server, frames[-2:-1], smoothing=0.8)[0]
    step = np.abs(alone - before).mean()
    assert step > 0.02  # there is something to lag behind
    assert np.abs(smoothed - alone).mean() < 0.15 * step


def test_two_streams_do_not_mix(server: Any, frame: NDArray[np.uint8]) -> None:
    """Somebody in one of them, nobody in the other, turn by turn: each as it would be alone."""
    empty = np.full_like(frame, 120)
    with opened(server, background="#0000FF") as one_there, opened(server) as nobody:
        for seed in range(3):
            there, gone = one(one_there, video.noisy(frame, seed)), one(nobody, video.noisy(empty, seed))
            assert is_green(np.asarray(gone.image)).all()
            assert (np.asarray(there.image)[:100, -60:] == (0, 0, 255)).all()
            assert not is_green(np.asarray(there.image)).any()


# ------------------------------------------------------------------------------------------------------ bad frames


def test_bad_frames_are_refused_before_they_are_sent(server: Any, frame: NDArray[np.uint8]) -> None:
    with opened(server) as stream:
        for bad, error in (
            (b"no picture", InvalidFormat),
            (frame[..., 0], InvalidFormat),
            (frame.astype(np.float32), InvalidFormat),
            (frame[:32], ResolutionTooSmall),
            (video.jpeg(frame)[:-400], CorruptImage),
        ):
            with pytest.raises(error):
                stream.submit(bad)
        assert stream.statistics.submitted == 0
    for options in ({"background": "#green"}, {"smoothing": 2}, {"channels": "hsv"}, {"quality": 0}):
        with pytest.raises(InvalidOption):
            opened(server, **options)


def test_damage_inside_is_told_and_the_stream_goes_on(server: Any, frame: NDArray[np.uint8]) -> None:
    good = video.jpeg(frame)
    table = good.index(b"\xff\xc0") + 12
    damaged = good[:table] + b"\x03" + good[table + 1 :]  # a quantization table that is not there
    with opened(server) as stream:
        bad = one(stream, damaged)
        assert (bad.untouched, bad.image, type(bad.error)) == (True, damaged, CorruptImage)
        assert not one(stream, good).untouched


def ask(server: Any, inputs: dict[str, Any], **sequence: Any) -> dict[str, Any]:
    """As any user of Triton asks: no Cutaway code in between."""
    tensors = []
    for name, value in inputs.items():
        raw = isinstance(value, np.ndarray)
        tensor = tritonclient.grpc.InferInput(name, list(value.shape) if raw else [1], "UINT8" if raw else "BYTES")
        tensor.set_data_from_numpy(value if raw else np.array([value], np.object_))
        tensors.append(tensor)
    outputs = [tritonclient.grpc.InferRequestedOutput(name) for name in ("alpha", "report")]
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        result = client.infer("stream_pipeline", tensors, outputs=outputs, **sequence)
    return {"alpha": result.as_numpy("alpha"), "report": json.loads(result.as_numpy("report")[0])}


@pytest.mark.parametrize(
    ("inputs", "parameters", "code"),
    [
        ({}, {}, "INVALID_FORMAT"),
        ({"frame": np.zeros((480, 640, 3), np.uint8), "file": b"x"}, {}, "INVALID_FORMAT"),
        ({"frame": np.zeros((32, 640, 3), np.uint8)}, {}, "RESOLUTION_TOO_SMALL"),
        ({"frame": np.zeros((2200, 3000, 3), np.uint8)}, {}, "RESOLUTION_TOO_LARGE"),
        ({"file": b"no picture"}, {}, "INVALID_FORMAT"),
        ({"frame": np.zeros((64, 64, 3), np.uint8)}, {"colour": "green"}, "INVALID_OPTION"),
        ({"frame": np.zeros((64, 64, 3), np.uint8)}, {"background": "picture"}, "INVALID_OPTION"),
        ({"frame": np.zeros((64, 64, 3), np.uint8), "background": b"no"}, {"background": "picture"}, "INVALID_FORMAT"),
    ],
)
def test_typed_errors_for_anybody(server: Any, inputs: Any, parameters: dict[str, str], code: str) -> None:
    with pytest.raises(InferenceServerException) as refused:
        ask(server, inputs, sequence_id=77, sequence_start=True, parameters=parameters)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert json.loads(refused.value.message())["code"] == code


def test_alpha_for_anybody(server: Any, frame: NDArray[np.uint8]) -> None:
    found = ask(server, {"frame": frame}, sequence_id=78, sequence_start=True, sequence_end=True)
    assert found["alpha"].shape == frame.shape[:2]
    assert found["alpha"][100, 290] == 255
    assert not found["alpha"][:100, -60:].any()
    # Its end was told, so the stream is not known any more.
    with pytest.raises(InferenceServerException, match="START"):
        ask(server, {"frame": frame}, sequence_id=78)


# ------------------------------------------------------------------------------------------------ too many of them


def test_one_stream_too_many_is_refused_with_a_typed_error(tmp_path: Path, frame: NDArray[np.uint8]) -> None:
    """At once and in words; the others go on, and it has its place as soon as one of them ends."""
    small = np.ascontiguousarray(frame[::4, ::4])
    options = ServerOptions(cache_dir=tmp_path / "cache", instances=1)
    with Server(options) as server, ExitStack() as opens:
        streams = [opens.enter_context(opened(server)) for _ in range(STREAMS_MAX)]
        assert not any(one(stream, small).untouched for stream in streams)
        with opened(server) as late:
            began = time.monotonic()
            done = one(late, small)
            assert time.monotonic() - began < STREAM_TIMEOUT_S  # it does not wait for a place
            assert isinstance(done.error, Overloaded)
            assert (done.error.code, done.error.details) == ("OVERLOADED", {"max_streams": STREAMS_MAX})
            assert "End streams" in done.error.user_action
            assert np.array_equal(np.asarray(done.image), small)
            assert done.untouched
            (warning,) = done.warnings
            assert (warning.code, warning.details["code"]) == (UNTOUCHED, "OVERLOADED")
            assert "Too many streams are open" in warning.message
            assert late.statistics.overloaded == late.statistics.untouched == 1
            with pytest.raises(InferenceServerException) as refused:
                ask(server, {"frame": small}, sequence_id=79, sequence_start=True)
            assert refused.value.status() == "StatusCode.UNAVAILABLE"
            assert json.loads(refused.value.message())["code"] == "OVERLOADED"
            assert not any(one(stream, small).untouched for stream in streams)

            streams[0].close()
            assert wait_for(lambda: not one(late, small).untouched, 2 * STREAM_BACK_OFF_MAX_S)
            assert late.statistics.overloaded == late.statistics.untouched


# ------------------------------------------------------------------------------------------------ when things break


@pytest.fixture
def without_detector(tmp_path: Path) -> Iterator[Server]:
    """A server whose streams look for people with a model that is not there."""
    shutil.copytree(SOURCE, tmp_path / "repository", ignore=shutil.ignore_patterns("__pycache__"))
    config = tmp_path / "repository" / "stream_pipeline" / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "yolov8_seg"', 'string_value: "nobody"'))
    weights = tmp_path / "weights"
    weights.mkdir()
    for path in ServerOptions().weights_dir.iterdir():
        if path.name != "yolov8_seg_free.onnx":
            (weights / path.name).symlink_to(path)
    options = ServerOptions(cache_dir=tmp_path / "cache", source=tmp_path / "repository", weights=weights, instances=1)
    with Server(options) as running:
        yield running


def test_detector_that_fails_gives_the_frame_back(without_detector: Server, frame: NDArray[np.uint8]) -> None:
    with opened(without_detector) as stream:
        raw, file = one(stream, frame), one(stream, video.jpeg(frame))
        told = stream.statistics
    assert np.array_equal(np.asarray(raw.image), frame)
    assert file.image == video.jpeg(frame)
    for done in (raw, file):
        assert done.untouched
        assert done.report is not None
        (warning,) = done.report.warnings
        assert (warning.code, warning.details["code"]) == (UNTOUCHED, "INFERENCE_ERROR")
    assert told.untouched == 2


def test_killed_detector_and_server(tmp_path: Path, frame: NDArray[np.uint8]) -> None:
    """The video goes on untouched, and is worked on again once the server is back, background and all."""
    options = ServerOptions(cache_dir=tmp_path / "cache", instances=1, grpc_port=free_port())
    with Server(options) as running, opened(running, background="#0000FF") as stream:
        assert not one(stream, frame).untouched
        victim = next(stub for stub in running.process.stubs() if stub.model == "yolov8_seg_free")
        os.kill(victim.pid, signal.SIGKILL)
        lost = one(stream, frame)
        assert lost.untouched
        assert lost.error is not None or (lost.report is not None and lost.report.warnings)
        assert np.array_equal(np.asarray(lost.image), frame)
        end = time.monotonic() + 60
        while (done := one(stream, frame)).untouched and time.monotonic() < end:
            time.sleep(0.1)
        assert not done.untouched
        assert (np.asarray(done.image)[:100, -60:] == (0, 0, 255)).all()
        assert wait_for(lambda: running.reloads == 1, 60)


def test_nobody_listens(frame: NDArray[np.uint8]) -> None:
    """The first frame waits for the connection; those after it come back at once while the server is left alone."""
    with cutaway.Stream(f"grpc://127.0.0.1:{free_port()}", timeout_s=1.0) as stream:
        done = one(stream, frame)
        assert (done.untouched, isinstance(done.error, ServerUnavailable)) == (True, True)
        quick = one(stream, frame)
        assert (quick.untouched, isinstance(quick.error, ServerUnavailable)) == (True, True)
        assert np.array_equal(np.asarray(quick.image), frame)


def free_port() -> int:
    from runtime.checks import free_ports

    return free_ports("127.0.0.1", 1)[0]
