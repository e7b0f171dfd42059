"""What leaves is the picture: no segment, chunk or byte behind the end, and the same pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cutaway.fallback import Fallback
from PIL import Image, ImageCms

from tests.client.hosted.asking import hub
from tests.client.hosted.peers import HubScript, Peer, picture

SECRET = b"48.8566N 2.3522E at home"


def segment(number: int, content: bytes) -> bytes:
    """A JPEG's APPn, or 0xFE for a comment."""
    return bytes([0xFF, number]) + struct.pack(">H", len(content) + 2) + content


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG's."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def webp_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def jpeg(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture())).convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def webp_with(*chunks: bytes) -> bytes:
    """In the extended form, which announces what it holds."""
    simple = picture("image/webp")[12:]
    extended = webp_chunk(b"VP8X", bytes([0x0C, 0, 0, 0]) + b"\x9f\0\0" + b"\x5f\0\0")
    body = b"WEBP" + extended + simple + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


PLAIN_JPEG, PLAIN_PNG = jpeg(), picture()
SCANS = jpeg(progressive=True)
LAST_SCAN = SCANS.rindex(b"\xff\xda")
THUMBNAIL = b"JFIF\0\x01\x01\0\0\x01\0\x01\x01\x01" + SECRET[:3]

FILES = {
    **{f"APP{number}": PLAIN_JPEG[:2] + segment(0xE0 + number, SECRET) + PLAIN_JPEG[2:] for number in range(16)},
    "a comment": PLAIN_JPEG[:2] + segment(0xFE, SECRET) + PLAIN_JPEG[2:],
    "EXIF": jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\0\0\0\x19\0\0\0\x1a\0\0\0\0" + SECRET + b"\0"),
    "a small picture in JFIF": PLAIN_JPEG[:2] + segment(0xE0, THUMBNAIL[:14] + SECRET) + PLAIN_JPEG[20:],
    "behind the end of a JPEG": PLAIN_JPEG + SECRET,
    "a second JPEG behind the end": PLAIN_JPEG + PLAIN_JPEG[:2] + segment(0xE2, SECRET) + PLAIN_JPEG[2:],
    "between a JPEG's scans": SCANS[:LAST_SCAN] + segment(0xEB, SECRET) + SCANS[LAST_SCAN:],
    "text in a PNG": PLAIN_PNG[:33] + chunk(b"tEXt", b"Comment\0" + SECRET) + PLAIN_PNG[33:],
    "EXIF in a PNG": PLAIN_PNG[:33] + chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0\0\0\0\0" + SECRET) + PLAIN_PNG[33:],
    "a private chunk in a PNG": PLAIN_PNG[:33] + chunk(b"prVt", SECRET) + PLAIN_PNG[33:],
    "a private chunk after a PNG's picture": PLAIN_PNG[:-12] + chunk(b"prVt", SECRET) + PLAIN_PNG[-12:],
    "behind the end of a PNG": PLAIN_PNG + SECRET,
    "EXIF in a WebP": webp_with(webp_chunk(b"EXIF", b"MM\0*\0\0\0\x08\0\0\0\0\0\0" + SECRET)),
    "XMP in a WebP": webp_with(webp_chunk(b"XMP ", SECRET)),
    "an unknown chunk in a WebP": webp_with(webp_chunk(b"prVt", SECRET + b"!")),
    "behind the end of a WebP": picture("image/webp") + SECRET,
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_only_the_picture_leaves(what: str, serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    data = FILES[what]
    assert SECRET in data or what.startswith("a small picture")
    peer = serve(HubScript())
    infer(Fallback([hub(peer)]), data=data, subject="all")
    (received,) = peer.received
    assert SECRET not in received.body
    assert SECRET[:3] not in received.body[:40]
    sent, own = (Image.open(io.BytesIO(each)) for each in (received.body, data))
    assert sent.format == ("PNG" if own.format == "PNG" else "JPEG")
    pixels, others = (np.asarray(each.convert("RGB")).astype(int) for each in (sent, own))
    assert np.abs(pixels - others).max() == 0 or (sent.format == "JPEG" and np.abs(pixels - others).mean() < 2)


def test_a_profile_is_applied_and_not_sent(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    peer = serve(HubScript())
    infer(Fallback([hub(peer)]), data=jpeg(icc_profile=profile), subject="all")
    assert b"ICC_PROFILE" not in peer.received[0].body
    sent, own = (np.asarray(Image.open(io.BytesIO(each))) for each in (peer.received[0].body, PLAIN_JPEG))
    assert np.abs(sent.astype(int) - own).mean() < 2
