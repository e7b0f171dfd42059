"""A PNG without the metadata that decoders trip over; browsers show such files."""

from __future__ import annotations

import struct
import zlib

MAX_PROFILE_BYTES = 16 * 1024 * 1024  # of an unfolded ICC profile: the largest in use, for printing, have 4 MB

_READ = (b"tRNS", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"eXIf", b"acTL", b"fcTL", b"fdAT")
"""Chunks beside the critical ones that describe pixels. Text, in which tools keep whole workflows, is not among them:
Pillow unfolds it, refuses the picture where it is long, and would turn the picture by its XMP."""


def readable(data: bytes) -> tuple[bytes, bool]:
    """The file without chunks that no decoder needs, and whether a damaged colour profile was among them."""
    kept, position, dropped, profile_dropped = [data[:8]], 8, False, False
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + 12 + length]
        if len(chunk) < 12 + length:
            break
        if not kind[0] & 0x20 or (kind in _READ and _is_sound(kind, chunk)):
            kept.append(chunk)
        else:
            dropped, profile_dropped = True, profile_dropped or kind == b"iCCP"
        position += len(chunk)
        if kind == b"IEND":
            break
    return b"".join(kept) if dropped else data, profile_dropped


def _is_sound(kind: bytes, chunk: bytes) -> bool:
    """Whether an ancillary chunk has its checksum, and a profile unfolds."""
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
        return False
    if kind != b"iCCP":
        return True
    unfold = zlib.decompressobj()
    try:
        unfold.decompress(chunk[8:-4].partition(b"\0")[2][1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return False
    return unfold.eof
