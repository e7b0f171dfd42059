"""Who has which region when: no two requests at once, and none while a server may still read it for a request that was
given up.

A request borrows a free region, or registers a new one. It comes back when the server has answered. Whatever else ends
the request, the region is not used again: the server is asked to let go of it with a later request, and does so once it
has done with the request ("currently in use" until then). A server that was restarted knows none of the regions; the
request then registers a new one and goes on.

The rules are a generator that yields what is asked of the server, so they are written once, for threads and asyncio.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any, TypeAlias

from cutaway.contract.errors import (
    CutawayError,
    InferenceError,
    InputError,
    Overloaded,
    ProcessingTimeout,
    ServerRefused,
    ServerUnavailable,
    ServiceError,
)
from cutaway.resilience import Deadline
from cutaway.shared_memory import SharedMemory
from cutaway.shared_memory.regions import Region, is_left_behind, make_region
from cutaway.transports.base import InferRequest
from cutaway.transports.connection import Connection, reopen_transport
from cutaway.wire import Tensor

REGISTER_TIMEOUT_S = 5.0
"""A server that lives registers within a millisecond; a call cannot be cancelled meanwhile."""
CLOSE_TIMEOUT_S = 2.0
"""So long the end of a client waits for its server to let go of regions."""
CLOSE_WAIT_S = 0.02
LET_GO_AT_ONCE = 8
"""So many regions of requests that were given up are seen to with one request."""

# Triton's words (2.51; the last of them are those of 26.04).
_UNKNOWN = "unable to find shared memory region"
_FORBIDDEN = ("is restricted", "shared memory is disabled")

Step: TypeAlias = InferRequest | Callable[[Any], Any]
"""A request, or something else to be asked of a way to the server."""


class Lender:
    """The regions of one client at one server; safe to share between threads."""

    def __init__(self, settings: SharedMemory, address: str) -> None:
        self._settings = settings
        self._address = address
        self._parents: list[Any] = []
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._free: list[Region] = []
        self._lent: set[Region] = set()
        self._given_up: deque[Region] = deque()
        self._swept = False
        self._ended = False

    def serve(self, request: InferRequest) -> Generator[Step, Any, dict[str, Tensor]]:
        """One request with its picture in a region.

        Raises:
            Overloaded: there is no room for another region; nothing was sent.
            CutawayError: as the request itself; ServerRefused where the server takes no shared memory.
        """
        if self._pid != os.getpid():
            # The parent's are not touched, a GPU's memory least of all.
            self._parents.append((self._free, self._lent, self._given_up))
            self._begin()
        deadline = Deadline(request.timeout_s)
        yield from self._let_go(deadline)
        for _ in range(2):
            region = self._take(4 + len(request.image))
            if region is None:
                region = yield from self._new(4 + len(request.image), deadline)
            try:
                region.write(request.image)
                outputs: dict[str, Tensor] = yield replace(request, region=region.name, timeout_s=deadline.left_s)
            except (InputError, Overloaded):  # said by the server, which has done with it
                self._give_back(region)
                raise
            except ServerRefused as error:
                self._give_up([region])
                if _UNKNOWN not in error.message.lower():
                    raise
                self._give_up_free()
            except BaseException:
                self._give_up([region])
                raise
            else:
                self._give_back(region)
                return outputs
        raise ServerUnavailable(f"{self._address} forgets its shared memory: it is restarted, or several servers.")

    def end(self) -> list[Region]:
        """Everything that the server may know: nothing is lent any more."""
        if self._pid != os.getpid():
            return []
        with self._lock:
            self._ended = True
            return [*self._free, *self._given_up, *self._lent]

    # ------------------------------------------------------------------------------------------- regions here

    def _take(self, n_bytes: int) -> Region | None:
        with self._lock:
            fitting = [region for region in self._free if region.told.n_bytes >= n_bytes]
            if not fitting:
                return None
            region = min(fitting, key=_size)
            self._free.remove(region)
            self._lent.add(region)
            return region

    def _give_back(self, region: Region) -> None:
        too_many = []
        with self._lock:
            if self._ended:
                return
            self._lent.discard(region)
            self._free.append(region)
            self._free.sort(key=_size)
            while sum(map(_size, self._free)) > self._settings.keep_bytes:
                too_many.append(self._free.pop(0))
        self._give_up(too_many)

    def _give_up(self, regions: Iterable[Region]) -> None:
        with self._lock:
            for region in regions:
                self._lent.discard(region)
                region.free(server_reads=True)
                if not self._ended:
                    self._given_up.append(region)

    def _give_up_free(self) -> None:
        with self._lock:
            free, self._free = self._free, []
        self._give_up(free)

    # -------------------------------------------------------------------------------------- regions at the server

    def _new(self, n_bytes: int, deadline: Deadline) -> Generator[Step, Any, Region]:
        """Make and register a region."""
        try:
            region = make_region(self._settings.kind, n_bytes, self._settings.device_id)
        except OSError as error:
            raise Overloaded(
                f"This machine has {error.strerror or error}",
                user_action="Try again when fewer calls are under way, give shared memory more room (in a container "
                "--shm-size), or make the client without shared_memory.",
            ) from error
        with self._lock:
            self._lent.add(region)
            sweep, self._swept = not self._swept, True
        timeout_s = min(REGISTER_TIMEOUT_S, deadline.left_s)
        try:
            yield lambda way: way.register(region.told, timeout_s)
        except BaseException as error:
            region.free(server_reads=False)  # no request names it
            self._give_up([region])
            if not isinstance(error, CutawayError):
                raise
            told = self._told(error, deadline)
            if isinstance(told, ServerRefused):
                self._done_with([region])
            raise told from error
        finally:
            region.hide()
        if sweep:
            try:
                yield from self._sweep(deadline)
            except BaseException:
                self._give_up([region])
                raise
        return region

    def _let_go(self, deadline: Deadline) -> Generator[Step, Any, None]:
        """Have the server let go of regions of requests that were given up, as far as it has done with them."""
        if not self._given_up:
            return
        with self._lock:
            some = [self._given_up.popleft() for _ in range(min(LET_GO_AT_ONCE, len(self._given_up)))]
        done: list[Region] = []
        try:
            with suppress(ServiceError):
                done += yield from self._unregister(some, deadline)
        finally:
            with self._lock:
                if not self._ended:
                    self._given_up.extend(region for region in some if region not in done)
            self._done_with(done)

    def _unregister(self, regions: list[Region], deadline: Deadline) -> Generator[Step, Any, list[Region]]:
        """Those of the regions that the server does not know any more."""
        kind = self._settings.kind
        known = yield lambda way: way.registered(kind, min(REGISTER_TIMEOUT_S, deadline.left_s))
        done = [region for region in regions if region.name not in known]
        for region in regions:
            if region.name in known and (yield from self._unregistered(region.name, deadline)):
                done.append(region)
        return done

    def _unregistered(self, name: str, deadline: Deadline) -> Generator[Step, Any, bool]:
        """Have the server let go of a region; False where it still uses it."""
        kind = self._settings.kind
        try:
            yield lambda way: way.unregister(kind, name, min(REGISTER_TIMEOUT_S, deadline.left_s))
        except InferenceError:
            return False
        return True

    def _sweep(self, deadline: Deadline) -> Generator[Step, Any, None]:
        """Have the server let go of what processes left behind that were killed."""
        kind = self._settings.kind
        with suppress(ServiceError):
            known = yield lambda way: way.registered(kind, min(REGISTER_TIMEOUT_S, deadline.left_s))
            for name in filter(is_left_behind, known):
                yield from self._unregistered(name, deadline)

    def _done_with(self, regions: Iterable[Region]) -> None:
        with self._lock:
            for region in regions:
                with suppress(ValueError):
                    self._given_up.remove(region)
                region.forget()

    def _told(self, error: CutawayError, deadline: Deadline) -> CutawayError:
        """What the caller is told of a region that was not registered."""
        said = error.message
        if any(words in said.lower() for words in _FORBIDDEN):
            return ServerRefused(
                f"{self._address} forbids shared memory.",
                user_action="Start the server so that it allows it (python -m runtime serve --allow-shared-memory, or "
                "tritonserver --allow-client-shm=true), or make the client without shared_memory.",
                details={"said": said},
            )
        if isinstance(error, InferenceError):
            return ServerRefused(
                f"{self._address} cannot use this machine's shared memory.",
                user_action="Run client and server on one machine and as one user, in containers with --ipc=host or "
                "in one IPC namespace; or make the client without shared_memory.",
                details={"said": said},
            )
        if isinstance(error, ProcessingTimeout) and not deadline.over:
            return ServerUnavailable(f"{self._address} registers no memory within {REGISTER_TIMEOUT_S:.0f} s.")
        return error


def clear(lender: Lender, connection: Connection) -> None:
    """Have the server let go of all that a client registered there, over a connection of its own; never raises.

    It waits shortly for requests that were given up. What the server does not let go of by then, the next client on
    this machine has it let go of.
    """
    regions = lender.end()
    if not regions:
        return
    deadline = Deadline(CLOSE_TIMEOUT_S)
    kind = regions[0].told.kind
    try:
        with suppress(CutawayError, OSError, RuntimeError), closing(reopen_transport(connection)) as way:
            while True:
                known = way.registered(kind, deadline.left_s)
                left = [region for region in regions if region.name in known]
                for region in left:
                    with suppress(InferenceError):
                        way.unregister(kind, region.name, deadline.left_s)
                if not left:
                    break
                time.sleep(CLOSE_WAIT_S)
    finally:
        for region in regions:
            region.hide()
            region.forget()


def _size(region: Region) -> int:
    return region.told.n_bytes
