"""One server's run folder and shared memory: servers side by side never touch each other's.

<cache>/servers/<name>/lock         held as long as anything of the server lives
                      /plain        only where the path has special characters: a link to a temporary folder, which has
                                    a link back; Triton is given the latter, since the Python backend starts its model
                                    processes through a shell and does not quote
                      /sockets      a link to a temporary folder with the sockets that Triton listens on: a socket's
                                    path is limited to 108 bytes
                      /repository   what Triton loads
                      /backends     the Python backend, linked
                      /metrics      what the supervision has seen, for Prometheus
                      /server.log   what Triton, the gate and the models say; the last few are kept

Nobody but its user can look into any of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from runtime.checks import SHM, RuntimeProblem, TritonFiles, check_cache_dir, unwritable

LOGS_KEPT = 5
MODEL_PROCESS = Path(__file__).resolve().parent / "model_process.sh"
"""Starts the stub with an environment of its own."""
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._@%+=-]+")
"""Paths that a shell takes as they are."""
TEMPORARY_PATH_MAX = 80
"""Longest path of a folder for temporary ones: a socket's is at most 108 bytes."""


@dataclass
class Run:
    """The folder of one server.

    Attributes:
        folder: its folder.
        lock: an open file descriptor; the folder is in use while anybody holds it.
    """

    folder: Path
    lock: int

    @property
    def repository(self) -> Path:
        return self._plain / "repository"

    @property
    def backends(self) -> Path:
        return self._plain / "backends"

    @property
    def _plain(self) -> Path:
        """The folder, by a path that a shell takes as it is."""
        link = self.folder / "plain"
        return link.readlink() / "server" if link.is_symlink() else self.folder

    @property
    def sockets(self) -> Path:
        """The folder for Triton's sockets, made when it is first asked for."""
        link = self.folder / "sockets"
        if not link.is_symlink():
            link.symlink_to(_temporary_folder(self.folder))
        return link.readlink()

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics"

    @property
    def shm_prefix(self) -> str:
        """How the names of this server's regions in /dev/shm begin."""
        return _shm_prefix(self.folder)

    def link_backend(self, files: TritonFiles) -> None:
        """Lay out the Python backend as Triton wants it: beside its library what starts the stub of this Python.

        Where the checkout's files may not be executed, that is the stub itself, and models have Triton's allocator.
        """
        python = self.backends / "python"
        try:
            python.mkdir(parents=True)
            for part in files.python_backend.iterdir():
                if part.is_file() and part.name != files.stub.name:
                    (python / part.name).symlink_to(part.resolve())
            stub = python / "stub" / files.stub.name
            stub.parent.mkdir()
            stub.symlink_to(files.stub.resolve())
            (python / stub.name).symlink_to(MODEL_PROCESS if os.access(MODEL_PROCESS, os.X_OK) else stub)
        except OSError as error:
            raise unwritable(self.folder, error) from None

    def close(self) -> None:
        """Remove all but the log, and whatever is left in shared memory."""
        _clear(self.folder)
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def open_run(cache_dir: Path) -> Run:
    """A new folder below the cache folder; what ended servers left behind is removed first.

    Raises:
        RuntimeProblem: when the cache folder cannot be written, its disk is full, or Triton cannot load from its path.
    """
    check_cache_dir(cache_dir)
    servers = cache_dir / "servers"
    try:
        servers.mkdir(parents=True, exist_ok=True)
        _sweep(servers)
        folder = servers / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{secrets.token_hex(3)}"
        folder.mkdir(mode=0o700)
        if not PLAIN_PATH.fullmatch(str(folder.absolute())):
            _link_plain(folder)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise unwritable(cache_dir, error) from None
    return Run(folder, lock)


def _link_plain(folder: Path) -> None:
    """Make a path to the folder that a shell takes as it is.

    Raises:
        RuntimeProblem: there is no such path either.
    """
    try:
        plain = _temporary_folder(folder)
    except RuntimeProblem:
        folder.rmdir()
        raise
    (plain / "server").symlink_to(folder.absolute())
    (folder / "plain").symlink_to(plain)


def _temporary_folder(folder: Path) -> Path:
    """A new folder for this user only, of a short path that a shell takes as it is.

    Raises:
        RuntimeProblem: none can be made.
    """
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - made by mkdtemp
        if PLAIN_PATH.fullmatch(parent) and len(parent) <= TEMPORARY_PATH_MAX:
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="cutaway-", dir=parent))
    raise RuntimeProblem(
        f"no temporary folder can be written for a link to {folder}, which Triton needs since the path has special "
        "characters or is long; set TMPDIR, or choose another cache folder: --cache-dir DIR"
    )


def _sweep(servers: Path) -> None:
    """Clear the folders of dead servers, and keep the last few logs."""
    ended = []
    for folder in sorted(servers.iterdir()):
        with contextlib.suppress(OSError):
            lock = os.open(folder / "lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _clear(folder)
                ended.append(folder)
            finally:
                os.close(lock)
    for folder in ended[:-LOGS_KEPT]:
        shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    for part in ("repository", "backends"):
        shutil.rmtree(folder / part, ignore_errors=True)
    for name, parts in (("plain", ("server",)), ("sockets", ("http", "grpc:2", "metrics"))):
        link = folder / name
        if link.is_symlink():
            with contextlib.suppress(OSError):
                for part in parts:
                    (link.readlink() / part).unlink(missing_ok=True)
                link.readlink().rmdir()
            link.unlink()
    for left in (folder / "metrics", *SHM.glob(f"{_shm_prefix(folder)}*")):
        left.unlink(missing_ok=True)


def _shm_prefix(folder: Path) -> str:
    return f"cutaway-{folder.name}-"


def default_cache_dir(checkout: Path) -> Path:
    """`.cache/runtime` in the checkout, or the user's cache folder where the checkout cannot be written."""
    if os.access(checkout, os.W_OK):
        return checkout / ".cache" / "runtime"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "cutaway"
