"""TensorRT plans are served only where they fit, and what does not fit is said in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import doctor, gpus
from runtime.__main__ import main
from runtime.checks import RuntimeProblem
from runtime.compose import SOURCE, compose_plans, contract, read_config
from runtime.digest import sha256_of
from runtime.gpus import Gpu, Host
from runtime.plans import MEAN_ALPHA_ERROR, CheckedPlan, PlanRecord, check_plans, plan_version
from runtime.server import ServerOptions
from tests.plan_records import a_record

L4 = Gpu("NVIDIA L4", "8.9")
HOST = Host("10.13.3.9", "13.0", (L4,))
HEADER = b"ftrt" + bytes(20) + bytes((10, 13, 3, 9))
SIDES_PX = {"birefnet_trt": 768, "yolov8_seg": 640}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A profile's folder as `python -m export plan` leaves it on an L4; the plans are a header and noise."""
    folder = tmp_path / "lite"
    folder.mkdir()
    sums = []
    for name, side_px in SIDES_PX.items():
        onnx, plan = folder / f"{name}.fp16.onnx", folder / f"{name}.plan"
        onnx.write_bytes(name.encode())
        plan.write_bytes(HEADER + name.encode() * 1000)
        sums += [f"{sha256_of(path)}  {path.name}" for path in (onnx, plan)]
        sums.append(f"{'0' * 64}  {name}.onnx")
        record(name, side_px, onnx, plan).write(folder / f"{name}.plan.json")
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    return folder


def record(name: str, side_px: int, onnx: Path, plan: Path) -> PlanRecord:
    return a_record(
        name,
        onnx={"name": onnx.name, "sha256": sha256_of(onnx)},
        plan_sha256=sha256_of(plan),
        side_px=side_px,
        options={"batches": [1, 4, 8], "precision": "fp16"},
        parity={"passed": True},
    )


def change(folder: Path, name: str = "birefnet_trt", **values: Any) -> None:
    """Change a plan's record."""
    path = folder / f"{name}.plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_plan_that_fits_is_served(folder: Path) -> None:
    plans = check_plans(folder, HOST)
    assert set(plans) == set(SIDES_PX)
    assert plans["birefnet_trt"].path == folder / "birefnet_trt.plan"
    assert plans["birefnet_trt"].record == PlanRecord.read(folder / "birefnet_trt.plan.json")
    assert not any(plan.warnings for plan in plans.values())


def touch(folder: Path) -> None:
    with (folder / "birefnet_trt.plan").open("r+b") as file:
        file.seek(500)
        file.write(b"?")


def rebuild_onnx(folder: Path, file: str = "birefnet_trt.fp16.onnx") -> None:
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    changed = ["f" * 64 + line[64:] if line.endswith(f"  {file}") else line for line in sums]
    assert changed != sums
    (folder / "SHA256SUMS").write_text("\n".join(changed))


def no_longer(folder: Path, file: str) -> None:
    """As `export onnx --no-half` leaves the checksums, for one."""
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    kept = [line for line in sums if not line.endswith(f"  {file}")]
    assert kept != sums
    (folder / "SHA256SUMS").write_text("\n".join(kept))


def refuse(folder: Path) -> None:
    (folder / "birefnet_trt.plan").unlink()
    (folder / "birefnet_trt.plan.refused.txt").write_text("its mean alpha error is 0.0022\n\nfigures\n")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "birefnet_trt.plan").unlink(), "has no TensorRT plan of birefnet_trt .*--trt-major"),
        (refuse, r"refused \(its mean alpha error is 0.0022\)"),
        (lambda folder: (folder / "birefnet_trt.plan.json").unlink(), "has no record .*build it again"),
        (lambda folder: (folder / "birefnet_trt.plan.json").write_text("{"), "is not one of a plan, or damaged"),
        (lambda folder: (folder / "birefnet_trt.plan.json").write_text("[1]"), "is not one of a plan, or damaged"),
        (touch, "is damaged or another one: its SHA-256 is"),
        (lambda folder: (folder / "birefnet_trt.plan").write_bytes(b""), "is damaged or another one"),
        (lambda folder: change(folder, tensorrt="10.13.3.8"), "was written by TensorRT 10.13.3.9, its record says"),
        (rebuild_onnx, "was built from another birefnet_trt.fp16.onnx"),
        (lambda folder: rebuild_onnx(folder, "yolov8_seg.onnx"), "was compared with another yolov8_seg.onnx"),
        (lambda folder: no_longer(folder, "birefnet_trt.fp16.onnx"), "built from birefnet_trt.fp16.onnx, which SHA2"),
        (lambda folder: no_longer(folder, "birefnet_trt.onnx"), "compared with birefnet_trt.onnx, which SHA256SUMS"),
        (lambda folder: change(folder, profile="general"), "is one of the profile general, and its folder is not"),
        (lambda folder: change(folder, reference={}), "is not one of a plan, or damaged"),
        (lambda folder: change(folder, parity=None, parity_missing="no GPU"), r"was never compared .*\(no GPU\)"),
        (lambda folder: change(folder, parity={"passed": False}), "does not compute what its network does"),
        (lambda folder: change(folder, parity={"passed": "yes"}), "does not compute what its network does"),
        (lambda folder: change(folder, library="tensorrt-rtx"), "is an engine of tensorrt-rtx"),
        (lambda folder: change(folder, model="yolov8_seg"), "is one of yolov8_seg"),
        (lambda folder: change(folder, compute_capabilities=["9.0"], gpu="NVIDIA H100"), r"capability 9.0 \(NVIDIA H1"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(folder: Path, spoil: Callable[[Path], Any], said: str) -> None:
    spoil(folder)
    with pytest.raises(RuntimeProblem, match=said) as problem:
        check_plans(folder, HOST)
    assert "\n" not in str(problem.value)
    assert str(folder) in str(problem.value), "the line does not say which folder"


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (dataclasses.replace(HOST, tensorrt="10.13.2.6"), "made by TensorRT 10.13.3.9, and this machine has 10.13.2.6"),
        (dataclasses.replace(HOST, tensorrt="10.13.3.10"), "and this machine has 10.13.3.10"),
        (dataclasses.replace(HOST, tensorrt="11.4.1.2"), "--trt-major 11"),
        (dataclasses.replace(HOST, gpus=(Gpu("NVIDIA T4", "7.5"),)), "the NVIDIA T4 here has 7.5"),
        (dataclasses.replace(HOST, gpus=(L4, Gpu("NVIDIA T4", "7.5"))), "the NVIDIA T4 here has 7.5"),
        (Host(problem="there is no NVIDIA driver"), "cannot be served here: there is no NVIDIA driver"),
    ],
)
def test_another_machine_is_refused_in_a_line(folder: Path, host: Host, said: str) -> None:
    with pytest.raises(RuntimeProblem, match=said) as problem:
        check_plans(folder, host)
    assert "\n" not in str(problem.value)


def test_a_version_of_three_parts_is_enough(folder: Path) -> None:
    """Older libraries do not say their build number."""
    assert check_plans(folder, dataclasses.replace(HOST, tensorrt="10.13.3"))


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (dataclasses.replace(HOST, driver_cuda="12.8"), "with a driver for CUDA 13.0, and the one here is for 12.8"),
        (dataclasses.replace(HOST, gpus=(Gpu("NVIDIA L40S", "8.9"),)), "tuned on an NVIDIA L4, and runs on"),
    ],
)
def test_what_is_unusual_is_a_warning(folder: Path, host: Host, said: str) -> None:
    for plan in check_plans(folder, host).values():
        assert len(plan.warnings) == 1 and said in plan.warnings[0]


def test_a_copy_under_another_profiles_name_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "general")
    with pytest.raises(RuntimeProblem, match=r"is one of the profile lite, .*export plan general"):
        check_plans(tmp_path / "general", HOST)


def test_a_wider_bound_than_usual_is_a_warning(folder: Path) -> None:
    change(folder, parity={"passed": True, "bound_mean_alpha_error": MEAN_ALPHA_ERROR})
    assert not check_plans(folder, HOST)["birefnet_trt"].warnings
    change(folder, parity={"passed": True, "bound_mean_alpha_error": 0.5})
    (warning,) = check_plans(folder, HOST)["birefnet_trt"].warnings
    assert "mean alpha error of up to 0.5; 0.001 is usual" in warning


def test_a_folder_of_another_user_is_said(folder: Path) -> None:
    """As in a container that runs as somebody else: one line, and no traceback."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom runtime.checks import RuntimeProblem\n"
        "from runtime.gpus import Host\nfrom runtime.plans import check_plans\n"
        "if os.geteuid() == 0:\n    os.setuid(65534)\n"
        "try:\n    check_plans(Path(sys.argv[1]), Host())\nexcept RuntimeProblem as problem:\n    print(problem)"
    )
    folder.chmod(0o700 if os.geteuid() == 0 else 0)
    try:
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    finally:
        folder.chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert "cannot be read (Permission denied)" in done.stdout and "CUTAWAY_UID" in done.stdout
    assert done.stdout.count("\n") == 1


def test_the_header_tells_library_and_version(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    for content, told in (
        (HEADER + b"rest", ("TensorRT", "10.13.3.9")),
        (HEADER[:-1], None),
        (b"\0" * 40, None),
        (b"ftrt\1" + HEADER[5:], None),
        (b"", None),
    ):
        path.write_bytes(content)
        assert plan_version(path) == told


# ------------------------------------------------------------------------------------------------ the repository


@pytest.fixture
def plans(folder: Path) -> dict[str, CheckedPlan]:
    return check_plans(folder, HOST)


def test_a_repository_of_plans_is_the_source_with_another_side(plans: dict[str, CheckedPlan], tmp_path: Path) -> None:
    """Field for field; but for the matte's side, the pipeline's parameters and the files nothing differs."""
    composed = compose_plans(tmp_path / "r", profile="lite", plans=plans, device=HOST.device)
    assert (composed.matte_side_px, composed.processes) == (768, 6)
    for folder in sorted(path.parent for path in SOURCE.glob("*/config.pbtxt")):
        source, here = read_config(folder), read_config(composed.folder / folder.name)
        if folder.name == "birefnet_trt":
            assert contract(here)["inputs"] == {"images": ("UINT8", (768, 768, 3))}
            assert contract(here)["outputs"] == {"alphas": ("UINT8", (768, 768))}
            assert [list(each.inputs["images"].dims) for each in here.model_warmup] == [[768, 768, 3]] * 2
            text = str(source).replace("dims: 1024", "dims: 768")
            assert text == str(here)
        elif folder.name == "ensemble_pipeline":
            values = {key: value.string_value for key, value in here.parameters.items()}
            assert values == {
                "profile": "lite",
                "device": "tensorrt 10.13.3.9 (NVIDIA L4)",
                "matte_side_px": "768",
                "tensorrt": "yes",
                "birefnet_trt_sha256": plans["birefnet_trt"].record.plan_sha256,
                "yolov8_seg_sha256": plans["yolov8_seg"].record.plan_sha256,
            }
            assert (composed.folder / folder.name / "1" / "model.py").is_file()
            source.ClearField("parameters")
            here.ClearField("parameters")
            queue = here.dynamic_batching  # health checks have one of their own
            assert (queue.priority_levels, queue.default_priority_level) == (
                2,
                2,
            )
            queue.ClearField("priority_levels")
            queue.ClearField("default_priority_level")
            assert source == here
        elif folder.name == "stream_pipeline":
            assert here.parameters["device"].string_value == "tensorrt 10.13.3.9 (NVIDIA L4)"
            here.parameters["device"].string_value = source.parameters["device"].string_value
            assert source == here
            assert (composed.folder / folder.name / "1" / "stream" / "run.py").is_file()
        else:
            assert source == here


def test_plans_are_linked_and_not_copied(plans: dict[str, CheckedPlan], tmp_path: Path) -> None:
    composed = compose_plans(tmp_path / "r", profile="lite", plans=plans, device=HOST.device)
    for name, plan in plans.items():
        link = composed.folder / name / "1" / "model.plan"
        assert link.is_symlink() and link.resolve() == plan.path
        assert [path.name for path in link.parent.iterdir()] == ["model.plan"]


def test_a_plan_for_small_batches_is_not_served(folder: Path, tmp_path: Path) -> None:
    change(folder, options={"batches": [1, 4, 4]})
    with pytest.raises(RuntimeProblem, match="batches of up to 4, and birefnet_trt is given up to 8"):
        compose_plans(tmp_path / "r", profile="lite", plans=check_plans(folder, HOST), device="gpu")


def test_a_detector_of_another_side_is_not_served(folder: Path, tmp_path: Path) -> None:
    change(folder, "yolov8_seg", side_px=1280)
    with pytest.raises(RuntimeProblem, match="takes pictures of 1280 px, and yolov8_seg is given 640 px"):
        compose_plans(tmp_path / "r", profile="lite", plans=check_plans(folder, HOST), device="gpu")


def test_the_command_says_what_is_wrong(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On whatever machine: exit status 1 and one line, and no repository."""
    change(folder, "yolov8_seg", parity=None, parity_missing="a test")
    assert main(["compose", str(tmp_path / "r"), "--plans", "--weights", str(folder)]) == 1
    assert "was never compared with its network (a test)" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_the_doctor_warns_of_plans_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    """It is no problem of the bundled server's, which needs none."""
    change(folder, "yolov8_seg", parity=None, parity_missing="a test")
    findings = list(doctor.plans(ServerOptions(profile="lite", weights=folder)))
    assert [(each.mark, each.subject) for each in findings] == [("warning", "plans")]
    assert "(a test)" in findings[0].text
    assert list(doctor.plans(ServerOptions(profile="lite", weights=tmp_path))) == []


# ------------------------------------------------------------------------------------------------ the machine


def test_a_machine_without_a_driver_says_so() -> None:
    host = gpus.examine(("libnvinfer-not-here.so",), "libcuda-not-here.so")
    assert host.gpus == () and host.tensorrt is None and host.problem is not None
    assert "no NVIDIA driver (libcuda-not-here.so)" in host.problem


def test_the_machine_is_asked_in_a_process_of_its_own() -> None:
    host = gpus.look_at_host()
    assert bool(host.problem) == (not host.gpus or host.tensorrt is None)


DRIVER = """
#include <string.h>
#ifndef INIT
#define INIT 0
#endif
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 40; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 40 ? "NVIDIA First" : "NVIDIA Second", length);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (device < 40) return 101;
    *value = attribute == 75 ? 8 : attribute == 76 ? device - 34 : -1;
    return 0;
}
"""
TENSORRT = """
int getInferLibVersion(void) { return 101303; }
#ifdef PARTS
int getInferLibMajorVersion(void) { return 10; }
int getInferLibMinorVersion(void) { return 13; }
int getInferLibPatchVersion(void) { return 3; }
int getInferLibBuildVersion(void) { return 9; }
#endif
"""


def library(folder: Path, name: str, source: str, *flags: str) -> str:
    """Compile what stands in for one of NVIDIA's libraries."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler to stand in for NVIDIA's libraries")
    (folder / f"{name}.c").write_text(source)
    path = folder / f"{name}.so"
    subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", path, folder / f"{name}.c"], check=True)
    return str(path)


def examined(trt: str, driver: str) -> Host:
    """`examine` in a process of its own, as `look_at_host` does it: libraries stay loaded."""
    code = f"import json, dataclasses\nfrom runtime.gpus import examine\nhost = examine(({trt!r},), {driver!r})\n"
    code += "print(json.dumps(dataclasses.asdict(host)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return gpus.read_host(done.stdout)


def test_every_gpu_is_named_with_its_capability(tmp_path: Path) -> None:
    driver = library(tmp_path, "driver", DRIVER, "-DCOUNT=2")
    whole = library(tmp_path, "whole", TENSORRT, "-DPARTS")
    host = examined(whole, driver)
    assert host == Host("10.13.3.9", "12.8", (Gpu("NVIDIA First", "8.6"), Gpu("NVIDIA Second", "8.7")))
    older = library(tmp_path, "older", TENSORRT)
    assert examined(older, driver).tensorrt == "10.13.3"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("-DCOUNT=0",), "the driver finds no GPU"),
        (("-DCOUNT=1", "-DINIT=100"), "the driver finds no GPU"),
        (("-DCOUNT=1", "-DINIT=803"), "not of the kernel's driver"),
        (("-DCOUNT=1", "-DINIT=77"), "cuInit failed with CUDA's error 77"),
    ],
)
def test_what_the_driver_says_is_put_into_words(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    host = examined(library(tmp_path, "trt", TENSORRT), library(tmp_path, "driver", DRIVER, *flags))
    assert host.problem is not None and said in host.problem
    assert host.tensorrt == "10.13.3"


def test_a_gpu_without_tensorrt_is_a_problem(tmp_path: Path) -> None:
    host = examined("libnvinfer-not-here.so", library(tmp_path, "driver", DRIVER, "-DCOUNT=1"))
    assert host.problem is not None and "there is no TensorRT" in host.problem
    assert [gpu.name for gpu in host.gpus] == ["NVIDIA First"]
