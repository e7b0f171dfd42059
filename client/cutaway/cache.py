"""Answers that were given before, kept on disk for a while: :class:`ResultCache`.

The library is the standard one's SQLite in WAL mode: atomic, safe among threads and processes, maintained with Python.
Diskcache has had no release since 2023 and unpickles what lies in its folder (CVE-2025-69872, open; its community fork
does the same); here nothing is ever unpickled, and what a file holds is checked against its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.cache_file import CacheFile, Entry
from cutaway.contract import limits
from cutaway.contract.options import CutOptions, parse_options

if TYPE_CHECKING:
    from typing import Self

    from cutaway.wire import Tensor

FORMAT = 1
"""Of packed answers; an entry of another one is a miss."""

RESULT, UPLOAD = "result", "upload"
MIN_BYTES = limits.MIB


@dataclass(frozen=True)
class CacheStats:
    """What a cache holds and how it did.

    Attributes:
        results: answers that are not too old, of this namespace.
        uploads: pictures that are not too old, of this namespace.
        file_bytes: what the database takes on disk, all namespaces together.
        max_bytes: what it may take.
        hits, misses: of :meth:`ResultCache.get` on this object.
    """

    results: int
    uploads: int
    file_bytes: int
    max_bytes: int
    hits: int
    misses: int


class ResultCache:
    """Answers by the picture's content and the options, on disk.

        with ResultCache() as cache, Client(url, cache=cache) as client:
            client.cut("photo.jpg")
            client.cut("photo.jpg").from_cache  # True

    Threads, processes and clients may share a folder, and threads a cache. No method fails because of the disk: a
    damaged entry is a miss and removed, a full disk or a read-only folder is a warning in the log, once. The folder has
    to be on a local disk; its files are for their owner alone, because they hold people's pictures.

    A cache does not know that a server's models were exchanged: :meth:`clear` it then, or change the namespace.

    Args:
        folder: the user's cache folder where None; made where it is missing, readable by its owner alone.
        max_bytes: what the database may grow to, at least 1 MiB; what was not used longest goes first.
        results_max_age_s: seconds for which an answer is given again.
        uploads_max_age_s: seconds for which a picture that was sent can be had again.
        keep_uploads: keep the pictures that were sent as well.
        namespace: caches with different ones never see each other's entries, though they share folder and size.
        clock: seconds since the epoch.

    Raises:
        ValueError: a number makes no sense, or there is no folder and no home to put one into.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        max_bytes: int = limits.CACHE_MAX_BYTES,
        results_max_age_s: float = limits.CACHE_RESULTS_MAX_AGE_S,
        uploads_max_age_s: float = limits.CACHE_UPLOADS_MAX_AGE_S,
        keep_uploads: bool = False,
        namespace: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_bytes < MIN_BYTES:
            raise ValueError(f"max_bytes has to be at least {MIN_BYTES}, not {max_bytes}")
        for name, age_s in (("results_max_age_s", results_max_age_s), ("uploads_max_age_s", uploads_max_age_s)):
            if not age_s > 0:
                raise ValueError(f"{name} has to be above 0, not {age_s}")
        self.folder = default_folder() if folder is None else Path(folder).absolute()
        self.keep_uploads = keep_uploads
        self.namespace = namespace
        self._max_bytes = max_bytes
        self._file = CacheFile(
            self.folder,
            max_bytes=max_bytes,
            max_ages_s={RESULT: results_max_age_s, UPLOAD: uploads_max_age_s},
            clock=clock,
        )
        self._counting = threading.Lock()
        self._hits = 0
        self._misses = 0

    def __repr__(self) -> str:
        return f"<cutaway.ResultCache {self.folder}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def key(
        self,
        data: bytes,
        options: CutOptions | Mapping[str, Any],
        outputs: Sequence[str],
        server: str | Sequence[str],
    ) -> str:
        """Under what an answer is kept: SHA-256 in hex over everything that it depends on.

        Args:
            data: the encoded picture.
            options: as given or as parsed; a default that is said and one that is left out make the same key.
            outputs: names of the outputs asked for, in any order.
            server: the address or addresses asked, in any order.

        Raises:
            InvalidOption: an option is refused.
        """
        checked = options if isinstance(options, CutOptions) else parse_options(options)
        depends_on = [
            FORMAT,
            self.namespace,
            sorted({server} if isinstance(server, str) else set(server)),
            sorted(set(outputs)),
            asdict(checked),
            hashlib.sha256(data).hexdigest(),
        ]
        return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The outputs kept under a key, or None; float32 arrays are the caller's own."""
        entry = self._read(RESULT, key)
        outputs = None if entry is None else _unpacked(entry.body)
        if entry is not None and outputs is None:
            self._file.remove(self.namespace, RESULT, key)
        with self._counting:
            self._hits += outputs is not None
            self._misses += outputs is None
        return outputs

    def put(self, key: str, outputs: Mapping[str, Tensor]) -> None:
        """Keep outputs under a key, in place of what lies there.

        Raises:
            TypeError: an output is neither a list of bytes nor a float32 array.
        """
        self._write(RESULT, key, _packed(outputs))

    def put_upload(self, data: bytes) -> str:
        """Keep a picture, if this cache keeps uploads. Its digest (SHA-256 in hex) in any case."""
        digest = hashlib.sha256(data).hexdigest()
        if self.keep_uploads:
            self._write(UPLOAD, digest, bytes(data))
        return digest

    def get_upload(self, digest: str) -> bytes | None:
        """The picture of that digest, or None where it is not kept, or no longer."""
        entry = self._read(UPLOAD, digest)
        return None if entry is None else entry.body

    def clear(self) -> None:
        """Remove everything in this namespace, from the disk as well."""
        self._file.clear(self.namespace)

    def stats(self) -> CacheStats:
        totals = self._file.totals(self.namespace)
        return CacheStats(
            results=totals.entries[RESULT],
            uploads=totals.entries[UPLOAD],
            file_bytes=totals.file_bytes,
            max_bytes=self._max_bytes,
            hits=self._hits,
            misses=self._misses,
        )

    def close(self) -> None:
        """Let go of the files. What is used after that opens them again."""
        self._file.close()

    def _write(self, kind: str, key: str, body: bytes) -> None:
        self._file.write(self.namespace, kind, key, Entry(FORMAT, _digest(kind, key, body), body))

    def _read(self, kind: str, key: str) -> Entry | None:
        """What lies there undamaged and in this format; anything else is removed."""
        entry = self._file.read(self.namespace, kind, key)
        if entry is None:
            return None
        sound = (
            entry.format == FORMAT
            and isinstance(entry.body, bytes)
            and isinstance(entry.digest, bytes)
            and entry.digest == _digest(kind, key, entry.body)
        )
        if sound:
            return entry
        self._file.remove(self.namespace, kind, key)
        return None


def _digest(kind: str, key: str, body: bytes) -> bytes:
    """Of what lies under a key, the key included: whatever a damaged index leads to, it is nobody else's picture."""
    digest = hashlib.sha256(f"{kind} {key} ".encode())
    digest.update(body)
    return digest.digest()


def default_folder() -> Path:
    """Where this system keeps what programs can make again: ``~/.cache/cutaway`` on Linux.

    Raises:
        ValueError: there is no home.
    """
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
    if given and Path(given).is_absolute():
        return Path(given) / "cutaway"
    try:
        home = Path.home()
    except RuntimeError:
        raise ValueError("there is no home to keep a cache in: name a folder") from None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "cutaway"


# ------------------------------------------------------------------------------------------------------ packing

# Four bytes that say how long the head is, the head, and the outputs' bytes one after the other. The head is a JSON
# list of [name, "bytes", [length, …]] or [name, "float32", [side, …]].


def _packed(outputs: Mapping[str, Tensor]) -> bytes:
    head: list[tuple[str, str, list[int]]] = []
    parts: list[bytes] = []
    for name, value in outputs.items():
        if isinstance(value, np.ndarray) and value.dtype == np.float32:
            head.append((name, "float32", list(value.shape)))
            parts.append(np.ascontiguousarray(value, dtype="<f4").tobytes())
        elif isinstance(value, list) and all(isinstance(item, bytes) for item in value):
            head.append((name, "bytes", [len(item) for item in value]))
            parts.extend(value)
        else:
            raise TypeError(f"output {name!r} is neither a list of bytes nor a float32 array")
    described = json.dumps(head).encode()
    return b"".join((struct.pack("<I", len(described)), described, *parts))


def _unpacked(body: bytes) -> dict[str, Tensor] | None:
    """The outputs, or None where the bytes do not say what outputs say."""
    try:
        (length,) = struct.unpack_from("<I", body)
        position = 4 + length
        outputs: dict[str, Tensor] = {}
        for name, kind, numbers in json.loads(body[4:position]):
            if not isinstance(name, str) or not all(type(number) is int and number >= 0 for number in numbers):
                return None
            sizes = numbers if kind == "bytes" else [4 * math.prod(numbers)]
            parts = []
            for size in sizes:
                parts.append(body[position : position + size])
                position += size
            if position > len(body) or kind not in ("bytes", "float32"):
                return None
            if kind == "bytes":
                outputs[name] = parts
            else:
                outputs[name] = np.frombuffer(parts[0], dtype="<f4").reshape(numbers).astype(np.float32)
    except (struct.error, ValueError, TypeError, RecursionError, OverflowError):
        return None
    return outputs if position == len(body) else None
