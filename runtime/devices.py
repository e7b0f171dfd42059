"""What models run on: how many cores there are, how they are shared out, and whether CUDA works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.checks import RuntimeProblem

DeviceChoice = Literal["auto", "cpu", "cuda"]

MAX_INSTANCES = 8
"""More pipelines than this gain nothing on one machine: the networks behind them are the bottleneck."""
MAX_THREADS = 16
"""Networks of this size stop gaining from more threads; they wait for one another instead."""
PROBE_TIMEOUT_S = 120
VNNI = {"avx512_vnni", "avx_vnni"}
"""Names of the instructions in /proc/cpuinfo."""
INSTALL_CUDA = "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]' 'numpy<2'"
"""What brings ONNX Runtime with CUDA, its libraries included, into the environment."""


@dataclass(frozen=True)
class Device:
    """What the networks run on.

    Attributes:
        kind: "cpu" or "cuda".
        name: as the answers' report shows it: "cpu", or "cuda (NVIDIA H200)".
        warning: why it is not what might be expected; None where there is nothing to say.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    warning: str | None = None

    @property
    def int8(self) -> bool:
        """Whether 8-bit copies of networks run here: on a CPU with VNNI."""
        return self.kind == "cpu" and has_vnni()


def has_vnni() -> bool:
    """Whether the CPU sums up products of 8-bit numbers in 32 bits. Older instructions of x86 do so in 16 bits, which
    overflow: there 8-bit networks are wrong, and hardly quicker."""
    try:
        return bool(VNNI & set(Path("/proc/cpuinfo").read_text().split()))
    except OSError:
        return False


@dataclass(frozen=True)
class Plan:
    """How the cores are shared out.

    Attributes:
        instances: processes of the pipeline, each of which serves one picture at a time.
        threads: threads of one network's run.
    """

    instances: int
    threads: int


def cores() -> int:
    """How many cores this process may use: its affinity, and a container's quota where there is one."""
    count = len(os.sched_getaffinity(0))
    return max(1, min(count, _quota(Path("/sys/fs/cgroup")) or count))


def _quota(cgroup: Path) -> int | None:
    """Cores that a container's CPU quota amounts to (cgroup v2, then v1), rounded up; None without a quota."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return -(-int(quota) // int(period))


def plan(available: int, instances: int | None = None, threads: int | None = None) -> Plan:
    """A plan for so many cores; what is given is kept.

    Every network gets all cores: a picture passes one network after the other, so one picture alone is as fast as it
    can be. With several pictures in flight the networks share the cores, which costs little because waiting
    threads sleep. Two pipelines at least, so that one decodes and encodes while the other's picture is in a network.
    """
    return Plan(
        instances=instances if instances is not None else min(max(2, available), MAX_INSTANCES),
        threads=threads if threads is not None else min(available, MAX_THREADS),
    )


def choose_device(choice: DeviceChoice, model: Path) -> Device:
    """The device for a choice. CUDA counts as there only when a session on `model` really came up with it.

    Raises:
        RuntimeProblem: when CUDA was asked for by name and does not work.
    """
    if choice == "cpu":
        return Device("cpu", "cpu")
    gpu = _gpu_name()
    failure = _cuda_failure(gpu, model)
    if failure is None:
        return Device("cuda", f"cuda ({gpu})")
    if choice == "cuda":
        raise RuntimeProblem(f"CUDA was asked for and does not work: {failure}")
    if gpu is not None:
        return Device("cpu", "cpu", f"there is a GPU ({gpu}), but the networks run on the CPU: {failure}")
    return Device("cpu", "cpu")


def _gpu_name() -> str | None:
    """The first GPU's name as the driver gives it, or None without a driver or a GPU."""
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in information.read_text().splitlines():
            key, _, value = line.partition(":")
            if key == "Model":
                return value.strip()
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.splitlines()[0].strip() if answer.stdout.strip() else None


# ONNX Runtime falls back to the CPU without an error, so the session that comes up is what is asked. The probe is a
# process of its own, because CUDA's memory is not given back before a process ends.
_PROBE = """
import sys, onnxruntime
if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
    sys.exit("this onnxruntime is built without CUDA")
onnxruntime.preload_dlls()
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CUDAExecutionProvider"])
if session.get_providers()[0] != "CUDAExecutionProvider":
    sys.exit("ONNX Runtime's CUDA provider did not start")
"""


def _cuda_failure(gpu: str | None, model: Path) -> str | None:
    """Why CUDA cannot be used, or None where it can."""
    if gpu is None:
        return "no NVIDIA driver or GPU was found"
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, str(model)], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"a first session did not come up within {PROBE_TIMEOUT_S} s"
    if probe.returncode == 0:
        return None
    lines = probe.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"a first session ended with status {probe.returncode}"
    missing = re.search(r"with error: (.+)", probe.stderr)
    if missing:
        reason += f" ({missing[1].strip()})"
    return f"{reason}; run: {INSTALL_CUDA}"
