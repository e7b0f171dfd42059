"""What fuzzing found worth keeping is decoded or refused as promised, also where the fuzzer is not installed."""

from __future__ import annotations

import pytest
from cutaway.contract.errors import InputError
from pipeline.decode import decode

from tests.fuzz.properties import check_decoded, seeds


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the files' faults
def test_every_file_is_a_picture_or_refused() -> None:
    decoded = refused = 0
    for name, data in seeds():
        try:
            picture = decode(data)
        except InputError:
            refused += 1
            continue
        try:
            check_decoded(picture)
        except AssertionError as error:
            raise AssertionError(name) from error
        decoded += 1
    assert decoded > 50
    assert refused > 50
