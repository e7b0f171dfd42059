"""`make` where the Python at hand does not suit: another is taken or downloaded, and only without any it is an error.

The unsuitable Pythons are the running one behind a script that changes what it says of itself. uv downloads a copy of
the running Python from a server on loopback.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import bootstrap
from runtime.checks import check_libpython, free_ports

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("make", "sh", "mkdir", "rm", "touch", "uv")
CHANGES = {
    "python3.13": "sys.version_info = (3, 13, 0, 'final', 0)",
    "python-without-library": "import sysconfig; sys.base_prefix = sysconfig.get_config_vars()['LIBDIR'] = '/nowhere'",
    "python-without-venv": "sys.modules['ensurepip'] = None",
}
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"


def changed_python(folder: Path, name: str, change: str) -> Path:
    """A Python that runs `-c CODE` after a change of what it says of itself, and files as they are."""
    before = f"import sys; {change}; code = sys.argv.pop(1); exec(code)"
    path = folder / name
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || exec "{sys.executable}" "$@"\nshift\nexec "{sys.executable}" -c "{before}" "$@"\n'
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("python3.13", "is Python 3.13"),
        ("python-without-library", f"has no shared library (libpython{RUNNING})"),
        ("python-without-venv", f"has no venv (python{RUNNING}-venv)"),
    ],
)
def test_an_unsuitable_python_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    python = str(changed_python(tmp_path, name, CHANGES[name]))
    assert bootstrap.unsuitable(python) == reason
    assert bootstrap.choose([python, "python-not-here", sys.executable]) == sys.executable
    assert capsys.readouterr().out == f"cutaway: {python} {reason}; using {sys.executable}\n"


def test_a_suitable_python_is_taken_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert bootstrap.choose([sys.executable, "python-not-here"]) == sys.executable
    assert capsys.readouterr().out == ""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL where it is served on loopback."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make .venv/bin/python` needs of a checkout, in a path that wants quoting."""
    folder = tmp_path / "a checkout [1] of d'Été"
    (folder / "requirements").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copytree(ROOT / "runtime", folder / "runtime")
    shutil.copy(bootstrap.LOCK, folder / "requirements")
    return folder


def make_venv(checkout: Path, tmp_path: Path, url: str) -> subprocess.CompletedProcess[str]:
    """Run make where Python 3.13 is the only one on the PATH, and uv finds downloads at `url`."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in TOOLS:
        found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if found is None:
            pytest.skip(f"there is no {name}")
        (tools / name).symlink_to(found)
    changed_python(tools, "python3", CHANGES["python3.13"])
    major, minor, patch = sys.version_info[:3]
    downloads = tmp_path / "downloads.json"
    download = {
        "name": "cpython",
        "arch": {"family": "x86_64", "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": major,
        "minor": minor,
        "patch": patch,
        "prerelease": "",
        "url": f"{url}/python.tar.gz",
        "sha256": None,
        "variant": None,
    }
    downloads.write_text(json.dumps({f"cpython-{major}.{minor}.{patch}-linux-x86_64-gnu": download}))
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    settings = {"UV_PYTHON_DOWNLOADS_JSON_URL": str(downloads), "UV_HTTP_RETRIES": "0"}
    return subprocess.run(
        ["make", ".venv/bin/python"],
        cwd=checkout,
        env={"PATH": str(tools), "HOME": str(home), **settings},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.skipif(sys.base_prefix in ("/usr", "/usr/local"), reason="the running Python has no folder of its own")
def test_a_python_is_downloaded_where_none_suits(served: tuple[Path, str], checkout: Path, tmp_path: Path) -> None:
    folder, url = served
    standard_library = Path(sysconfig.get_path("stdlib"))
    left_out = {standard_library / "site-packages", standard_library / "test", standard_library / f"config-{RUNNING}"}

    def packed(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = Path(sys.base_prefix) / Path(entry.name).relative_to("python")
        return None if path in left_out or path.name == "__pycache__" or path.suffix == ".a" else entry

    with tarfile.open(folder / "python.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(sys.base_prefix, "python", filter=packed)
    done = make_venv(checkout, tmp_path, url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cutaway: python3 is Python 3.13; downloading Python 3.12 into .cache/python with uv\n"
    said = subprocess.run(
        [checkout / ".venv" / "bin" / "python", "-c", "import sys, pip; print(sys.base_prefix)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert Path(said).parent == checkout / ".cache" / "python"
    assert check_libpython(base_prefix=said, config={}) == Path(said) / "lib"


def test_without_a_network_it_is_one_line_that_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    done = make_venv(checkout, tmp_path, f"http://127.0.0.1:{free_ports('127.0.0.1', 1)[0]}")
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: python3 is Python 3.13, and no other Python can be downloaded (uv: ")
    assert "make PYTHON=python3.X" in first
    assert [line.partition(" ")[0] for line in rest] == ["make:"]
    assert not (checkout / ".venv").exists()


def test_model_processes_can_read_the_way_to_the_sdk() -> None:
    """They run in the C locale, where Python reads .pth files as ASCII: a checkout's path in it may be unreadable."""
    file = Path(sysconfig.get_path("purelib")) / "_editable_impl_cutaway.pth"
    stamp = ROOT / ".venv" / ".serve"
    if not file.is_relative_to(ROOT) or stamp.stat().st_mtime < (ROOT / "Makefile").stat().st_mtime:
        pytest.skip("this environment was not made by this Makefile")
    assert file.read_text() == "../../../../client\n"
    assert (file.parent / file.read_text().strip()).samefile(ROOT / "client")


# ---- uv without pip, as on Debian


def wheel(served: Path, name: str) -> str:
    """A wheel with a program, in an index like PyPI's; its SHA-256."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("uv-1.0.data/scripts/uv", "#!/bin/sh\necho I am uv\n")
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    (served / "uv").mkdir()
    (served / "uv" / "index.html").write_text(f'<a href="../{name}#sha256={digest}">{name}</a>')
    (served / name).write_bytes(data.getvalue())
    return digest


NAME = f"uv-1.0-py3-none-{bootstrap.UV_WHEEL}.manylinux2014_x86_64.whl"


def test_uv_is_unpacked_without_pip(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{served[1]}/")
    program = tmp_path / "uv" / "bin" / "uv"
    bootstrap.unpack_uv({wheel(served[0], NAME)}, program)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "I am uv\n"


@pytest.mark.parametrize("what", ["another platform's", "another digest", "damaged"])
def test_a_wheel_of_uv_that_the_lock_does_not_know_is_refused(
    served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", served[1])
    name = "uv-1.0-py3-none-win_amd64.whl" if what == "another platform's" else NAME
    digest = wheel(served[0], name)
    if what == "damaged":
        (served[0] / name).write_bytes(b"PK")
    with pytest.raises(bootstrap.BootstrapError, match="is damaged" if what == "damaged" else "has no wheel of uv"):
        bootstrap.unpack_uv({"0" * 64 if what == "another digest" else digest}, tmp_path / "uv")
    assert not (tmp_path / "uv").exists()


def test_the_lock_pins_the_wheel_of_uv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is handed to the unpacking is what requirements/dev.txt says, hash for hash."""
    handed: list[set[str]] = []
    monkeypatch.setattr(bootstrap, "CACHE", tmp_path)
    monkeypatch.setattr(bootstrap, "unpack_uv", lambda hashes, _program: handed.append(hashes))
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bootstrap.find_uv() == str(tmp_path / "uv" / "bin" / "uv")
    block = bootstrap.LOCK.read_text().partition("\nuv==")[2].partition("\n\n")[0].split("\n")
    hashes = []
    for line in block[1:]:
        if "--hash=sha256:" not in line:
            break
        hashes.append(line.partition("sha256:")[2][:64])
    assert handed == [set(hashes)]
    assert len(hashes) > 5
