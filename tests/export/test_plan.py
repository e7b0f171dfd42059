"""`python -m export plan`: what is installed, what is put aside, and what is said where nothing can be built."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from export.__main__ import main, make_parser
from export.plan import Draft, settle
from export.plans.builder import PlanProblem, TensorRTMissing, check_version, load_tensorrt, warning_of
from export.plans.gate import Verdict
from export.plans.graph import Graph
from export.plans.running import PlanRun, cuda_version, load_cuda
from export.plans.watching import stoppable
from runtime.checks import RuntimeProblem
from runtime.digest import sha256_of
from runtime.gpus import Gpu, Host, look_at_host
from runtime.onnx_file import Signature
from runtime.plans import check_plan
from runtime.weights import read_checksums
from tests.docker.parts import script
from tests.plan_records import a_record

HOST = Host("10.13.3.9", "13.0", (Gpu("NVIDIA L4", "8.9"),))
MATTE = "birefnet_trt"
GRAPH = Graph(b"", Signature({}, {}), 1024, 18, Counter({"GridSample": 20}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "lite"
    folder.mkdir()
    (folder / f"{MATTE}.fp16.onnx").write_bytes(b"a graph")
    digests = {f"{MATTE}.fp16.onnx": sha256_of(folder / f"{MATTE}.fp16.onnx"), f"{MATTE}.onnx": "0" * 64}
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    return folder


def a_draft(folder: Path, content: bytes = b"a plan") -> Draft:
    """What is there after a build on an L4, before the comparison."""
    path = folder / f".{MATTE}.plan.part"
    path.write_bytes(content)
    record = a_record(
        MATTE,
        onnx={"name": f"{MATTE}.fp16.onnx", "sha256": sha256_of(folder / f"{MATTE}.fp16.onnx")},
        plan_sha256=sha256_of(path),
        side_px=1024,
    )
    return Draft(path, GRAPH, record)


WELL = Verdict(True, (), {"mean_alpha_error": 0.0003, "pictures": 8})
BAD = Verdict(False, ("its mean alpha error is 0.0022",), {"mean_alpha_error": 0.0022, "pictures": 8})


def test_a_plan_that_passed_is_installed_with_its_figures(folder: Path) -> None:
    said: list[str] = []
    assert settle(folder, MATTE, a_draft(folder), WELL, said.append)
    plan = check_plan(folder, MATTE, HOST)
    assert plan.path.read_bytes() == b"a plan"
    assert plan.record.parity == {"passed": True, "reasons": [], **WELL.figures}
    assert read_checksums(folder)[f"{MATTE}.plan"] == sha256_of(plan.path)
    assert len(read_checksums(folder)) == 3
    assert "mean_alpha_error 0.0003" in said[0]
    assert not list(folder.glob(".*.part"))


def test_a_plan_that_did_not_is_kept_aside_with_the_reason(folder: Path) -> None:
    said: list[str] = []
    assert not settle(folder, MATTE, a_draft(folder), BAD, said.append)
    assert not (folder / f"{MATTE}.plan").exists() and not (folder / f"{MATTE}.plan.json").exists()
    assert (folder / f"{MATTE}.plan.refused").read_bytes() == b"a plan"
    told = (folder / f"{MATTE}.plan.refused.txt").read_text()
    assert told.startswith("its mean alpha error is 0.0022\n") and '"mean_alpha_error": 0.0022' in told
    assert f"{MATTE}.plan" not in read_checksums(folder)
    assert "REFUSED" in said[0] and "0.0022" in said[0]
    with pytest.raises(RuntimeProblem, match=r"was refused \(its mean alpha error is 0.0022\)"):
        check_plan(folder, MATTE, HOST)


def test_a_refused_plan_leaves_the_one_that_is_there(folder: Path) -> None:
    settle(folder, MATTE, a_draft(folder, b"proven"), WELL, print)
    settle(folder, MATTE, a_draft(folder, b"broken"), BAD, print)
    assert check_plan(folder, MATTE, HOST).path.read_bytes() == b"proven"
    settle(folder, MATTE, a_draft(folder, b"better"), WELL, print)
    assert check_plan(folder, MATTE, HOST).path.read_bytes() == b"better"
    assert not list(folder.glob("*.refused*")), "a plan that is there looks refused"


# ------------------------------------------------------------------------------------------------ versions


@pytest.mark.parametrize(
    ("version", "major", "said"),
    [
        ("11.4.1.2", "10", "TensorRT 10 was asked for, and this environment has 11.4.1.2.*--trt-major 11"),
        ("10.13.3.9", "11", "TensorRT 11 was asked for, and this environment has 10.13.3.9.*--trt-major 10"),
        ("8.6.1", "10", "this environment has 8.6.1"),
        ("10.2.0.19", "10", "TensorRT 10.2.0.19 is not used"),
        ("10.2.0", "10", "TensorRT 10.2.0 is not used"),
    ],
)
def test_versions_that_are_not_the_one(version: str, major: str, said: str) -> None:
    with pytest.raises(PlanProblem, match=said):
        check_version(version, major)


def test_versions_that_are() -> None:
    for version, major in (("10.13.3.9", "10"), ("10.2.1", "10"), ("11.0.0.1", "11"), ("1.7.1.116", "rtx")):
        check_version(version, major)


def test_versions_that_are_reported_to_sample_wrongly_are_named() -> None:
    for version in ("10.14.1.48", "10.15.0", "11.1.0.1"):
        assert version in (warning_of(version, version[:2], GRAPH) or "")
    without = Graph(b"", Signature({}, {}), 640, 18, Counter({"Conv": 60}))
    assert warning_of("10.14.1.48", "10", without) is None
    assert warning_of("10.13.3.9", "10", GRAPH) is None
    assert warning_of("1.7.1.116", "rtx", GRAPH) is None


# ------------------------------------------------------------------------------------------------ the command


def test_without_tensorrt_the_command_says_what_to_install(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        load_tensorrt("10")
    except TensorRTMissing:
        pass
    else:
        pytest.skip("TensorRT 10 is installed here")
    assert main(["plan", "lite", "--models", str(folder.parent), "--trt-major", "10"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("export: TensorRT 10 is not installed here") and "docs/deploy.md" in told


@pytest.mark.parametrize("batch_max", [4, 7, 8])
def test_plans_for_small_batches_are_not_served_and_that_is_said(
    folder: Path, batch_max: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is built, which takes long."""
    given = ["plan", "lite", "--models", str(folder.parent), "--trt-major", "10", "--batch-max", str(batch_max)]
    assert main(given) == 2
    assert (f"batches of up to {batch_max} are not served" in capsys.readouterr().out) == (batch_max < 8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["general", "--trt-major", "10"], "general has no ONNX files; make them first: python -m export onnx general"),
        (["lite", "--trt-major", "10", "--compute-capability", "8.6"], "is for --trt-major rtx"),
    ],
)
def test_what_cannot_be_done_is_said(
    folder: Path, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *given, "--models", str(folder.parent)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--bound", "0"], ["--batch-max", "9"], ["--workspace-gib", "-1"], []])
def test_wrong_options_are_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "lite", *given] if not given else ["plan", "lite", "--trt-major", "10", *given])
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_container_asks_for_what_there_is() -> None:
    """What docker/export.py makes of a profile's name is a command line that `python -m export` takes."""
    given = script("export").arguments(["general", "--detector", "x"])
    parsed = make_parser(given[0]).parse_args(given)
    assert (parsed.profile, parsed.detector) == ("general", "x")
    assert str(parsed.weights) == "/var/cache/cutaway/weights"


# ------------------------------------------------------------------------------------------------ CUDA, progress


def test_running_without_a_gpu_gives_cudas_own_words(folder: Path) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is for Linux on x86-64 alone")
    if look_at_host().gpus:
        pytest.skip("there is a GPU here")
    assert cuda_version() == "13.0"
    assert load_cuda().cudaMemcpyKind.cudaMemcpyHostToDevice.value == 1
    with pytest.raises(PlanProblem, match=r"^CUDA failed: .+ \(cudaError\w+\)$"):
        PlanRun(None, folder / f"{MATTE}.plan")


def test_ctrl_c_asks_to_stop_and_is_raised_afterwards() -> None:
    stopped = threading.Event()

    def build() -> None:
        with stoppable(stopped):
            os.kill(os.getpid(), signal.SIGINT)
            built.append(stopped.wait(5))

    built: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        build()
    assert built == [True], "it was raised at once"
