"""Servers to be harmed, and what is left of them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runtime.compose import SOURCE
from runtime.weights import BUNDLED
from tests.runtime.leftovers import GONE_S

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Command:
    """`python -m runtime serve` as a user runs it."""

    process: subprocess.Popen[str]
    cache_dir: Path
    lines: list[str] = field(default_factory=list)

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if ": ready in" in line:
                return
        raise AssertionError(f"it ended without being ready: {self.lines} {self.process.stderr.read()}")  # type: ignore[union-attr]

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal. The exit status, and all that was said on standard output."""
        self.process.send_signal(number)
        said, _ = self.process.communicate(timeout=GONE_S)
        return self.process.returncode, "".join(self.lines) + said


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts `python -m runtime serve` on free ports and waits until it is ready."""
    started: list[Command] = []

    def start(*arguments: str) -> Command:
        cache_dir = tmp_path / f"cache-{len(started)}"
        command = Command(
            subprocess.Popen(
                [sys.executable, "-m", "runtime", "serve", f"--cache-dir={cache_dir}"]
                + [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
                + list(arguments),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ),
            cache_dir,
        )
        started.append(command)
        command.wait_ready()
        return command

    yield start
    for command in started:
        if command.process.poll() is None:
            command.process.terminate()
        command.process.communicate(timeout=GONE_S)


@pytest.fixture
def broken_repository(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the repository whose pipeline is the code given."""

    def make(model_py: str) -> Path:
        repository = tmp_path / "model_repository"
        shutil.copytree(SOURCE, repository, ignore=shutil.ignore_patterns("__pycache__"))
        (repository / "ensemble_pipeline" / "1" / "model.py").write_text(model_py)
        return repository

    return make


@pytest.fixture
def weights_copy(tmp_path: Path) -> Callable[[], Path]:
    """A copy of the bundled weights, to be harmed."""

    def make() -> Path:
        return shutil.copytree(BUNDLED / "nano", tmp_path / "weights")

    return make
