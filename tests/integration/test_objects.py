"""Objects in whole pictures, with the bundled networks behind a real server: `all`, and `auto` where nobody is."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from runtime.health import HealthStatus, statistics
from tests.integration.kserve import Answer, asking

pytestmark = pytest.mark.triton

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "objects" / "train" / "coco"
"""Fourteen: animals, vehicles, food and furniture, with coarse masks."""
DRAWN_IOU, PHOTOGRAPHED_IOU = 0.9, 0.6
"""The network that knows people only reaches 0 and 0.26."""

Mask = NDArray[np.bool_]


def vase(width: int = 800, height: int = 600) -> tuple[Image.Image, Mask]:
    """A glazed vase on a table before a wall, lit from the left, and where it is."""
    x = np.linspace(0, 1, width)[None, :, None]
    y = np.linspace(0, 1, height)[:, None, None]
    ground = np.where(y < 0.7, np.array((206, 204, 198)) - 50 * x, np.array((150, 120, 92)) + 25 * y)
    scene = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    shadow = Image.new("L", scene.size)
    ImageDraw.Draw(shadow).ellipse([340, 478, 620, 530], fill=110)
    scene.paste((60, 45, 35), mask=shadow.filter(ImageFilter.GaussianBlur(12)))
    shape = Image.new("L", scene.size)
    pen = ImageDraw.Draw(shape)
    pen.ellipse([280, 250, 520, 510], fill=255)
    pen.polygon([(370, 120), (430, 120), (422, 200), (470, 290), (330, 290), (378, 200)], fill=255)
    pen.ellipse([352, 108, 448, 138], fill=255)
    pen.rectangle([345, 480, 455, 512], fill=255)
    round_ness = np.cos((np.linspace(0, width, width) - 375) / 170)[None, :, None].clip(0.15, 1)
    glaze = Image.fromarray((np.array((30, 92, 150)) * round_ness * np.ones((height, 1, 1))).astype(np.uint8))
    pen = ImageDraw.Draw(glaze)
    for top in (230, 330, 420):
        pen.rectangle([0, top, width, top + 16], fill=(214, 168, 60))
    scene.paste(glaze, mask=shape.filter(ImageFilter.GaussianBlur(0.8)))
    gleam = Image.new("L", scene.size)
    ImageDraw.Draw(gleam).ellipse([325, 300, 355, 380], fill=170)
    scene.paste((255, 255, 255), mask=gleam.filter(ImageFilter.GaussianBlur(7)))
    return scene, np.asarray(shape) >= 128


def cut(server: Any, image: Image.Image, subject: str) -> Answer:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    with asking(server, "http") as ask:
        answer = ask(file.getvalue(), {"subject": subject, "output": "mask"})
    assert answer.status == "", answer
    return answer


def mask_of(answer: Answer) -> Mask:
    return np.asarray(Image.open(io.BytesIO(answer.outputs["images"][0]))) >= 128


def iou(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / (first | second).sum())


@pytest.mark.parametrize("subject", ["all", "auto"])
def test_a_product_is_cut_out(server: Any, subject: str) -> None:
    scene, truth = vase()
    answer = cut(server, scene, subject)
    assert iou(mask_of(answer), truth) > DRAWN_IOU
    report = answer.outputs["report"]
    assert report["subject"] == "all"
    assert report["models"]["matte"] == {"name": "u2netp", "version": "1", "side_px": 288}


def test_people_keep_their_network(server: Any, samples: list[Path]) -> None:
    portrait = Image.open(next(path for path in samples if path.stem == "astronaut")).convert("RGB")
    people, everything = cut(server, portrait, "people"), cut(server, portrait, "all")
    for answer in (people, everything):
        assert answer.outputs["report"]["models"]["matte"]["name"] == "birefnet_trt"
    assert everything.outputs["report"]["subject"] == "all"
    assert iou(mask_of(people), mask_of(everything)) > 0.8


def test_the_canary_meets_every_network(server: Any) -> None:
    def counted() -> dict[str, int]:
        names = ("yolov8_seg", "birefnet_trt", "u2netp")
        return {name: int(statistics(server.probe, name)["inference_count"]) for name in names}

    before = counted()
    assert server.probe.canary(120.0).status is HealthStatus.HEALTHY
    ends = time.monotonic() + 10  # Triton counts a moment after it has answered.
    while (after := counted()) and any(after[name] == before[name] for name in before):
        assert time.monotonic() < ends, (before, after)
        time.sleep(0.1)


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="../shared/objects is not there")
def test_photographs_of_objects_are_cut_out(server: Any) -> None:
    found = []
    for path in sorted((PHOTOGRAPHS / "images").glob("*.jpg")):
        truth = np.asarray(Image.open(PHOTOGRAPHS / "masks" / f"{path.stem}.png").convert("L")) >= 128
        found.append(iou(mask_of(cut(server, Image.open(path).convert("RGB"), "all")), truth))
    assert np.mean(found) > PHOTOGRAPHED_IOU, found
