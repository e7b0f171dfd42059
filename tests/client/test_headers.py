"""Header checks: bytes of any kind are refused with a typed error or taken, in bounded time and memory."""

from __future__ import annotations

import io
import time
import tracemalloc
from dataclasses import replace

import pytest
from cutaway.contract.errors import FileTooLarge, ImageBomb, InputError, InvalidFormat, ResolutionTooLarge
from cutaway.contract.headers import PictureHeader, check_picture, picture_format
from cutaway.contract.limits import INPUT_LIMITS
from cutaway.contract.signatures import looks_like
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.integration import hostile
from tests.integration import picture_files as make

CASES = hostile.cases()
GOOD = {
    "jpeg": make.jpeg(),
    "progressive": make.jpeg(progressive=True),
    "png": make.saved(make.picture(), "PNG"),
    "webp": make.saved(make.picture(), "WEBP"),
    "webp_lossless": make.saved(make.picture(), "WEBP", lossless=True),
    "webp_extended": make.saved(make.picture(), "WEBP", icc_profile=b"x" * 200),
    "bmp": make.saved(make.picture(), "BMP"),
    "bmp_os2": make.os2_bmp(make.quadrants()),
    "bmp_top_down": make.bmp(make.WIDTH, -make.HEIGHT, 24, make.bmp_rows(make.quadrants())),
}


@pytest.mark.parametrize("name", GOOD)
def test_reads_size_and_format(name: str) -> None:
    header = check_picture(GOOD[name])
    assert (header.width_px, header.height_px) == (make.WIDTH, make.HEIGHT)
    assert header.format == name.partition("_")[0].replace("progressive", "jpeg")
    assert header.media_type == f"image/{header.format}"
    assert header.pixels == make.WIDTH * make.HEIGHT


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_agrees_with_the_server(case: hostile.Case) -> None:
    """What the header tells is told here as there; the rest is damage that only decoding finds."""
    try:
        check_picture(case.data)
    except InputError as error:
        assert error.code == case.code  # noqa: PT017
    else:
        assert case.code in ("", "CORRUPT_IMAGE", "NO_PERSON_DETECTED")


def test_depth_is_told() -> None:
    assert check_picture(make.samples_png(make.quadrants().astype(int) * 257, 16, 2)).bits_per_sample == 16


# ------------------------------------------------------------------------------------------------ declared types


@pytest.mark.parametrize(
    "declared",
    [None, "", "image/png", "IMAGE/PNG; charset=binary", "image/x-png", "application/octet-stream", "image/*"],
)
def test_declared_types_that_agree(declared: str | None) -> None:
    check_picture(GOOD["png"], declared)


@pytest.mark.parametrize("declared", ["image/jpeg", "image/gif", "text/html", "nonsense"])
def test_declared_types_that_disagree(declared: str) -> None:
    with pytest.raises(InvalidFormat, match="is declared as") as refusal:
        check_picture(GOOD["png"], declared)
    assert refusal.value.details == {
        "supported": ["jpeg", "png", "webp", "bmp"],
        "received": "image/png",
        "declared": declared,
    }


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%PDF-1.4", "a PDF"),
        (b"\xef\xbb\xbf<svg/>", "an SVG"),
        (b"<!-- hello --><html>", "an HTML page"),
        (b"II*\0" + bytes(20), "a TIFF or camera raw file"),
        (b"\0\0\0\x1cftypmif1", "a HEIF"),
        (b"\0\0\0\x1cftypisom", "an MP4 video"),
        (b"\xff\xd8", "a JPEG that breaks off"),
        (b"{}", "JSON or text"),
        ("Grüße\n".encode() * 400, "text"),
        (b"\0\1\2\3", "an unknown kind of file"),
        (b"", "an empty file"),
    ],
)
def test_refusals_name_the_kind(data: bytes, words: str) -> None:
    assert looks_like(data) == words
    with pytest.raises(InvalidFormat, match="empty" if not data else words) as refusal:
        check_picture(data)
    assert refusal.value.details["received"] == words


# -------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("size", [(7680, 4320), (4320, 7680)])
def test_sides_hold_in_either_orientation(size: tuple[int, int]) -> None:
    data = make.bmp(*size, 24, b"", compression=1) + bytes(size[0] * size[1] * 4 // 1000)
    assert check_picture(data).width_px == size[0]
    over = make.bmp(size[0] + 1, size[1], 24, b"", compression=1) + bytes(size[0] * size[1] * 4 // 1000)
    with pytest.raises(ResolutionTooLarge) as refusal:
        check_picture(over)
    assert refusal.value.details["max_long_side_px"] == 7680
    assert refusal.value.details["max_short_side_px"] == 4320


def test_ratio_is_inclusive_and_can_be_raised() -> None:
    header = make.bmp(5000, 4000, 24, b"", compression=1)
    exact = header + bytes(80_000 - len(header))
    check_picture(exact)
    with pytest.raises(ImageBomb) as refusal:
        check_picture(exact[:-1])
    assert refusal.value.details == {
        "file_bytes": 79_999,
        "decompressed_bytes": 80_000_000,
        "ratio": 1000.0,
        "max_ratio": 1000.0,
    }
    check_picture(exact[:-1], max_decompression_ratio=1001)


def test_a_small_flat_picture_may_be_as_compressed_as_it_is() -> None:
    """Up to 64 MiB decompressed the pixel cap is the protection: 4096×4096 are just that many."""
    for side, allowed in ((2000, True), (4096, True), (4104, False)):
        flat = make.bmp(side, side, 24, b"", compression=1)
        if allowed:
            assert check_picture(flat + bytes(3000)).width_px == side
        else:
            with pytest.raises(ImageBomb):
                check_picture(flat + bytes(3000))


def test_limits_can_be_replaced() -> None:
    limits = replace(INPUT_LIMITS, max_file_bytes=100, formats=("png",))
    with pytest.raises(FileTooLarge) as refusal:
        check_picture(GOOD["png"], limits=limits)
    assert refusal.value.details == {"size_bytes": len(GOOD["png"]), "max_bytes": 100}
    with pytest.raises(InvalidFormat):
        check_picture(GOOD["jpeg"], limits=replace(INPUT_LIMITS, formats=("png",)))


def test_scans_are_counted_to_the_limit() -> None:
    own = make.jpeg(progressive=True).count(b"\xff\xda")
    most = INPUT_LIMITS.max_jpeg_scans
    assert check_picture(make.many_scans(most - own + 1)).scans == most
    with pytest.raises(ImageBomb, match="scans") as refusal:
        check_picture(make.many_scans(most - own + 2))
    assert refusal.value.details["max_scans"] == most


# ---------------------------------------------------------------------------------------------------- properties

STARTS = [
    b"",
    b"\xff\xd8\xff",
    make.PNG_SIGNATURE,
    b"RIFF\x50\0\0\0WEBP",
    b"BM",
    *(data[:60] for data in GOOD.values()),
]


def _check(data: bytes, media_type: str | None = None) -> PictureHeader | None:
    try:
        header = check_picture(data, media_type)
    except InputError as error:
        assert error.message  # noqa: PT017
        return None
    assert header.format == picture_format(data)
    assert min(header.width_px, header.height_px) >= 64
    assert header.pixels <= INPUT_LIMITS.max_pixels
    return header


@given(st.sampled_from(STARTS), st.binary(max_size=400), st.none() | st.text(max_size=20))
def test_no_bytes_crash_it(start: bytes, rest: bytes, media_type: str | None) -> None:
    _check(start + rest, media_type)
    looks_like(start + rest)


@given(st.sampled_from(sorted(GOOD)), st.data())
@settings(max_examples=300)
def test_no_damage_crashes_it(name: str, data: st.DataObject) -> None:
    damaged = bytearray(GOOD[name])
    for _ in range(data.draw(st.integers(0, 4))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 700)))] = data.draw(st.integers(0, 255))
    _check(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 6), st.binary(max_size=6)), max_size=60))
@example([(0xC0, 2, b"")] * 3)
def test_no_chain_of_segments_crashes_it(segments: list[tuple[int, int, bytes]]) -> None:
    body = b"".join(bytes((0xFF, marker, 0, length)) + rest for marker, length, rest in segments)
    _check(b"\xff\xd8" + body)


PADDING = bytes(2_000_000)
PNG_DATA = make.chunk(b"IDAT", PADDING) + make.PNG_END
JPEG_SCAN = make.segment(0xDA, b"\3\1\0\2\0\3\0\0?\0") + PADDING + b"\xff\xd9"


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_sizes_are_read_as_pillow_reads_them(width: int, height: int) -> None:
    """A header that passes has the size that the decoder will find."""
    for data in (
        make.PNG_SIGNATURE + make.ihdr(width, height) + PNG_DATA,
        make.jpeg_header(width, height) + JPEG_SCAN,
        make.bmp(width, -height, 8, PADDING, compression=1),
        make.webp(make.vp8l_header(width, height), (b"JUNK", PADDING)),
    ):
        header = _check(data)
        if header is not None:
            assert (header.width_px, header.height_px) == (width, height)
        if header is not None and header.format in ("png", "jpeg"):
            with Image.open(io.BytesIO(data)) as image:
                assert image.size == (width, height)


TEN_MIB = 10 * 1024 * 1024
LONGEST = {
    "fill_bytes": b"\xff\xd8\xff",
    "empty_segments": b"\xff\xd8" + b"\xff\xe0\x00\x02" * (TEN_MIB // 4 - 1),
    "stray_bytes": b"\xff\xd8\xff" + b"\x00\xff" * (TEN_MIB // 2 - 2),
    "starts_of_image": b"\xff\xd8" * (TEN_MIB // 2),
    "restart_markers": b"\xff\xd8\xff\xe0\0\2" + b"\xff\xd0" * (TEN_MIB // 2 - 4),
    "frames_of_scans": make.jpeg_header(640, 640) + (b"\xff\xda\0\2" + b"\0" * 60) * (TEN_MIB // 64 - 1),
    "png_of_ends": make.PNG_SIGNATURE + make.ihdr(640, 640) + b"\0\0\0\0IEND\xaeB`" * (TEN_MIB // 12 - 4),
    "webp_of_chunks": b"RIFF\xff\xff\xff\xffWEBP" + b"VP8X\0\0\0\0" * (TEN_MIB // 8 - 2),
    "bmp": b"BM" + b"\x28\0\0\0" * (TEN_MIB // 4 - 1),
    "spaces": b" " * TEN_MIB,
    "svg_late": b" " * (TEN_MIB - 5) + b"<svg>",
}


@pytest.mark.parametrize("kind", LONGEST)
def test_the_worst_ten_mebibytes_are_judged_at_once(kind: str) -> None:
    """Linear and without copies: well under a second even on a busy machine, and hardly any memory."""
    data = LONGEST[kind].ljust(TEN_MIB, b"\xff")
    tracemalloc.start()
    started = time.process_time()
    try:
        _check(data)
        taken = time.process_time() - started
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < 1
    assert peak < 1_000_000
