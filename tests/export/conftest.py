"""Fixtures of the tests of `export`. Without torch, only those are collected that need none."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.export.loopback_hub import LoopbackHub, loopback_hub

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
WITHOUT_TORCH = {"test_catalog.py", "test_fetch.py", "test_fetch_faults.py", "test_fetch_command.py"}

collect_ignore = [] if find_spec("torch") else sorted({each.name for each in HERE.glob("test_*.py")} - WITHOUT_TORCH)


@pytest.fixture(scope="session")
def birefnet_reference() -> Path:
    """The folder of the public implementation's figures, beside the checkout."""
    folder = CHECKOUT.parent / "shared" / "birefnet_reference"
    if not folder.is_dir():
        pytest.skip("no ../shared/birefnet_reference beside the checkout: nothing to compare with")
    return folder


@pytest.fixture(scope="session")
def client_of_the_hub() -> Iterator[object]:
    """The module `huggingface_hub`. It keeps one HTTP client for all tests; none is left after them."""
    import huggingface_hub

    yield huggingface_hub
    huggingface_hub.close_session()


@pytest.fixture
def hub(client_of_the_hub: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A hub on loopback that has the files of `tests.export.fetching`; no token of this machine is seen."""
    from tests.export.fetching import filled

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _s: None)  # between its tries
    with loopback_hub() as running:
        yield filled(running)
