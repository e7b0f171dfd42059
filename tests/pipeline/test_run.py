"""The whole flow with exact stand-ins for the networks: what goes where, and that it can be put back."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import InvalidOption, NoPersonDetected, ProcessingTimeout
from cutaway.contract.limits import MODEL_MAX_BATCH
from cutaway.contract.options import parse_options
from numpy.typing import NDArray
from PIL import Image
from pipeline.report import STAGES
from pipeline.run import Answer, Models, run

from tests.integration import picture_files as make
from tests.pipeline import stand_ins
from tests.pipeline.stand_ins import COLOURS, draw, pixels_of

ROOT = Path(__file__).resolve().parents[2]
APART = [(120, 200, 60, 150), (330, 240, 50, 110), (520, 260, 30, 80)]
TOUCHING = [(200, 200, 70, 160), (320, 200, 70, 150)]
SIZE = (640, 400)


def cut(data: bytes, models: Models | None = None, **options: Any) -> Answer:
    return run(data, parse_options(options), models or stand_ins.models())


def scene(people: list[stand_ins.Ellipse] = APART) -> bytes:
    return stand_ins.picture(*SIZE, people)


def truth(people: list[stand_ins.Ellipse], number: int) -> NDArray[np.bool_]:
    """Where person `number` is seen."""
    return np.all(draw(*SIZE, people) == COLOURS[number], axis=2)


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


# ---------------------------------------------------------------------------------------------- people, each


def test_people_come_together_in_one_full_frame() -> None:
    answer = cut(scene())
    (image,) = map(pixels_of, answer.images)
    everybody = truth(APART, 0) | truth(APART, 1) | truth(APART, 2)
    assert image.shape == (400, 640, 4)
    assert iou(image[..., 3] >= 128, everybody) > 0.98
    assert np.array_equal(image[image[..., 3] == 255][:, :3], draw(*SIZE, APART)[image[..., 3] == 255])
    (cutout,) = answer.report["cutouts"]
    assert cutout["people"] == [0, 1, 2]
    assert cutout["frame"] == [0, 0, 640, 400]
    assert cutout["confidence"] == 0.4


def test_each_person_comes_alone_largest_first() -> None:
    answer = cut(scene(), subject="each", output="mask", padding_px=20)
    assert len(answer.images) == 3
    assert answer.boxes.shape == (3, 4)
    areas = (answer.boxes[:, 2] - answer.boxes[:, 0]) * (answer.boxes[:, 3] - answer.boxes[:, 1])
    assert (np.diff(areas) < 0).all()
    for number, (cutout, data) in enumerate(zip(answer.report["cutouts"], answer.images, strict=True)):
        x1, y1, x2, y2 = cutout["frame"]
        assert cutout["id"] == number
        assert cutout["bytes"] == len(data)
        assert cutout["size"] == [x2 - x1, y2 - y1]
        assert x1 == max(0, np.floor(answer.boxes[number, 0]) - 20)
        assert y2 == min(400, np.ceil(answer.boxes[number, 3]) + 20)
        assert iou(pixels_of(data) >= 128, truth(APART, number)[y1:y2, x1:x2]) > 0.97


def test_cutouts_put_back_at_their_frames_are_the_full_frame_alpha() -> None:
    """Of people who are apart, pixel by pixel."""
    together = pixels_of(cut(scene(), output="mask").images[0])
    answer = cut(scene(), subject="each", output="mask", padding_px=60)
    pasted = np.zeros_like(together)
    for cutout, data in zip(answer.report["cutouts"], answer.images, strict=True):
        x1, y1, x2, y2 = cutout["frame"]
        pasted[y1:y2, x1:x2] = np.maximum(pasted[y1:y2, x1:x2], pixels_of(data))
    assert np.array_equal(pasted, together)


def test_people_who_touch_come_apart() -> None:
    answer = cut(scene(TOUCHING), subject="each", output="mask")
    for cutout, data in zip(answer.report["cutouts"], answer.images, strict=True):
        alpha = np.zeros((400, 640), np.uint8)
        x1, y1, x2, y2 = cutout["frame"]
        alpha[y1:y2, x1:x2] = pixels_of(data)
        colour = draw(*SIZE, TOUCHING)[int(np.mean([y1, y2])), int(np.mean([x1, x2]))]
        mine = next(number for number in (0, 1) if tuple(colour) == COLOURS[number])
        assert iou(alpha >= 128, truth(TOUCHING, mine)) > 0.93
        assert (alpha[truth(TOUCHING, 1 - mine)] >= 128).mean() < 0.05


def test_people_who_were_not_selected_are_kept_out_also_where_they_touch() -> None:
    answer = cut(scene(TOUCHING), select=[0], output="mask")
    alpha = pixels_of(answer.images[0]) >= 128
    assert [person["id"] for person in answer.report["people"]] == [0]
    assert iou(alpha, truth(TOUCHING, 0)) > 0.93 or iou(alpha, truth(TOUCHING, 1)) > 0.93


def test_all_people_of_a_picture_go_in_one_batch() -> None:
    calls: list[int] = []

    def matter(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        calls.append(len(images))
        return stand_ins.matter(images)

    cut(scene(), Models(stand_ins.detector, matter, 96), subject="each")
    assert calls == [3]
    boxes = [[20 + 30 * n, 50, 45 + 30 * n, 90] for n in range(MODEL_MAX_BATCH + 3)]
    calls.clear()
    answer = cut(scene(), Models(stand_ins.detector, matter, 96), subject="each", boxes=boxes)
    assert calls == [MODEL_MAX_BATCH, 3]
    assert len(answer.images) == MODEL_MAX_BATCH + 3


# -------------------------------------------------------------------------------------- other ways of asking


def test_all_needs_no_detector() -> None:
    def detector(_: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        raise AssertionError

    answer = cut(scene(), Models(detector, stand_ins.matter, 96), subject="all", output="mask")
    assert answer.boxes.tolist() == [[0, 0, 640, 400]]
    assert answer.scores.tolist() == [1]
    assert answer.report["people"] == []
    everybody = truth(APART, 0) | truth(APART, 1) | truth(APART, 2)
    assert iou(pixels_of(answer.images[0]) >= 128, everybody) > 0.95


def test_detection_alone_mattes_nothing() -> None:
    def matter(_: NDArray[np.uint8]) -> NDArray[np.uint8]:
        raise AssertionError

    answer = run(scene(), parse_options({}), Models(stand_ins.detector, matter, 96), wants_images=False)
    assert answer.images == []
    assert answer.report["cutouts"] == []
    assert [person["id"] for person in answer.report["people"]] == [0, 1, 2]
    assert answer.scores == pytest.approx([0.9, 0.65, 0.4])


def test_nobody() -> None:
    empty = stand_ins.picture(640, 400, [])
    for subject in ("people", "each"):
        with pytest.raises(NoPersonDetected) as caught:
            cut(empty, subject=subject, min_confidence=0.4)
        assert caught.value.details["min_confidence"] == 0.4
        assert caught.value.details["tips"]
    answer = run(empty, parse_options({}), stand_ins.models(), wants_images=False)
    assert answer.boxes.shape == (0, 4)
    assert answer.scores.shape == (0,)


def test_given_boxes_cut_out_what_is_in_them_though_nobody_was_detected() -> None:
    answer = cut(scene(), boxes=[[270, 120, 390, 360]], min_confidence=0.95, output="mask")
    alpha = pixels_of(answer.images[0]) >= 128
    assert iou(alpha, truth(APART, 1)) > 0.95
    assert answer.scores.tolist() == [1]


def test_refused_options() -> None:
    with pytest.raises(InvalidOption):
        cut(scene(), select=[9])
    with pytest.raises(InvalidOption):
        cut(scene(), boxes=[[700, 10, 800, 90]])


# ------------------------------------------------------------------------------------ backgrounds and outputs


def test_solid_background() -> None:
    image = pixels_of(cut(scene(), background="#00FF00").images[0])
    assert image.shape == (400, 640, 3)
    assert image[5, 5].tolist() == [0, 255, 0]
    assert image[200, 120].tolist() == list(COLOURS[0])
    edge = np.abs(image.astype(int) - stand_ins.GREY).max(axis=2)
    assert edge.min() > 15  # the grey that was removed shows nowhere


def test_blurred_background_has_none_of_the_person() -> None:
    image = pixels_of(cut(scene(), background="blur:20").images[0])
    outside = ~(truth(APART, 0) | truth(APART, 1) | truth(APART, 2))
    assert image.shape == (400, 640, 3)
    assert np.abs(image[outside].astype(int) - stand_ins.GREY).mean() < 4
    assert image[200, 120].tolist() == list(COLOURS[0])


@pytest.mark.parametrize("blur_px", [1, 7, 100])
def test_blurred_backgrounds_of_parts_of_a_picture(blur_px: int) -> None:
    answer = cut(scene(), background=f"blur:{blur_px}", subject="each")
    assert [pixels_of(image).shape[2] for image in answer.images] == [3, 3, 3]


def test_webp_and_mask() -> None:
    assert Image.open(io.BytesIO(cut(scene(), output="webp").images[0])).mode == "RGBA"
    answer = cut(scene(), output="mask", background="#FF0000")
    assert Image.open(io.BytesIO(answer.images[0])).mode == "L"
    assert answer.report["cutouts"][0]["media_type"] == "image/png"


def test_feathering_softens_and_keeps_what_the_pictures_edge_cuts() -> None:
    people = [(320, 380, 120, 200)]
    sharp = pixels_of(cut(scene(people), output="mask").images[0]).astype(int)
    soft = pixels_of(cut(scene(people), output="mask", feather_px=20).images[0]).astype(int)
    assert ((soft > 10) & (soft < 245)).sum() > 3 * ((sharp > 10) & (sharp < 245)).sum()
    assert soft[399, 320] == 255


def test_cutting_a_cutout_again_changes_little() -> None:
    once = cut(scene()).images[0]
    twice = cut(once).images[0]
    first, second = pixels_of(once), pixels_of(twice)
    assert np.abs(first[..., 3].astype(int) - second[..., 3]).mean() < 0.5
    soft = second[..., 3] > 0
    assert np.abs(first[soft].astype(int) - second[soft])[:, :3].mean() < 0.5


def test_transparent_input_stays_transparent() -> None:
    rgba = np.dstack([draw(*SIZE, APART), np.full((400, 640), 255, np.uint8)])
    rgba[:, :120, 3] = 0
    rgba[:, 330:, 3] = 100
    alpha = pixels_of(cut(make.saved(Image.fromarray(rgba), "PNG"), output="mask").images[0])
    assert alpha[:, :120].max() == 0
    assert alpha[:, 330:].max() == 100


# --------------------------------------------------------------------------------------- report and patience


def test_report() -> None:
    stored = make.stored_for(6, Image.fromarray(draw(*SIZE, APART)))
    report = cut(make.saved(stored, "PNG", exif=make.exif(6))).report
    assert report["picture"] == {"width_px": 640, "height_px": 400, "format": "png", "orientation": 6}
    assert set(report["milliseconds"]) == {*STAGES, "total"}
    assert sum(report["milliseconds"][stage] for stage in STAGES) <= report["milliseconds"]["total"] + 0.1
    assert report["models"] == {"profile": "stand-in"}
    assert [warning["code"] for warning in report["warnings"]] == ["LOW_CONFIDENCE"]
    assert report["warnings"][0]["details"]["ids"] == [2]


def test_an_empty_cutout_is_said() -> None:
    answer = cut(stand_ins.picture(640, 400, []), subject="all")
    assert [warning["code"] for warning in answer.report["warnings"]] == ["EMPTY_CUTOUT"]
    assert pixels_of(answer.images[0])[..., 3].max() == 0


def test_it_can_be_given_up_between_stages() -> None:
    calls = []

    def proceed() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise ProcessingTimeout("late")

    with pytest.raises(ProcessingTimeout):
        run(scene(), parse_options({}), stand_ins.models(), proceed=proceed)


# -------------------------------------------------------------------------------------------- memory and size


@pytest.mark.parametrize("size", [(64, 64), (64, 4000), (4000, 64), (333, 501)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    width, height = size
    people = [(width // 2, height // 2, max(20, width // 4), max(20, height // 4))]
    image = pixels_of(cut(stand_ins.picture(width, height, people)).images[0])
    assert image.shape == (height, width, 4)


MEASURE = """
import resource, sys
from cutaway.contract.options import parse_options
from pipeline.run import run
from tests.pipeline import stand_ins
data = open(sys.argv[1], "rb").read()
run(stand_ins.picture(640, 400, [(320, 200, 60, 150)]), parse_options({}), stand_ins.models())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(data, parse_options({"background": sys.argv[2], "feather_px": "9"}), stand_ins.models())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("background", ["transparent", "blur:30"])
def test_memory_is_bounded_at_the_largest_picture(background: str, tmp_path: Path) -> None:
    """33 megapixels of 7680×4320 are 95 MiB as RGB; six times that has to do."""
    import cv2

    width, height = 7680, 4320
    pixels = draw(width, height, [(width // 2, height // 2, width // 3, height // 2 - 50)])
    path = tmp_path / "large.jpg"
    path.write_bytes(cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes())
    folders = [ROOT, ROOT / "client", ROOT / "model_repository" / "ensemble_pipeline" / "1"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), background],
        env={"PYTHONPATH": ":".join(map(str, folders))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 6 * width * height * 3 / 2**20


# ------------------------------------------------------------------------------------------ what comes back


def test_auto_takes_people_where_there_are_some_and_else_all() -> None:
    answer = cut(scene(), subject="auto")
    assert (answer.report["subject"], len(answer.report["people"])) == ("people", 3)
    answer = cut(stand_ins.picture(640, 400, []), subject="auto", output="mask")
    assert (answer.report["subject"], answer.report["people"]) == ("all", [])
    assert answer.report["cutouts"][0]["frame"] == [0, 0, 640, 400]


def test_whole_pictures_go_through_a_network_of_their_own_where_there_is_one() -> None:
    def never(_: NDArray[np.uint8]) -> NDArray[np.uint8]:
        raise AssertionError

    own = stand_ins.models(32)
    models = replace(own, matter=never, whole=replace(own, description={"profile": "stand-in", "matte": "another"}))
    small = [(600, 60, 12, 30)]
    for people, subject in ((small, "all"), ([], "all"), ([], "auto")):
        report = cut(scene(people), models, subject=subject).report
        assert (report["subject"], report["people"]) == ("all", [])
        assert report["models"]["matte"] == "another"
    people_only = replace(own, whole=replace(own, matter=never))
    for subject in ("people", "each", "auto", "all"):
        assert "matte" not in cut(scene(), people_only, subject=subject).report["models"]


def test_cropping_keeps_what_is_there_and_a_margin() -> None:
    alpha = stand_ins.pixels_of(cut(scene(), output="mask").images[0])
    rows, columns = np.nonzero(alpha >= 13)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    plain = cut(scene(), output="mask", crop=True)
    assert plain.report["cutouts"][0]["frame"] == box
    x1, y1, x2, y2 = box
    assert np.array_equal(stand_ins.pixels_of(plain.images[0]), alpha[y1:y2, x1:x2])
    for wanted, margin in (({"crop_margin_px": 7}, 7), ({"crop_margin_percent": 10}, round((x2 - x1) / 10))):
        frame = cut(scene(), output="mask", crop=True, **wanted).report["cutouts"][0]["frame"]
        assert frame == [max(0, x1 - margin), max(0, y1 - margin), min(640, x2 + margin), min(400, y2 + margin)]


def test_answers_are_scaled_down_and_never_up() -> None:
    answer = cut(scene(), max_side_px=160)
    image = Image.open(io.BytesIO(answer.images[0]))
    assert image.size == (160, 100)
    assert answer.report["cutouts"][0]["size"] == [160, 100]
    assert answer.report["cutouts"][0]["frame"] == [0, 0, 640, 400]
    large = Image.open(io.BytesIO(cut(scene()).images[0]))
    alpha = np.asarray(large.getchannel("A").resize((160, 100), Image.Resampling.BOX), int)
    assert np.abs(np.asarray(image.getchannel("A"), int) - alpha).max() <= 2
    assert Image.open(io.BytesIO(cut(scene(), max_side_px=5000).images[0])).size == (640, 400)


def test_scaling_keeps_edges_clean() -> None:
    """Half transparent red on transparent blue: the mean of colours would be violet."""
    from pipeline.pixels import Pixels
    from pipeline.shape import scaled

    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 2] = 255
    pixels[:, 1::2] = (255, 0, 0, 128)
    small = scaled(Pixels.of(pixels), 16).array()
    assert np.abs(small[..., :3].astype(int) - (255, 0, 0)).max() <= 3
    assert np.abs(small[..., 3].astype(int) - 64).max() <= 1


def test_jpeg_needs_a_background() -> None:
    answer = cut(scene(), output="jpeg", background="#102030", quality=95)
    image = Image.open(io.BytesIO(answer.images[0]))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (640, 400))
    assert np.abs(np.asarray(image)[2, 2].astype(int) - (0x10, 0x20, 0x30)).max() <= 2
    assert answer.report["cutouts"][0]["media_type"] == "image/jpeg"
    with pytest.raises(InvalidOption):
        cut(scene(), output="jpeg")


def test_the_report_says_what_each_person_took_and_what_ran() -> None:
    report = cut(scene(), subject="each").report
    assert report["tensorrt"] is False
    spent_ms = report["milliseconds"]
    stages = sum(spent_ms[name] for name in ("matte", "refine", "encode"))
    assert all(person["milliseconds"] > 0 for person in report["people"])
    assert sum(person["milliseconds"] for person in report["people"]) >= stages - 1
    assert sum(person["milliseconds"] for person in report["people"]) <= spent_ms["total"]
