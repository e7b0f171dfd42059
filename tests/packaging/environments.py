"""Pythons that this machine has, and empty environments with nothing but the wheel and what it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"
ALL_VARIABLE = "CUTAWAY_TEST_EVERY_PYTHON"
"""Where it is set, the wheel is installed for every supported Python that is found, else for the running one."""


@dataclass(frozen=True)
class Installed:
    """An environment into which the wheel was installed.

    Attributes:
        version: of its Python, such as "3.12".
        root: its folder.
        wheels: everything that was downloaded for it, the wheel itself included.
    """

    version: str
    root: Path
    wheels: tuple[Path, ...]

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return self.root / "lib" / f"python{self.version}" / "site-packages"

    def run(self, *command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment as a stranger would: nothing of the checkout is in its way."""
        program, *arguments = map(str, command)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "VIRTUAL_ENV", "CUTAWAY_", "HF_", "HUGGINGFACE_", "REPLICATE_"))
        }
        environment["PATH"] = f"{self.root / 'bin'}{os.pathsep}{environment.get('PATH', '')}"
        return subprocess.run(
            [self.root / "bin" / program, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )


def wanted_versions() -> list[str]:
    """The Pythons for which the wheel is to be tried."""
    return list(SUPPORTED) if os.environ.get(ALL_VARIABLE) else [RUNNING]


def find_python(version: str) -> Path | None:
    """A Python of this version that starts: the running one, on the PATH, or among pyenv's."""
    if version == RUNNING:
        return Path(sys.executable)
    candidates = [Path(found)] if (found := shutil.which(f"python{version}")) else []
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates += sorted(pyenv.glob(f"{version}.*/bin/python{version}"))
    return next((candidate for candidate in candidates if _starts(candidate, version)), None)


def build(folder: Path) -> Path:
    """Build the source archive and, from that, the wheel."""
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("cutaway-*.whl")
    return wheel


def install(version: str, python: Path, wheel: Path, folder: Path) -> Installed:
    """A new environment without pip in which the wheel is installed, with pip as anybody has it."""
    root, downloads = folder / "environment", folder / "downloads"
    _run(python, "-m", "venv", "--without-pip", root)
    pip = (sys.executable, "-m", "pip", "--python", root / "bin" / "python")
    _run(*pip, "download", "--quiet", "--only-binary", ":all:", "--dest", downloads, wheel)
    _run(*pip, "install", "--quiet", "--no-index", "--find-links", downloads, "cutaway")
    return Installed(version, root, tuple(sorted(downloads.iterdir())))


def _starts(python: Path, version: str) -> bool:
    """Whether it is what its name says: a pyenv shim may lead nowhere."""
    try:
        said = subprocess.run(
            [python, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return said.returncode == 0 and said.stdout.strip() == version


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
