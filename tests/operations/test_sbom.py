"""What the SBOM lists, and what `make audit` makes of an index's answers."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT

TOOLS = ROOT / ".venv-sbom" / "bin" / "python"
LOCK = "good==1.0 \\\n    --hash=sha256:00\n"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "requirements" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.skipif(not TOOLS.exists(), reason="make sbom has not installed its tools")
def test_the_sbom_has_every_package_the_networks_and_triton(tmp_path: Path) -> None:
    done = subprocess.run([TOOLS, "requirements/sbom.py", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("serve", "gpu", "plan"):
        bom = json.loads((tmp_path / f"{name}.cdx.json").read_text())
        assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
        listed = {(each["name"], each["version"]) for each in bom["components"] if each["type"] == "library"}
        lock = (ROOT / "requirements" / f"{name}.txt").read_text()
        assert listed == set(re.findall(r"^([\w.-]+)==([^ ;\\]+)", lock, re.MULTILINE))
    bom = json.loads((tmp_path / "serve.cdx.json").read_text())
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in bom["components"]:
        kinds.setdefault(each["type"], []).append(each)
    weights = ROOT / "export" / "weights" / "nano"
    assert {each["name"] for each in kinds["machine-learning-model"]} == {path.name for path in weights.glob("*.onnx")}
    for each in kinds["machine-learning-model"]:
        assert each["hashes"][0]["content"] == hashlib.sha256((weights / each["name"]).read_bytes()).hexdigest()
        licence = "Apache-2.0" if each["name"].startswith(("u2netp", "birefnet_trt")) else "AGPL-3.0-only"
        assert each["licenses"] == [{"license": {"id": licence}}]
    assert [(each["name"], each["version"]) for each in kinds["application"]] == [("triton_inference_server", "24.10")]


ANSWERS: dict[str, dict[str, Any]] = {
    "clean": {"bad": "known"},
    "an advisory": {"bad": "known", "good": "known"},
    "a mirror without advisories": {},
    "nobody there": {"exit": 2},
    "gone in the middle": {"bad": "known", "good": "gone"},
    "a package of nobody's": {"bad": "known", "good": "skipped"},
}


@pytest.mark.parametrize(
    ("index", "status", "said"),
    [
        ("clean", 0, "0 advisories by pypi"),
        ("an advisory", 1, "good 1.0: GHSA-1, fixed in 1.1"),
        ("a mirror without advisories", 75, "NOT CHECKED"),
        ("nobody there", 75, "NOT CHECKED"),
        ("gone in the middle", 75, "NOT CHECKED"),
        ("a package of nobody's", 0, "not known to the index: good"),
    ],
)
def test_audit_tells_clean_from_not_checked(
    index: str, status: int, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """pip-audit as it answers: with status 0 and no finding, too, where the index has no advisories."""
    (tmp_path / "serve.txt").write_text(LOCK)
    fake = tmp_path / "fake.py"
    fake.write_text(f"""
import json, pathlib, sys
answers = {ANSWERS[index]!r}
words = sys.argv[1:]
lock = pathlib.Path(words[words.index("--requirement") + 1])
name = "good" if lock.name == "serve.txt" else "bad"
if "exit" in answers or answers.get(name) == "gone":
    sys.exit(2)
known = [{{"id": "GHSA-1", "fix_versions": ["1.1"]}}] if answers.get(name) == "known" else []
entry = {{"name": name, "version": "1.0", "vulns": known}}
if answers.get(name) == "skipped":
    entry = {{"name": name, "skip_reason": "not found"}}
pathlib.Path(words[words.index("--output") + 1]).write_text(json.dumps({{"dependencies": [entry]}}))
sys.exit(bool(known))
""")
    assert module("audit").main((sys.executable, str(fake)), tmp_path) == status
    told = capfd.readouterr()
    assert said in told.out + told.err
