"""What one model process may hold of memory and of /dev/shm; neither is ever given back, so that it is loaded anew."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from runtime.checks import MIB, free_shm_bytes, shm_bytes_per_process
from runtime.procfs import Stub, own_bytes, regions_of

LOOK_INTERVAL_S = 1.0
LOOKS = 3
"""A process is over its budget when it was so often in a row: a large picture in work is not held against it."""
RECYCLE_INTERVAL_S = 60.0
"""A model is loaded anew because of its memory this often at most."""
GROWTH_MIN_BYTES = 512 * MIB
GROWTH_SHARE = 0.5
"""All model processes together may grow by this share of the machine's or the container's memory."""
REGION_FACTOR = 2
"""As in docker-compose.yml: twice what one process may need."""


class Budgets:
    """Looks at the model processes of one Triton.

    Args:
        stubs: its model processes as they are when it is ready.
        shm_prefix: how the names of their regions begin.
        side_px: side of the matting network's square input.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        stubs: Iterable[Stub],
        shm_prefix: str,
        side_px: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prefix, self._clock = shm_prefix, clock
        self._first_bytes: dict[Stub, int] = {}
        self._over: dict[Stub, int] = {}
        self._next_at = 0.0
        self._recycled_at: dict[str, float] = {}
        count = max(1, len(list(stubs)))
        self.growth_bytes = max(GROWTH_MIN_BYTES, int(memory_bytes() * GROWTH_SHARE / count))
        # One must not take the space that others need, also where all of it is small.
        self.region_bytes = min(REGION_FACTOR * shm_bytes_per_process(side_px), free_shm_bytes() // count)

    def over(self, stubs: Iterable[Stub]) -> tuple[Stub, str] | None:
        """A model process that holds too much, and what; None where there is none. To be called often."""
        now = self._clock()
        if now < self._next_at:
            return None
        self._next_at = now + LOOK_INTERVAL_S
        for stub in stubs:
            what = self._excess(stub)
            self._over[stub] = self._over.get(stub, 0) + 1 if what else 0
            if (
                what
                and self._over[stub] >= LOOKS
                and now - self._recycled_at.get(stub.model, -1e9) > RECYCLE_INTERVAL_S
            ):
                self._recycled_at[stub.model] = now
                return stub, what
        return None

    def _excess(self, stub: Stub) -> str | None:
        held = own_bytes(stub.pid)
        first = self._first_bytes.setdefault(stub, held)
        if held > first + self.growth_bytes:
            return f"{held // MIB} MiB of memory, after {first // MIB} MiB at first"
        shared = 0
        for region in regions_of(stub.pid, self._prefix):
            with contextlib.suppress(OSError):
                shared += region.stat().st_blocks * 512
        if shared > self.region_bytes:
            return f"{shared // MIB} MiB of /dev/shm, of {self.region_bytes // MIB} MiB"
        return None


def memory_bytes() -> int:
    """What the machine has, or the container may take."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return min(total, int(Path("/sys/fs/cgroup", file).read_text()))
    return total
