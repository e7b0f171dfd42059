"""Builders of picture files, written byte by byte where no library would write such a thing."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 96, 128
QUADRANTS = ((220, 30, 30), (30, 190, 30), (30, 30, 210), (240, 240, 240))
"""Colours of the test picture: top left, top right, bottom left, bottom right."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def quadrants(width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """HWC uint8 RGB: four flat fields, so that size, orientation and colours of a result can be told."""
    pixels = np.empty((height, width, 3), np.uint8)
    for index, colour in enumerate(QUADRANTS):
        row, column = divmod(index, 2)
        pixels[
            row * height // 2 : (row + 1) * height // 2 if row == 0 else height,
            column * width // 2 : (column + 1) * width // 2 if column == 0 else width,
        ] = colour
    return pixels


def noise(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def picture(width: int = WIDTH, height: int = HEIGHT, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(quadrants(width, height)).convert(mode)


def saved(image: Image.Image, pil_format: str, **parameters: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, pil_format, **parameters)
    return file.getvalue()


def jpeg(image: Image.Image | None = None, **parameters: Any) -> bytes:
    return saved(image or picture(), "JPEG", **{"quality": 95, "subsampling": 0, **parameters})


# --------------------------------------------------------------------------------------------------------- PNG


def chunk(kind: bytes, body: bytes = b"", *, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def ihdr(width: int, height: int, bits: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace))


def png(
    rows: list[bytes], width: int, height: int, bits: int, colour: int, *between: bytes, interlace: int = 0
) -> bytes:
    """A PNG of unfiltered packed rows, with chunks between header and data."""
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 6)
    return b"".join(
        (
            PNG_SIGNATURE,
            ihdr(width, height, bits, colour, interlace),
            *between,
            chunk(b"IDAT", data),
            PNG_END,
        )
    )


def samples_png(samples: NDArray[np.integer[Any]], bits: int, colour: int, *between: bytes) -> bytes:
    """A PNG of (H, W, C) samples of 1, 2, 4, 8 or 16 bits."""
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in flat]
    elif bits == 8:
        rows = [row.astype(np.uint8).tobytes() for row in flat]
    else:
        planes = (flat[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in planes]
    return png(rows, width, height, bits, colour, *between)


def interlaced_png(pixels: NDArray[np.uint8]) -> bytes:
    """Adam7, RGB."""
    height, width = pixels.shape[:2]
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]]
    return png(rows, width, height, 8, 2, interlace=1)


# --------------------------------------------------------------------------------------------------------- BMP


def bmp(
    width: int,
    height: int,
    bits: int,
    data: bytes,
    *,
    compression: int = 0,
    palette: bytes = b"",
    planes: int = 1,
    masks: bytes = b"",
    header_bytes: int = 40,
    offset: int | None = None,
    colours_used: int | None = None,
) -> bytes:
    """A BMP with a Windows header; `height` may be negative, `data` may be anything."""
    used = len(palette) // 4 if colours_used is None else colours_used
    header = struct.pack(
        "<IiiHHIIiiII", header_bytes, width, height, planes, bits, compression, len(data), 2835, 2835, used, 0
    )
    header += masks + bytes(max(0, header_bytes - 40 - len(masks)))
    start = 14 + len(header) + len(palette) if offset is None else offset
    total = 14 + len(header) + len(palette) + len(data)
    return b"BM" + struct.pack("<IHHI", total, 0, 0, start) + header + palette + data


def bmp_rows(pixels: NDArray[np.uint8]) -> bytes:
    """Rows of 24-bit BMP data, from the bottom."""
    padding = b"\0" * (-pixels.shape[1] * 3 % 4)
    return b"".join(row[:, ::-1].tobytes() + padding for row in pixels[::-1])


def os2_bmp(pixels: NDArray[np.uint8]) -> bytes:
    """A BMP with the 12-byte header of OS/2."""
    height, width = pixels.shape[:2]
    data = bmp_rows(pixels)
    return (
        b"BM" + struct.pack("<IHHI", 26 + len(data), 0, 0, 26) + struct.pack("<IHHHH", 12, width, height, 1, 24) + data
    )


def palette_bmp(bits: int) -> bytes:
    """The test picture with a palette of four colours."""
    indices = quadrant_indices()
    palette = b"".join(bytes((b, g, r, 0)) for r, g, b in QUADRANTS)
    palette += b"\0" * (4 * 2**bits - len(palette))
    planes = (indices[::-1, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in planes]
    data = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    return bmp(WIDTH, HEIGHT, bits, data, palette=palette)


def rle8_bmp() -> bytes:
    """The test picture, run-length encoded."""
    palette = b"".join(bytes((b, g, r, 0)) for r, g, b in QUADRANTS) + bytes(4 * 252)
    half = WIDTH // 2
    data = b"".join(bytes((half, row[0], half, row[-1], 0, 0)) for row in quadrant_indices()[::-1].astype(np.uint8))
    return bmp(WIDTH, HEIGHT, 8, data + b"\0\x01", compression=1, palette=palette)


def bmp16(masks: tuple[int, int, int] | None) -> bytes:
    """The test picture in 16 bits: 5-5-5, or 5-6-5 with masks."""
    red, green, blue = (quadrants()[::-1, :, channel].astype(np.uint16) for channel in range(3))
    if masks is None:
        values = (red >> 3) << 10 | (green >> 3) << 5 | blue >> 3
        return bmp(WIDTH, HEIGHT, 16, values.astype("<u2").tobytes())
    values = (red >> 3) << 11 | (green >> 2) << 5 | blue >> 3
    return bmp(
        WIDTH,
        HEIGHT,
        16,
        values.astype("<u2").tobytes(),
        compression=3,
        masks=struct.pack("<III", *masks),
        header_bytes=52,
    )


def quadrant_indices() -> NDArray[np.int64]:
    rows = (np.arange(HEIGHT) >= HEIGHT // 2).astype(np.int64)
    columns = (np.arange(WIDTH) >= WIDTH // 2).astype(np.int64)
    return rows[:, None] * 2 + columns[None, :]


# -------------------------------------------------------------------------------------------------------- WebP


def webp(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body) if size is None else size) + b"WEBP" + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    return b"VP8X", bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def vp8l_header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"VP8L", b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + bytes(20)


def vp8_header(width: int, height: int, first_byte: int = 0x10) -> tuple[bytes, bytes]:
    return b"VP8 ", bytes((first_byte, 2, 0)) + b"\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(20)


# -------------------------------------------------------------------------------------------------------- JPEG


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg_header(width: int, height: int, *, marker: int = 0xC0, bits: int = 8, components: int = 3) -> bytes:
    """Start of image and frame header, nothing else."""
    frame = struct.pack(">BHHB", bits, height, width, components)
    frame += b"".join(bytes((index + 1, 0x11, 0)) for index in range(components))
    return b"\xff\xd8" + segment(marker, frame)


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments put in right after its start."""
    return data[:2] + b"".join(segments) + data[2:]


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def stored_for(orientation: int, upright: Image.Image) -> Image.Image:
    """The pixels that an EXIF orientation turns into `upright`."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return upright.transpose(back[orientation]) if orientation in back else upright


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = jpeg(progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def garbage(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)
