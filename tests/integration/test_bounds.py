"""What strangers and accidents may cost at most, on a real Triton: answers, queues, deadlines, places, error texts.

1. An answer of hundreds of megabytes is refused before anything is matted, and memory does not stay behind.
2. Queues of the networks are bounded, and a full one is OVERLOADED for callers of the pipeline.
3. A deadline and a cancellation reach the network, which does not go on for those who are gone.
4. One caller's streams leave places for others; a health check needs none; backgrounds cost what a frame does.
5. Text that is no UTF-8 is the caller's mistake, and no error has a path in it.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import shutil
import struct
import threading
import urllib.parse
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cutaway
import numpy as np
import pytest
import tritonclient.grpc
from numpy.typing import NDArray
from PIL import Image
from stream.tuning import STREAMS_MAX
from tritonclient.utils import InferenceServerException

import runtime.compose
from runtime.health import statistics
from runtime.process import ALLOCATOR
from runtime.server import Server, ServerOptions
from tests.integration import picture_files as make
from tests.integration.kserve import asking
from tests.integration.processes import resident_bytes
from tests.runtime.leftovers import wait_for

pytestmark = pytest.mark.triton

PATH = re.compile(r"/[\w.-]+/[\w.-]+")

SLOW_NETWORK = """
import importlib.util, pathlib, sys, time
import triton_python_backend_utils as pb_utils
spec = importlib.util.spec_from_file_location("whole", {path!r})
whole = importlib.util.module_from_spec(spec)
spec.loader.exec_module(whole)


class TritonPythonModel(whole.TritonPythonModel):
    def initialize(self, args):
        self.slow = args["model_name"] == "birefnet_trt"
        super().initialize(args)

    def execute(self, requests):
        if self.slow:
            for request in requests:
                time.sleep({seconds} * len(pb_utils.get_input_tensor_by_name(request, "images").as_numpy()))
        return super().execute(requests)
"""
SECONDS_PER_CROP = 1.2


def options(cache_dir: Path, **given: Any) -> ServerOptions:
    """Of a Triton without anything in front: what is bounded here holds behind whatever stands there, too."""
    if "direct" in {field.name for field in dataclasses.fields(ServerOptions)}:
        given["direct"] = True
    return ServerOptions(cache_dir=cache_dir, instances=1, **given)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose matting network takes 1.2 s more per crop, and that gives a picture a minute."""
    folder = tmp_path_factory.mktemp("slow")
    original, model = runtime.compose.ONNX_MODEL, folder / "model.py"
    model.write_text(SLOW_NETWORK.format(path=str(original), seconds=SECONDS_PER_CROP))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime.compose, "ONNX_MODEL", model)
        with Server(options(folder / "cache", processing_timeout_s=60.0)) as running:
            yield running


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that believes in `caller`, as behind the gate."""
    folder = tmp_path_factory.mktemp("gated")
    shutil.copytree(runtime.compose.SOURCE, folder / "repository", ignore=shutil.ignore_patterns("__pycache__"))
    serving = folder / "repository" / runtime.compose.PIPELINE / "1" / "serving.py"
    # Whether the gate is there is the server's own to say, in a variable that it sets itself.
    serving.write_text(serving.read_text().replace('"CUTAWAY_GATE"', '"CUTAWAY_TESTED_GATE"'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUTAWAY_TESTED_GATE", "1")
        with Server(options(folder / "cache", source=folder / "repository")) as running:
            yield running


def crops(server: Server) -> int:
    """How many crops the matting network has had."""
    return int(statistics(server.probe, "birefnet_trt")["inference_count"])


def boxes(count: int) -> str:
    """So many different boxes in a picture of 512 × 512."""
    return json.dumps([[4 * place, 10 + place % 7, 4 * place + 100, 300] for place in range(count)])


# ------------------------------------------------------------------------------------------------------ the answer


@pytest.fixture(scope="module")
def large() -> bytes:
    """33 megapixels in a few megabytes, that compress badly as PNG."""
    noise = Image.fromarray(make.noise(1920, 1080))
    return make.saved(noise.resize((7680, 4320), Image.Resampling.BICUBIC), "JPEG", quality=60)


def test_answer_of_hundreds_of_megabytes_is_refused_before_it_costs(
    slow: Server, large: bytes, samples: list[Path]
) -> None:
    whole = json.dumps([[0, 0, 7680 - 10 * step, 4320] for step in range(6)])
    asked = {"subject": "each", "boxes": whole, "background": "blur:8"}
    stubs = slow.process.stubs()
    before = crops(slow)
    with asking(slow, "grpc") as ask:
        began = {stub.pid: resident_bytes(stub.pid) for stub in stubs}
        refused = ask(large, asked)
        assert (refused.status, refused.code) == ("StatusCode.INVALID_ARGUMENT", "INVALID_OPTION")
        assert refused.error["details"]["answer_bytes"] > refused.error["details"]["max_bytes"]
        assert "fewer boxes" in refused.error["user_action"]
        assert crops(slow) - before <= 4  # health checks
        served = ask(samples[0].read_bytes(), asked | {"boxes": "[[0, 0, 400, 400], [100, 100, 500, 500]]"})
        assert served.status == ""
        assert len(served.outputs["images"]) == 2
    grown = {pid: resident_bytes(pid) - bytes_before for pid, bytes_before in began.items()}
    # What the allocator may keep by its settings: each heap's free end, and what is too small to be given back at once.
    arenas, end, small = (
        int(ALLOCATOR[f"MALLOC_{name}"]) for name in ("ARENA_MAX", "TRIM_THRESHOLD_", "MMAP_THRESHOLD_")
    )
    assert max(grown.values()) < arenas * end + small, f"bytes that stayed: {grown}"


# -------------------------------------------------------------------------------------------------------- queues


def test_every_queue_has_a_bound_and_a_timeout(slow: Server) -> None:
    """Of streams Triton has none; the gate bounds their frames in flight."""
    composed = next((Path(slow.options.cache_dir) / "servers").glob("*/repository"))
    found = {}
    for folder in sorted(composed.iterdir()):
        config = runtime.compose.read_config(folder)
        policy = config.dynamic_batching.default_queue_policy
        found[config.name] = policy.max_queue_size, policy.default_timeout_microseconds, policy.allow_timeout_override
    streams = found.pop("stream_pipeline")
    assert streams == (0, 0, False)
    assert {"birefnet_trt", "ensemble_pipeline", "yolov8_seg", "yolov8_seg_free"} <= set(found)
    assert all(0 < size <= 64 and timeout_us > 0 and override for size, timeout_us, override in found.values()), found


def test_full_queue_of_a_network_is_overload_and_goes_away(slow: Server, samples: list[Path]) -> None:
    side = _matte_side(slow)
    images = tritonclient.grpc.InferInput("images", [1, side, side, 3], "UINT8")
    images.set_data_from_numpy(np.zeros((1, side, side, 3), np.uint8))
    done: list[Exception | None] = []
    calls: list[Any] = []
    enough = threading.Event()
    with tritonclient.grpc.InferenceServerClient(slow.grpc_address) as client, asking(slow, "grpc") as ask:

        def fill() -> None:
            """Keep the queue full: the network takes a batch out of it now and then."""
            while not enough.wait(0.005):
                calls.append(client.async_infer("birefnet_trt", [images], lambda result, error: done.append(error)))

        filling = threading.Thread(target=fill)
        filling.start()
        try:
            # 32 are in the queue, and some batches in the network's hands; the others are refused at once.
            assert wait_for(lambda: any("maximum queue size" in str(error) for error in done))
            refused = ask(samples[0].read_bytes(), {"subject": "all"})
        finally:
            enough.set()
            filling.join()
            for call in calls:
                call.cancel()
        assert (refused.status, refused.code) == ("StatusCode.UNAVAILABLE", "OVERLOADED")
        assert wait_for(lambda: ask(samples[0].read_bytes(), {"subject": "all"}).status == "")


def _matte_side(server: Server) -> int:
    composed = next((Path(server.options.cache_dir) / "servers").glob("*/repository"))
    return int(runtime.compose.read_config(composed / "birefnet_trt").input[0].dims[0])


# ------------------------------------------------------------------------------------------------------- deadlines


def test_what_cannot_be_in_time_is_refused_and_the_network_is_left_alone(slow: Server, samples: list[Path]) -> None:
    before = crops(slow)
    with asking(slow, "http") as ask:
        refused = ask(samples[1].read_bytes(), {"boxes": boxes(100)})
        assert (refused.status, refused.code) == ("503", "PROCESSING_TIMEOUT")
        assert refused.error["details"]["elapsed_seconds"] < 60
        assert crops(slow) - before <= 4  # health checks
        assert ask(samples[1].read_bytes(), {"boxes": boxes(3)}).status == ""


def test_network_stops_for_who_is_gone(slow: Server, samples: list[Path]) -> None:
    before = crops(slow)
    image = tritonclient.grpc.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([samples[1].read_bytes()], np.object_))
    ended = threading.Event()
    with tritonclient.grpc.InferenceServerClient(slow.grpc_address) as client, asking(slow, "grpc") as ask:
        call = client.async_infer(
            "ensemble_pipeline", [image], lambda result, error: ended.set(), parameters={"boxes": boxes(10)}
        )
        assert wait_for(lambda: crops(slow) > before)
        call.cancel()
        assert ended.wait(10)
        # There is one pipeline: the next picture begins when it has given the last one up.
        assert ask(samples[1].read_bytes(), {"subject": "all"}).status == ""
    assert crops(slow) - before < 8


# --------------------------------------------------------------------------------------------------------- streams


@cache
def client_of(address: str) -> tritonclient.grpc.InferenceServerClient:
    """One connection for all frames: a stream that sends nothing for seconds would lose its place."""
    return tritonclient.grpc.InferenceServerClient(address)


def frame_of(server: Server, sequence_id: int, *, caller: str = "", **sequence: Any) -> dict[str, Any]:
    """One grey frame of a stream, as any user of Triton sends it; the report, or the error form."""
    tensor = tritonclient.grpc.InferInput("frame", [64, 64, 3], "UINT8")
    tensor.set_data_from_numpy(np.full((64, 64, 3), 120, np.uint8))
    try:
        result = client_of(server.grpc_address).infer(
            "stream_pipeline",
            [tensor],
            outputs=[tritonclient.grpc.InferRequestedOutput("report")],
            parameters={"caller": caller} if caller else {},
            sequence_id=sequence_id,
            **sequence,
        )
    except InferenceServerException as error:
        return dict(json.loads(error.message()))
    return dict(json.loads(result.as_numpy("report")[0]))


def test_one_caller_cannot_keep_all_places(gated: Server) -> None:
    for stream in range(1, STREAMS_MAX + 1):
        assert "code" not in frame_of(gated, stream, caller="ip:192.0.2.1", sequence_start=True)
    greedy = frame_of(gated, 99, caller="ip:192.0.2.1", sequence_start=True)
    assert greedy["code"] == "OVERLOADED"
    # Streams of one frame need no place: this is the health check.
    check = frame_of(gated, 98, caller="canary", sequence_start=True, sequence_end=True)
    assert check["untouched"] is False
    assert "code" not in frame_of(gated, 50, caller="ip:192.0.2.2", sequence_start=True)
    assert "code" not in frame_of(gated, 50, caller="ip:192.0.2.2")
    lost = [frame_of(gated, stream, caller="ip:192.0.2.1").get("code") for stream in range(1, STREAMS_MAX + 1)]
    assert lost.count(None) == STREAMS_MAX - 1
    assert lost.count("UNAVAILABLE") == 1  # it may begin anew


def test_health_check_is_served_where_all_places_are_taken(slow: Server) -> None:
    """Without a gate, `caller` is nobody's to set."""
    for stream in range(201, 201 + STREAMS_MAX):
        frame_of(slow, stream, caller=f"ip:192.0.2.{stream - 200}", sequence_start=True)
    refused = frame_of(slow, 250, caller="ip:198.51.100.1", sequence_start=True)
    assert refused["code"] == "OVERLOADED"
    assert frame_of(slow, 251, sequence_start=True, sequence_end=True)["untouched"] is False
    for stream in range(201, 201 + STREAMS_MAX):
        assert "code" not in frame_of(slow, stream)
        frame_of(slow, stream, sequence_end=True)


def test_refused_beginnings_keep_nobody_waiting(gated: Server) -> None:
    """Triton remembers each for ten seconds, and lets a new one wait without a word once it can remember no more."""
    small = tritonclient.grpc.InferInput("frame", [64, 64, 3], "UINT8")
    small.set_data_from_numpy(np.zeros((64, 64, 3), np.uint8))
    refused: list[Exception | None] = []
    with tritonclient.grpc.InferenceServerClient(gated.grpc_address) as client:
        for stream in range(1000, 1260):
            client.async_infer(
                "stream_pipeline",
                [small],
                lambda result, error: refused.append(error),
                sequence_id=stream,
                sequence_start=True,
                parameters={"background": "nothing"},
            )
        assert wait_for(lambda: len(refused) >= 256)
        assert frame_of(gated, 2000, sequence_start=True, sequence_end=True)["untouched"] is False
        # It did not wait until the first one was forgotten, which Triton would say in words of its own.
        assert frame_of(gated, 1000)["code"] == "UNAVAILABLE"
        assert wait_for(lambda: len(refused) == 260)
    assert None not in refused


def test_backgrounds_of_33_megapixels_are_kept_at_the_frames_size(gated: Server, large: bytes) -> None:
    small: NDArray[np.uint8] = np.full((96, 96, 3), 120, np.uint8)
    (stub,) = [stub for stub in gated.process.stubs() if stub.model == "stream_pipeline"]

    def shown(stream: cutaway.Stream) -> None:
        stream.submit(small)
        done = stream.latest(60)
        assert done is not None
        assert not done.untouched

    with cutaway.Stream(gated.grpc_url, background=large, timeout_s=60) as first:
        shown(first)
        before = resident_bytes(stub.pid)
        streams = [cutaway.Stream(gated.grpc_url, background=large, timeout_s=60) for _ in range(4)]
        for stream in streams:
            shown(stream)
        assert resident_bytes(stub.pid) - before < 2 * 7680 * 4320 * 3
        for stream in streams:
            stream.close()


# ----------------------------------------------------------------------------------------------------- error texts


def raw(server: Server, model: str, header: bytes, body: bytes) -> tuple[int, bytes]:
    """The status and body of an HTTP request whose JSON need not be text."""
    url = urllib.parse.urlsplit(server.http_url)
    assert url.hostname is not None
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=60)
    try:
        headers = {"Inference-Header-Content-Length": str(len(header))}
        connection.request("POST", f"/v2/models/{model}/infer", header + body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def picture_request(data: bytes, request_id: bytes = b"one", parameters: bytes = b"") -> tuple[bytes, bytes]:
    element = struct.pack("<I", len(data)) + data
    image = b'{"name":"image","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":%d}}' % len(element)
    return b'{"id":"%s","parameters":{%s},"inputs":[%s]}' % (request_id, parameters, image), element


def frame_request(request_id: bytes = b"one", parameters: bytes = b"") -> tuple[bytes, bytes]:
    sequence = b'"sequence_id":9,"sequence_start":true,"sequence_end":true'
    frame = b'{"name":"frame","shape":[64,64,3],"datatype":"UINT8","parameters":{"binary_data_size":12288}}'
    return b'{"id":"%s","parameters":{%s%s},"inputs":[%s]}' % (request_id, sequence, parameters, frame), bytes(12288)


@pytest.mark.parametrize(
    ("request_id", "name", "value"),
    [(b"\xff\xfe", b"", b""), (b"one", b"subject", b"\xff"), (b"one", b"\xc3(", b"each"), (b"\x80", b"b", b"\xe9")],
)
def test_text_that_is_no_utf_8(slow: Server, samples: list[Path], request_id: bytes, name: bytes, value: bytes) -> None:
    given = b'"%s":"%s"' % (name, value) if name else b""
    for model, request in (
        ("ensemble_pipeline", picture_request(samples[0].read_bytes(), request_id, given)),
        ("stream_pipeline", frame_request(request_id, b"," + given if given else b"")),
    ):
        status, body = raw(slow, model, *request)
        assert status == 400, (model, body)
        assert b"INVALID_OPTION" in body
        assert not PATH.search(body.decode(errors="replace"))


@pytest.mark.parametrize(
    "request_",
    [
        picture_request(b"no picture"),
        picture_request(b"", parameters=b'"subject":"each"'),
        picture_request(b"x", parameters=b'"boxes":"[[[[[["'),
        picture_request(b"x", parameters=b'"background":"#\\u0000"'),
        picture_request(b"x", parameters=b'"select":"[\\"\\\\ud800\\"]"'),
        picture_request(b"x", parameters=b'"subject":{"a":1}'),
        picture_request(b"x", parameters=b'"timeout":"x"'),
        picture_request(b"x", parameters=b'"priority":99'),
        (picture_request(b"x")[0].replace(b"[1]", b"[2]"), picture_request(b"x")[1]),
        (picture_request(b"x")[0].replace(b"BYTES", b"UINT8"), picture_request(b"x")[1]),
        (picture_request(b"x")[0], b"\xff\xff\xff\x7fx"),
        frame_request(),
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["ensemble_pipeline", "stream_pipeline"])
def test_no_error_has_a_path_in_it(slow: Server, model: str, request_: tuple[bytes, bytes]) -> None:
    _, body = raw(slow, model, *request_)
    assert not PATH.search(body.decode(errors="replace")), body
    assert frame_of(slow, 12, sequence_start=True, sequence_end=True)["untouched"] is False
