"""Names for files that are no supported picture, for error messages."""

from __future__ import annotations

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"GIF87a", "a GIF"),
    (b"GIF89a", "a GIF"),
    (b"II*\x00", "a TIFF or camera raw file"),
    (b"MM\x00*", "a TIFF or camera raw file"),
    (b"II+\x00", "a TIFF or camera raw file"),
    (b"MM\x00+", "a TIFF or camera raw file"),
    (b"%PDF-", "a PDF"),
    (b"%!PS", "a PostScript file"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"8BPS", "a Photoshop file"),
    (b"qoif", "a QOI"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"PK\x03\x04", "a ZIP archive or office document"),
    (b"PK\x05\x06", "a ZIP archive or office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x1aE\xdf\xa3", "a WebM or Matroska video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3"),
    (b"\x7fELF", "a program (ELF)"),
    (b"MZ", "a program (EXE)"),
    (b"\xff\xd8", "a JPEG that breaks off"),
    (b"\x89PN", "a PNG that is damaged in its first bytes"),
    (b"/9j/", "a JPEG in base64; decode it first"),
    (b"iVBORw0KGgo", "a PNG in base64; decode it first"),
    (b"UklGR", "a WebP in base64; decode it first"),
    (b"data:", "a data URI; send the decoded bytes"),
)

_RIFF = {b"WAVE": "a WAV", b"AVI ": "an AVI video"}

# ISO media files have a four-letter brand for their kind.
_BRANDS = {
    b"avif": "an AVIF",
    b"avis": "an AVIF",
    b"heic": "a HEIC",
    b"heix": "a HEIC",
    b"hevc": "a HEIC",
    b"hevx": "a HEIC",
    b"heim": "a HEIC",
    b"mif1": "a HEIF",
    b"msf1": "a HEIF",
    b"qt  ": "a QuickTime video",
    b"crx ": "a camera raw file (CR3)",
}

_TEXT_PEEK_BYTES = 1024


def looks_like(data: bytes) -> str:
    """The name of a file's probable kind: "a PDF", "a HEIC", "text", "an unknown kind of file"."""
    if not data:
        return "an empty file"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "an MP4 video")
    if data[:4] == b"RIFF":
        return _RIFF.get(data[8:12], "a RIFF file that is no WebP")
    for start, name in _STARTS:
        if data.startswith(start):
            return name
    return _kind_of_text(data[:_TEXT_PEEK_BYTES])


def _kind_of_text(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in text:
        return "an SVG"
    if text.startswith((b"<!doctype html", b"<html")) or b"<html" in text:
        return "an HTML page"
    if text.startswith(b"<?xml"):
        return "an XML file"
    if text.startswith((b"{", b"[")):
        return "JSON or text"
    try:
        decoded = head.decode("utf-8", errors="strict") if len(head) < _TEXT_PEEK_BYTES else head[:-4].decode("utf-8")
    except UnicodeDecodeError:
        return "an unknown kind of file"
    return (
        "text"
        if decoded.replace("\n", "").replace("\r", "").replace("\t", "").isprintable()
        else "an unknown kind of file"
    )
