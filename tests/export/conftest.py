"""Fixtures of the tests that need torch. Without it, none of this folder is collected."""

from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def birefnet_reference() -> Path:
    """The folder of the public implementation's figures, beside the checkout."""
    folder = CHECKOUT.parent / "shared" / "birefnet_reference"
    if not folder.is_dir():
        pytest.skip("no ../shared/birefnet_reference beside the checkout: nothing to compare with")
    return folder
