"""A cache of answers on disk: one file per answer, checked by its SHA-256. Nothing is unpickled (diskcache does,
CVE-2025-69872, and has had no release since 2023)."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.contract import limits
from cutaway.contract.options import CutOptions
from cutaway.transports.base import Tensor

logger = logging.getLogger("cutaway.cache")

FORMAT = 2  # of a file; part of every key


class ResultCache:
    """Answers by the picture's content and the options, on disk: ``Client(url, cache=ResultCache())``.

    Threads, processes and clients may share a folder, whose files are for their owner alone. The disk fails no call: a
    damaged file is a miss, a full disk a warning in the log. Where a server's models were exchanged, :meth:`clear` it.

    Args:
        folder: ``$XDG_CACHE_HOME/cutaway`` or ``~/.cache/cutaway`` where None; made where it is missing.
        max_bytes: what the files may take, at least 1 MiB, or ValueError; what was not used longest is removed first.
        results_max_age_s: seconds for which an answer is given again.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = limits.CACHE_MAX_BYTES,
        results_max_age_s: float = limits.CACHE_RESULTS_MAX_AGE_S,
    ) -> None:
        if max_bytes < limits.MIB or not results_max_age_s > 0:
            raise ValueError(f"max_bytes has to be at least {limits.MIB}, and results_max_age_s above 0")
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cutaway"
        self.folder = Path(folder or default).absolute()
        self._max_bytes, self._max_age_s, self._warned = max_bytes, results_max_age_s, False

    def key(self, data: bytes, options: CutOptions, outputs: Sequence[str], servers: Sequence[str]) -> str:
        """SHA-256 in hex over all that an answer depends on."""
        picture = hashlib.sha256(data).hexdigest()
        depends_on = [FORMAT, sorted(set(servers)), sorted(set(outputs)), asdict(options), picture]
        return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The outputs kept under a key, or None; float32 arrays are the caller's own."""
        path = self._path(key)
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size > self._max_bytes or self._expired(found):
                return None
            content = path.read_bytes()
            os.utime(path, (time.time(), found.st_mtime))  # its use is now, its age unchanged
            return _unpacked(content[32:]) if content[:32] == _digest(path, content[32:]) else None
        except OSError as error:
            self._warn(error)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass  # another version's
        return None

    def put(self, key: str, outputs: Mapping[str, Tensor]) -> None:
        """Keep outputs, lists of bytes and float32 arrays, under a key, in place of what lies there."""
        path, body, part = self._path(key), json.dumps(_packed(outputs)).encode(), ""
        if len(body) + 32 > self._max_bytes:
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, part = tempfile.mkstemp(".part", dir=self.folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_digest(path, body) + body)
            os.replace(part, path)  # noqa: PTH105 (atomic: readers find the old file or the new one)
            self._prune()
        except OSError as error:
            self._warn(error)
            with suppress(OSError):
                Path(part).unlink()

    def clear(self) -> None:
        """Remove every answer."""
        for path in (*self.folder.glob("*.answer"), *self.folder.glob("*.part")):
            with suppress(OSError):
                path.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.answer"

    def _expired(self, found: os.stat_result) -> bool:
        return found.st_mtime < time.time() - self._max_age_s

    def _prune(self) -> None:
        """Remove expired files, partial ones of killed writers included, and the least recently used ones."""
        left, files = self._max_bytes, []
        for path in (*self.folder.glob("*.answer"), *self.folder.glob("*.part")):
            with suppress(FileNotFoundError):  # another process was faster
                files.append((path.lstat(), path))
        for found, path in sorted(files, key=lambda file: -file[0].st_atime):
            left -= found.st_size
            if left < 0 or self._expired(found):
                path.unlink(missing_ok=True)

    def _warn(self, error: OSError) -> None:
        if not self._warned and not isinstance(error, FileNotFoundError):
            self._warned = True
            logger.warning("the cache in %s cannot be used: %s; calls go on without it", self.folder, error)


def _digest(path: Path, body: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + body).digest()  # a file moved to another key is invalid


def _packed(outputs: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        name: [base64.b64encode(item).decode() for item in value]
        if isinstance(value, list)
        else {"shape": value.shape, "data": base64.b64encode(value.astype("<f4").tobytes()).decode()}
        for name, value in outputs.items()
    }


def _unpacked(body: bytes) -> dict[str, Tensor]:
    return {
        name: [base64.b64decode(item) for item in value]
        if isinstance(value, list)
        else np.frombuffer(base64.b64decode(value["data"]), "<f4").reshape(value["shape"]).astype(np.float32)
        for name, value in json.loads(body).items()
    }
