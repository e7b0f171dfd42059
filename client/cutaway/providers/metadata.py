"""A file with its pixels and nothing else: what decoding does not need is left out, without encoding anew.

What a container may hold beside the picture is not a list that can be known (APP11 of a JPEG carries provenance, other
segments a second picture, and anything may follow the end), so what is *needed* is listed here, and all else goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_SCAN_END = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""A marker within a JPEG's coded data that is no stuffed byte and no restart."""

_FRAMES_AND_TABLES = frozenset(range(0xC0, 0xD0)) | {0xDA, 0xDB, 0xDC, 0xDD} - {0xC8}
"""SOFn, DHT, DAC, SOS, DQT, DNL, DRI."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = frozenset(
    [b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"cICP"],
)
"""The picture, and how its numbers are meant as colours."""

_WEBP_CHUNKS = frozenset([b"VP8 ", b"VP8L", b"ALPH", b"VP8X"])
_WEBP_HAS_ALPHA = 0x10
"""Of the flags in VP8X, the only one that stays true: the others announce a profile, EXIF, XMP and frames."""


def stripped(data: bytes, source_format: str) -> bytes | None:
    """The file without what decoding does not need; None where it is not one that can be taken apart safely.

    Args:
        data: a file that has been decoded, so that its pixels are known to be sound.
        source_format: as :class:`cutaway.contract.headers.PictureHeader` names it.
    """
    parts = {"jpeg": _jpeg, "png": _png, "webp": _webp}.get(source_format)
    if parts is None:
        return None
    try:
        return b"".join(parts(data))
    except (ValueError, IndexError):
        return None


def _jpeg(data: bytes) -> Iterator[bytes]:
    _expect(data[:2] == b"\xff\xd8")
    yield data[:2]
    at = 2
    while data[at + 1] != 0xD9:
        _expect(data[at] == 0xFF)
        kind = data[at + 1]
        if kind == 0xFF:  # a filling byte
            at += 1
            continue
        _expect(kind >= 0xC0 and not 0xD0 <= kind <= 0xD8)
        end = at + 2 + _number(data, at + 2, 2, "big")
        _expect(at + 4 <= end <= len(data))
        content = data[at + 4 : end]
        if kind == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= 14:
            yield b"\xff\xe0\x00\x10" + content[:12] + b"\0\0"  # without the small picture that it may hold
        elif kind == 0xEE and content.startswith(b"Adobe") and len(content) >= 12:
            yield b"\xff\xee\x00\x0e" + content[:12]
        elif kind in _FRAMES_AND_TABLES:
            yield data[at:end]
        if kind == 0xDA:
            found = _SCAN_END.search(data, end)
            _expect(found is not None)
            at = found.start() if found else end
            yield data[end:at]
        else:
            at = end
    _expect(data[at] == 0xFF)
    yield b"\xff\xd9"


def _png(data: bytes) -> Iterator[bytes]:
    _expect(data.startswith(_PNG_SIGNATURE))
    yield _PNG_SIGNATURE
    at, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        end = at + 12 + _number(data, at, 4, "big")
        kind = data[at + 4 : at + 8]
        _expect(end <= len(data))
        if kind in _PNG_CHUNKS:
            yield data[at:end]
        at = end


def _webp(data: bytes) -> Iterator[bytes]:
    end_of_file = 8 + _number(data, 4, 4, "little")
    _expect(data[:4] == b"RIFF" and data[8:12] == b"WEBP" and end_of_file <= len(data))
    kept: list[bytes] = []
    at = 12
    while at < end_of_file:
        size, kind = _number(data, at + 4, 4, "little"), data[at : at + 4]
        content = data[at + 8 : at + 8 + size]
        _expect(len(content) == size and kind not in (b"ANIM", b"ANMF"))
        if kind == b"VP8X":
            content = bytes([content[0] & _WEBP_HAS_ALPHA]) + content[1:]
        if kind in _WEBP_CHUNKS:
            kept.append(data[at : at + 8] + content + bytes(size % 2))
        at += 8 + size + size % 2
    yield b"RIFF" + (4 + sum(map(len, kept))).to_bytes(4, "little") + b"WEBP"
    yield from kept


def _number(data: bytes, at: int, size: int, order: str) -> int:
    _expect(at + size <= len(data))
    return int.from_bytes(data[at : at + size], "big" if order == "big" else "little")


def _expect(sound: bool) -> None:
    if not sound:
        raise ValueError("not as the format says")
