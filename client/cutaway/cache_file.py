"""The file behind :mod:`cutaway.cache`: one SQLite database in WAL mode, shared by threads and processes.

Nothing here fails a call. A database that is damaged, or is not ours, is removed and begun anew; a disk that is full
or read-only is a line in the log, once, and the cache then holds nothing.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cutaway.cache_connection import PAGE_BYTES, Side, is_busy, is_damage, pragma, transaction
from cutaway.contract import limits

T = TypeVar("T")

logger = logging.getLogger("cutaway.cache")

FILE_NAME = "cutaway-cache-1.sqlite3"
"""The number is the database's format: a later one lies in a file of its own, and neither harms the other."""

SPARE_PAGES = 4
"""What an entry may need beside its bytes: its row and its places in the indexes."""

EMPTY_PAGES = 12
"""What a database without entries may take."""

FUTURE_S = 3600.0
"""An entry from further ahead than this was written before the clock was set back, and may be of any age."""

_FIND = "SELECT made_at, used_at, format, digest, body FROM entries WHERE namespace = ? AND kind = ? AND key = ?"
_DELETE = "DELETE FROM entries WHERE namespace = ? AND kind = ? AND key = ?"
_NOTE_USE = "UPDATE entries SET used_at = ? WHERE namespace = ? AND kind = ? AND key = ?"


@dataclass(frozen=True)
class Entry:
    """What lies under a key.

    Attributes:
        format: how `body` is to be read.
        digest: what tells whether the entry is still what was written.
        body: the bytes.
    """

    format: int
    digest: bytes
    body: bytes


@dataclass(frozen=True)
class Totals:
    """Entries by kind, and the bytes that the database takes."""

    entries: Mapping[str, int]
    file_bytes: int


class CacheFile:
    """The database in a folder. Opened when first used, and opened again after :meth:`close` or a fork.

    Args:
        folder: made where it is missing, for its owner alone.
        max_bytes: what the database may grow to; the journal beside it comes on top.
        max_ages_s: kind → seconds after which an entry is gone.
        clock: seconds since the epoch.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int, max_ages_s: Mapping[str, float], clock: Callable[[], float]
    ) -> None:
        self.path = folder / FILE_NAME
        self._max_bytes = max_bytes
        self._max_ages_s = dict(max_ages_s)
        self._clock = clock
        # Two connections, so that who reads need not wait for who writes.
        self._reading = Side()
        self._writing = Side()
        self._said: set[str] = set()

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self._reading, self._writing

    def read(self, namespace: str, kind: str, key: str) -> Entry | None:
        """What lies under the key and is not too old."""
        now = self._clock()

        def work(db: sqlite3.Connection) -> tuple[Entry, float] | None:
            # All rows are fetched, because a statement that is not at its end keeps the journal from being emptied.
            rows = db.execute(_FIND, (namespace, kind, key)).fetchall()
            for made_at, used_at, form, digest, body in rows:
                if isinstance(made_at, float) and self._in_time(kind, made_at, now) and isinstance(used_at, float):
                    return Entry(form, digest, body), used_at
            return None

        found = self._do(self._reading, work, None)
        if found is None:
            return None
        entry, used_at = found
        if abs(now - used_at) >= limits.CACHE_USE_NOTED_S:
            self._note_use(namespace, kind, key, now)
        return entry

    def write(self, namespace: str, kind: str, key: str, entry: Entry) -> None:
        """Put an entry in place of what lies under the key; what is too old goes, then what was not used longest."""
        now = self._clock()
        pages = math.ceil(len(entry.body) / PAGE_BYTES) + SPARE_PAGES

        def work(db: sqlite3.Connection) -> None:
            with transaction(db):
                db.execute(_DELETE, (namespace, kind, key))
                self._drop_old(db, now)
                if self._make_room(db, pages * PAGE_BYTES):
                    size = len(entry.body)
                    row = (namespace, kind, key, now, now, size, entry.format, entry.digest, entry.body)
                    db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            _shrink(db)

        self._do(self._writing, work, None)

    def remove(self, namespace: str, kind: str, key: str) -> None:
        """Remove what lies under the key."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(_DELETE, (namespace, kind, key))

        self._do(self._writing, work, None)

    def clear(self, namespace: str) -> None:
        """Remove a namespace's entries, from the disk as well."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM entries WHERE namespace = ?", (namespace,))
            _shrink(db, wholly=True)

        self._do(self._writing, work, None)

    def totals(self, namespace: str) -> Totals:
        """How much there is that is not too old."""
        now = self._clock()

        def work(db: sqlite3.Connection) -> Totals:
            count = "SELECT count(*) FROM entries WHERE namespace = ? AND kind = ? AND made_at BETWEEN ? AND ?"
            entries = {
                kind: db.execute(count, (namespace, kind, now - age_s, now + FUTURE_S)).fetchall()[0][0]
                for kind, age_s in self._max_ages_s.items()
            }
            return Totals(entries, _used_bytes(db))

        return self._do(self._reading, work, Totals(dict.fromkeys(self._max_ages_s, 0), 0))

    def close(self) -> None:
        """Let go of the file."""
        for side in self._sides:
            with side.lock:
                side.close()

    # ------------------------------------------------------------------------------------- ages and sizes

    def _in_time(self, kind: str, made_at: float, now: float) -> bool:
        return -FUTURE_S <= now - made_at <= self._max_ages_s[kind]

    def _drop_old(self, db: sqlite3.Connection, now: float) -> None:
        for kind, age_s in self._max_ages_s.items():
            db.execute(
                "DELETE FROM entries WHERE kind = ? AND NOT made_at BETWEEN ? AND ?",
                (kind, now - age_s, now + FUTURE_S),
            )

    def _make_room(self, db: sqlite3.Connection, n_bytes: int) -> bool:
        """Remove what was not used longest until so many bytes fit; False where they never will."""
        if n_bytes > self._max_bytes - EMPTY_PAGES * PAGE_BYTES:
            return False
        while (too_many := _used_bytes(db) + n_bytes - self._max_bytes) > 0:
            victims: list[tuple[int]] = []
            for row, size in db.execute("SELECT rowid, size FROM entries ORDER BY used_at LIMIT 1000").fetchall():
                victims.append((row,))
                too_many -= size if isinstance(size, int) else 0
                if too_many <= 0:
                    break
            if not victims:
                return False
            db.executemany("DELETE FROM entries WHERE rowid = ?", victims)
        return True

    def _note_use(self, namespace: str, kind: str, key: str, now: float) -> None:
        """Unless somebody writes at this moment: it is not worth a wait."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("PRAGMA busy_timeout = 0")
            try:
                db.execute(_NOTE_USE, (now, namespace, kind, key))
            finally:
                db.execute(f"PRAGMA busy_timeout = {limits.CACHE_BUSY_S * 1000:.0f}")

        self._do(self._writing, work, None, wait_s=0.0)

    # --------------------------------------------------------------------------------- opening and trouble

    def _do(
        self, side: Side, work: Callable[[sqlite3.Connection], T], otherwise: T, wait_s: float = limits.CACHE_BUSY_S
    ) -> T:
        """Work with a connection; `otherwise` where that cannot be done."""
        if not side.lock.acquire(timeout=wait_s):
            return otherwise
        try:
            for attempt in range(2):
                try:
                    return work(side.opened(self.path))
                except (sqlite3.Error, OSError) as error:
                    if is_busy(error):
                        return otherwise  # others write; the connection is as good as before
                    damaged = is_damage(error)
                    side.close(unlink=self.path if damaged else None)
                    if not damaged or attempt > 0:
                        self._complain(error)
                        return otherwise
                    logger.info("the cache's file was damaged or not Cutaway's, and is begun anew: %s", error)
            return otherwise
        finally:
            side.lock.release()

    def _complain(self, error: Exception) -> None:
        what = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        if what not in self._said:
            self._said.add(what)
            logger.warning("the cache in %s cannot be used: %s; calls go on without it", self.path.parent, what)


def _shrink(db: sqlite3.Connection, *, wholly: bool = False) -> None:
    """Give pages back to the disk where many are free; `wholly` leaves nothing of what was removed."""
    if wholly or pragma(db, "freelist_count") > pragma(db, "page_count") // 4:
        db.executescript("PRAGMA incremental_vacuum;")  # `execute` would give back one page
    if wholly:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _used_bytes(db: sqlite3.Connection) -> int:
    return (pragma(db, "page_count") - pragma(db, "freelist_count")) * pragma(db, "page_size")
