"""Where uploads and cut-outs are kept behind ids that cannot be guessed: a folder, memory, or S3, through obstore."""

from __future__ import annotations

import asyncio
import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from gateway.metrics import Metrics
from gateway.service.errors import ServiceProblem, not_found
from gateway.service.settings import KEEP_S, SWEEP_INTERVAL_S

_KINDS = {kind[0]: kind for kind in KEEP_S}  # an id begins with its kind's letter
_ID = re.compile(rf"[{''.join(_KINDS)}][A-Za-z0-9_-]{{32}}")


def open_store(where: str) -> ObjectStore:
    """The store at a folder, "memory:" or a URL such as "s3://bucket/prefix"."""
    if where == "memory:":
        return MemoryStore()
    if "://" in where:
        return from_url(where)
    Path(where).mkdir(mode=0o700, parents=True, exist_ok=True)
    return LocalStore(prefix=where)


class Storage:
    """Objects of the kinds in `KEEP_S`, each with its own time to live.

    Several gateways may share a store; the cap on bytes is each one's count since its last sweep.
    """

    def __init__(self, where: str, max_bytes: int, metrics: Metrics) -> None:
        self._shed = metrics.shed
        self._store, self._max_bytes, self._bytes = open_store(where), max_bytes, 0

    async def put(self, kind: str, data: bytes) -> str:
        """Store an object and return its id.

        Raises:
            ServiceProblem: 503, the store holds as much as it may.
        """
        if self._bytes + len(data) > self._max_bytes:
            await self.sweep()
        if self._bytes + len(data) > self._max_bytes:
            self._shed.labels("storage").inc()
            problem = ServiceProblem(503, "STORAGE_FULL", "The service's storage is full.", "Delete pictures, or wait.")
            problem.retry_after = 600.0
            raise problem
        name = kind[0] + secrets.token_urlsafe(24)
        await obstore.put_async(self._store, _path(name), data)
        self._bytes += len(data)
        return name

    async def get(self, name: str) -> bytes:
        """Raises:
        ServiceProblem: 404.
        """
        try:
            found = await obstore.get_async(self._store, _path(name))
            return bytes(await found.bytes_async())
        except FileNotFoundError:
            raise not_found("picture with this id") from None

    async def delete(self, name: str) -> None:
        """Raises:
        ServiceProblem: 404.
        """
        size = await self._size(name)
        with suppress(FileNotFoundError):
            await obstore.delete_async(self._store, _path(name))
        self._bytes = max(0, self._bytes - size)

    async def _size(self, name: str) -> int:
        try:
            return int((await obstore.head_async(self._store, _path(name)))["size"])
        except FileNotFoundError:
            raise not_found("picture with this id") from None

    async def sweep(self) -> int:
        """Delete what is older than its kind is kept; the number of objects deleted."""
        now, kept, old = datetime.now(UTC), 0, []
        for kind, keep_s in KEEP_S.items():
            async for batch in obstore.list(self._store, prefix=kind):
                for entry in batch:
                    if (now - entry["last_modified"]).total_seconds() > keep_s:
                        old.append(entry["path"])
                    else:
                        kept += entry["size"]
        for path in old:
            with suppress(FileNotFoundError):  # another gateway was faster
                await obstore.delete_async(self._store, path)
        self._bytes = kept
        return len(old)

    async def sweep_regularly(self) -> None:
        """Until cancelled."""
        while True:
            with suppress(OSError, obstore.exceptions.BaseError):  # the store may be away for a while
                await self.sweep()
            await asyncio.sleep(SWEEP_INTERVAL_S)


def _path(name: Any) -> str:
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise not_found("picture with this id")
    return f"{_KINDS[name[0]]}/{name}"
