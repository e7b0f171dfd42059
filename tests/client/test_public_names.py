"""The public names are pinned, each loads, and the shared modules stay free of network clients and of Pillow."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cutaway
import pytest
from cutaway.contract import errors

ROOT = Path(__file__).resolve().parents[2]

PUBLIC = {
    "AsyncClient",
    "AsyncStream",
    "Cancel",
    "Client",
    "CorruptImage",
    "CutResult",
    "CutawayError",
    "Cutout",
    "Detection",
    "Fallback",
    "FileTooLarge",
    "GpuMemoryExhausted",
    "Health",
    "ImageBomb",
    "InferenceError",
    "InputError",
    "InputLimits",
    "InsecureTokenWarning",
    "InvalidFormat",
    "InvalidOption",
    "LossyEncodingWarning",
    "ModelInfo",
    "NeedsDetection",
    "NoPersonDetected",
    "NobodyServed",
    "Notice",
    "Outcome",
    "Overloaded",
    "ProcessingTimeout",
    "RateLimitExceeded",
    "Report",
    "RequestCancelled",
    "ResolutionTooLarge",
    "ResolutionTooSmall",
    "ResultCache",
    "RetryPolicy",
    "ServerRefused",
    "ServerUnavailable",
    "ServiceError",
    "Stream",
    "StreamFrame",
    "StreamStatistics",
    "Tier",
    "Tls",
    "TooManyPixels",
    "Tried",
    "UpscaleResult",
    "__version__",
}


def test_names_are_pinned() -> None:
    assert set(cutaway.__all__) == PUBLIC
    assert dir(cutaway) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_name_loads(name: str) -> None:
    assert getattr(cutaway, name).__doc__


def test_every_error_is_public() -> None:
    assert {cls.__name__ for cls in errors.ERRORS_BY_CODE.values()} <= PUBLIC


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        cutaway.Clinet  # noqa: B018


def test_version_is_the_distributions() -> None:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    assert cutaway.__version__ == found[1]


@pytest.mark.parametrize("module", ["limits", "errors", "options", "headers", "signatures"])
def test_shared_modules_pull_nothing_in(module: str) -> None:
    """The pipeline inside Triton imports these; a network client there would cost memory in every process."""
    code = f"import sys, cutaway.contract.{module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"tritonclient", "grpc", "httpx", "PIL", "numpy", "click"} & set(loaded) == set()
