"""Names for files that are no supported picture, for error messages."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder

_HEAD_BYTES = 1024
_TEXT = rb"(\xef\xbb\xbf)?\s*"
_KINDS = {
    "an empty file": rb"\Z",
    "an AVIF": rb"....ftypavi[fs]",
    "a HEIC": rb"....ftyphe(i[cxm]|v[cx])",
    "a HEIF": rb"....ftypm(if|sf)1",
    "an MP4 video": rb"....ftyp",
    "a GIF": rb"GIF8[79]a",
    "a TIFF or camera raw file": rb"II[*+]\x00|MM\x00[*+]",
    "a PDF": rb"%PDF-",
    "a JPEG XL": rb"\x00\x00\x00\x0cJXL |\xff\x0a",
    "a ZIP archive or office document": rb"PK(\x03\x04|\x05\x06)",
    "an archive": rb"\x1f\x8b|BZh|\xfd7zXZ\x00|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07",
    "a JPEG that breaks off": rb"\xff\xd8",
    "a PNG that is damaged in its first bytes": rb"\x89PN",
    "a picture in base64; decode it first": rb"/9j/|iVBORw0KGgo|UklGR",
    "a data URI; send the decoded bytes": rb"data:",
    "an SVG": rb"(?i:.*<svg)",
    "an HTML page": rb"(?i:.*<html|" + _TEXT + rb"<!doctype html)",
    "JSON or text": _TEXT + rb"[{\[]",
}


def looks_like(data: bytes) -> str:
    """The name of a file's probable kind: "a PDF", "a HEIC", "text", "an unknown kind of file"."""
    head = bytes(data[:_HEAD_BYTES])
    for kind, pattern in _KINDS.items():
        if re.match(pattern, head, re.DOTALL):
            return kind
    try:
        text = getincrementaldecoder("utf-8")().decode(head)  # where the cut divides a character, without it
    except UnicodeDecodeError:
        return "an unknown kind of file"
    return "text" if text.translate(dict.fromkeys(b"\n\r\t")).isprintable() else "an unknown kind of file"
