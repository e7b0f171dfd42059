"""Each unfit machine is told so in one readable line that names what helps."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from runtime import checks
from runtime.checks import MIB, RuntimeProblem


def one_line(problem: pytest.ExceptionInfo[RuntimeProblem]) -> str:
    text = str(problem.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def test_this_machine_is_fit() -> None:
    files = checks.check_machine()
    assert files.server.is_file()
    assert files.stub.is_file()
    assert list(files.libpython.glob("libpython3*.so*"))


@pytest.mark.parametrize(
    ("system", "machine", "libc", "words"),
    [
        ("Darwin", "arm64", ("", ""), "Linux x86-64 only, and this is Darwin arm64"),
        ("Windows", "AMD64", ("", ""), "this is Windows AMD64"),
        ("Linux", "aarch64", ("glibc", "2.39"), "this is Linux aarch64"),
        ("Linux", "x86_64", ("glibc", "2.31"), "needs glibc 2.35 or newer, and this system has glibc 2.31"),
        ("Linux", "x86_64", ("glibc", "2.4"), "glibc 2.4;"),
        ("Linux", "x86_64", ("", ""), "this system has another C library"),
    ],
)
def test_unsupported_platform(system: str, machine: str, libc: tuple[str, str], words: str) -> None:
    with pytest.raises(RuntimeProblem) as problem:
        checks.check_platform(system, machine, libc)
    assert words in one_line(problem)


@pytest.mark.parametrize("libc", [("glibc", "2.35"), ("glibc", "2.36"), ("glibc", "3.0")])
def test_supported_platform(libc: tuple[str, str]) -> None:
    checks.check_platform("Linux", "x86_64", libc)


@pytest.mark.parametrize("version", [(3, 10), (3, 13), (2, 7), (4, 0)])
def test_wrong_python(version: tuple[int, int]) -> None:
    with pytest.raises(RuntimeProblem) as problem:
        checks.check_python(version)
    assert f"needs Python 3.11 or 3.12, and this is Python {version[0]}.{version[1]}" in one_line(problem)


@pytest.mark.parametrize("version", [(3, 11), (3, 12)])
def test_right_python(version: tuple[int, int]) -> None:
    checks.check_python(version)


def test_python_without_its_shared_library(tmp_path: Path) -> None:
    """As Debian's python3 comes: LIBDIR and MULTIARCH name folders, and libpython3.x.so is in none of them."""
    with pytest.raises(RuntimeProblem) as problem:
        checks.check_libpython(
            version=(3, 11),
            base_prefix=str(tmp_path),
            config={"LIBDIR": str(tmp_path / "usr-lib"), "MULTIARCH": "x86_64-linux-gnu"},
        )
    text = one_line(problem)
    assert "libpython3.11.so.1.0" in text
    assert "apt install libpython3.11" in text


@pytest.mark.parametrize("folder", ["lib", "elsewhere", "elsewhere/x86_64-linux-gnu", "lib/x86_64-linux-gnu"])
def test_shared_library_is_found_where_pythons_keep_it(tmp_path: Path, folder: str) -> None:
    library = tmp_path / folder / "libpython3.11.so.1.0"
    library.parent.mkdir(parents=True)
    library.touch()
    found = checks.check_libpython(
        version=(3, 11),
        base_prefix=str(tmp_path),
        config={"LIBDIR": str(tmp_path / "elsewhere"), "MULTIARCH": "x86_64-linux-gnu"},
    )
    assert found == library.parent


def test_numpy_2_is_refused() -> None:
    checks.check_numpy("1.26.4")
    with pytest.raises(RuntimeProblem) as problem:
        checks.check_numpy("2.1.0")
    assert "needs numpy below 2, and 2.1.0 is installed" in one_line(problem)


def test_incomplete_wheel(tmp_path: Path) -> None:
    with pytest.raises(RuntimeProblem) as problem:
        checks.find_triton(tmp_path / "pytriton", libpython=tmp_path)
    assert "tritonserver is missing" in one_line(problem)


def test_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(RuntimeProblem) as problem:
            checks.check_port("127.0.0.1", port, "gRPC", "--grpc-port")
    text = one_line(problem)
    assert f"port {port} on 127.0.0.1, wanted for gRPC, is taken" in text
    assert "--grpc-port 0" in text
    checks.check_port("127.0.0.1", port, "gRPC", "--grpc-port")


def test_address_of_another_machine() -> None:
    with pytest.raises(RuntimeProblem) as problem:
        checks.check_port("192.0.2.1", 8000, "HTTP", "--http-port")
    assert "cannot listen on 192.0.2.1" in one_line(problem)


def test_names_become_addresses() -> None:
    assert checks.resolve("localhost") == "127.0.0.1"
    assert checks.resolve("0.0.0.0") == "0.0.0.0"


@pytest.mark.parametrize("address", ["::1", "nowhere.invalid", "999.1.1.1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(RuntimeProblem) as problem:
        checks.resolve(address)
    assert f"{address} is no IPv4 address" in one_line(problem)


def test_free_ports_are_different() -> None:
    ports = checks.free_ports("127.0.0.1", 20)
    assert len(set(ports)) == 20


def test_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeProblem) as problem:
        checks.check_cache_dir(tmp_path, free_bytes=3 * MIB)
    text = one_line(problem)
    assert "is full (3 MiB free" in text
    assert "--cache-dir" in text
    assert not list(tmp_path.iterdir())


def test_cache_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeProblem) as problem:
        checks.check_cache_dir(tmp_path / "file" / "cache")
    assert "Not a directory" in one_line(problem)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_cache_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RuntimeProblem) as problem:
        checks.check_cache_dir(tmp_path / "cache")
    assert "Permission denied" in one_line(problem)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_fills_up_while_writing(number: int) -> None:
    problem = checks.unwritable(Path("cache"), OSError(number, os.strerror(number)))
    assert "the disk of the cache folder cache is full" in str(problem)


def test_small_shared_memory_is_a_warning() -> None:
    assert checks.shm_shortage(4, 256 * MIB) is None
    warning = checks.shm_shortage(4, 64 * MIB)
    assert warning is not None
    assert "--shm-size=256m" in warning


@pytest.mark.parametrize(("side_px", "needed_mib"), [(512, 64), (1024, 64), (1920, 145), (2048, 160)])
def test_large_mattes_need_more_shared_memory(side_px: int, needed_mib: int) -> None:
    """8 crops of 2048 px in RGB and their mattes are 128 MiB; a large picture and its cut-outs come on top."""
    assert checks.shm_shortage(4, 4 * needed_mib * MIB, side_px=side_px) is None
    warning = checks.shm_shortage(4, 4 * (needed_mib - 1) * MIB, side_px=side_px)
    assert warning is not None
    assert f"{checks.shm_bytes_per_process(side_px) * 4 // MIB} MiB" in warning
