"""Whatever is handed over is taken or refused with a typed error, in bounded time and memory.

- Bytes mean the same on every way in: as bytes, from a path, from a file object, from a data URI of either kind.
- Random and damaged files, texts, data URIs, arrays, PIL images and file objects raise InputError, TypeError or OSError
  and nothing else; with `verify`, whole decoding included.
- The worst ten mebibytes of each kind cost little more memory than their own size, and seconds at most.

What files' headers may hold is tested in test_headers.py.
"""

from __future__ import annotations

import base64
import io
import os
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutaway.contract.errors import InputError
from cutaway.contract.limits import INPUT_LIMITS, MIB
from cutaway.inputs import EncodedPicture, decode_input, encode
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.integration import hostile
from tests.integration import picture_files as make

REFUSALS = (InputError, TypeError, OSError)
GOOD = [
    make.jpeg(),
    make.jpeg(progressive=True, exif=make.exif(6)),
    make.saved(make.picture(), "PNG"),
    make.saved(make.picture(mode="RGBA"), "PNG"),
    make.saved(make.picture().convert("P"), "PNG"),
    make.saved(make.picture(), "WEBP"),
    make.saved(make.picture(), "WEBP", lossless=True),
    make.saved(make.picture(), "BMP"),
    make.os2_bmp(make.quadrants()),
]


def outcome(image: Any, **more: Any) -> EncodedPicture | str:
    """What became of an input: a picture within the limits, or the kind of refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = encode(image, **more)
        except REFUSALS as error:
            return type(error).__name__
    assert 0 < len(picture.data) <= INPUT_LIMITS.max_file_bytes
    assert picture.header.pixels <= INPUT_LIMITS.max_pixels
    assert min(picture.header.width_px, picture.header.height_px) >= INPUT_LIMITS.min_side_px
    return picture


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Random bytes, or a real picture with some bytes changed, cut out, doubled, or cut off."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=300))
    data = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "double", "insert"]))
        length = draw(st.integers(1, 64))
        if kind == "change" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        else:
            data[at:at] = draw(st.binary(max_size=16))
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


@given(files())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_way_in_is_the_same(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "picture"
    path.write_bytes(data)
    expected = outcome(data)
    encoded = base64.b64encode(data).decode()
    assert outcome(bytearray(data)) == outcome(memoryview(data)) == expected
    assert outcome(path) == outcome(str(path)) == expected
    assert outcome(io.BytesIO(data)) == expected
    assert outcome(f"data:;base64,{encoded}") == expected


@given(files(), st.none() | st.sampled_from(["image/png", "image/jpeg", "text/html"]) | st.text(max_size=30))
@settings(max_examples=300)
def test_damage_is_refused_whole(data: bytes, media_type: str | None) -> None:
    """With a full decode: what passes can be decoded, and the size is the header's."""
    picture = outcome(data, media_type=media_type, verify=True)
    if isinstance(picture, EncodedPicture):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(picture.data))
        with image:
            assert image.size == (picture.header.width_px, picture.header.height_px)


@given(files())
@settings(max_examples=150)
def test_decoding_for_composites_is_refused_as_well(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = decode_input(data)
        except REFUSALS:
            return
    assert image.mode in ("RGB", "RGBA")


@pytest.mark.parametrize("case", hostile.cases(), ids=lambda case: case.name)
def test_hostile_files(case: hostile.Case) -> None:
    picture = outcome(case.data, verify=True)
    if case.code in ("", "NO_PERSON_DETECTED"):
        assert isinstance(picture, EncodedPicture)
    elif case.code != "CORRUPT_IMAGE":
        assert isinstance(picture, str)


# ------------------------------------------------------------------------------------------------------------- texts


@given(st.text(max_size=200))
@example("")
@example("\0")
@example("\ud800")
@example("~")
@example("." * 300)
@example("http://")
@example(" HTTPS://x")
@example("data:")
@example("con")
def test_texts(text: str) -> None:
    outcome(text)


URI_CHARS = st.text("ABCabc019+/=-_%&#;, \n\r\tü\0data:image/png;base64", max_size=80)


@st.composite
def data_uris(draw: st.DrawFn) -> str:
    head = draw(st.sampled_from(["image/png", "image/jpeg", "", "text/plain;charset=x", ";;", "image/png;base64;x"]))
    head += draw(st.sampled_from(["", ";base64", "; BASE64 ", ";base64=", ";"]))
    body = draw(st.sampled_from([base64.b64encode(data).decode() for data in GOOD] + ["", "%89PNG%0D%0A"]))
    at = draw(st.integers(0, len(body)))
    body = body[:at] + draw(URI_CHARS) + body[at + draw(st.integers(0, 5)) :]
    return draw(st.sampled_from(["data:", "DATA:", "data::", "data"])) + head + draw(st.sampled_from([",", ""])) + body


@given(data_uris() | URI_CHARS.map("data:".__add__))
@settings(max_examples=300)
def test_data_uris(uri: str) -> None:
    outcome(uri)


# ------------------------------------------------------------------------------------------------ arrays and images

DTYPES = ["u1", "i1", "u2", ">u2", "i8", "f2", "f4", "f8", "c8", "?", "S3", "U2", "O", "M8[s]", "V4", "u1,u1"]


@given(
    st.sampled_from(DTYPES),
    st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 63, 64, 65, 100]), max_size=5),
    st.sampled_from(["plain", "reversed", "strided", "transposed", "fortran", "readonly", "masked", "memmap-like"]),
)
@settings(max_examples=300)
@example("u1", [64, 64, 3], "reversed")
@example("u1", [64, 65, 4], "fortran")
@example("u1", [100, 64, 3], "masked")
def test_arrays(dtype: str, shape: list[int], layout: str) -> None:
    assume(np.prod(shape, dtype=float) <= 2e6)
    pixels: Any = np.zeros(shape, dtype)
    if layout == "reversed":
        pixels = pixels[::-1] if pixels.ndim else pixels
    elif layout == "strided":
        pixels = pixels[..., ::2] if pixels.ndim else pixels
    elif layout == "transposed":
        pixels = pixels.T
    elif layout == "fortran":
        pixels = np.asfortranarray(pixels)
    elif layout == "readonly":
        pixels.flags.writeable = False
    elif layout == "masked":
        pixels = np.ma.masked_array(pixels)
    else:
        pixels = pixels.view(np.ndarray)
    taken = outcome(pixels)
    fits = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] in (3, 4) and min(pixels.shape[:2]) >= 64
    assert isinstance(taken, EncodedPicture) == fits


@pytest.mark.parametrize(
    "shape", [(10**9, 10**9, 3), (10**6, 10**6, 4), (7681, 100, 3), (2**31, 64, 3), (64, 2**40, 3)]
)
def test_arrays_that_only_claim_their_size(shape: tuple[int, ...]) -> None:
    """Views with strides of 0 cost nothing, until somebody copies them."""
    claims = np.lib.stride_tricks.as_strided(np.zeros(4, np.uint8), shape, (0, 0, 1))
    assert isinstance(traced(lambda: outcome(claims), most_mib=1), str)


MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "PA",
    "RGBX",
    "RGBa",
    "La",
    "I;16",
]


@given(
    st.sampled_from(MODES),
    st.tuples(st.integers(0, 130), st.integers(0, 130)),
    st.dictionaries(
        st.sampled_from(["transparency", "icc_profile", "exif", "dpi", "gamma", "background"]),
        st.none() | st.integers(0, 255) | st.binary(max_size=40) | st.tuples(*[st.integers(0, 255)] * 3),
        max_size=3,
    ),
)
@settings(max_examples=200)
def test_pil_images(mode: str, size: tuple[int, int], info: dict[str, Any]) -> None:
    image = Image.new(mode, size)
    image.info.update(info)
    outcome(image)


def test_a_closed_pil_image() -> None:
    image = Image.open(io.BytesIO(GOOD[0]))
    image.close()
    assert isinstance(outcome(image), str)


# ------------------------------------------------------------------------------------------------------ file objects


class Parts:
    """A file object that gives what it was told to, whatever it is asked for."""

    def __init__(self, parts: list[Any], name: Any) -> None:
        self.parts = parts
        self.name = name

    def read(self, size: int) -> Any:
        part = self.parts.pop(0) if self.parts else b""
        if isinstance(part, OSError):
            raise part
        return part


@given(
    st.lists(
        st.binary(max_size=50)
        | st.sampled_from([GOOD[0], GOOD[2], bytearray(GOOD[0]), memoryview(GOOD[2])])
        | st.sampled_from([None, "text", "", 3, [1], OSError("gone"), TimeoutError("slow"), b"\0" * 11 * MIB]),
        max_size=4,
    ),
    st.none() | st.integers() | st.text(max_size=20) | st.binary(max_size=5),
)
def test_file_objects(parts: list[Any], name: Any) -> None:
    outcome(Parts(parts, name))


@given(st.none() | st.integers() | st.floats() | st.lists(st.binary()) | st.dictionaries(st.text(), st.text()))
def test_other_things(thing: Any) -> None:
    assert outcome(thing) == "TypeError"


# ---------------------------------------------------------------------------------------------------- time and memory


def traced(call: Callable[[], Any], *, most_mib: float) -> Any:
    """The call's result, where it took at most so much memory and twenty seconds of this process."""
    tracemalloc.start()
    started = time.process_time()
    try:
        result = call()
        taken = time.process_time() - started
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most_mib * MIB
    assert taken < 20
    return result


TEN = 10 * MIB
WORST_TEXTS = {
    "base64 of nothing": lambda: "data:;base64," + "A" * (TEN // 3 * 4),
    "too much base64": lambda: "data:;base64," + "A" * (40 * MIB),
    "padding": lambda: "data:;base64," + "=" * TEN,
    "white space": lambda: "data:;base64," + " \n" * TEN,
    "escaped base64": lambda: "data:;base64," + "%41" * TEN,
    "escapes": lambda: "data:," + "%00" * TEN,
    "too many escapes": lambda: "data:," + "%00" * (TEN + 1),
    "broken escapes": lambda: "data:," + "%%4" * TEN,
    "escapes at the end": lambda: "data:," + "a" * (TEN - 1) + "%",
    "no comma": lambda: "data:" + ";" * TEN,
    "many parameters": lambda: "data:" + ";" * 900 + "," + "a" * TEN,
    "not ASCII": lambda: "data:," + "ü" * TEN,
    "a long path": lambda: "a/" * TEN,
    "a long address": lambda: "https://" + "a" * TEN,
}


@pytest.mark.parametrize("kind", WORST_TEXTS)
def test_the_worst_texts(kind: str) -> None:
    """Twice the decoded size, and for texts the encoded one once more, is all that is ever held beside the text."""
    text = WORST_TEXTS[kind]()
    assert isinstance(traced(lambda: outcome(text), most_mib=70), str)


@pytest.mark.parametrize("byte", [b"\0", b"\xff", b" ", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM"])
def test_the_worst_files(byte: bytes, tmp_path: Path) -> None:
    data = byte * (TEN // len(byte))
    path = tmp_path / "worst"
    path.write_bytes(data)
    assert isinstance(traced(lambda: outcome(data, verify=True), most_mib=2), str)
    assert isinstance(traced(lambda: outcome(path), most_mib=12), str)
    assert isinstance(traced(lambda: outcome(io.BytesIO(data)), most_mib=35), str)


def test_an_endless_file_object() -> None:
    with open("/dev/zero", "rb", buffering=0) as file:  # noqa: PTH123
        assert traced(lambda: outcome(file), most_mib=35) == "FileTooLarge"
    with os.fdopen(os.open("/dev/zero", os.O_RDONLY), "rb") as file:
        assert traced(lambda: outcome(file), most_mib=35) == "FileTooLarge"
