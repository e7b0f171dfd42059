"""Fixtures of the tests of `export`. Without torch, only those are collected that need none."""

from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
WITHOUT_TORCH = {"test_catalog.py", "test_fetch.py", "test_fetch_command.py"}

collect_ignore = [] if find_spec("torch") else sorted({each.name for each in HERE.glob("test_*.py")} - WITHOUT_TORCH)


@pytest.fixture(scope="session")
def birefnet_reference() -> Path:
    """The folder of the public implementation's figures, beside the checkout."""
    folder = CHECKOUT.parent / "shared" / "birefnet_reference"
    if not folder.is_dir():
        pytest.skip("no ../shared/birefnet_reference beside the checkout: nothing to compare with")
    return folder
