"""Pictures to a server on the same machine through shared memory, for clients that ask for it.

    Client("grpc://localhost:8001", shared_memory="system")

Only the encoded picture takes this way. Answers do not: how large they are is known when they are made, and a region
that turns out too small would fail a request whose work is done.

:mod:`.regions` is the memory, :mod:`.lending` who has it when and how it is given up, :mod:`.transports` both around a
way to a server.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import get_args

from cutaway.contract.limits import SHARED_MEMORY_KEEP_BYTES
from cutaway.transports.base import MemoryKind


@dataclass(frozen=True)
class SharedMemory:
    """Pictures go to servers on this machine through shared memory.

    Args:
        kind: "system" for the machine's memory, "cuda" for a GPU's, which needs ``pip install 'cutaway[cuda]'``.
        device_id: for "cuda": the GPU's number.
        keep_bytes: so much is kept registered at each server between calls; what concurrent calls need beyond it is
            given back with a later call. 0 keeps nothing.

    Raises:
        ValueError: another kind, or a number below 0.
    """

    kind: MemoryKind = "system"
    device_id: int = 0
    keep_bytes: int = SHARED_MEMORY_KEEP_BYTES

    def __post_init__(self) -> None:
        if self.kind not in get_args(MemoryKind):
            raise ValueError(f'shared_memory is "system", "cuda" or a SharedMemory, not {self.kind!r}')
        if self.device_id < 0 or self.keep_bytes < 0:
            raise ValueError("device_id and keep_bytes are 0 or more")

    def check(self) -> None:
        """
        Raises:
            ImportError: a package is missing.
            RuntimeError: this machine has no such memory.
        """
        from cutaway.shared_memory.regions import check_cuda, check_system

        if sys.platform != "linux":
            raise RuntimeError(f"shared memory needs Linux, as Triton does; this is {sys.platform}")
        if self.kind == "system":
            check_system()
        else:
            check_cuda(self.device_id)


def shared_memory_of(given: SharedMemory | MemoryKind | None) -> SharedMemory | None:
    """What a client was told, checked on this machine.

    Raises:
        ValueError, ImportError, RuntimeError: see :class:`SharedMemory`.
    """
    if given is None:
        return None
    settings = given if isinstance(given, SharedMemory) else SharedMemory(given)
    settings.check()
    return settings
