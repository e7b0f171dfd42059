"""Pictures inside text: ``data:image/png;base64,iVBORw0…`` (RFC 2397), and percent-encoded ones.

The size is worked out from the text before anything is decoded, and decoding takes no more memory than a small
multiple of that size, whatever the text holds.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np

from cutaway.contract.errors import FileTooLarge, InvalidFormat

MAX_HEAD_CHARS = 1000
"""Between "data:" and the comma stand a media type and its parameters; nobody needs more for them."""

_CHUNK_BYTES = 256 * 1024
_DIGITS = np.array([int(chr(code), 16) if chr(code) in "0123456789abcdefABCDEF" else -1 for code in range(256)])
_WHITESPACE = b" \t\r\n\f"


def is_data_uri(text: str) -> bool:
    """Whether a text is meant as a data URI and not as a path."""
    return text[:5].lower() == "data:"


def parse_data_uri(uri: str, max_bytes: int) -> tuple[bytes, str | None]:
    """What a data URI holds.

    Args:
        uri: the whole text. White space in base64 and missing ``=`` at its end are forgiven, as browsers do.
        max_bytes: the most that the data may have once decoded.

    Returns:
        The decoded bytes and the declared media type in lower case, None where none is declared.

    Raises:
        InvalidFormat: the text breaks the rules of data URIs.
        FileTooLarge: it holds more than `max_bytes`; nothing was decoded then.
    """
    comma = uri.find(",", 5, 5 + MAX_HEAD_CHARS + 1)
    if not is_data_uri(uri) or comma < 0:
        raise _malformed("has no comma before its data")
    media_type, *parameters = (part.strip().lower() for part in uri[5:comma].split(";"))
    in_base64 = bool(parameters) and parameters[-1] == "base64"
    # Every escape is three characters for one; white space counts for nothing.
    length = len(uri) - comma - 1 - 2 * uri.count("%", comma)
    if in_base64:
        length -= sum(uri.count(chr(space), comma) for space in _WHITESPACE)
        length = (length - sum(uri.count(padding, comma) for padding in ("=", "%3D", "%3d"))) * 3 // 4
    _check_size(length, max_bytes)
    try:
        text = uri[comma + 1 :].encode("ascii")
    except UnicodeEncodeError:
        raise _malformed("holds characters that are not ASCII") from None
    data = _unescaped(text)
    if in_base64:
        data = _from_base64(data)
        _check_size(len(data), max_bytes)
    return data, media_type or None


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise FileTooLarge(
            f"The data URI holds {size:,} bytes; at most {max_bytes:,} are allowed.",
            details={"size_bytes": size, "max_bytes": max_bytes},
        )


def _unescaped(text: bytes) -> bytes:
    if b"%" not in text:
        return text
    # In pieces and without an object for every escape: there may be ten million of them.
    data, start = bytearray(), 0
    while start < len(text):
        end = start + _CHUNK_BYTES
        cut = text.find(b"%", end - 2, end)  # an escape is not torn apart
        end = cut if cut >= 0 and end < len(text) else end
        data += _unescaped_piece(text[start:end])
        start = end
    return bytes(data)


def _unescaped_piece(text: bytes) -> bytes:
    codes = np.frombuffer(text + b"  ", np.uint8)  # so that what is cut off at the end is no digit either
    (escapes,) = np.nonzero(codes == ord("%"))
    high, low = _DIGITS[codes[escapes + 1]], _DIGITS[codes[escapes + 2]]
    if (high < 0).any() or (low < 0).any():
        raise _malformed("holds a % that is not followed by two hexadecimal digits")
    data, kept = codes.copy(), np.ones(len(codes), bool)
    data[escapes] = high * 16 + low
    kept[escapes + 1] = kept[escapes + 2] = kept[-2:] = False
    return bytes(data[kept])


def _from_base64(text: bytes) -> bytes:
    plain = text.translate(None, _WHITESPACE)
    plain += b"=" * (-len(plain) % 4)
    try:
        return base64.b64decode(plain, validate=True)
    except binascii.Error:
        raise _malformed("is not in base64 as it says") from None


def _malformed(what: str) -> InvalidFormat:
    return InvalidFormat(
        f"The data URI {what}.",
        details={"supported": ["data:image/…;base64,…", "data:image/…,…"], "received": "a malformed data URI"},
        user_action="Write it as data:image/png;base64,… or hand over the bytes themselves.",
    )
