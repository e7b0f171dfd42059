"""Regions of shared memory as this process has them.

The machine's are made in /dev/shm, readable by this user alone. Their names are taken away as soon as the server has
mapped them: the memory then lives as long as client or server use it, and nothing is left to be cleaned up, however
either ends. Python's own `multiprocessing.shared_memory` is not used: its tracker would take the names away once more,
and warn.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.transports.base import MemoryKind, MemoryRegion

SHM = Path("/dev/shm")  # noqa: S108 - POSIX shared memory lies there
SMALLEST_BYTES = 256 * 1024
LENGTH = struct.Struct("<I")
"""What precedes an element of a BYTES tensor."""

_NAME = re.compile(r"cutaway_picture-([0-9a-f]+)-([0-9]+)-([0-9]+)-[0-9a-f]{16}")

_held: set[str] = set()
"""Names of the regions that this process has not done with."""


class Region:
    """Memory that a picture is written into, and a server reads it from.

    Attributes:
        told: what the server is told of it.
    """

    told: MemoryRegion

    @property
    def name(self) -> str:
        return self.told.name

    def write(self, image: bytes) -> None:
        """Put the picture at its beginning, as an element of a BYTES tensor."""
        raise NotImplementedError

    def hide(self) -> None:
        """Take its name away: the server has mapped it, or never will."""

    def free(self, *, server_reads: bool) -> None:
        """This process writes no more to it; `server_reads` where the server may still be reading it."""
        raise NotImplementedError

    def forget(self) -> None:
        """The server has let go of it."""
        _held.discard(self.name)
        self.free(server_reads=False)


class SystemRegion(Region):
    """A region of the machine's memory.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, n_bytes: int) -> None:
        name = _new_name()
        self.told = MemoryRegion("system", name, n_bytes, key=f"/{name}")
        self._map: mmap.mmap | None = None
        try:
            file = os.open(SHM / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                # Takes the memory now: where there is none, writing later would kill the process.
                os.posix_fallocate(file, 0, n_bytes)
                self._map = mmap.mmap(file, n_bytes)
            finally:
                os.close(file)
        except BaseException as error:
            self.hide()
            _held.discard(name)
            if isinstance(error, OSError):
                raise OSError(
                    error.errno, f"no shared memory of {n_bytes:,} bytes: {error.strerror}", str(SHM)
                ) from None
            raise

    def write(self, image: bytes) -> None:
        assert self._map is not None
        LENGTH.pack_into(self._map, 0, len(image))
        self._map[LENGTH.size : LENGTH.size + len(image)] = image

    def hide(self) -> None:
        with suppress(FileNotFoundError):
            (SHM / self.name).unlink()

    def free(self, *, server_reads: bool) -> None:  # noqa: ARG002 - the server has a mapping of its own
        self._map = None


class CudaRegion(Region):
    """A region of a GPU's memory, through tritonclient and cuda-python.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, n_bytes: int, device_id: int) -> None:
        from tritonclient.utils import cuda_shared_memory as cuda

        self._cuda: Any = cuda
        self._pid = os.getpid()
        self._handle: Any = None
        name = _new_name()
        try:
            self._handle = cuda.create_shared_memory_region(name, n_bytes, device_id)
            raw = bytes(cuda.get_raw_handle(self._handle))
        except cuda.CudaSharedMemoryException as error:
            _held.discard(name)
            self.free(server_reads=False)
            said = error.__cause__.args[0] if error.__cause__ and error.__cause__.args else error
            words = said.decode(errors="replace") if isinstance(said, bytes) else said
            raise OSError(f"no memory of {n_bytes:,} bytes on GPU {device_id}: {words}") from None
        self.told = MemoryRegion("cuda", name, n_bytes, handle=raw, device_id=device_id)

    def write(self, image: bytes) -> None:
        data = np.frombuffer(LENGTH.pack(len(image)) + image, dtype=np.uint8)
        self._cuda.set_shared_memory_region(self._handle, [data])

    def free(self, *, server_reads: bool) -> None:
        # The server reads this very memory: it has to stay until the server has let go of it.
        if not server_reads and self._handle is not None and self._pid == os.getpid():
            handle, self._handle = self._handle, None
            self._cuda.destroy_shared_memory_region(handle)

    def __del__(self) -> None:
        self.free(server_reads=False)


def make_region(kind: MemoryKind, at_least_bytes: int, device_id: int) -> Region:
    """A new region that a picture of so many bytes fits into; larger than asked for, so that others fit as well.

    Raises:
        OSError: there is no room for it.
    """
    n_bytes = max(SMALLEST_BYTES, 1 << (at_least_bytes + LENGTH.size - 1).bit_length())
    return SystemRegion(n_bytes) if kind == "system" else CudaRegion(n_bytes, device_id)


def check_system() -> None:
    """
    Raises:
        RuntimeError: this machine has no POSIX shared memory.
    """
    if not os.access(SHM, os.W_OK | os.X_OK):
        raise RuntimeError(f"shared memory needs {SHM}, and this process cannot write there")


def check_cuda(device_id: int) -> None:
    """
    Raises:
        ImportError: cuda-python is missing.
        RuntimeError: there is no such GPU.
    """
    try:
        from tritonclient.utils import cuda_shared_memory as cuda
    except (ImportError, RuntimeError):  # the latter is tritonclient's own word for the former
        raise ImportError("a GPU's shared memory needs cuda-python: pip install 'cutaway[cuda]'") from None
    try:
        error, count = cuda.cudart.cudaGetDeviceCount()
    except RuntimeError as failure:  # of cuda-python, where the driver is missing
        raise RuntimeError(f"a GPU's shared memory needs a GPU and its driver: {failure}") from None
    if int(error) != 0:
        raise RuntimeError(f"a GPU's shared memory needs a GPU and its driver: {getattr(error, 'name', error)}")
    if device_id >= count:
        raise RuntimeError(f"there is no GPU {device_id}: this machine has {count}, counted from 0")


# ------------------------------------------------------------------------------------------------------- names


def is_left_behind(name: str) -> bool:
    """Whether a region that a server knows is one of ours that nobody uses any more.

    Names say which process made a region. Processes of other containers cannot be seen from here: theirs are left
    alone.
    """
    found = _NAME.fullmatch(name)
    if found is None or found[1] != _namespace():
        return False
    pid, started = int(found[2]), found[3]
    if pid == os.getpid():
        return name not in _held
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _started(pid) not in (started, "")


def _new_name() -> str:
    """A name that nobody else has or can guess, and that says who made it."""
    name = f"cutaway_picture-{_namespace()}-{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(8)}"
    _held.add(name)
    return name


def _namespace() -> str:
    """The set of processes whose numbers mean the same."""
    return f"{Path('/proc/self/ns/pid').stat().st_ino:x}"


def _started(pid: int) -> str:
    """When a process was started, in clock ticks since boot; "" where nobody tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
