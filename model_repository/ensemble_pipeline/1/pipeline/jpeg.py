"""JPEGs whose end marker is missing, or that are damaged inside: which of them are whole is decided by their rows."""

from __future__ import annotations

import re

import simplejpeg
from cutaway.contract.errors import CorruptImage
from cutaway.contract.headers import PictureHeader

from pipeline.notices import Notice

_JPEG_END = b"\xff\xd9"
ROWS_MISSING = "premature end of data segment"
_BEFORE_END = re.compile(r"extraneous bytes before marker 0xd9|^Premature end of JPEG file")
"""Strays in the end marker's place, a vendor's trailer for example: by then all rows are decoded."""


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
