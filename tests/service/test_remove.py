"""``/api/background-removal``: the specification's own tests, and batches."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.service.services import Running, encoded, opened

FORM = re.compile(r'attachment; filename="photo_nobg_[0-9]{8}_[0-9]{6}\.png"')


def test_a_jpeg_comes_back_as_a_png_of_its_size_with_both_kinds_of_pixels(
    service: Running, samples: list[Path]
) -> None:
    data = samples[0].read_bytes()
    answer = service.remove(data)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert FORM.fullmatch(answer.headers["content-disposition"])
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert float(answer.headers["x-processing-time-ms"]) > 0
    with Image.open(samples[0]) as sent:
        assert answer.headers["x-original-size"] == f"{sent.width}x{sent.height}"
        cutout = opened(answer.content)
        assert (cutout.mode, cutout.size) == ("RGBA", sent.size)
    assert answer.headers["x-model-version"].startswith("nano")
    alpha = np.asarray(cutout.getchannel("A"))
    assert alpha.min() == 0
    assert alpha.max() == 255


def test_red_640x480_keeps_its_size(service: Running) -> None:
    answer = service.remove(encoded(Image.new("RGB", (640, 480), "red")))
    assert opened(answer.content).size == (640, 480)


def test_smoothing_changes_the_edge(service: Running, samples: list[Path]) -> None:
    data = samples[0].read_bytes()
    soft, hard = (opened(service.remove(data, data={"smoothing": value}).content) for value in ("true", "false"))
    assert np.abs(np.asarray(soft, int)[..., 3] - np.asarray(hard, int)[..., 3]).max() > 8


def test_base64_has_the_picture_and_what_was_done(service: Running, samples: list[Path]) -> None:
    found = service.remove(samples[0].read_bytes(), data={"return_base64": "true"}).json()
    assert found["success"] is True
    assert found["processed_image"].startswith("data:image/png;base64,")
    info = found["processing_info"]
    with Image.open(samples[0]) as sent:
        assert info["original_size"] == info["output_size"] == f"{sent.width}x{sent.height}"
    assert info["background_removed"] is info["edge_smoothing_applied"] is True
    assert info["tensorrt_enabled"] is False
    assert info["processing_time_ms"] > 0
    assert info["model_version"]


def test_options_of_the_contract_are_form_fields(service: Running, samples: list[Path]) -> None:
    given = {"subject": "people", "background": "#00FF00", "output": "jpeg", "max_side_px": "200"}
    answer = service.remove(samples[0].read_bytes(), data=given)
    picture = opened(answer.content)
    assert (answer.headers["content-type"], picture.format, max(picture.size)) == ("image/jpeg", "JPEG", 200)
    assert answer.headers["x-people"] == "1"
    red, green, blue = picture.getpixel((2, 2))  # type: ignore[misc]
    assert green > 200 > red
    assert blue < 60


BAD: list[tuple[str, bytes, int, str, str]] = [
    ("a PDF", b"%PDF-1.7 and so on", 400, "INVALID_FORMAT", "Unsupported file format"),
    ("11 MB", b"\xff\xd8" + bytes(11 * 1024 * 1024), 413, "FILE_TOO_LARGE", "10MB"),
    ("8000×5000", encoded(Image.new("RGB", (8000, 5000))), 400, "", "8K"),
    ("32×32", encoded(Image.new("RGB", (32, 32))), 400, "RESOLUTION_TOO_SMALL", "64"),
    ("white 10000×10000", encoded(Image.new("RGB", (10_000, 10_000), "white")), 400, "", "bomb"),
    ("a cut JPEG", encoded(Image.effect_noise((640, 480), 90))[:4000], 400, "CORRUPT_IMAGE", ""),
    ("nothing", b"", 400, "INVALID_FORMAT", ""),
]


@pytest.mark.parametrize(("data", "status", "code", "word"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_bad_pictures_are_refused_in_the_specifications_form(
    service: Running, data: bytes, status: int, code: str, word: str
) -> None:
    answer = service.remove(data)
    form = answer.json()
    assert answer.status_code == status
    assert word.lower() in form["detail"].lower()
    assert form["error_code"] == code or not code
    assert "/" not in form["detail"].replace("image/", "")


def test_details_have_the_specifications_names(service: Running) -> None:
    form = service.remove(b"%PDF-1.7").json()
    assert {"JPEG", "PNG"} < set(form["supported_formats"])
    assert form["received_format"]
    form = service.remove(bytes(11 * 1024 * 1024)).json()
    assert form["max_size_mb"] == 10
    assert form["file_size_mb"] > 10.9


def test_nobody_in_a_white_picture(service: Running) -> None:
    answer = service.remove(encoded(Image.new("RGB", (640, 480), "white")), data={"subject": "people"})
    assert answer.status_code == 422
    assert "No persons detected" in answer.json()["detail"]
    assert answer.json()["error_code"] == "NO_PERSON_DETECTED"


@pytest.mark.parametrize("option", [{"subject": "everyone"}, {"feather_px": "1000"}, {"select": "[1"}])
def test_wrong_options_are_named(service: Running, samples: list[Path], option: dict[str, str]) -> None:
    answer = service.remove(samples[0].read_bytes(), data=option)
    assert answer.status_code == 400
    assert answer.json()["error_code"] == "INVALID_OPTION"
    assert next(iter(option)) in answer.json()["detail"]


def test_a_missing_picture_is_named(service: Running) -> None:
    answer = service.post("/api/background-removal/remove", data={"smoothing": "true"})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_OPTION")
    assert "image" in answer.json()["detail"]


def test_a_body_that_only_says_how_long_it_is_is_refused_before_it_comes(service: Running) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        head = "POST /api/background-removal/remove HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(200)


def test_health_says_what_runs(service: Running, samples: list[Path]) -> None:
    service.remove(samples[0].read_bytes())
    found = service.get("/api/background-removal/health").json()
    assert found["status"] == "healthy"
    assert found["service"] == "BiRefNet Background Removal"
    assert found["device"] == "cpu"
    assert found["tensorrt_enabled"] is False
    assert set(found["model_files_status"]) == {"checkpoint", "config", "tensorrt_engine"}
    figures = found["performance_metrics"]
    assert figures["avg_latency_ms"] > 0
    assert figures["p95_latency_ms"] <= figures["p99_latency_ms"]
    assert figures["requests_last_hour"] >= 1


def test_a_batch_answers_line_by_line_and_one_failure_leaves_the_others(service: Running, samples: list[Path]) -> None:
    files = [("images", (path.name, path.read_bytes(), "image/jpeg")) for path in samples]
    files.insert(1, ("images", ("broken.jpg", b"no picture", "image/jpeg")))
    files.append(("images", ("empty.jpg", b"", "image/jpeg")))
    answer = service.post("/api/background-removal/remove-batch", files=files)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines: dict[int, Any] = {entry["index"]: entry for entry in map(json.loads, answer.text.splitlines())}
    assert len(lines) == len(files)
    assert lines.pop(1)["error"]["error_code"] == lines.pop(len(files) - 1)["error"]["error_code"] == "INVALID_FORMAT"
    assert all(entry["success"] and entry["processed_image"].startswith("data:image/png") for entry in lines.values())


def test_too_many_pictures_at_once_are_refused(service: Running, samples: list[Path]) -> None:
    files = [("images", ("a.jpg", samples[0].read_bytes()[:100], "image/jpeg"))] * 21
    assert service.post("/api/background-removal/remove-batch", files=files).status_code == 400


def test_unknown_paths_and_methods_have_the_form_of_their_dialect(service: Running) -> None:
    assert service.get("/api/background-removal/nothing").json()["error_code"] == "NOT_FOUND"
    assert service.get("/api/nothing").json()["error"]["code"] == "NOT_FOUND"
    assert service.get("/v1.0/nothing").json()["errors"][0]["title"]
    assert service.get("/api/background-removal/remove").status_code == 405
