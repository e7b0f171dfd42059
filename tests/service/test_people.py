"""``/api/person-detection`` and ``/api/background``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.service.services import Running, data_uri, encoded, opened

CHOSEN = "/api/background/remove-selected-persons"


def detected(service: Running, path: Path, **fields: str) -> dict[str, Any]:
    files = {"image": (path.name, path.read_bytes(), "image/jpeg")}
    answer = service.post("/api/person-detection/detect", files=files, data=fields)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_people_are_found_and_the_picture_is_kept(service: Running, samples: list[Path]) -> None:
    found = detected(service, samples[0])
    (person,) = found["persons"]
    with Image.open(samples[0]) as sent:
        assert (found["width"], found["height"]) == sent.size
        assert 0 <= person["bbox"]["x1"] < person["bbox"]["x2"] <= sent.width
    assert person["confidence"] > 0.35
    assert person["outline"] is None
    assert service.get(f"/api/images/{found['image_id']}").content == samples[0].read_bytes()


def test_outlines_lie_around_people(service: Running, samples: list[Path]) -> None:
    (person,) = detected(service, samples[0], outlines="true")["persons"]
    box, outline = person["bbox"], person["outline"]
    assert 8 < len(outline) < 400
    xs, ys = [x for x, _ in outline], [y for _, y in outline]
    assert abs(min(ys) - box["y1"]) < 40
    assert max(xs) - min(xs) > 0.6 * (box["x2"] - box["x1"])


def test_chosen_people_are_cut_out_with_the_callers_own_ids(service: Running, samples: list[Path]) -> None:
    found = detected(service, samples[0])
    person = found["persons"][0] | {"person_id": "grace"}
    chosen = {"image_id": found["image_id"], "selected_person_ids": ["grace"], "persons": [person]}
    data = service.post(CHOSEN, json=chosen).json()["data"]
    (processed,) = data["processed_persons"]
    assert processed["person_id"] == "grace"
    assert processed["error"] is None
    cutout = service.get(processed["processed_image_url"])
    assert cutout.headers["content-type"] == "image/png"
    assert opened(cutout.content).size == tuple(processed["dimensions"][side] for side in ("width", "height"))
    assert processed["file_size_bytes"] == len(cutout.content)
    assert data["metadata"]["device"] == "cpu"
    assert data["total_processing_time_ms"] >= processed["processing_time_ms"]


def test_a_data_uri_does_as_well(service: Running, samples: list[Path]) -> None:
    found = detected(service, samples[0])
    chosen = {
        "image_url": data_uri(samples[0].read_bytes()),
        "selected_person_ids": [0],
        "persons": found["persons"],
        "options": {"output_format": "webp", "feather_edges": False, "padding": 0},
    }
    (processed,) = service.post(CHOSEN, json=chosen).json()["data"]["processed_persons"]
    assert opened(service.get(processed["processed_image_url"]).content).format == "WEBP"


def test_one_persons_failure_leaves_the_others(service: Running, samples: list[Path]) -> None:
    found = detected(service, samples[0])
    outside = {"person_id": 7, "bbox": {"x1": 90_000, "y1": 90_000, "x2": 90_100, "y2": 90_100}}
    chosen = {"image_id": found["image_id"], "selected_person_ids": [7, 0], "persons": [*found["persons"], outside]}
    first, second = service.post(CHOSEN, json=chosen).json()["data"]["processed_persons"]
    assert first["person_id"] == 7
    assert first["error"]["code"] == "INVALID_OPTION"
    assert second["person_id"] == 0
    assert second["error"] is None


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"image_id": "u" + "x" * 32, "selected_person_ids": [0]}, 404),
        ({"image_id": "../../etc/passwd", "selected_person_ids": [0]}, 404),
        ({"selected_person_ids": [0]}, 400),
        ({"image_url": "data:image/png;base64,!!", "selected_person_ids": [0]}, 400),
        ({"image_url": "https://example.com/a.png", "selected_person_ids": [0]}, 400),
        ({"image_id": "u" + "x" * 32, "selected_person_ids": [1]}, 404),
        ({"image_id": "u" + "x" * 32, "selected_person_ids": []}, 400),
    ],
)
def test_bad_selections_are_refused_in_this_paths_form(service: Running, given: dict[str, Any], status: int) -> None:
    box = {"x1": 0, "y1": 0, "x2": 10, "y2": 10}
    answer = service.post(CHOSEN, json={"persons": [{"person_id": 0, "bbox": box}]} | given)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert answer.json()["success"] is False
    assert set(error) == {"code", "message", "tier", "user_action", "retry_after", "details"}


def test_a_white_picture_has_nobody(service: Running) -> None:
    files = {"image": ("w.jpg", encoded(Image.new("RGB", (640, 480), "white")), "image/jpeg")}
    answer = service.post("/api/person-detection/detect", files=files, data={"outlines": "true"})
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert error["message"] == "No persons detected in the uploaded image"
    assert error["details"]["tips"]


def test_a_stored_picture_is_deleted_on_demand(service: Running, samples: list[Path]) -> None:
    path = f"/api/images/{detected(service, samples[0])['image_id']}"
    assert service.get(path).status_code == 200
    import httpx

    assert httpx.delete(service.url + path).status_code == 204
    assert service.get(path).status_code == 404
    assert httpx.delete(service.url + path).status_code == 404
