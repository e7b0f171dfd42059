"""After a fork a client over HTTP works in the child, over gRPC it says what to do; the parent's goes on either way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client import peers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_fork(scheme: str, way: str) -> None:
    with peers.echoing(scheme, lambda picture: 1.0 if picture == b"slow" else 0.0) as url:
        done = subprocess.run(
            [sys.executable, HERE / "forking.py", url, way],
            env={**os.environ, "PYTHONPATH": str(ROOT / "client")},
            capture_output=True,
            text=True,
            timeout=100,
        )
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert said[-1] == "parent done"
    children = {"sync": 3 if scheme == "http" else 2, "async": 1}[way]
    assert said.count("child ended with 0") == children
    if scheme == "http":
        assert said.count("child served") == children
    else:
        refusals = [line for line in said if line.startswith("child refused:")]
        assert len(refusals) == children
        assert all("make the client after the fork" in line for line in refusals)
