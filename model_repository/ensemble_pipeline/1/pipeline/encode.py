"""Arrays → PNG and WebP files.

The PNG writer is the project's own: one filter for all rows (each pixel minus the one above, a single vectorised
subtraction) and Intel's ISA-L deflate. docs/quality.md has its time and size beside OpenCV's and Pillow's.
"""

from __future__ import annotations

import io
import struct
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
    """The zlib stream of filtered rows (H, bytes per row), strip by strip."""
    height, row_bytes = rows.shape
    deflate: Any = isal_zlib.compressobj(_DEFLATE_LEVEL)
    parts = []
    step = max(1, _STRIP_BYTES // row_bytes)
    strip = np.empty((step, row_bytes + 1), np.uint8)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        filtered = strip[: bottom - top]
        filtered[:, 0] = _UP
        np.subtract(rows[max(top, 1) : bottom], rows[max(top, 1) - 1 : bottom - 1], out=filtered[top == 0 :, 1:])
        if top == 0:
            # Nothing stands above the first row, so its pixels are taken from the left.
            filtered[0, 0] = _SUB
            filtered[0, 1 : 1 + channels] = rows[0, :channels]
            np.subtract(rows[0, channels:], rows[0, :-channels], out=filtered[0, 1 + channels :])
        parts.append(deflate.compress(filtered))
    parts.append(deflate.flush())
    return b"".join(parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = isal_zlib.crc32(body, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", checksum)))
