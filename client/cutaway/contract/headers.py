"""A picture's format and size, read from its header without decoding it, and checked against the limits.

The SDK calls :func:`check_picture` before it sends, the pipeline before it decodes. Parsing is bounds-checked: it never
allocates memory by a header's numbers, reads a file at most once, and raises nothing but `contract.errors.InputError`.
A picture that passes can still be damaged inside, which only decoding finds.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, replace

from cutaway.contract import errors
from cutaway.contract.errors import CorruptImage, ImageBomb, InvalidFormat
from cutaway.contract.limits import INPUT_LIMITS, MEDIA_TYPES, InputLimits
from cutaway.contract.signatures import looks_like

MAX_JPEG_SEGMENTS = 10_000  # more are an attack: a 10 MB file of full segments has 160

_FORMAT_OF_TYPE = {media_type: name for name, media_type in MEDIA_TYPES.items()}
_FORMAT_OF_TYPE |= {"image/jpg": "jpeg", "image/pjpeg": "jpeg", "image/x-png": "png", "image/apng": "png"}
_FORMAT_OF_TYPE |= {"image/x-ms-bmp": "bmp", "image/x-bmp": "bmp", "image/x-windows-bmp": "bmp"}
_UNDECLARED = ("", "application/octet-stream", "binary/octet-stream", "*/*", "image/*")

# Baseline, extended sequential and progressive Huffman coding; the rest of SOF0 … SOF15 no browser decodes either.
_SOF_DECODABLE = (0xC0, 0xC1, 0xC2)
_SOF_OTHER = dict.fromkeys((0xC3, 0xCB), "lossless JPEG") | dict.fromkeys((0xC9, 0xCA), "arithmetic-coded JPEG")
_SOF_OTHER |= dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG")
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
# The next marker that matters. Decoders skip stray bytes between segments, so this does too; in coded data 0xFF is
# followed by 0x00 or a restart marker (0xD0 to 0xD7), which it passes over just so.
_SEGMENT = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_PNG_BIT_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}

_BMP_CORE_HEADER = 12
_BMP_HEADERS = (40, 52, 56, 64, 108, 124)
_BMP_BITS = (1, 4, 8, 16, 24, 32)
_BMP_UNCOMPRESSED = (0, 3, 6)
_BMP_RLE = (1, 2)


@dataclass(frozen=True)
class PictureHeader:
    """A file's header: the `format` ("jpeg", "png", "webp" or "bmp"); the size as stored, before any EXIF rotation;
    bits per sample, 1 to 16, 8 where the format has nothing else; how often a JPEG's decoder `scans` the pixels; and
    `end_bytes`, the length of the picture in a JPEG without its end marker, whose rows may be missing, else None."""

    format: str
    width_px: int
    height_px: int
    bits_per_sample: int = 8
    scans: int = 1
    end_bytes: int | None = None

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[self.format]

    @property
    def pixels(self) -> int:
        return self.width_px * self.height_px


def check_picture(
    data: bytes,
    media_type: str | None = None,
    *,
    limits: InputLimits = INPUT_LIMITS,
    max_decompression_ratio: float | None = None,
) -> PictureHeader:
    """Check a file against the input limits, by its header alone.

    Args:
        media_type: the declared type ("image/png"), if any; parameters are ignored.
        limits: the bounds; sides hold in either orientation, so EXIF rotation does not matter.
        max_decompression_ratio: replaces the limits' ratio.

    Raises, in this order of checks:
        InvalidFormat: nothing, or not a JPEG, PNG, WebP or BMP, or an unsupported kind of these, or not the
            declared type.
        FileTooLarge: more bytes than allowed.
        CorruptImage: the header is cut off or contradicts itself.
        TooManyPixels, ResolutionTooLarge, ResolutionTooSmall: the dimensions.
        ImageBomb: width·height·4 is over the limits' `ratio_free_bytes`, and over the ratio to the file's bytes; or a
            JPEG has absurdly many scans.
        CorruptImage: the file ends before its picture does; a JPEG may lack its end marker.
    """
    if not data:
        raise InvalidFormat("The file is empty.", details=_format_details("an empty file", limits))
    check_size(len(data), limits.max_file_bytes)
    name = _known_format(data, limits)
    if not declared_agrees(name, media_type):
        declared = _declared(media_type)
        raise InvalidFormat(
            f"The file is declared as {declared!r} and is {MEDIA_TYPES[name]}.",
            details=_format_details(MEDIA_TYPES[name], limits) | {"declared": declared},
        )
    header, complete = _PARSERS[name](data)
    check_dimensions(header, limits)
    max_ratio = limits.max_decompression_ratio if max_decompression_ratio is None else max_decompression_ratio
    decompressed, ratio = header.pixels * 4, header.pixels * 4 / len(data)
    bomb = {"file_bytes": len(data), "decompressed_bytes": decompressed, "ratio": round(ratio, 1)}
    if decompressed > limits.ratio_free_bytes and ratio > max_ratio:
        raise ImageBomb(
            f"{len(data):,} bytes would become {decompressed:,}: {ratio:,.0f} times as many; "
            f"at most {max_ratio:,.0f} times are allowed.",
            details=bomb | {"max_ratio": max_ratio},
        )
    if header.scans > limits.max_jpeg_scans:
        raise ImageBomb(
            f"The JPEG has {header.scans:,} scans; at most {limits.max_jpeg_scans} are allowed.",
            details=bomb | {"scans": header.scans, "max_scans": limits.max_jpeg_scans},
        )
    if not complete:
        raise CorruptImage(f"The {name.upper()} ends before its picture does.")
    return header


def picture_format(data: bytes) -> str | None:
    """The format by its magic bytes: "jpeg", "png", "webp", "bmp", or None for anything else."""
    # Two letters are too weak a magic number: the size of the second header is checked, too, where it is there.
    second = int.from_bytes(data[14:18], "little") if len(data) >= 18 else _BMP_CORE_HEADER
    found = {
        "jpeg": data.startswith(b"\xff\xd8\xff"),
        "png": data.startswith(_PNG_SIGNATURE),
        "webp": data.startswith(b"RIFF") and data[8:12] == b"WEBP",
        "bmp": data.startswith(b"BM") and second in (_BMP_CORE_HEADER, *_BMP_HEADERS),
    }
    return next((name for name, matches in found.items() if matches), None)


def read_header(data: bytes) -> PictureHeader:
    """A file's header, without a check against the limits; InvalidFormat or CorruptImage as :func:`check_picture`."""
    return _PARSERS[_known_format(data, INPUT_LIMITS)](data)[0]


def _known_format(data: bytes, limits: InputLimits) -> str:
    name = picture_format(data)
    if name is None or name not in limits.formats:
        raise _unsupported(name or looks_like(data), limits)
    return name


def declared_agrees(name: str, media_type: str | None) -> bool:
    """Whether a file of format `name` has its declared type; a type that declares nothing agrees."""
    declared = _declared(media_type)
    return declared in _UNDECLARED or _FORMAT_OF_TYPE.get(declared) == name


def _declared(media_type: str | None) -> str:
    return (media_type or "").partition(";")[0].strip().lower()[:100]


def check_size(n_bytes: int, max_bytes: int, what: str = "file") -> None:
    """FileTooLarge where `what` has more bytes than allowed."""
    if n_bytes > max_bytes:
        message = f"The {what} has {n_bytes:,} bytes; at most {max_bytes:,} are allowed."
        raise errors.FileTooLarge(message, details={"size_bytes": n_bytes, "max_bytes": max_bytes})


def check_dimensions(header: PictureHeader, limits: InputLimits) -> None:
    """Check a size against the limits, with the errors of :func:`check_picture`; the pixels first, since sides within
    the limits cannot have too many."""
    width, height = header.width_px, header.height_px
    size = {"width_px": width, "height_px": height}
    if width < 1 or height < 1:
        raise CorruptImage(f"The header says {width}×{height} pixels.")
    if header.pixels > limits.max_pixels:
        raise errors.TooManyPixels(
            f"{width}×{height} are {header.pixels:,} pixels; at most {limits.max_pixels:,} are allowed.",
            details=size | {"pixels": header.pixels, "max_pixels": limits.max_pixels},
        )
    if max(width, height) > limits.max_long_side_px or min(width, height) > limits.max_short_side_px:
        raise errors.ResolutionTooLarge(
            f"{width}×{height} pixels are more than {limits.max_long_side_px}×{limits.max_short_side_px}.",
            details=size | {"max_long_side_px": limits.max_long_side_px, "max_short_side_px": limits.max_short_side_px},
        )
    if min(width, height) < limits.min_side_px:
        raise errors.ResolutionTooSmall(
            f"{width}×{height} pixels are too few: both sides need {limits.min_side_px}.",
            details=size | {"min_side_px": limits.min_side_px},
        )


# One parser per format. Each returns the header and whether the file is complete, as far as a cheap check shows.


def _parse_jpeg(data: bytes) -> tuple[PictureHeader, bool]:
    header: PictureHeader | None = None
    scans, position, end_bytes = 0, 2, len(data)
    components: set[int] = set()
    scanned: set[int] = set()
    for _ in range(MAX_JPEG_SEGMENTS):
        found = _SEGMENT.search(data, position)
        if found is None or found.end() + 2 > len(data):
            if found is not None and data[found.end() - 1] == _EOI:
                end_bytes = -1
            break
        marker, position = data[found.end() - 1], found.end()
        if marker == _EOI:
            end_bytes = -1
            break
        length = int.from_bytes(data[position : position + 2], "big")
        is_frame = marker in _SOF_DECODABLE or marker in _SOF_OTHER
        if scans and (marker == _SOI or length < 2 or (is_frame and components <= scanned)):
            # No end marker, and something else behind the picture: a vendor's trailer, often with a thumbnail.
            end_bytes = found.start()
            break
        if marker == _SOI:
            continue
        if length < 2:
            raise CorruptImage("A JPEG segment has an impossible length.")
        if is_frame:
            if header is not None:
                raise CorruptImage("The JPEG has two frame headers.")
            header = _parse_jpeg_frame(data, position, length, marker)
            components = set(data[position + 8 : position + length : 3])
        elif marker == _SOS:
            scans += 1
            if header is None:
                raise CorruptImage("The JPEG has picture data and no frame header.")
            count = int.from_bytes(data[position + 2 : position + 3])
            scanned.update(data[position + 3 : position + 3 + 2 * count : 2])
        position += length
    else:
        raise CorruptImage(f"The JPEG has more than {MAX_JPEG_SEGMENTS:,} segments.")
    if header is None:
        raise CorruptImage("The JPEG ends inside its header.")
    # Without a scan of each component there are rows without colour: nothing that decoding would find.
    return replace(header, scans=scans, end_bytes=None if end_bytes < 0 else end_bytes), components <= scanned


def _parse_jpeg_frame(data: bytes, position: int, length: int, marker: int) -> PictureHeader:
    if position + 8 > len(data) or length < 8:
        raise CorruptImage("The JPEG ends inside its frame header.")
    bits, height, width, components = struct.unpack_from(">BHHB", data, position + 2)
    if marker in _SOF_OTHER or bits != 8:
        raise _unsupported(_SOF_OTHER.get(marker, f"{bits}-bit JPEG"))
    if components not in (1, 3, 4) or length != 8 + 3 * components:
        raise CorruptImage("The JPEG's frame header contradicts itself.")
    return PictureHeader("jpeg", width, height)


def _parse_png(data: bytes) -> tuple[PictureHeader, bool]:
    if len(data) < 33:
        raise CorruptImage("The PNG ends inside its header.")
    length, kind, width, height, bits, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if kind != b"IHDR" or length != 13:
        raise CorruptImage("The PNG does not begin with its header.")
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise CorruptImage("The PNG's header fails its checksum.")
    if bits not in _PNG_BIT_DEPTHS.get(colour, ()):
        raise CorruptImage("The PNG's header contradicts itself.")
    return PictureHeader("png", width, height, bits), data.find(_PNG_END, 33) >= 0


def _parse_webp(data: bytes) -> tuple[PictureHeader, bool]:
    kind, body = data[12:16], data[20:30]
    if len(body) < (5 if kind == b"VP8L" else 10):
        raise CorruptImage("The WebP ends inside its header.")
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(body[at : at + 3], "little") for at in (4, 7))
    elif kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a" and not body[0] & 1:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
    else:
        raise CorruptImage("The WebP does not begin with a picture header.")
    return PictureHeader("webp", width, height), len(data) >= 8 + int.from_bytes(data[4:8], "little")


def _parse_bmp(data: bytes) -> tuple[PictureHeader, bool]:
    if len(data) < 26:
        raise CorruptImage("The BMP ends inside its header.")
    offset, header_bytes = struct.unpack_from("<II", data, 10)
    compression = 0
    if header_bytes == _BMP_CORE_HEADER:
        width, height, planes, bits = struct.unpack_from("<HHHH", data, 18)
    elif len(data) < 54:
        raise CorruptImage("The BMP ends inside its header.")
    else:
        width, height, planes, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        height = abs(height)  # negative: rows from the top
    if planes != 1 or bits not in _BMP_BITS:
        raise CorruptImage("The BMP's header contradicts itself.")
    if compression not in _BMP_UNCOMPRESSED + _BMP_RLE:
        raise _unsupported(f"BMP with compression {compression}")
    row_bytes = (width * bits + 31) // 32 * 4
    picture_bytes = row_bytes * height if compression in _BMP_UNCOMPRESSED else 2
    start = offset or 14 + header_bytes
    return PictureHeader("bmp", width, height, min(bits, 8)), len(data) >= start + picture_bytes


_PARSERS = {"jpeg": _parse_jpeg, "png": _parse_png, "webp": _parse_webp, "bmp": _parse_bmp}


def _unsupported(received: str, limits: InputLimits = INPUT_LIMITS) -> InvalidFormat:
    return InvalidFormat(f"This is {received}, which is not supported.", details=_format_details(received, limits))


def _format_details(received: str, limits: InputLimits = INPUT_LIMITS) -> dict[str, object]:
    return {"supported": list(limits.formats), "received": received}
