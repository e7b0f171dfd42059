"""Checks whether this machine can run the bundled Triton. Each passes silently or raises one readable line."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024

TRITON_VERSION = "2.51.0"
"""What nvidia-pytriton 0.7.0 bundles (release 24.10)."""

SHM = Path("/dev/shm")  # noqa: S108 - POSIX shared memory

PYTHON_MINIMUM = (3, 11)
PYTHON_MAXIMUM = (3, 12)
"""numpy below 2, which the bundled Triton needs, has no wheel for 3.13; the stub itself would have one."""
GLIBC_MINIMUM = (2, 35)
CACHE_FREE_MINIMUM_BYTES = 32 * MIB
"""Room for a composed repository (well below 1 MiB; the networks are linked) and a log."""

SHM_BYTES_PER_PROCESS = 64 * MIB
"""What one model process may need of /dev/shm for mattes of `SHM_SIDE_PX` or less: a batch of `SHM_BATCH` crops and
their mattes are half of it, a large picture and its cut-outs the rest."""
SHM_SIDE_PX = 1024
SHM_BATCH = 8


class RuntimeProblem(Exception):
    """Something that stops the server, in one line that says what is wrong and what helps."""


@dataclass(frozen=True)
class TritonFiles:
    """Where the bundled Triton's parts lie."""

    server: Path
    """The `tritonserver` program."""
    libraries: Path
    """The folder of the shared libraries it needs."""
    python_backend: Path
    """The folder of the Python backend."""
    stub: Path
    """The program that runs one Python model, for this Python's minor version."""
    libpython: Path
    """The folder of this Python's shared library."""


def check_platform(system: str | None = None, machine: str | None = None, libc: tuple[str, str] | None = None) -> None:
    """The wheel holds programs for Linux on x86-64 with glibc 2.35 or newer."""
    system = platform.system() if system is None else system
    machine = platform.machine() if machine is None else machine
    libc = platform.libc_ver() if libc is None else libc
    if system != "Linux" or machine not in ("x86_64", "AMD64"):
        raise RuntimeProblem(
            f"the bundled Triton runs on Linux x86-64 only, and this is {system} {machine}; "
            "use a Linux machine, a virtual machine or WSL 2"
        )
    name, version = libc
    wanted = ".".join(map(str, GLIBC_MINIMUM))
    if name != "glibc" or _version(version) < GLIBC_MINIMUM:
        found = f"{name} {version}".strip() or "another C library"
        raise RuntimeProblem(
            f"the bundled Triton needs glibc {wanted} or newer, and this system has {found}; "
            "use Ubuntu 22.04, Debian 12 or newer"
        )


def check_python(version: tuple[int, int] | None = None) -> None:
    """Python 3.11, as the SDK needs it, or 3.12."""
    version = sys.version_info[:2] if version is None else version
    if not PYTHON_MINIMUM <= version <= PYTHON_MAXIMUM:
        raise RuntimeProblem(
            f"the server needs Python 3.11 or 3.12, and this is Python {version[0]}.{version[1]}; "
            "make the environment anew, with a Python that suits: make clean && make serve"
        )


def check_libpython(
    *,
    version: tuple[int, int] | None = None,
    base_prefix: str | None = None,
    config: Mapping[str, object] | None = None,
) -> Path:
    """The folder of this Python's shared library, which the backend's stub is linked to.

    Args:
        version: major and minor; this interpreter's where None.
        base_prefix: where the interpreter is installed (`sys.base_prefix`).
        config: its build variables (`sysconfig.get_config_vars()`); `LIBDIR` and `MULTIARCH` are read.
    """
    major, minor = sys.version_info[:2] if version is None else version
    base = Path(sys.base_prefix if base_prefix is None else base_prefix)
    config = sysconfig.get_config_vars() if config is None else config
    name = f"libpython{major}.{minor}.so.1.0"
    multiarch = str(config.get("MULTIARCH") or "")
    folders = [base / "lib", Path(str(config.get("LIBDIR") or base / "lib"))]
    if multiarch:
        folders += [folder / multiarch for folder in folders]
    for folder in folders:
        if (folder / name).is_file():
            return folder
    raise RuntimeProblem(
        f"this Python comes without its shared library {name}, which Triton needs; on Debian or Ubuntu: "
        f"apt install libpython{major}.{minor}, with pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install "
        f"{major}.{minor}"
    )


def check_numpy(version: str | None = None) -> None:
    """The stub of the bundled Triton misreads numpy 2 arrays silently."""
    if version is None:
        try:
            version = importlib.metadata.version("numpy")
        except importlib.metadata.PackageNotFoundError:
            raise RuntimeProblem("numpy is not installed; run: make serve, or pip install '.[serve]'") from None
    if _version(version) >= (2,):
        raise RuntimeProblem(
            f"the bundled Triton needs numpy below 2, and {version} is installed; run: pip install 'numpy<2'"
        )


def find_triton(root: Path | None = None, libpython: Path | None = None) -> TritonFiles:
    """The bundled Triton's parts.

    Args:
        root: the folder of the package `pytriton`; looked up where None.
        libpython: see :func:`check_libpython`, whose result is taken where None.
    """
    if root is None:
        spec = importlib.util.find_spec("pytriton")
        if spec is None or spec.origin is None:
            raise RuntimeProblem(
                "nvidia-pytriton, which bundles Triton, is not installed; run: make serve, or pip install '.[serve]'"
            )
        root = Path(spec.origin).parent
    triton = root / "tritonserver"
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    files = TritonFiles(
        server=triton / "bin" / "tritonserver",
        libraries=root.parent / "nvidia_pytriton.libs",
        python_backend=triton / "backends" / "python",
        stub=triton / "python_backend_stubs" / minor / "triton_python_backend_stub",
        libpython=check_libpython() if libpython is None else libpython,
    )
    for part in (files.server, files.libraries, files.python_backend, files.stub):
        if not part.exists():
            raise RuntimeProblem(
                f"nvidia-pytriton is not complete: {part} is missing; "
                "run: pip install --force-reinstall nvidia-pytriton==0.7.0"
            )
    return files


def resolve(address: str) -> str:
    """The IPv4 address to listen on for an address or a name of this machine; Triton takes no names."""
    try:
        found = socket.getaddrinfo(address, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        raise RuntimeProblem(
            f"{address} is no IPv4 address or name of this machine; use 127.0.0.1, or 0.0.0.0 for other machines"
        ) from None
    return str(found[0][4][0])


def check_port(address: str, port: int, use: str, option: str) -> None:
    """Nothing listens at `port` of `address` yet. `use` and `option` are named in the problem's line."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise RuntimeProblem(
                    f"port {port} on {address}, wanted for {use}, is taken; stop what uses it or choose another: "
                    f"{option} PORT ({option} 0 takes any free one)"
                ) from None
            if error.errno == errno.EACCES:
                raise RuntimeProblem(
                    f"port {port}, wanted for {use}, is reserved for the system; choose one from 1024 on: {option} PORT"
                ) from None
            raise RuntimeProblem(
                f"cannot listen on {address} port {port} for {use}: {error.strerror or error}"
            ) from None


def free_ports(address: str, count: int) -> list[int]:
    """`count` different ports that nothing listens on at this moment."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for each in sockets:
            try:
                each.bind((address, 0))
            except OSError as error:
                raise RuntimeProblem(f"cannot listen on {address}: {error.strerror or error}") from None
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def check_cache_dir(folder: Path, free_bytes: int | None = None) -> None:
    """The cache folder exists or can be made, can be written to, and has room."""
    probe = folder / f".write-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
    except OSError as error:
        raise unwritable(folder, error) from None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    if free < CACHE_FREE_MINIMUM_BYTES:
        raise RuntimeProblem(
            f"the disk of the cache folder {folder} is full ({free // MIB} MiB free, "
            f"{CACHE_FREE_MINIMUM_BYTES // MIB} MiB needed); free some or choose another folder: --cache-dir DIR"
        )


def unwritable(folder: Path, error: OSError) -> RuntimeProblem:
    """The problem that an `OSError` while writing below `folder` is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RuntimeProblem(
            f"the disk of the cache folder {folder} is full; free some or choose another folder: --cache-dir DIR"
        )
    return RuntimeProblem(
        f"cannot write to the cache folder {folder}: {error.strerror or error}; choose another: --cache-dir DIR"
    )


def free_shm_bytes() -> int:
    """What may be taken of /dev/shm now."""
    return shutil.disk_usage(SHM).free


def shm_bytes_per_process(side_px: int) -> int:
    """What one model process may need of /dev/shm where mattes have this side: RGB crops in, one byte a pixel out."""
    return SHM_BYTES_PER_PROCESS + SHM_BATCH * 4 * max(0, side_px**2 - SHM_SIDE_PX**2)


def shm_shortage(processes: int, free_bytes: int | None = None, *, side_px: int = SHM_SIDE_PX) -> str | None:
    """A warning where /dev/shm is small for so many model processes; None where it is large enough.

    Args:
        processes: how many there are.
        free_bytes: what is free; looked up where None.
        side_px: side of the matting network's square input.
    """
    free = free_shm_bytes() if free_bytes is None else free_bytes
    wanted = processes * shm_bytes_per_process(side_px)
    if free >= wanted:
        return None
    return (
        f"{SHM} has {free // MIB} MiB free, and {processes} model processes may need {wanted // MIB} MiB: large "
        f"pictures can fail; in a container give it more (--shm-size={wanted // MIB}m)"
    )


def check_machine() -> TritonFiles:
    """All checks that a server needs, cheapest first."""
    check_platform()
    check_python()
    check_numpy()
    return find_triton()


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.36" → (2, 36), "1.26.4" → (1, 26, 4), "" → ()."""
    return tuple(_leading_numbers(text.split(".")))


def _leading_numbers(parts: Iterable[str]) -> Iterable[int]:
    for part in parts:
        if not part.isdigit():
            return
        yield int(part)
