"""Pictures → PNG, WebP and JPEG files, or ZIPs of two of them, marked as sRGB and with the density of the input.

The PNG writer is the project's own: one filter for all rows (each pixel minus the one above, a single vectorised
subtraction) and Intel's ISA-L deflate. Strips are computed, filtered and compressed independently, two at a time, at a
cost of a few bytes each. `python -m benchmarks.outputs` of commit 1b7ce5e compares its time and size with OpenCV's and
Pillow's.
"""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipeline.pixels import Pixels, side_by_side, strips
from pipeline.tuning import WEBP_METHOD

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
_SUB, _UP = 1, 2
_DEFLATE_LEVEL = 1
_ZLIB_HEADER = b"\x78\x01"
_ADLER_BASE = 65521


_METRES_PER_INCH = 0.0254
_PERCEPTUAL = b"\0"
_LAYERS_DATE = (1980, 1, 1, 0, 0, 0)
"""The first one that ZIP knows: the same picture gives the same bytes at any time."""

Density = tuple[float, float]
"""Horizontal and vertical pixels per inch."""


def encode(pixels: Pixels, output: str, quality: int, density_dpi: Density | None = None) -> bytes:
    """A file in the form that the option `output` names; `quality` 1 to 100 is of lossy colours."""
    if output == "layers":
        return layers(pixels, quality, density_dpi)
    if output in ("webp", "jpeg"):
        return lossy(pixels, output, quality, density_dpi)
    return png(pixels, density_dpi)


def layers(pixels: Pixels, quality: int, density_dpi: Density | None = None) -> bytes:
    """A ZIP of color.jpg and alpha.png of RGBA; both are compressed, so the archive stores them as they are."""

    def part(channels: slice | int) -> Pixels:
        count = 3 if isinstance(channels, slice) else 1
        return Pixels(pixels.height, pixels.width, count, lambda rows: whole[rows][..., channels])

    whole = pixels.array()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (
            ("color.jpg", lossy(part(slice(3)), "jpeg", quality, density_dpi)),
            ("alpha.png", png(part(3), density_dpi)),
        ):
            archive.writestr(zipfile.ZipInfo(name, _LAYERS_DATE), data)
    return file.getvalue()


def png(pixels: Pixels, density_dpi: Density | None = None) -> bytes:
    """A PNG; RGBA with straight alpha."""
    header = struct.pack(">IIBBBBB", pixels.width, pixels.height, 8, _COLOUR_TYPES[pixels.channels], 0, 0, 0)
    chunks = [
        _SIGNATURE,
        _chunk(b"IHDR", header),
        *_marks(pixels, density_dpi),
        *(_chunk(b"IDAT", piece) for piece in _compressed(pixels)),
        _chunk(b"IEND", b""),
    ]
    return b"".join(chunks)


def lossy(pixels: Pixels, output: str, quality: int, density_dpi: Density | None = None) -> bytes:
    """A WebP of RGB or RGBA with lossy colours and exact alpha, or a JPEG of RGB with colours at full resolution."""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ColorSpace] = 1  # sRGB; a profile would hold the time of its making
    if density_dpi is not None:
        exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution] = density_dpi
        exif[ExifTags.Base.ResolutionUnit] = 2
    file, image = io.BytesIO(), Image.fromarray(np.ascontiguousarray(pixels.array()))
    if output == "webp":
        image.save(file, "WEBP", quality=quality, alpha_quality=100, method=WEBP_METHOD, exif=exif)
    else:
        dots = {} if density_dpi is None else {"dpi": tuple(round(value) for value in density_dpi)}
        image.save(file, "JPEG", quality=quality, subsampling=0, exif=exif, **dots)
    return file.getvalue()


def _marks(pixels: Pixels, density_dpi: Density | None) -> list[bytes]:
    """The chunks that say sRGB (of colours) and pixels per metre."""
    chunks = [_chunk(b"sRGB", _PERCEPTUAL)] if pixels.channels > 1 else []
    if density_dpi is not None:
        per_metre = [round(value / _METRES_PER_INCH) for value in density_dpi]
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    return chunks


def _compressed(pixels: Pixels) -> list[bytes]:
    """The zlib stream of the filtered rows, in pieces."""

    def compress(part: slice) -> tuple[bytes, int, int]:
        filtered = _filtered(pixels.rows(part), pixels.channels)
        return _deflated(filtered, last=part.stop == pixels.height), isal_zlib.adler32(filtered), filtered.nbytes

    stream, checksum = [], 1
    for piece, of_piece, length_bytes in side_by_side(compress, strips(pixels.height, pixels.width)):
        stream.append(piece)
        checksum = combined_adler32(checksum, of_piece, length_bytes)
    stream[0] = _ZLIB_HEADER + stream[0]
    stream[-1] += struct.pack(">I", checksum)
    return stream


def _filtered(rows: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Rows (h, w) or (h, w, C) uint8 after PNG's filter, (h, 1 + bytes per row), independent of the rows above."""
    height = len(rows)
    flat = np.ascontiguousarray(rows).reshape(height, -1)
    filtered = np.empty((height, flat.shape[1] + 1), np.uint8)
    filtered[0, 0] = _SUB
    filtered[0, 1 : 1 + channels] = flat[0, :channels]
    np.subtract(flat[0, channels:], flat[0, :-channels], out=filtered[0, 1 + channels :])
    filtered[1:, 0] = _UP
    np.subtract(flat[1:], flat[:-1], out=filtered[1:, 1:])
    return filtered


def _deflated(data: NDArray[np.uint8], *, last: bool) -> bytes:
    """A raw deflate stream, to be followed by another one unless it is the last."""
    deflate: Any = isal_zlib.compressobj(_DEFLATE_LEVEL, isal_zlib.DEFLATED, -isal_zlib.MAX_WBITS)
    start: bytes = deflate.compress(data)
    end: bytes = deflate.flush(isal_zlib.Z_FINISH if last else isal_zlib.Z_FULL_FLUSH)
    return start + end


def combined_adler32(first: int, second: int, second_bytes: int) -> int:
    """The Adler-32 checksum of two pieces of data one after the other, from theirs and the second one's length."""
    low = (first & 0xFFFF) + (second & 0xFFFF) - 1
    high = (first >> 16) + (second >> 16) + second_bytes * ((first & 0xFFFF) - 1)
    return (high % _ADLER_BASE) << 16 | low % _ADLER_BASE


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = isal_zlib.crc32(body, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", checksum)))
