"""Arrays → PNG and WebP files.

The PNG writer is the project's own: one filter for all rows (each pixel minus the one above, a single vectorised
subtraction) and Intel's ISA-L deflate, which lets two threads work at once. docs/quality.md has its time and size
beside OpenCV's and Pillow's.
"""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

from pipeline.tuning import WEBP_METHOD, WEBP_QUALITY

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
_SUB, _UP = 1, 2
_STRIP_BYTES = 1 << 20
_DEFLATE_LEVEL = 1
_ZLIB_HEADER = b"\x78\x01"
_ADLER_BASE = 65521
_WORTH_TWO_THREADS = 1 << 20
_THREADS = ThreadPoolExecutor(1, thread_name_prefix="png")


def encode(pixels: NDArray[np.uint8], output: str) -> bytes:
    """A file in the form that the option `output` names."""
    return webp(pixels) if output == "webp" else png(pixels)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA uint8, RGBA with straight alpha."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = [
        _SIGNATURE,
        _chunk(b"IHDR", header),
        _chunk(b"IDAT", _compressed(rows, channels)),
        _chunk(b"IEND", b""),
    ]
    return b"".join(chunks)


def webp(pixels: NDArray[np.uint8]) -> bytes:
    """A WebP with lossy colours and exact alpha, of (H, W, 3) RGB or (H, W, 4) RGBA uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=WEBP_QUALITY, alpha_quality=100, method=WEBP_METHOD)
    return file.getvalue()


def _compressed(rows: NDArray[np.uint8], channels: int) -> bytes:
    """The zlib stream of filtered rows (H, bytes per row); halves of a large picture are compressed side by side."""
    height = len(rows)
    middle = height // 2 if rows.nbytes >= _WORTH_TWO_THREADS else 0
    if middle:
        first = _THREADS.submit(_deflated, rows, channels, slice(0, middle), last=False)
        second, second_sum = _deflated(rows, channels, slice(middle, height), last=True)
        stream, checksum = first.result()
        stream += second
        checksum = combined_adler32(checksum, second_sum, (height - middle) * (rows.shape[1] + 1))
    else:
        stream, checksum = _deflated(rows, channels, slice(0, height), last=True)
    return _ZLIB_HEADER + stream + struct.pack(">I", checksum)


def _deflated(rows: NDArray[np.uint8], channels: int, part: slice, *, last: bool) -> tuple[bytes, int]:
    """Some of the rows, filtered and compressed strip by strip, to be followed by others unless they are the last.

    Returns:
        The raw deflate stream, and the Adler-32 checksum of what is in it.
    """
    row_bytes = rows.shape[1]
    deflate: Any = isal_zlib.compressobj(_DEFLATE_LEVEL, isal_zlib.DEFLATED, -isal_zlib.MAX_WBITS)
    checksum = 1
    pieces = []
    step = max(1, _STRIP_BYTES // row_bytes)
    strip = np.empty((min(step, part.stop - part.start), row_bytes + 1), np.uint8)
    for top in range(part.start, part.stop, step):
        bottom = min(top + step, part.stop)
        filtered = strip[: bottom - top]
        filtered[:, 0] = _UP
        np.subtract(rows[max(top, 1) : bottom], rows[max(top, 1) - 1 : bottom - 1], out=filtered[top == 0 :, 1:])
        if top == 0:
            # Nothing stands above the first row, so its pixels are taken from the left.
            filtered[0, 0] = _SUB
            filtered[0, 1 : 1 + channels] = rows[0, :channels]
            np.subtract(rows[0, channels:], rows[0, :-channels], out=filtered[0, 1 + channels :])
        pieces.append(deflate.compress(filtered))
        checksum = isal_zlib.adler32(filtered, checksum)
    pieces.append(deflate.flush(isal_zlib.Z_FINISH if last else isal_zlib.Z_FULL_FLUSH))
    return b"".join(pieces), checksum


def combined_adler32(first: int, second: int, second_bytes: int) -> int:
    """The Adler-32 checksum of two pieces of data one after the other, from theirs and the second one's length."""
    low = (first & 0xFFFF) + (second & 0xFFFF) - 1
    high = (first >> 16) + (second >> 16) + second_bytes * ((first & 0xFFFF) - 1)
    return (high % _ADLER_BASE) << 16 | low % _ADLER_BASE


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = isal_zlib.crc32(body, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", checksum)))
