"""The contract over the wire, as callers without the SDK meet it, and the SDK's promise about threads.

1. The pipeline declares one input and four outputs, as documented.
2. curl's raw upload, tritonclient over HTTP and over gRPC get the same answer.
3. Options travel as request parameters, in every type that KServe has; a bad one is an error form that names it.
4. Who asks for boxes, scores and report only pays for no matte.
5. What is no well-formed request is refused and harms nobody.
6. Answers to pictures sent at once through one client never cross.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from cutaway import Client, CutResult
from cutaway.contract.limits import OPTIONS
from tritonclient.utils import InferenceServerException

from tests.integration import picture_files as make
from tests.integration.hostile import AS_IT_IS
from tests.integration.kserve import ALL_OUTPUTS, PIPELINE, PROTOCOLS, REFUSED, Ask, asking, runs_of

pytestmark = pytest.mark.triton

DETECTION = ("boxes", "scores", "report")
DETECTIONS_ASKED = 10
CANARIES = 3
"""The runtime sends pictures of its own when it sees nothing else to do: so many may come in between."""


@pytest.fixture(scope="module", params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ask(server: Any, protocol: str) -> Iterator[Ask]:
    with asking(server, protocol) as ask:
        yield ask


@pytest.fixture(scope="module")
def photo(samples: list[Path]) -> Path:
    return next(sample for sample in samples if sample.stem == "astronaut")


def test_declares_what_is_documented(server: Any) -> None:
    with tritonclient.http.InferenceServerClient(server.http_address) as client:
        told = client.get_model_metadata(PIPELINE)
    assert told["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [1]}]
    outputs = {output["name"]: (output["datatype"], output["shape"]) for output in told["outputs"]}
    assert outputs == {
        "images": ("BYTES", [-1]),
        "boxes": ("FP32", [-1, 4]),
        "scores": ("FP32", [-1]),
        "report": ("BYTES", [1]),
    }


# ------------------------------------------------------------------------------------------------ raw uploads


def _raw_answer(header_length: str, body: bytes) -> dict[str, Any]:
    """Outputs of a binary KServe answer, read by hand: the JSON, then each output's bytes."""
    length = int(header_length)
    outputs, position = {}, length
    for output in json.loads(body[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = body[position : position + size]
        position += size
    assert position == len(body)
    return outputs


def _assert_photo_cut(outputs: dict[str, Any]) -> None:
    assert set(outputs) == set(ALL_OUTPUTS)
    (length,) = struct.unpack_from("<I", outputs["images"])
    assert length == len(outputs["images"]) - 4
    assert outputs["images"][4:].startswith(make.PNG_SIGNATURE)
    report = json.loads(outputs["report"][4:])
    assert report["cutouts"][0]["bytes"] == length
    assert len(outputs["boxes"]) == 16 * len(report["people"])
    assert len(outputs["scores"]) == 4 * len(report["people"])


def test_raw_upload(server: Any, photo: Path) -> None:
    response = httpx.post(
        f"{server.http_url}/v2/models/{PIPELINE}/infer",
        content=photo.read_bytes(),
        headers={"Inference-Header-Content-Length": "0", "Accept-Encoding": "identity"},
        timeout=30,
    )
    assert response.status_code == 200
    _assert_photo_cut(_raw_answer(response.headers["Inference-Header-Content-Length"], response.content))


def test_raw_upload_of_a_bad_picture(server: Any) -> None:
    response = httpx.post(
        f"{server.http_url}/v2/models/{PIPELINE}/infer",
        content=b"%PDF-1.7 not a picture",
        headers={"Inference-Header-Content-Length": "0"},
        timeout=30,
    )
    assert response.status_code == 400
    form = json.loads(response.json()["error"])
    assert form["code"] == "INVALID_FORMAT"
    assert form["details"]["received"] == "a PDF"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: Any, photo: Path, tmp_path: Path) -> None:
    address = f"{server.http_url}/v2/models/{PIPELINE}/infer"
    upload = ["--data-binary", f"@{photo}", "-H", "Inference-Header-Content-Length: 0"]
    keep = ["--output", "answer.bin", "--dump-header", "headers.txt"]
    subprocess.run(["curl", "-sS", "--fail", *upload, *keep, address], cwd=tmp_path, check=True, timeout=60)
    headers = (tmp_path / "headers.txt").read_text().lower().splitlines()
    (length,) = (line.split(":")[1] for line in headers if line.startswith("inference-header-content-length"))
    _assert_photo_cut(_raw_answer(length.strip(), (tmp_path / "answer.bin").read_bytes()))


# ------------------------------------------------------------------------------------------- plain KServe clients


def test_both_protocols_answer_alike(server: Any, photo: Path) -> None:
    data = photo.read_bytes()
    answers = []
    for protocol in PROTOCOLS:
        with asking(server, protocol) as ask:
            answers.append(ask(data, {"output": "mask", "feather_px": 2}).outputs)
    first, second = answers
    assert first["images"].tolist() == second["images"].tolist()
    np.testing.assert_array_equal(first["boxes"], second["boxes"])
    np.testing.assert_array_equal(first["scores"], second["scores"])
    for one, other in zip(first["report"]["cutouts"], second["report"]["cutouts"], strict=True):
        assert one | {"milliseconds": 0} == other | {"milliseconds": 0}


def test_options_in_every_type(ask: Ask, photo: Path) -> None:
    """Text, whole number, truth, and lists as JSON; numbers as text too, since not every client has types."""
    boxes = [[10, 10, 300, 500], [250.5, 20, 500, 500]]
    parameters = {
        "subject": "each",
        "boxes": json.dumps(boxes),
        "min_confidence": "0.3",
        "padding_px": 0,
        "feather_px": "1",
        "background": "#00FF00",
        "decontaminate": False,
        "output": "webp",
        "max_people": 2,
    }
    answer = ask(photo.read_bytes(), parameters)
    assert answer.status == "", answer
    assert len(answer.outputs["images"]) == 2
    assert sorted(answer.outputs["boxes"].tolist()) == sorted(boxes)
    for image in answer.outputs["images"]:
        assert image[8:12] == b"WEBP"
    for entry in answer.outputs["report"]["cutouts"]:
        x1, y1, x2, y2 = entry["frame"]
        assert entry["size"] == [x2 - x1, y2 - y1]
        assert 0 <= x1 < x2 <= 512
        assert 0 <= y1 < y2 <= 512


BAD_VALUES = {
    "subject": "everybody",
    "select": "[-1]",
    "boxes": "[[5, 5, 1, 1]]",
    "min_confidence": "0.96",
    "padding_px": 501,
    "feather_px": -1,
    "background": "green",
    "decontaminate": "perhaps",
    "output": "gif",
    "quality": 101,
    "max_people": 0,
    "crop": "perhaps",
    "crop_margin_px": -1,
    "crop_margin_percent": "101",
    "max_side_px": 15,
}


def test_a_bad_value_is_known_for_every_option() -> None:
    assert set(BAD_VALUES) == set(OPTIONS)


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_option_is_named(name: str, ask: Ask, protocol: str, photo: Path) -> None:
    answer = ask(photo.read_bytes(), {name: BAD_VALUES[name]})
    assert answer.status == REFUSED[protocol]
    assert answer.code == "INVALID_OPTION"
    assert answer.error["details"]["name"] == name
    assert answer.error["details"]["value"] == str(BAD_VALUES[name])
    assert answer.error["details"]["allowed"] == OPTIONS[name].allowed


def test_unknown_option_is_named(ask: Ask, protocol: str, photo: Path) -> None:
    answer = ask(photo.read_bytes(), {"fether_px": 3})
    assert answer.status == REFUSED[protocol]
    assert answer.code == "INVALID_OPTION"
    assert answer.error["details"]["name"] == "fether_px"
    assert "feather_px" in answer.error["details"]["allowed"]


def test_detection_pays_for_no_matte(server: Any, ask: Ask, photo: Path) -> None:
    data = photo.read_bytes()
    mattes, detections = runs_of(server, "birefnet_trt"), runs_of(server, "yolov8_seg")
    for _ in range(DETECTIONS_ASKED):
        answer = ask(data, outputs=DETECTION)
        assert answer.status == "", answer
    assert runs_of(server, "yolov8_seg") - detections >= DETECTIONS_ASKED
    assert runs_of(server, "birefnet_trt") - mattes <= CANARIES
    assert len(answer.outputs["boxes"]) == len(answer.outputs["scores"]) >= 1
    report = answer.outputs["report"]
    assert report["cutouts"] == []
    assert report["milliseconds"]["matte"] == report["milliseconds"]["encode"] == 0


def test_nobody_is_an_answer_to_a_detection(ask: Ask) -> None:
    answer = ask(make.jpeg(), outputs=DETECTION)
    assert answer.outputs["boxes"].shape == (0, 4)
    assert answer.outputs["scores"].shape == (0,)
    assert answer.outputs["report"]["people"] == []


# ------------------------------------------------------------------------------------------- ill-formed requests


@pytest.mark.parametrize("shape", [[2], [0], [1, 1], []], ids=str)
def test_other_shapes_are_refused(shape: list[int], server: Any, protocol: str, ask: Ask, photo: Path) -> None:
    library = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    address = server.grpc_address if protocol == "grpc" else server.http_address
    image = library.InferInput("image", shape, "BYTES")
    elements = [photo.read_bytes()] * int(np.prod(shape))
    image.set_data_from_numpy(np.array(elements, np.object_).reshape(shape))
    with (
        library.InferenceServerClient(address) as client,
        pytest.raises(InferenceServerException) as refusal,
    ):
        client.infer(PIPELINE, [image])
    assert refusal.value.status() == REFUSED[protocol]
    assert ask(photo.read_bytes(), outputs=DETECTION).status == ""


ILL_FORMED = {
    "nothing": b"",
    "cut_off": b"{",
    "no_object": b"[]",
    "no_input": b'{"inputs": []}',
    "other_name": b'{"inputs": [{"name": "picture", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}',
    "other_type": b'{"inputs": [{"name": "image", "shape": [1], "datatype": "INT32", "data": [7]}]}',
    "other_output": b'{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["x"]}], '
    b'"outputs": [{"name": "alpha"}]}',
    "missing_bytes": b'{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", '
    b'"parameters": {"binary_data_size": 99}}]}',
}


@pytest.mark.parametrize("kind", ILL_FORMED)
def test_ill_formed_json_is_refused(kind: str, server: Any) -> None:
    address = f"{server.http_url}/v2/models/{PIPELINE}/infer"
    response = httpx.post(address, content=ILL_FORMED[kind], timeout=30)
    assert response.status_code in (400, 500)  # 500 is what Triton has for JSON that it cannot parse
    assert response.json()["error"]


def test_a_good_request_follows(ask: Ask, photo: Path) -> None:
    assert ask(photo.read_bytes(), outputs=DETECTION).status == ""


# -------------------------------------------------------------------------------------------------- many at once


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers_never_cross(protocol: str, server: Any) -> None:
    """Sixteen threads on one client; every picture has its own size and colour, and gets its own result."""
    colours = np.random.default_rng(7).integers(0, 256, (48, 3), np.uint8)

    def cut(index: int) -> tuple[int, CutResult]:
        pixels = np.broadcast_to(colours[index], (64 + index, 160 - index, 3))
        return index, client.cut(pixels, request_id=f"picture-{index}", **AS_IT_IS)

    with (
        Client(server.http_url if protocol == "http" else server.grpc_url) as client,
        ThreadPoolExecutor(16) as threads,
    ):
        for index, result in threads.map(cut, range(len(colours))):
            assert result.request_id == f"picture-{index}"
            assert (result.report.width_px, result.report.height_px) == (160 - index, 64 + index)
            pixels = result.cutouts[0].numpy()
            assert pixels.shape[:2] == (64 + index, 160 - index)
            assert np.abs(pixels[..., :3].astype(int) - colours[index]).max() <= 2
