"""The description of the API: calls answer as documented, and the TypeScript client is made from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.service.services import LIMIT_S, Running

TYPESCRIPT = ROOT / "typescript"


def test_no_documented_call_fails_or_answers_otherwise(service: Running, tmp_path: Path) -> None:
    import sys

    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/api/openapi.json"),
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
        *("--max-examples", "8", "--phases", "examples,coverage,fuzzing", "--seed", "1", "--no-color"),
        *("--exclude-path-regex", "^/api/video", "--request-timeout", str(LIMIT_S), "--report", "junit"),
        *("--report-dir", str(tmp_path)),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def needed(program: str) -> None:
    if shutil.which(program) is None:
        assert not os.environ.get("CI"), f"CI has {program}"
        pytest.skip(f"needs {program}")


def test_every_path_has_words_and_an_example_of_its_errors(service: Running) -> None:
    described: dict[str, Any] = service.get("/api/openapi.json").json()
    calls = [call for methods in described["paths"].values() for call in methods.values()]
    assert len(calls) >= 14
    assert all(call["description"] for call in calls)
    assert all("429" in call["responses"] or call["operationId"].startswith(("health", "status")) for call in calls)


def test_the_typescript_client_is_the_one_that_the_description_makes(service: Running, tmp_path: Path) -> None:
    needed("npm")
    for name in (".npmrc", "package.json", "package-lock.json", "tsconfig.json", "example.tsx", "index.ts"):
        shutil.copy(TYPESCRIPT / name, tmp_path)
    (tmp_path / "openapi.json").write_text(json.dumps(service.get("/api/openapi.json").json()))
    for command in (["npm", "ci", "--silent", "--no-audit"], ["npm", "run", "--silent", "generate"], ["npx", "tsc"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S * 4)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "schema.d.ts").read_text() == (TYPESCRIPT / "schema.d.ts").read_text()
