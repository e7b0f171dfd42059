"""What a machine has to run TensorRT plans with, as the libraries themselves report it.

They are queried in a child process: a driver keeps memory in every process that has called it, and a crash would take
this process along.

    python -m runtime.gpus        prints the same as JSON
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.checks import RuntimeProblem

LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so")
DRIVER = "libcuda.so.1"
TIMEOUT_S = 120.0

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
"""`CUdevice_attribute`: the compute capability."""
NAME_BYTES = 256

_ERRORS = {
    100: "the driver finds no GPU; is one given to this container?",
    35: "the driver is too old",
    803: "the driver's library is not of the kernel's driver; reboot, or restart the container",
    804: "the GPU does not take the container's compatibility libraries",
    999: "the driver reports an unknown error; nvidia-smi may say more",
}
"""What the usual values of `CUresult` mean."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use: its name as the driver gives it, and its compute capability, such as "8.9"."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class Host:
    """What a machine has.

    Attributes:
        tensorrt: version of the TensorRT library, such as "10.13.3.9"; None where there is none.
        driver_cuda: the newest CUDA that the driver takes, such as "13.0"; None without a driver.
        gpus: every GPU that may be used. Triton runs a model on all of them.
        problem: why plans cannot be run here, in words; None where they can.
    """

    tensorrt: str | None = None
    driver_cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None

    @property
    def tensorrt_major(self) -> int | None:
        return int(self.tensorrt.split(".")[0]) if self.tensorrt else None

    @property
    def device(self) -> str:
        """As an answer's report shows it: "tensorrt 10.13.3.9 (NVIDIA L4)"."""
        names = " + ".join(gpu.name for gpu in self.gpus)
        return f"tensorrt {self.tensorrt} ({names})"

    def of(self, numbers: Sequence[int]) -> Host:
        """The same with some of its GPUs alone, by CUDA's numbers; all where none is named.

        Raises:
            RuntimeProblem: one of them is not there.
        """
        if self.problem is not None or not numbers:
            return self
        strangers = [number for number in numbers if not 0 <= number < len(self.gpus)]
        if strangers:
            raise RuntimeProblem(f"there is no GPU {strangers[0]} here: the numbers are 0 to {len(self.gpus) - 1}")
        return dataclasses.replace(self, gpus=tuple(self.gpus[number] for number in numbers))


def look_at_host(timeout_s: float = TIMEOUT_S) -> Host:
    """What this machine has."""
    checkout = Path(__file__).resolve().parents[1]
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "runtime.gpus"],
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
        return read_host(answer.stdout)
    except subprocess.TimeoutExpired:
        return Host(problem=f"the NVIDIA driver did not answer within {timeout_s:g} s")
    except (subprocess.CalledProcessError, ValueError, KeyError) as error:
        return Host(problem=f"asking the NVIDIA driver failed ({error})")


def read_host(text: str) -> Host:
    """The host that `python -m runtime.gpus` printed."""
    values = json.loads(text.splitlines()[-1])
    return Host(**{**values, "gpus": tuple(Gpu(**gpu) for gpu in values["gpus"])})


def examine(libraries: tuple[str, ...] = LIBRARIES, driver: str = DRIVER) -> Host:
    """Load TensorRT and the driver into this process and query them."""
    version = tensorrt_version(libraries)
    try:
        driver_cuda, gpus = _query_driver(driver)
    except _Refused as error:
        return Host(tensorrt=version, problem=str(error))
    if version is None:
        return Host(
            driver_cuda=driver_cuda, gpus=gpus, problem=f"there is no TensorRT ({', '.join(libraries)}) on this machine"
        )
    return Host(version, driver_cuda, gpus)


def tensorrt_version(libraries: tuple[str, ...] = LIBRARIES) -> str | None:
    """The whole version of the first of these libraries that loads; None where none does."""
    for name in libraries:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        with contextlib.suppress(AttributeError):
            return ".".join(
                str(getattr(library, f"getInferLib{part}Version")()) for part in ("Major", "Minor", "Patch", "Build")
            )
        # Older ones say it in one number alone: 101303 is 10.13.3.
        whole = int(library.getInferLibVersion())
        return f"{whole // 10000}.{whole // 100 % 100}.{whole % 100}"
    return None


class _Refused(Exception):
    """What the driver said."""


def _query_driver(name: str) -> tuple[str, tuple[Gpu, ...]]:
    """The newest CUDA that the driver takes, and the GPUs.

    Raises:
        _Refused: there is no driver or no GPU.
    """
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        raise _Refused(
            f"there is no NVIDIA driver ({name}); in a container it comes from NVIDIA's container toolkit"
        ) from None

    def call(function: str, *arguments: object) -> None:
        status = getattr(driver, function)(*arguments)
        if status:
            raise _Refused(_ERRORS.get(status, f"{function} failed with CUDA's error {status}"))

    call("cuInit", 0)
    number = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(number))
    driver_cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    call("cuDeviceGetCount", ctypes.byref(number))
    if not number.value:
        raise _Refused(_ERRORS[100])
    gpus = []
    for ordinal in range(number.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        label = ctypes.create_string_buffer(NAME_BYTES)
        call("cuDeviceGet", ctypes.byref(device), ordinal)
        call("cuDeviceGetName", label, NAME_BYTES, device)
        call("cuDeviceGetAttribute", ctypes.byref(major), CAPABILITY_MAJOR, device)
        call("cuDeviceGetAttribute", ctypes.byref(minor), CAPABILITY_MINOR, device)
        gpus.append(Gpu(label.value.decode(errors="replace"), f"{major.value}.{minor.value}"))
    return driver_cuda, tuple(gpus)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(examine())))
