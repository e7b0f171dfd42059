"""Results: what a server says is believed only where it fits together, and cut-outs come out in every form."""

from __future__ import annotations

import copy
import io
import resource
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import InferenceError
from cutaway.contract.headers import PictureHeader
from cutaway.contract.limits import Tier
from cutaway.report import parse_report
from cutaway.result import CutResult, Origin, read_cut, read_detection
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.client import peers
from tests.client.answers import MASK, PNG, REPORT, WEBP, outputs, wire_outputs
from tests.client.driving import DRIVERS, driven
from tests.integration import picture_files as make

JPEG = make.jpeg(make.picture(90, 60))


def cut(**changes: Any) -> CutResult:
    return read_cut(outputs(**changes), Origin("triton", "r1", 12.5))


def changed(*path: Any, to: Any) -> dict[str, Any]:
    """The report with one value changed, or removed where `to` is Ellipsis."""
    report = copy.deepcopy(REPORT)
    place: Any = report
    for step in path[:-1]:
        place = place[step]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return report


def only_one(image: bytes = PNG, **entry: Any) -> CutResult:
    report = changed("cutouts", to=[REPORT["cutouts"][0] | {"bytes": len(image)} | entry])
    return cut(report=report, images=[image])


# --------------------------------------------------------------------------------------------------------- reading


def test_everything_is_told() -> None:
    result = cut()
    assert result.provider == "triton"
    assert result.request_id == "r1"
    assert result.elapsed_ms == 12.5
    assert result.images == [PNG, PNG]
    assert len(result) == 2
    assert [cutout.id for cutout in result.cutouts] == [0, 2]
    assert result.cutouts[1].people == (2,)
    assert result.cutouts[0].frame == (5, 10, 95, 70)
    assert result.cutouts[0].box == (1.5, 2, 90, 70)
    assert result.timings_ms == {"decode": 1.25, "total": 100.0}
    report = result.report
    assert (report.width_px, report.height_px, report.orientation) == (100, 80, 6)
    assert [person.score for person in report.people] == [0.9, 0.4]
    assert (report.profile, report.device) == ("nano", "cpu")
    (warning,) = result.warnings
    assert (warning.code, warning.tier, warning.details) == ("LOW_CONFIDENCE", Tier.MEDIUM, {"ids": [2]})


def test_what_newer_servers_tell_may_be_missing() -> None:
    told, report = cut(report=NEWER).report, cut().report
    assert (told.subject, told.tensorrt) == ("all", True)
    assert (report.subject, report.tensorrt) == ("people", False)
    for one, other in ((told.people[0], report.people[0]), (told.cutouts[0], report.cutouts[0])):
        assert (one.milliseconds, other.milliseconds) == (7.5, None)
    unsized = changed("cutouts", 0, "size", to=...)
    assert cut(report=unsized).cutouts == cut().cutouts


def test_a_detection_has_no_cutouts() -> None:
    report = changed("cutouts", to=[])
    found = read_detection(outputs(report=report), Origin("triton", "", 1))
    assert len(found) == 2
    assert found.boxes.shape == (2, 4)
    assert found.report.cutouts == ()


@pytest.mark.parametrize("part", ["device", "models", "milliseconds", "warnings"])
@pytest.mark.parametrize("to", [..., None, 7, "text", [3], {"x": None}])
def test_what_no_result_depends_on_may_be_anything(part: str, to: Any) -> None:
    assert len(cut(report=changed(part, to=to))) == 2


NEWER = changed("subject", to="all") | {"tensorrt": True}
for entry in (NEWER["people"][0], NEWER["cutouts"][0]):
    entry["milliseconds"] = 7.5

BROKEN_REPORTS = {
    "no_picture": changed("picture", to=...),
    "picture_is_a_list": changed("picture", to=[100, 80]),
    "width_0": changed("picture", "width_px", to=0),
    "width_is_text": changed("picture", "width_px", to="100"),
    "width_is_huge": changed("picture", "width_px", to=10**30),
    "no_people": changed("people", to=...),
    "person_is_text": changed("people", to=["Ann"]),
    "id_negative": changed("people", 0, "id", to=-1),
    "id_is_true": changed("people", 0, "id", to=True),
    "confidence_over_1": changed("people", 0, "confidence", to=1.5),
    "no_confidence": changed("people", 0, "confidence", to=...),
    "box_of_3": changed("people", 0, "box", to=[1, 2, 3]),
    "box_of_text": changed("people", 0, "box", to=["1", 2, 3, 4]),
    "no_cutouts": changed("cutouts", to=...),
    "fewer_cutouts": changed("cutouts", to=REPORT["cutouts"][:1]),
    "frame_outside": changed("cutouts", 0, "frame", to=[5, 10, 101, 70]),
    "frame_negative": changed("cutouts", 0, "frame", to=[-1, 10, 95, 70]),
    "frame_empty": changed("cutouts", 0, "frame", to=[5, 10, 5, 70]),
    "frame_between_pixels": changed("cutouts", 0, "frame", to=[5.5, 10, 95, 70]),
    "larger_than_its_frame": changed("cutouts", 0, "size", to=[91, 60]),
    "other_length": changed("cutouts", 1, "bytes", to=len(PNG) + 1),
    "a_list": [REPORT],
    "text": "report",
}


@pytest.mark.parametrize("kind", BROKEN_REPORTS)
def test_broken_reports(kind: str) -> None:
    with pytest.raises(InferenceError, match="malformed"):
        cut(report=BROKEN_REPORTS[kind])


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"picture": NaN}', b"[" * 100_000, b" " * 5_000_000 + b"{}"])
def test_reports_that_are_no_json(data: bytes) -> None:
    with pytest.raises(InferenceError, match="malformed"):
        parse_report(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
PLACES = [
    *((name,) for name in NEWER),
    *(("picture", name) for name in REPORT["picture"]),
    *(("people", 0, name) for name in REPORT["people"][0]),
    *(("cutouts", 1, name) for name in REPORT["cutouts"][1]),
    ("warnings", 0),
    ("warnings", 0, "tier"),
    ("milliseconds", "total"),
]


@given(st.sampled_from(PLACES), JSON)
def test_no_report_does_anything_but_read_or_fail(path: tuple[Any, ...], to: Any) -> None:
    try:
        result = cut(report=changed(*path, to=to))
    except InferenceError:
        return
    for cutout in result.cutouts:
        x1, y1, x2, y2 = cutout.frame
        assert 0 <= x1 < x2 <= result.report.width_px
        assert 0 <= y1 < y2 <= result.report.height_px


@pytest.mark.parametrize(
    "changes",
    [
        {"boxes": np.ones((1, 4), np.float32)},
        {"boxes": np.ones((2, 5), np.float32)},
        {"boxes": np.full((2, 4), np.nan, np.float32)},
        {"scores": np.ones((2, 1), np.float32)},
        {"scores": np.array([0.5, np.inf], np.float32)},
        {"scores": [b"0.5"]},
        {"report": []},
        {"report": np.zeros(1, np.float32)},
        {"images": []},
        {"images": [PNG]},
        {"images": [PNG, b"<html>"]},
        {"images": [PNG, make.jpeg()]},
        {"images": np.zeros(2, np.float32)},
        {"images": None},
    ],
)
def test_outputs_that_do_not_fit_together(changes: dict[str, Any]) -> None:
    with pytest.raises(InferenceError, match="malformed"):
        read_cut(outputs() | changes, Origin("triton", "", 0))


@pytest.mark.parametrize("side", [13_300, 61, 89])
def test_a_cutout_larger_than_its_frame_is_not_decoded(side: int) -> None:
    """A flat picture of 177 megapixels fits into 700 kB: its header is held against the report before any decoding."""
    bomb = make.PNG_SIGNATURE + make.ihdr(side, side) + make.chunk(b"IDAT", bytes(100)) + make.PNG_END
    with pytest.raises(InferenceError, match="another size than its frame"):
        only_one(bomb)
    with pytest.raises(InferenceError, match="header"):
        only_one(make.PNG_SIGNATURE + b"no header at all, and more than enough of it")
    with pytest.raises(InferenceError, match="another size"):
        only_one(layers(alpha=bomb))


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A whole PNG, RGBA of 13,300² pixels: 688 kB that take 707 MB when they are decoded."""
    side, packer = 13_300, zlib.compressobj(9, wbits=-15)
    rows = bytes((1 + 4 * side) * 100)
    block = packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)  # which may be repeated
    checksum = struct.pack(">I", (side * (1 + 4 * side) % 65521) << 16 | 1)  # of zeros
    data = b"\x78\xda" + block * (side // 100) + packer.flush() + checksum
    return make.PNG_SIGNATURE + make.ihdr(side, side, colour=6) + make.chunk(b"IDAT", data) + make.PNG_END


@pytest.mark.parametrize("says", ["its frame", "a larger picture"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_malicious_servers_bomb_is_a_typed_error_and_takes_no_memory(driver: str, says: str, bomb: bytes) -> None:
    """Over HTTP on loopback: the server tells the truth about the picture, or says that it is as large as the bomb."""
    report = changed("cutouts", to=[REPORT["cutouts"][0] | {"bytes": len(bomb)}])
    if says == "a larger picture":
        report["picture"] = {"width_px": 13_300, "height_px": 13_300, "orientation": 1}
        report["cutouts"][0] |= {"frame": [0, 0, 13_300, 13_300], "size": [13_300, 13_300]}
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = peers.kserve_answer(*wire_outputs(report, [bomb]))
    with (
        peers.tcp_peer(answer) as port,
        driven(driver, f"http://127.0.0.1:{port}", timeout_s=60) as client,
        pytest.raises(InferenceError, match=f"malformed.*{says}"),
    ):
        client.cut(make.jpeg(make.picture(100, 80)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 300_000


def test_a_cutout_may_be_smaller_than_its_frame_where_the_report_says_so() -> None:
    small = make.saved(make.picture(45, 30, "RGBA"), "PNG")
    (cutout,) = only_one(small, size=[45, 30]).cutouts
    assert (cutout.pil().size, cutout.frame) == ((45, 30), (5, 10, 95, 70))
    for image, size in ((small, [46, 30]), (small, None), (PNG, [45, 30])):
        with pytest.raises(InferenceError, match="another size"):
            only_one(image, size=size)


def layers(compression: int = zipfile.ZIP_STORED, **other: bytes) -> bytes:
    """The ZIP of a cut-out's colours and alpha."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("color.jpg", other.get("color", JPEG))
        archive.writestr("alpha.png", other.get("alpha", MASK))
    return file.getvalue()


def test_jpegs_and_layers(tmp_path: Path) -> None:
    (jpeg,) = only_one(JPEG).cutouts
    assert (jpeg.format, jpeg.pil().mode, jpeg.pil().size) == ("jpeg", "RGB", (90, 60))
    assert only_one(JPEG).save(tmp_path / "new") == [tmp_path / "new" / "cutout.jpg"]

    (both,) = only_one(layers()).cutouts
    assert both.format == "zip"
    np.testing.assert_array_equal(both.numpy()[..., :3], jpeg.numpy())
    np.testing.assert_array_equal(both.numpy()[..., 3], np.asarray(Image.open(io.BytesIO(MASK))))
    shown = both._repr_png_()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(shown))), both.numpy())
    assert only_one(layers()).save(tmp_path / "photo.zip") == [tmp_path / "photo.zip"]
    with pytest.raises(ValueError, match=r"name it photo\.zip"):
        both.save(tmp_path / "photo.png")


@pytest.mark.parametrize(
    "image",
    [
        layers(zipfile.ZIP_DEFLATED),
        layers()[:-30],
        layers()[:100],
        layers(color=b"text"),
        layers(alpha=PNG[:20]),
        layers().replace(b"alpha.png", b"../a.pngx"),
    ],
    ids=["compressed", "cut", "cut early", "no colours", "half an alpha", "other name"],  # a ZIP holds the time
)
def test_layers_that_are_none(image: bytes) -> None:
    with pytest.raises(InferenceError, match="malformed"):
        only_one(image)


def test_a_report_is_of_no_larger_picture_than_was_sent() -> None:
    """Else a server may say that the picture is as large as the cut-out that fills the memory."""
    origin = Origin("triton", "", 0)
    for width, height in ((100, 80), (80, 100)):
        read_cut(outputs(), origin, PictureHeader("jpeg", width, height))
    for reader in (read_cut, read_detection):
        with pytest.raises(InferenceError, match="larger picture"):
            reader(outputs(), origin, PictureHeader("jpeg", 99, 80))


# ---------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize(("image", "mode", "shape"), [(PNG, "RGBA", (60, 90, 4)), (MASK, "L", (60, 90))])
def test_pictures_and_arrays(image: bytes, mode: str, shape: tuple[int, ...]) -> None:
    (cutout,) = only_one(image).cutouts
    assert cutout.pil().mode == mode
    array = cutout.numpy()
    assert array.shape == shape
    assert array.dtype == np.uint8
    assert array.flags.writeable


def test_a_cutout_that_is_damaged_says_so() -> None:
    with pytest.raises(InferenceError, match="cannot be decoded"):
        only_one(PNG[:60]).cutouts[0].pil()


def test_notebooks_show_a_png() -> None:
    assert only_one()._repr_png_() == PNG
    shown = only_one(WEBP)._repr_png_()
    assert shown is not None
    assert shown.startswith(make.PNG_SIGNATURE)


def test_saves_one_file(tmp_path: Path) -> None:
    assert only_one().save(tmp_path / "photo.png") == [tmp_path / "photo.png"]
    assert (tmp_path / "photo.png").read_bytes() == PNG


def test_saves_several_files(tmp_path: Path) -> None:
    assert cut().save(tmp_path / "photo.PNG") == [tmp_path / "photo-0.PNG", tmp_path / "photo-2.PNG"]


def test_saves_into_a_folder(tmp_path: Path) -> None:
    assert only_one(WEBP).save(tmp_path / "new" / "folder") == [tmp_path / "new" / "folder" / "cutout.webp"]
    assert cut().save(tmp_path) == [tmp_path / "cutout-0.png", tmp_path / "cutout-2.png"]
    with Image.open(tmp_path / "cutout-2.png") as image:
        assert image.size == (90, 60)


@pytest.mark.parametrize("name", ["Screenshot 2026-11-21 at 10.30.15", "v1.2", ".hidden"])
def test_a_dot_makes_no_file(name: str, tmp_path: Path) -> None:
    assert only_one().save(tmp_path / name) == [tmp_path / name / "cutout.png"]


def test_shown_without_the_pixels() -> None:
    assert len(repr(only_one())) < 2000


@pytest.mark.parametrize("name", ["photo.jpg", "photo.webp"])
def test_a_name_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"name it photo\.png"):
        only_one().save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_keeps_what_is_there_when_told(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        only_one().save(path, overwrite=False)
    assert path.read_bytes() == b"old"
    only_one().save(path)
    assert path.read_bytes() == PNG
