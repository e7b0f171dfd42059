"""Cores are counted as a container's quota allows, and CUDA is taken only where a session really came up with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from runtime import devices
from runtime.checks import RuntimeProblem
from runtime.devices import Device, Plan, choose_device, plan
from runtime.server import ServerOptions

MODEL = ServerOptions().weights_dir / "birefnet_trt.onnx"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_quota_of_a_container(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert devices._quota(tmp_path) == expected


def test_cores_are_at_most_those_this_process_may_use() -> None:
    assert 1 <= devices.cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("available", "expected"), [(1, Plan(2, 1)), (2, Plan(2, 2)), (4, Plan(4, 4)), (64, Plan(8, 16))]
)
def test_plan(available: int, expected: Plan) -> None:
    assert plan(available) == expected


def test_what_is_asked_for_is_kept() -> None:
    assert plan(2, instances=5, threads=7) == Plan(5, 7)


def test_cpu_by_name_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_gpu_name", lambda: pytest.fail("asked for a GPU"))
    assert choose_device("cpu", MODEL) == Device("cpu", "cpu")


def test_8_bit_networks_run_on_cpus_with_vnni_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, there in (
        ("flags : sse2 avx2 avx512_vnni", True),
        ("flags : avx2 avx_vnni", True),
        ("flags : avx2", False),
    ):
        monkeypatch.setattr(Path, "read_text", lambda _path, text=flags: text)
        assert Device("cpu", "cpu").int8 is there
        assert not Device("cuda", "cuda (NVIDIA L4)").int8


def test_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_gpu_name", lambda: None)
    assert choose_device("auto", MODEL) == Device("cpu", "cpu")
    with pytest.raises(RuntimeProblem, match="CUDA was asked for and does not work: no NVIDIA driver or GPU"):
        choose_device("cuda", MODEL)


def probe(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A GPU is there, and the probe runs this instead of a CUDA session."""
    monkeypatch.setattr(devices, "_gpu_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(devices, "_PROBE", code)


def test_gpu_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    probe(monkeypatch, "pass")
    assert choose_device("auto", MODEL) == Device("cuda", "cuda (NVIDIA H200)")
    assert choose_device("cuda", MODEL).kind == "cuda"


def test_gpu_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would fall back to the CPU without a word."""
    probe(monkeypatch, "import sys; sys.exit('cuDNN is missing')")
    device = choose_device("auto", MODEL)
    assert device.kind == "cpu"
    assert device.warning is not None
    assert device.warning.startswith("there is a GPU (NVIDIA H200), but the networks run on the CPU: cuDNN is missing;")
    with pytest.raises(RuntimeProblem, match="cuDNN is missing"):
        choose_device("cuda", MODEL)


def test_onnxruntime_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe itself, with the onnxruntime that is installed here."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    monkeypatch.setattr(devices, "_gpu_name", lambda: "NVIDIA H200")
    warning = choose_device("auto", MODEL).warning
    assert warning is not None
    assert "built without CUDA; run: pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu" in warning


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime's own log has it, on standard error."""
    code = """
import sys
print("Failed to load library x.so with error: libcublasLt.so.13: cannot open shared object file", file=sys.stderr)
sys.exit("ONNX Runtime's CUDA provider did not start")
"""
    probe(monkeypatch, code)
    warning = str(choose_device("auto", MODEL).warning)
    assert "did not start (libcublasLt.so.13: cannot open shared object file); run: " in warning
    assert "\n" not in warning


def test_probe_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    probe(monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(devices, "PROBE_TIMEOUT_S", 0.2)
    assert "did not come up within 0.2 s" in str(choose_device("auto", MODEL).warning)


def test_gpu_name_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia/gpus").exists():
        pytest.skip("this machine has a driver")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices._gpu_name() is None
    (tmp_path / "nvidia-smi").write_text(f"#!{sys.executable}\nprint('NVIDIA L4')\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert devices._gpu_name() == "NVIDIA L4"
