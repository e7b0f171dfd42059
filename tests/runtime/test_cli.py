"""`python -m runtime` as a user meets it: signals end everything, problems are one line and a status of 1."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cutaway.contract.limits import PROFILES

from runtime.server import ServerOptions
from runtime.weights import profile_folder
from tests.runtime.conftest import ROOT, Command
from tests.runtime.leftovers import GONE_S, assert_nothing_left, processes_of, wait_for


def run(*arguments: str, shell: Sequence[str] = (), **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*shell, sys.executable, "-m", "runtime", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        **options,  # type: ignore[call-overload]
    )


def problem_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command says."""
    assert done.returncode == 1, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.triton
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_everything(serve: Callable[..., Command], number: signal.Signals) -> None:
    command = serve("--instances=1")
    status, said = command.end(number)
    assert status == 0
    assert said.splitlines()[-1] == "cutaway: stopped"
    assert_nothing_left(command.cache_dir)


@pytest.mark.triton
def test_killed_supervisor_leaves_nothing(serve: Callable[..., Command]) -> None:
    """SIGKILL gives it no chance to clean up; the keeper does."""
    command = serve("--instances=1")
    # The keepers of Triton and the gate, both of these, six models.
    assert len(processes_of(command.cache_dir)) == 10
    command.process.kill()
    command.process.wait()
    assert_nothing_left(command.cache_dir, seconds=GONE_S)


@pytest.mark.triton
def test_killed_process_group_leaves_nothing(serve: Callable[..., Command]) -> None:
    """Supervisor and Triton killed at once, as a container's end may do it."""
    command = serve("--instances=1")
    children = Path(f"/proc/{command.process.pid}/task/{command.process.pid}/children").read_text().split()
    triton = Path(f"/proc/{children[0]}/task/{children[0]}/children").read_text().split()
    for pid in (command.process.pid, int(triton[0])):
        os.kill(pid, signal.SIGKILL)
    command.process.wait()
    assert_nothing_left(command.cache_dir, seconds=GONE_S)


@pytest.mark.triton
def test_ended_while_starting(tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "service")]
    starting = subprocess.Popen(
        [sys.executable, "-m", "runtime", "serve", f"--cache-dir={cache_dir}", *ports],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert wait_for(lambda: any("bin/tritonserver" in words.split()[0] for words in processes_of(cache_dir)))
    starting.send_signal(signal.SIGTERM)
    _, failure = starting.communicate(timeout=GONE_S)
    assert starting.returncode == 0
    assert failure == ""
    assert_nothing_left(cache_dir)


@pytest.mark.parametrize("use", ["http", "grpc", "metrics", "service"])
def test_taken_port(tmp_path: Path, use: str) -> None:
    ports = dict.fromkeys(("http", "grpc", "metrics", "service"), "0")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ports[use] = str(listener.getsockname()[1])
        done = run("serve", f"--cache-dir={tmp_path}", *(f"--{name}-port={port}" for name, port in ports.items()))
    assert f"port {ports[use]} on 127.0.0.1" in problem_of(done)
    assert f"--{use}-port PORT" in problem_of(done)


def test_missing_weights(tmp_path: Path) -> None:
    done = run("serve", f"--cache-dir={tmp_path}", f"--weights={tmp_path}", "--http-port=0", "--grpc-port=0")
    assert "yolov8_seg.onnx is missing" in problem_of(done)


def test_profile_without_weights(tmp_path: Path) -> None:
    never_made = next(each for each in PROFILES if not profile_folder(each).is_dir())
    done = run("compose", f"--profile={never_made}", str(tmp_path / "repository"), env=without("CUTAWAY_WEIGHTS"))
    assert f"make models PROFILE={never_made}" in problem_of(done)


def test_damaged_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(ServerOptions().weights_dir, weights)
    (weights / "yolov8_seg.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "damaged or another one" in problem_of(run("compose", f"--weights={weights}", str(tmp_path / "repository")))


def test_file_that_cannot_grow(tmp_path: Path) -> None:
    """A real failure of a write, by the process's own limit on the size of files."""

    # Units are 512 bytes. The shell sets it, since a `preexec_fn` would fork beside threads and could hang.
    limited = ("sh", "-c", 'ulimit -f 2; exec "$@"', "sh")
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = run("compose", str(tmp_path / "repository"), shell=limited, env=env)
    assert "File too large" in problem_of(done)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        ports = [f"--{name}-port=0" for name in ("http", "grpc", "metrics", "service")]
        done = run("serve", f"--cache-dir={disk}", *ports)
        assert "is full" in problem_of(done)
        done = run("compose", str(disk / "repository"))
        assert "is full" in problem_of(done)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_outside_its_environment() -> None:
    """`-S` hides the installed packages, as another Python would."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "runtime", "serve"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=without("PYTHONPATH"),
    )
    assert "the Python package cutaway is not installed for" in problem_of(done)


def test_compose_into_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    assert "is not an empty folder" in problem_of(run("compose", str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_doctor(tmp_path: Path) -> None:
    done = run("doctor", f"--cache-dir={tmp_path}", "--device=cpu")
    assert done.returncode == 0, done.stdout
    subjects = [line[9:23].strip() for line in done.stdout.splitlines()]
    assert subjects[:4] == ["platform", "python", "triton", "packages"]
    assert all(not line.startswith("problem") for line in done.stdout.splitlines())
    assert any(line.startswith("warning  release") and "24.10" in line for line in done.stdout.splitlines())


def test_doctor_tells_problems(tmp_path: Path) -> None:
    done = run("doctor", f"--cache-dir={tmp_path}", f"--weights={tmp_path}")
    assert done.returncode == 1
    assert any(line.startswith("problem  weights") for line in done.stdout.splitlines())


@pytest.mark.parametrize("command", [[], ["serve"], ["demo"], ["compose"], ["doctor"]], ids=" ".join)
def test_help(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: python -m runtime{' ' if command else ''}{' '.join(command)}")


@pytest.mark.parametrize("arguments", [["serve", "--http-port=70000"], ["serve", "--instances=0"], ["serve", "x"], []])
def test_wrong_command_line(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != name}
