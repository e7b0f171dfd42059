"""What decoders trip over in files whose picture is whole: metadata they need not read, and missing end markers.

Browsers show these files. Nothing here decodes a picture, but for the question whether a JPEG's rows are all there.
"""

from __future__ import annotations

import re
import struct
import zlib

import simplejpeg
from cutaway.contract.errors import CorruptImage
from cutaway.contract.headers import PictureHeader

from pipeline.notices import Notice

MAX_PROFILE_BYTES = 16 * 1024 * 1024
"""An ICC profile in a PNG may unfold to this size: the largest in use, for printing, have four megabytes."""

_PNG_READ = (b"tRNS", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"eXIf", b"acTL", b"fcTL", b"fdAT")
"""Chunks beside the critical ones that say something about pixels. Text, in which tools keep whole workflows, is not
among them: Pillow unfolds it, refuses the picture where it is long, and would turn the picture by its XMP."""

_JPEG_END = b"\xff\xd9"
ROWS_MISSING = "premature end of data segment"
_BEFORE_END = re.compile(r"extraneous bytes before marker 0xd9|^Premature end of JPEG file")
"""Strays in the end marker's place, a vendor's trailer for example: by then all rows are decoded."""


def readable_png(data: bytes) -> tuple[bytes, list[Notice]]:
    """A PNG without the chunks that no decoder needs."""
    notices: list[Notice] = []
    kept: list[bytes] = [data[:8]]
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        chunk = data[position:end]
        critical = kind[0] & 0x20 == 0
        if critical or (kind in _PNG_READ and _is_sound(kind, chunk, notices)):
            kept.append(chunk)
        position = end
        if kind == b"IEND":
            break
    return b"".join(kept), notices


def readable_jpeg(data: bytes, header: PictureHeader) -> tuple[bytes, list[Notice]]:
    """A JPEG with its end marker.

    Raises:
        CorruptImage: the marker was missing, and rows are, too.
    """
    if header.end_bytes is None:
        return data, []
    data = data[: header.end_bytes] + _JPEG_END
    notices: list[Notice] = []
    fault = jpeg_fault(data)
    if fault and not _BEFORE_END.search(fault):
        judge_fault(fault, notices)
    return data, [*notices, Notice("END_MARKER_MISSING", "The JPEG has no end marker; all of its rows were there.")]


def jpeg_fault(data: bytes) -> str:
    """The first objection of libjpeg-turbo to a JPEG, "" where there is none; grey is the cheapest to decode."""
    try:
        simplejpeg.decode_jpeg(data, "GRAY", strict=True)
    except ValueError as error:
        return str(error)
    return ""


def judge_fault(fault: str, notices: list[Notice]) -> None:
    """Add a warning for what libjpeg-turbo objected to.

    Raises:
        CorruptImage: rows are missing.
    """
    if ROWS_MISSING in fault:
        raise CorruptImage("The JPEG ends before its picture does.")
    notices.append(Notice("IMAGE_DAMAGED", "The JPEG is damaged inside; parts of the picture may be wrong."))


def _is_sound(kind: bytes, chunk: bytes, notices: list[Notice]) -> bool:
    """Whether an ancillary chunk can be read; a profile that cannot is a warning."""
    sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
    if kind == b"iCCP":
        unfold = zlib.decompressobj()
        try:
            _, _, packed = chunk[8:-4].partition(b"\0")
            unfold.decompress(packed[1:], MAX_PROFILE_BYTES)
            sound = sound and unfold.eof
        except zlib.error:
            sound = False
        if not sound:
            notices.append(Notice("ICC_PROFILE_IGNORED", "The colour profile is damaged and was ignored."))
    return sound
