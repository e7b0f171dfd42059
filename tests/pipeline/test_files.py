"""Files that are right, and that decoders without help refuse or misread: each has its right value here."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from cutaway.contract.errors import CorruptImage
from PIL import Image, ImageCms
from pipeline.decode import decode

from tests.integration import picture_files as make


def codes(data: bytes) -> list[str]:
    return [notice.code for notice in decode(data).notices]


# ------------------------------------------------------------------------------------------------------ BMP


def bmp32(header_bytes: int, alpha: int, compression: int) -> bytes:
    """64×64 of (200, 100, 50) with one value in every fourth byte."""
    masks = struct.pack("<IIII", 0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)
    pixels = bytes([50, 100, 200, alpha]) * 64 * 64
    # Headers of 40 bytes have their masks behind them, the longer ones inside.
    extra = masks[:12] if header_bytes == 40 and compression == 3 else b""
    body = masks[: max(0, min(16, header_bytes - 40))].ljust(header_bytes - 40, b"\0")
    start = 14 + header_bytes + len(extra)
    info = struct.pack("<IiiHHIIiiII", header_bytes, 64, 64, 1, 32, compression, len(pixels), 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + info + body + extra + pixels


@pytest.mark.parametrize(("header_bytes", "compression"), [(40, 0), (40, 3), (56, 3), (108, 3), (124, 3)])
def test_a_bmp_whose_alpha_is_nowhere_above_0_is_opaque(header_bytes: int, compression: int) -> None:
    picture = decode(bmp32(header_bytes, 0, compression))
    assert picture.alpha is None
    assert (picture.rgb == (200, 100, 50)).all()


def test_a_bmp_with_alpha_keeps_it() -> None:
    alpha = decode(bmp32(108, 77, 3)).alpha
    assert alpha is not None
    assert (alpha == 77).all()


# ------------------------------------------------------------------------------------------------------ PNG


def test_grey_of_16_bits_is_transparent_where_all_bits_match() -> None:
    samples = np.full((64, 64), 30000, np.uint16)
    samples[:, 32:] = 30001
    samples[:8] = 30001 + 256
    picture = decode(make.samples_png(samples, 16, 0, make.chunk(b"tRNS", struct.pack(">H", 30001))))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, samples == 30001)
    assert set(np.unique(picture.alpha)) == {0, 255}


def test_colour_of_16_bits_is_transparent_where_all_bits_match() -> None:
    samples = np.full((64, 64, 3), 4000, np.uint16)
    samples[:, 32:, 2] = 4001
    picture = decode(make.samples_png(samples, 16, 2, make.chunk(b"tRNS", struct.pack(">HHH", 4000, 4000, 4001))))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, samples[..., 2] == 4001)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_is_transparent_where_it_says(bits: int) -> None:
    samples = np.zeros((64, 64), np.uint8)
    samples[:, 32:] = 1
    picture = decode(make.samples_png(samples, bits, 0, make.chunk(b"tRNS", struct.pack(">H", 1))))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, samples == 1)


def grey_profile(gamma: float) -> bytes:
    """A version 2 display profile of one grey curve."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))
    name = b"A test\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78)
    description += bytes(-len(description) % 4)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0None\0\0\0\0", b"wtpt": white, b"kTRC": curve}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for kind, value in tags.items():
        table += kind + struct.pack(">II", start + len(body), len(value))
        body += value
    size = start + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02100000, b"mntr", b"GRAY", b"XYZ ") + bytes(12)
    head += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_is_converted_by_its_own_profile(mode: str) -> None:
    image = Image.new(mode, (64, 64), 128 if mode == "L" else (128, 200))
    picture = decode(make.saved(image, "PNG", icc_profile=grey_profile(1.0)))
    assert picture.notices == ()
    shown = picture.rgb if picture.own_rgb is None else picture.own_rgb
    assert np.abs(shown.astype(int) - 188).max() <= 1
    assert (picture.alpha is None) == (mode == "L")


def test_grey_with_a_profile_for_colours_is_converted_as_colours_are() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = make.saved(Image.new("L", (64, 64), 128), "PNG", icc_profile=srgb)
    assert decode(data).notices == ()
    assert (decode(data).rgb == 128).all()


def test_a_profile_for_other_colours_is_a_warning() -> None:
    data = make.saved(Image.new("RGB", (64, 64), (9, 99, 199)), "PNG", icc_profile=grey_profile(1.0))
    assert codes(data) == ["ICC_PROFILE_IGNORED"]
    assert (decode(data).rgb == (9, 99, 199)).all()


def with_chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    png = make.saved(make.picture(), "PNG")
    return png[:33] + make.chunk(kind, body, crc=crc) + png[33:]


@pytest.mark.parametrize(
    "extra",
    [
        (b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3_000_000))),
        (b"zTXt", b"bomb\0\0" + zlib.compress(bytes(200_000_000))),
        (b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)),
        (b"tEXt", b"parameters\0" + b"x" * 2_000_000),
        (b"zTXt", b"broken\0\0" + b"no zlib"),
        (b"vpAg", b"anything"),
    ],
)
def test_metadata_of_any_size_does_no_harm(extra: tuple[bytes, bytes]) -> None:
    assert np.array_equal(decode(with_chunk(*extra)).rgb, decode(make.saved(make.picture(), "PNG")).rgb)


def test_an_ancillary_chunk_that_fails_its_checksum_is_skipped() -> None:
    assert np.array_equal(
        decode(with_chunk(b"pHYs", struct.pack(">IIB", 1, 1, 1), crc=1)).rgb,
        decode(make.saved(make.picture(), "PNG")).rgb,
    )


def test_a_profile_that_does_not_unfold_is_a_warning() -> None:
    assert codes(with_chunk(b"iCCP", b"name\0\0" + b"no zlib")) == ["ICC_PROFILE_IGNORED"]


def test_a_png_that_is_cut_is_corrupt() -> None:
    png = make.saved(make.picture(), "PNG")
    for end in (len(png) - 1, len(png) - 12, len(png) // 2):
        with pytest.raises(CorruptImage):
            decode(png[:end])


# ----------------------------------------------------------------------------------------------------- JPEG


@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK", "progressive"])
@pytest.mark.parametrize(
    "end", [b"", b"\0" * 64, b"VENDOR 1.0 \xff\xff", b"\xff\xd8\xff\xe0\0\0", b"\xff\xe1\xff\xffcut"]
)
def test_a_jpeg_without_its_end_marker_is_served(kind: str, end: bytes) -> None:
    image = make.picture(mode="RGB" if kind == "progressive" else kind)
    whole = make.saved(image, "JPEG", progressive=kind == "progressive")
    assert whole.endswith(b"\xff\xd9")
    data = whole[:-2] + end
    assert codes(data) == ["END_MARKER_MISSING"]
    assert np.array_equal(decode(data).rgb, decode(whole).rgb)


def test_a_thumbnail_in_the_end_markers_place_is_not_the_picture() -> None:
    whole = make.saved(make.picture(), "JPEG")
    data = whole[:-2] + make.saved(Image.new("RGB", (80, 80)), "JPEG")
    assert codes(data) == ["END_MARKER_MISSING"]
    assert np.array_equal(decode(data).rgb, decode(whole).rgb)


@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_whose_rows_are_missing_is_corrupt(kind: str, end: bytes) -> None:
    noise = Image.fromarray(make.noise()).convert(kind)
    whole = make.saved(noise, "JPEG")
    with pytest.raises(CorruptImage):
        decode(whole[: len(whole) * 9 // 10] + end)


def test_a_jpeg_that_is_damaged_inside_is_a_warning() -> None:
    whole = make.saved(Image.fromarray(make.noise()), "JPEG")
    middle = len(whole) // 2
    assert codes(whole[:middle] + bytes([0xFF, 0x00] * 40) + whole[middle + 80 :]) == ["IMAGE_DAMAGED"]


# ------------------------------------------------------------------------------------ orientation, density


XMP_TURNED = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_orientation_in_xmp_alone_turns_nothing(form: str) -> None:
    """As in browsers, which heed EXIF alone."""
    image = Image.new("RGB", (96, 64))
    if form == "PNG":
        data = make.saved(image, form)
        data = data[:33] + make.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_TURNED) + data[33:]
    else:
        data = make.saved(image, form, xmp=XMP_TURNED)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.getexif().get(0x0112) == 6, "the file does not say what the test is about"
    picture = decode(data)
    assert (picture.width, picture.height, picture.orientation) == (96, 64, 1)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP"])
def test_density_is_read(form: str) -> None:
    exif = Image.Exif()
    exif[0x011A], exif[0x011B], exif[0x0128] = 300.0, 150.0, 2
    given = {"exif": exif} if form == "WEBP" else {"dpi": (300, 150)}
    density = decode(make.saved(Image.new("RGB", (64, 64)), form, **given)).density_dpi
    assert density == pytest.approx((300, 150), abs=0.1)


def test_density_turns_with_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = make.saved(Image.new("RGB", (64, 64)), "JPEG", dpi=(300, 150), exif=exif)
    assert decode(data).density_dpi == pytest.approx((150, 300), abs=0.1)


def test_a_density_that_cannot_be_is_none() -> None:
    assert decode(make.saved(Image.new("RGB", (64, 64)), "JPEG", dpi=(0, 0))).density_dpi is None
