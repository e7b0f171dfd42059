"""Makes `.venv` with a Python that the bundled Triton can embed; `make` runs it with any Python from 3.9 on.

    python3 runtime/bootstrap.py VENV PYTHON...

The first PYTHON with a supported version, its shared library and `venv` is taken. Where none has them, uv downloads a
standalone Python into .cache/python; uv itself comes from the package index, as requirements/dev.txt pins it.
Standard library only: nothing is installed yet.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
CACHE = CHECKOUT / ".cache"
LOCK = CHECKOUT / "requirements" / "dev.txt"
SUPPORTED = ">=3.11,<3.13"
UV_WHEEL = "manylinux_2_17_x86_64"
INDEX_TIMEOUT_S = 60

PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    sys.exit("is Python %d.%d" % sys.version_info[:2])
from runtime.checks import RuntimeProblem, check_libpython
try:
    check_libpython()
except RuntimeProblem:
    sys.exit("has no shared library (libpython%d.%d)" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("has no venv (python%d.%d-venv)" % sys.version_info[:2])
"""


class BootstrapError(Exception):
    """No environment can be made; one line that says why and what helps."""


def main(venv: Path, pythons: list[str]) -> int:
    try:
        python = choose(pythons)
        make_venv(python, venv)
    except BootstrapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def choose(pythons: list[str]) -> str:
    """The first Python that suits, else a downloaded one. A line says which, unless it is the first."""
    reasons = {python: unsuitable(python) for python in pythons}
    first = pythons[0]
    for python, reason in reasons.items():
        if reason is None:
            if python != first:
                print(f"cutaway: {first} {reasons[first]}; using {python}", flush=True)
            return python
    print(f"cutaway: {first} {reasons[first]}; downloading Python 3.12 into .cache/python with uv", flush=True)
    try:
        return download_python(find_uv())
    except (OSError, BootstrapError) as error:
        raise BootstrapError(
            f"{first} {reasons[first]}, and no other Python can be downloaded ({error}); connect this machine to the "
            "network, or install Python 3.11 or 3.12 with venv and its shared library (Debian, Ubuntu: "
            "python3.X-venv and libpython3.X) and run make PYTHON=python3.X"
        ) from None


def unsuitable(python: str) -> str | None:
    """Why a Python does not suit; None where it does."""
    try:
        done = subprocess.run([python, "-c", PROBE, str(CHECKOUT)], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "does not start"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else "does not start"


def find_uv() -> str:
    """The uv on PATH, else the pinned one, installed into .cache/uv with pip where there is pip."""
    target = CACHE / "uv"
    found = shutil.which("uv") or shutil.which(str(target / "bin" / "uv"))
    if found is not None:
        return found
    match = re.search(r"^uv==.*\\\n(?:.*\\\n)*.*", LOCK.read_text(), re.MULTILINE)
    if match is None:
        raise BootstrapError(f"{LOCK} does not pin uv")
    if importlib.util.find_spec("pip") is None:
        unpack_uv(set(re.findall(r"sha256:(\w+)", match[0])), target / "bin" / "uv")
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirement:
            requirement.write(match[0] + "\n")
            requirement.flush()
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
            run([*pip, "--require-hashes", "--target", str(target), "-r", requirement.name])
    return str(target / "bin" / "uv")


def unpack_uv(hashes: set[str], program: Path) -> None:
    """Download uv's wheel without pip, which Debian's Python lacks, and unpack the program.

    Args:
        hashes: SHA-256 of the files that the lock accepts, as hexadecimal digits.
        program: where uv is written to.
    """
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/uv/"
    with urllib.request.urlopen(index, timeout=INDEX_TIMEOUT_S) as answer:  # noqa: S310 - the user's own index
        links = [urllib.parse.urljoin(index, link) for link in re.findall(r'href="([^"]+)"', answer.read().decode())]
    wheels = [link for link in links if UV_WHEEL in link and link.rpartition("#sha256=")[2] in hashes]
    if not wheels:
        raise BootstrapError(f"{index} has no wheel of uv that {LOCK.name} accepts")
    with urllib.request.urlopen(wheels[0], timeout=INDEX_TIMEOUT_S) as answer:  # noqa: S310
        data = answer.read()
    if hashlib.sha256(data).hexdigest() not in hashes:
        raise BootstrapError(f"{wheels[0]} is damaged: its SHA-256 is not in {LOCK.name}")
    with zipfile.ZipFile(io.BytesIO(data)) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".data/scripts/uv"))
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_bytes(wheel.read(name))
    program.chmod(0o755)


def download_python(uv: str) -> str:
    """Download a standalone Python with uv; its path."""
    environment = {
        **os.environ,
        "UV_PYTHON_INSTALL_DIR": str(CACHE / "python"),
        "UV_PYTHON_INSTALL_BIN": "0",
        "UV_PYTHON_PREFERENCE": "only-managed",
        "UV_NO_CACHE": "1",  # the home folder may be read-only
    }
    run([uv, "python", "install", SUPPORTED], environment)
    python = run([uv, "python", "find", "--no-project", SUPPORTED], environment)
    reason = unsuitable(python)
    if reason is not None:
        raise BootstrapError(f"the downloaded {python} {reason}")
    return python


def make_venv(python: str, venv: Path) -> None:
    """A new environment; nothing of it where that fails, so that the next `make` starts anew."""
    made = False
    try:
        run([python, "-m", "venv", str(venv)])
        made = True
    finally:
        if not made:
            shutil.rmtree(venv, ignore_errors=True)


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    """Run a command; what it prints, stripped.

    Raises:
        BootstrapError: it failed; the message is the last line of what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise BootstrapError(f"{Path(command[0]).name}: {lines[-1] if lines else f'status {done.returncode}'}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
