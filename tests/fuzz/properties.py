"""What has to hold of every decoded picture, and the files that fuzzing begins with."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CORPUS = Path(__file__).parent / "corpus.zip"
"""Small files that walk different code, kept from an hour's run of 3.6 million inputs, which found no fault."""
MAX_SEED_BYTES = 40_000


def check_decoded(picture: Any) -> None:
    """The form that `pipeline.decode.Picture` promises."""
    height, width = picture.rgb.shape[:2]
    assert picture.rgb.shape == (height, width, 3)
    assert picture.rgb.dtype == np.uint8
    assert picture.rgb.flags.c_contiguous
    assert min(height, width) >= 64
    assert (picture.alpha is None) == (picture.own_rgb is None)
    if picture.alpha is not None:
        assert picture.alpha.shape == (height, width)
        assert picture.alpha.dtype == np.uint8
        assert picture.own_rgb.shape == picture.rgb.shape
    assert 1 <= picture.orientation <= 8
    assert picture.format in ("jpeg", "png", "webp", "bmp")
    assert picture.density_dpi is None or min(picture.density_dpi) > 0
    for notice in picture.notices:
        assert notice.code
        assert notice.message


def seeds() -> Iterator[tuple[str, bytes]]:
    """Names and files of every format, small ones: the hostile files and those that are right and odd."""
    from tests.integration import hostile

    for index, case in enumerate(hostile.cases()):
        if len(case.data) <= MAX_SEED_BYTES:
            yield f"seed-{index:03}", case.data
    with zipfile.ZipFile(CORPUS) as archive:
        for name in archive.namelist():
            yield name, archive.read(name)
