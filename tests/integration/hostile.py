"""Hostile and merely unusual pictures, each with what the server has to answer.

Everything is made here: by Pillow, or byte by byte where no library would write such a file. Good ones show four
coloured fields (:data:`picture_files.QUADRANTS`), so that a result tells whether size, orientation and colours came
through; they are asked for in a way that returns the picture itself.
"""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageCms

from tests.integration import picture_files as make
from tests.integration.picture_files import HEIGHT, WIDTH

MIB = 1024 * 1024
FORMAT, LARGE, CORRUPT = "INVALID_FORMAT", "FILE_TOO_LARGE", "CORRUPT_IMAGE"
PIXELS, SIDES, SMALL, BOMB = "TOO_MANY_PIXELS", "RESOLUTION_TOO_LARGE", "RESOLUTION_TOO_SMALL", "IMAGE_BOMB"
NOBODY = "NO_PERSON_DETECTED"

AS_IT_IS = {"subject": "all", "background": "blur:1", "decontaminate": False}
"""The foreground in front of its own picture, hardly blurred: in flat fields that is the picture itself."""


@dataclass(frozen=True)
class Case:
    """One file and its answer.

    Attributes:
        name: for the test's id.
        data: the file.
        code: the error code, or "" for a result.
        options: request parameters.
        size: width and height of the upright picture, for a result.
        colours: whether the result shows the four fields.
        tolerance: by how much of 255 a field's colour may differ.
        warnings: codes that the report's warnings have to hold.
    """

    name: str
    data: bytes = field(repr=False)
    code: str = ""
    options: dict[str, str | int | bool] = field(default_factory=lambda: dict(AS_IT_IS))
    size: tuple[int, int] = (WIDTH, HEIGHT)
    colours: bool = True
    tolerance: int = 12
    warnings: tuple[str, ...] = ()


def cases() -> list[Case]:
    return [
        *no_pictures(),
        *cut_off(),
        *bombs(),
        *sizes(),
        *damaged(),
        *unusual_jpegs(),
        *unusual_pngs(),
        *unusual_others(),
        *nobody_there(),
    ]


def no_pictures() -> Iterator[Case]:
    """Files of other kinds, under whatever name they came."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("photo.jpg", make.jpeg())
    files = {
        "empty": b"",
        "one_byte": b"\xff",
        "two_bytes": b"\xff\xd8",
        "zeros": bytes(1000),
        "random_bytes": make.garbage(5000),
        "text": b"This is not a picture.\n" * 20,
        "text_that_begins_like_a_bmp": b"BMW builds cars and motorcycles in Bavaria.\n" * 5,
        "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n" * 3,
        "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="90000" height="90000"/>',
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "html_before_a_jpeg": b"<html></html>" + make.jpeg(),
        "gif": make.saved(make.picture(), "GIF"),
        "tiff": make.saved(make.picture(), "TIFF"),
        "icon": make.saved(make.picture(64, 64), "ICO"),
        "jpeg_2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + make.garbage(500),
        "jpeg_xl": b"\xff\x0a" + make.garbage(500),
        "zip": archive.getvalue(),
        "gzipped_png": gzip.compress(make.saved(make.picture(), "PNG")),
        "base64_of_a_jpeg": base64.b64encode(make.jpeg()),
        "data_uri": b"data:image/png;base64," + base64.b64encode(make.saved(make.picture(), "PNG")),
        "mp4": b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + make.garbage(500),
        "heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + make.garbage(500),
        "avif": b"\x00\x00\x00\x18ftypavif\x00\x00\x00\x00avifmif1" + make.garbage(500),
        "photoshop": b"8BPS\x00\x01" + bytes(100),
        "wav": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100),
    }
    for name, data in files.items():
        yield Case(name, data, FORMAT)


def cut_off() -> Iterator[Case]:
    """Every format, ended inside its header, early, in the middle and just before its end."""
    noise = Image.fromarray(make.noise())
    files = {
        "jpeg": make.jpeg(noise),
        "progressive_jpeg": make.jpeg(noise, progressive=True),
        "png": make.saved(noise, "PNG"),
        "webp": make.saved(noise, "WEBP"),
        "lossless_webp": make.saved(noise, "WEBP", lossless=True),
        "webp_with_profile": make.saved(noise, "WEBP", icc_profile=b"x" * 300),
        "bmp": make.saved(noise, "BMP"),
        "os2_bmp": make.os2_bmp(make.noise()),
    }
    for name, data in files.items():
        places = {"header": 20, "early": 500, "middle": len(data) // 2, "late": len(data) * 9 // 10}
        for place, length in (places | {"last_byte": len(data) - 1}).items():
            if place == "last_byte" and name.endswith("jpeg"):  # all rows are there
                yield Case(f"{name}_cut_off_{place}", data[:length], colours=False, warnings=("END_MARKER_MISSING",))
            else:
                yield Case(f"{name}_cut_off_{place}", data[:length], CORRUPT)


def bombs() -> Iterator[Case]:
    """Headers that promise far more pixels than the file can hold, and files that unfold hugely."""
    most = 2**31 - 1
    headers = {
        "png_65535": (make.PNG_SIGNATURE + make.ihdr(65535, 65535, 1, 0) + make.PNG_END, PIXELS),
        "png_2_to_31": (make.PNG_SIGNATURE + make.ihdr(most, most) + make.PNG_END, PIXELS),
        "png_16_bit": (make.PNG_SIGNATURE + make.ihdr(7000, 4000, 16, 6) + make.PNG_END, BOMB),
        "jpeg_65500": (make.jpeg_header(65500, 65500), PIXELS),
        "jpeg_7000": (make.jpeg_header(7000, 4000, marker=0xC2), BOMB),
        "webp_canvas_2_to_24": (make.webp(make.vp8x(2**24, 2**24)), PIXELS),
        "webp_canvas_7000": (make.webp(make.vp8x(7000, 4000)), BOMB),
        "webp_lossless_16384": (make.webp(make.vp8l_header(16384, 16384)), PIXELS),
        "webp_lossy_16383": (make.webp(make.vp8_header(16383, 16383)), PIXELS),
        "bmp_2_to_31": (make.bmp(most, most, 24, bytes(10)), PIXELS),
        "bmp_top_down_2_to_31": (make.bmp(most, -(2**31), 24, bytes(10)), PIXELS),
        "bmp_run_length_7000": (make.bmp(7000, 4000, 8, bytes(64), compression=1), BOMB),
        "bmp_os2_65535": (b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 65535, 65535, 1, 24), PIXELS),
        "jpeg_of_2000_scans": (make.many_scans(2000), BOMB),
    }
    for name, (data, code) in headers.items():
        yield Case(f"bomb_{name}", data, code)
    black = Image.new("RGB", (7000, 4000))
    yield Case("bomb_png_real", make.saved(black, "PNG", compress_level=9), BOMB)
    yield Case("bomb_png_1_bit", make.saved(black.convert("1"), "PNG"), BOMB)
    yield Case("bomb_webp_real", make.saved(black, "WEBP", lossless=True), BOMB)
    unfolding = zlib.compress(bytes(64 * MIB), 9)
    small = make.samples_png(make.quadrants(), 8, 2)
    yield Case("png_text_that_unfolds", _before_data(small, make.chunk(b"zTXt", b"a\0\0" + unfolding)))
    yield Case(
        "png_profile_that_unfolds",
        _before_data(small, make.chunk(b"iCCP", b"a\0\0" + unfolding)),
        warnings=("ICC_PROFILE_IGNORED",),
    )
    yield Case(
        "png_data_that_unfold",
        make.PNG_SIGNATURE + make.ihdr(WIDTH, HEIGHT) + make.chunk(b"IDAT", unfolding) + make.PNG_END,
        colours=False,
    )


def sizes() -> Iterator[Case]:
    """Both sides of every limit."""
    yield Case("size_1x1", make.saved(make.picture(1, 1), "PNG"), SMALL)
    yield Case("size_63x64", make.saved(make.picture(63, 64), "PNG"), SMALL)
    yield Case("size_64x63", make.jpeg(make.picture(64, 63)), SMALL)
    yield Case("size_64x64", make.saved(make.picture(64, 64), "PNG"), size=(64, 64))
    yield Case("size_0x100", make.PNG_SIGNATURE + make.ihdr(0, 100) + make.PNG_END, CORRUPT)
    yield Case("size_7680x64", make.jpeg(make.picture(7680, 64)), size=(7680, 64))
    yield Case("size_7681x64", make.jpeg(make.picture(7681, 64)), SIDES)
    yield Case("size_64x7681", make.jpeg(make.picture(64, 7681)), SIDES)
    wide, tall = Image.new("L", (7680, 4321), 90), Image.new("L", (4321, 7680), 90)
    yield Case("size_7680x4321", make.jpeg(wide, subsampling=-1), SIDES)
    yield Case("size_4321x7680", make.jpeg(tall, subsampling=-1), SIDES)
    yield Case("size_60_megapixels", make.jpeg(Image.new("L", (10000, 6000)), subsampling=-1), PIXELS)
    largest = make.jpeg(make.picture(4320, 7680), quality=75)
    yield Case("size_largest", largest, options={"subject": "all", "output": "mask"}, size=(4320, 7680), colours=False)
    padded = make.jpeg() + make.garbage(10 * MIB)
    yield Case("bytes_10_mib", padded[: 10 * MIB])
    yield Case("bytes_10_mib_and_1", padded[: 10 * MIB + 1], LARGE)


def damaged() -> Iterator[Case]:
    """Files whose headers or data contradict themselves."""
    jpeg, png = make.jpeg(), make.samples_png(make.quadrants(), 8, 2)
    scan, data_at = jpeg.index(b"\xff\xda"), png.index(b"IDAT")
    header = make.PNG_SIGNATURE + make.ihdr(WIDTH, HEIGHT)
    frame = make.webp(make.vp8x(200, 200), _webp_chunk(make.saved(make.picture(), "WEBP")))
    files = {
        "jpeg_without_scan": jpeg[:scan] + b"\xff\xd9",
        "jpeg_without_frame": b"\xff\xd8" + jpeg[scan:],
        "jpeg_of_two_frames": make.with_segments(jpeg, make.jpeg_header(100, 100)[2:]),
        "jpeg_without_tables": make.jpeg_header(WIDTH, HEIGHT) + jpeg[scan:],
        "jpeg_of_height_0": make.jpeg_header(WIDTH, 0) + jpeg[scan:],
        "jpeg_of_2_components": make.jpeg_header(WIDTH, HEIGHT, components=2) + jpeg[scan:],
        "jpeg_of_20000_segments": make.with_segments(jpeg, make.segment(0xE5, b"x") * 20_000),
        "png_header_checksum": png[:20] + b"\x01" + png[21:],
        "png_data_checksum": png[: data_at + 20] + bytes((png[data_at + 20] ^ 1,)) + png[data_at + 21 :],
        "png_without_end": png[: -len(make.PNG_END)],
        "png_without_data": header + make.chunk(b"tEXt", b"a\0b" * 99) + make.PNG_END,
        "png_data_no_zlib": header + make.chunk(b"IDAT", make.garbage(2000)) + make.PNG_END,
        "png_bits_7": make.PNG_SIGNATURE + make.ihdr(WIDTH, HEIGHT, 7) + png[33:],
        "png_not_starting_with_header": make.PNG_SIGNATURE + make.chunk(b"tEXt", b"a\0b" * 9) + png[8:],
        "png_unknown_filter": make.PNG_SIGNATURE
        + make.ihdr(WIDTH, HEIGHT)
        + make.chunk(b"IDAT", zlib.compress((b"\x09" + bytes(3 * WIDTH)) * HEIGHT))
        + make.PNG_END,
        "bmp_2_planes": make.bmp(WIDTH, HEIGHT, 24, bytes(40_000), planes=2),
        "bmp_7_bits": make.bmp(WIDTH, HEIGHT, 7, bytes(40_000)),
        "bmp_data_beyond_end": make.bmp(WIDTH, HEIGHT, 24, bytes(40_000), offset=2**31),
        "webp_frame_unlike_canvas": frame,
        "webp_longer_than_file": make.webp(_webp_chunk(make.saved(make.picture(), "WEBP")), size=2**31),
        "webp_no_key_frame": make.webp(make.vp8_header(WIDTH, HEIGHT, first_byte=0x11)),
        "webp_unknown_chunk": make.webp((b"WHAT", bytes(100))),
        "webp_header_only": make.webp(make.vp8l_header(WIDTH, HEIGHT), (b"JUNK", make.garbage(500))),
    }
    for name, data in files.items():
        yield Case(name, data, CORRUPT)
    # Kinds of the formats that hardly anything decodes are refused by name.
    rest = jpeg[scan:]
    others = {
        "jpeg_12_bit": make.jpeg_header(WIDTH, HEIGHT, marker=0xC1, bits=12) + rest,
        "jpeg_arithmetic": make.jpeg_header(WIDTH, HEIGHT, marker=0xC9) + rest,
        "jpeg_lossless": make.jpeg_header(WIDTH, HEIGHT, marker=0xC3) + rest,
        "bmp_that_holds_a_jpeg": make.bmp(WIDTH, HEIGHT, 24, make.jpeg(), compression=4),
        "bmp_of_unknown_header": make.bmp(WIDTH, HEIGHT, 24, bytes(40_000), header_bytes=77),
    }
    for name, data in others.items():
        yield Case(name, data, FORMAT)


def unusual_jpegs() -> Iterator[Case]:
    upright = make.picture()
    for orientation in range(1, 9):
        stored = make.stored_for(orientation, upright)
        yield Case(f"jpeg_orientation_{orientation}", make.jpeg(stored, exif=make.exif(orientation)))
    data = make.jpeg()
    app1 = make.segment(0xE1, b"Exif\0\0" + make.garbage(65_000))
    loop = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)
    files = {
        "jpeg_orientation_99": make.jpeg(upright, exif=make.exif(99)),
        "jpeg_progressive": make.jpeg(progressive=True),
        "jpeg_restart_markers": make.jpeg(restart_marker_rows=1),
        "jpeg_as_rgb": make.jpeg(keep_rgb=True),
        "jpeg_subsampled": make.jpeg(subsampling=2),
        "jpeg_huge_exif": make.with_segments(data, *[app1] * 20),
        "jpeg_broken_exif": make.with_segments(data, make.segment(0xE1, b"Exif\0\0" + make.garbage(300))),
        "jpeg_exif_that_loops": make.with_segments(data, make.segment(0xE1, loop)),
        "jpeg_fill_bytes": data[:2] + b"\xff" * 5000 + data[2:],
        "jpeg_and_a_zip": data + b"PK\x03\x04" + make.garbage(3000),
    }
    for name, jpeg in files.items():
        yield Case(name, jpeg)
    broken = {"garbage": make.garbage(3000), "lab": ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()}
    for name, profile in broken.items():
        jpeg = make.jpeg(upright, icc_profile=profile)
        yield Case(f"jpeg_profile_{name}", jpeg, warnings=("ICC_PROFILE_IGNORED",))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield Case("jpeg_profile_srgb", make.jpeg(upright, icc_profile=srgb))
    yield Case("jpeg_cmyk", make.jpeg(upright.convert("CMYK")), tolerance=20)
    yield Case("jpeg_grey", make.jpeg(upright.convert("L"), subsampling=-1), colours=False)


def unusual_pngs() -> Iterator[Case]:
    pixels = make.quadrants().astype(np.int64)
    grey = np.asarray(make.picture(mode="L")).astype(np.int64)[..., None]
    opaque = np.full_like(grey, 255)
    indices = make.quadrant_indices()[..., None]
    palette = make.chunk(b"PLTE", bytes(np.array(make.QUADRANTS, np.uint8)))
    rgba = np.concatenate([pixels, opaque], -1)
    coloured = {
        "png_rgb_16_bit": make.samples_png(pixels * 257, 16, 2),
        "png_rgba_8_bit": make.samples_png(rgba, 8, 6),
        "png_rgba_16_bit": make.samples_png(rgba * 257, 16, 6),
        "png_palette_2_bit": make.samples_png(indices, 2, 3, palette),
        "png_palette_8_bit": make.samples_png(indices, 8, 3, palette),
        "png_palette_transparency": make.samples_png(indices, 8, 3, palette, make.chunk(b"tRNS", b"\xff")),
        "png_interlaced": make.interlaced_png(make.quadrants()),
        "png_unknown_chunk": make.samples_png(pixels, 8, 2, make.chunk(b"quUX", make.garbage(400))),
        "png_rgb_transparent_colour": make.samples_png(pixels, 8, 2, make.chunk(b"tRNS", bytes(6))),
        "png_trailing_garbage": make.samples_png(pixels, 8, 2) + make.garbage(3000),
    }
    for name, data in coloured.items():
        yield Case(name, data)
    broken = make.samples_png(pixels, 8, 2, make.chunk(b"iCCP", b"x\0\0" + make.garbage(99)))
    yield Case("png_broken_profile", broken, warnings=("ICC_PROFILE_IGNORED",))
    for bits in (1, 2, 4, 8, 16):
        scaled = (grey * 257) >> (16 - bits)
        yield Case(f"png_grey_{bits}_bit", make.samples_png(scaled, bits, 0), colours=False)
    for bits in (8, 16):
        both = np.concatenate([grey, opaque], -1) * (257 if bits == 16 else 1)
        yield Case(f"png_grey_alpha_{bits}_bit", make.samples_png(both, bits, 4), colours=False)
    turned = make.stored_for(6, make.picture())
    yield Case("png_orientation_6", make.saved(turned, "PNG", exif=make.exif(6)))
    frames = [make.picture(), Image.fromarray(make.noise())]
    animated = make.saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield Case("png_animated", animated, warnings=("FIRST_FRAME_ONLY",))
    clear = np.concatenate([pixels, opaque * 0], -1)
    yield Case("png_wholly_transparent", make.samples_png(clear, 8, 6), colours=False)


def unusual_others() -> Iterator[Case]:
    upright = make.picture()
    pixels = make.quadrants()
    rgba = upright.convert("RGBA")
    exif_webp = make.saved(make.stored_for(8, upright), "WEBP", lossless=True, exif=make.exif(8))
    top_down = b"".join(row[:, ::-1].tobytes() for row in pixels)
    bgrx = np.concatenate([pixels[::-1, :, ::-1], np.zeros((HEIGHT, WIDTH, 1), np.uint8)], -1)
    files = {
        "webp_lossy": make.saved(upright, "WEBP", quality=95),
        "webp_lossless": make.saved(upright, "WEBP", lossless=True),
        "webp_lossless_alpha": make.saved(rgba, "WEBP", lossless=True),
        "webp_lossy_alpha": make.saved(rgba, "WEBP", quality=95),
        "webp_orientation_8": exif_webp,
        "webp_trailing_garbage": make.saved(upright, "WEBP", lossless=True) + make.garbage(999),
        "bmp_24_bit": make.saved(upright, "BMP"),
        "bmp_top_down": make.bmp(WIDTH, -HEIGHT, 24, top_down),
        "bmp_32_bit": make.bmp(WIDTH, HEIGHT, 32, bgrx.tobytes()),
        "bmp_16_bit": make.bmp16(None),
        "bmp_16_bit_masks": make.bmp16((0xF800, 0x07E0, 0x001F)),
        "bmp_4_bit": make.palette_bmp(4),
        "bmp_8_bit": make.palette_bmp(8),
        "bmp_run_length": make.rle8_bmp(),
        "bmp_os2": make.os2_bmp(pixels),
        "bmp_new_header": make.bmp(WIDTH, HEIGHT, 24, make.bmp_rows(pixels), header_bytes=124),
    }
    for name, data in files.items():
        yield Case(name, data)
    one_bit = make.saved(upright.convert("1"), "BMP")
    yield Case("bmp_1_bit", one_bit, colours=False)
    frames = [upright, Image.fromarray(make.noise())]
    animated = make.saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    yield Case("webp_animated", animated, warnings=("FIRST_FRAME_ONLY",))


def nobody_there() -> Iterator[Case]:
    """Good pictures in which somebody is asked for and nobody is."""
    pictures = {
        "black": Image.new("RGB", (320, 240)),
        "white": Image.new("RGB", (320, 240), "white"),
        "noise": Image.fromarray(make.noise(320, 240)),
        "fields": make.picture(320, 240),
    }
    for name, image in pictures.items():
        yield Case(f"nobody_{name}", make.jpeg(image), NOBODY, options={"subject": "people"})
        yield Case(f"nobody_{name}_each", make.jpeg(image), NOBODY, options={"subject": "each"})
    for name in ("black", "white"):
        data = make.jpeg(pictures[name])
        yield Case(f"all_{name}", data, options={"subject": "all"}, size=(320, 240), colours=False)


def _before_data(png: bytes, extra: bytes) -> bytes:
    return png[:33] + extra + png[33:]


def _webp_chunk(data: bytes) -> tuple[bytes, bytes]:
    """The first chunk of a WebP file."""
    length = int.from_bytes(data[16:20], "little")
    return data[12:16], data[20 : 20 + length]
