"""`python -m runtime doctor`: everything a server needs, examined without starting one."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from runtime.checks import (
    MIB,
    SHM,
    TRITON_VERSION,
    RuntimeProblem,
    check_cache_dir,
    check_libpython,
    check_numpy,
    check_platform,
    check_python,
    find_triton,
    shm_shortage,
)
from runtime.compose import CHECKOUT
from runtime.devices import choose_device, cores, plan
from runtime.gpus import look_at_host
from runtime.plans import PLAN, check_plans
from runtime.releases import release_here, release_warning
from runtime.runs import default_cache_dir
from runtime.server import ServerOptions
from runtime.weights import NETWORKS, load_networks


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    mark: Literal["ok", "warning", "problem"]
    subject: str
    text: str


def examine(options: ServerOptions) -> Iterator[Finding]:
    """Each finding as soon as it is known."""
    yield _finding("platform", _platform)
    yield _finding("python", _python)
    yield _finding("triton", _triton)
    yield _finding("packages", _packages)
    yield from releases()
    yield _finding("weights", lambda: _weights(options))
    yield from plans(options)
    yield _device(options)
    layout = plan(cores(), options.instances, options.threads)
    yield Finding(
        "ok", "cores", f"{cores()}: {layout.instances} pictures at once, {layout.threads} threads per network"
    )
    yield _finding("cache", lambda: _cache(options))
    yield _shm(layout.instances + len(NETWORKS))


def _finding(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", subject, look())
    except RuntimeProblem as problem:
        return Finding("problem", subject, str(problem))


def _platform() -> str:
    check_platform()
    return f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}"


def _python() -> str:
    check_python()
    return f"{platform.python_version()}, shared library in {check_libpython()}"


def _triton() -> str:
    # First, since it says what helps where the package is missing, as in the GPU image, which has NVIDIA's Triton.
    server = find_triton().server
    return f"{TRITON_VERSION} of nvidia-pytriton {_version('nvidia-pytriton')}, in {server}"


def releases() -> Iterator[Finding]:
    """A warning where this Triton is older than NVIDIA's security bulletins ask for."""
    if (warning := release_warning(release_here())) is not None:
        yield Finding("warning", "release", warning)


def _packages() -> str:
    check_numpy()
    return ", ".join(f"{name} {_version(name)}" for name in ("numpy", "onnxruntime", "opencv-python-headless"))


def _version(name: str) -> str:
    for each in (name, f"{name}-gpu"):
        try:
            return importlib.metadata.version(each)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise RuntimeProblem(f"{name} is not installed; run: make serve, or pip install '.[serve]'")


def _weights(options: ServerOptions) -> str:
    networks = load_networks(options.weights_dir)
    sizes = ", ".join(f"{name} {network.path.stat().st_size / MIB:.1f} MiB" for name, network in networks.items())
    return f"{sizes}; checksums hold"


def plans(options: ServerOptions) -> Iterator[Finding]:
    """Whether the TensorRT plans beside the weights could be served here, where there are any.

    The bundled Triton needs none, so that one that does not fit is no problem of its own.
    """
    folder = options.weights_dir
    if not any(folder.glob(f"*{PLAN}")):
        return
    try:
        checked = check_plans(folder, look_at_host())
    except RuntimeProblem as problem:
        yield Finding("warning", "plans", str(problem))
        return
    warnings = [line for each in checked.values() for line in each.warnings]
    yield from (Finding("warning", "plans", line) for line in warnings)
    if not warnings:
        made = next(iter(checked.values())).record
        yield Finding("ok", "plans", f"of TensorRT {made.tensorrt} for this {made.gpu}, compared with their networks")


def _device(options: ServerOptions) -> Finding:
    try:
        model = load_networks(options.weights_dir)["yolov8_seg"].path
        device = choose_device(options.device, model)
    except RuntimeProblem as problem:
        return Finding("problem", "device", str(problem))
    if device.warning is not None:
        return Finding("warning", "device", device.warning)
    vnni = ", with VNNI for 8-bit networks" if device.int8 else ", no VNNI: float32 networks"
    return Finding("ok", "device", device.name + (vnni if device.kind == "cpu" else ""))


def _cache(options: ServerOptions) -> str:
    folder = options.cache_dir or default_cache_dir(CHECKOUT)
    check_cache_dir(folder)
    return f"{folder}, {shutil.disk_usage(folder).free // MIB} MiB free"


def _shm(processes: int) -> Finding:
    shortage = shm_shortage(processes)
    if shortage is not None:
        return Finding("warning", "shared memory", shortage)
    return Finding("ok", "shared memory", f"{shutil.disk_usage(SHM).free // MIB} MiB free")
