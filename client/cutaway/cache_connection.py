"""Connections to the database of :mod:`cutaway.cache_file`: opened privately, and closed while a process forks."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from cutaway.contract import limits

APPLICATION_ID = 0x43757461  # "Cuta"
PAGE_BYTES = 16 * 1024
"""Larger than SQLite's own 4 KiB, because entries are pictures: fewer pages to walk through."""

CHECKPOINT_PAGES = 256

_SCHEMA = (
    """CREATE TABLE entries (
        namespace TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
        made_at REAL NOT NULL, used_at REAL NOT NULL, size INTEGER NOT NULL,
        format INTEGER NOT NULL, digest BLOB NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (namespace, kind, key))""",
    "CREATE INDEX entries_by_use ON entries (used_at, size)",
    "CREATE INDEX entries_by_age ON entries (kind, made_at)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    "PRAGMA user_version = 1",
)


class Side:
    """A connection, and the lock that whoever uses it holds."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.broken_by_fork = False
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        _sides.add(self)

    def __del__(self) -> None:
        self.close()

    def opened(self, path: Path) -> sqlite3.Connection:
        """The connection, opened anew where the file is no longer the one it was opened to.

        Raises:
            OSError, sqlite3.Error: it cannot be opened.
        """
        if self.broken_by_fork:
            raise OSError("a thread used it when the process was forked")
        if self._db is not None and _identity(path) != self._file:
            self.close()
        if self._db is None:
            self._file = _private(path)
            self._db = _connect(path)
        return self._db

    def break_off(self) -> None:
        """In the child of a fork that a thread did not let go for: the connection is neither used nor closed."""
        self.lock = threading.Lock()
        self.broken_by_fork = True
        _abandoned.append(self._db)
        self._db = None

    def close(self, *, unlink: Path | None = None) -> None:
        """Close the connection; remove the file that it was opened to, unless another one lies there by now."""
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
        if unlink is not None and self._file is not None and _identity(unlink) == self._file:
            # The database last, so that nobody puts its journal beside a new one.
            for name in (f"{unlink.name}-wal", f"{unlink.name}-shm", unlink.name):
                with contextlib.suppress(OSError):
                    unlink.with_name(name).unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _private(path: Path) -> tuple[int, int]:
    """Make the file for its owner alone, or make sure that it is so.

    An existing file is not opened here: closing it again would end the locks that SQLite holds on it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("what lies there is no file")
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise OSError("its file belongs to somebody else")
    if stat.S_IMODE(found.st_mode) & 0o077 and os.name == "posix":
        path.chmod(0o600)
    return found.st_dev, found.st_ino


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=limits.CACHE_BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        give_up_at = time.monotonic() + limits.CACHE_BUSY_S
        while True:
            try:
                _prepare(db)
            except sqlite3.OperationalError as error:
                # Where several set the journal's mode at once, SQLite does not wait by itself.
                if not is_busy(error) or time.monotonic() > give_up_at:
                    raise
                time.sleep(0.01)
            else:
                return db
    except BaseException:
        db.close()
        raise


def _prepare(db: sqlite3.Connection) -> None:
    _set(db, "trusted_schema = OFF")
    if pragma(db, "application_id") != APPLICATION_ID:
        _set(db, f"page_size = {PAGE_BYTES}", "auto_vacuum = INCREMENTAL", "journal_mode = WAL")
        with transaction(db):
            if pragma(db, "application_id") != APPLICATION_ID:  # nobody else was quicker
                if db.execute("SELECT count(*) FROM sqlite_master").fetchall() != [(0,)]:
                    raise sqlite3.DatabaseError("it is not a database of this cache")
                for statement in _SCHEMA:
                    db.execute(statement)
    _set(
        db,
        "synchronous = NORMAL",
        f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
        f"journal_size_limit = {limits.CACHE_JOURNAL_BYTES}",
    )


def _set(db: sqlite3.Connection, *settings: str) -> None:
    for setting in settings:
        db.execute(f"PRAGMA {setting}").fetchall()


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Everything or nothing of what is done meanwhile; waits for others that write."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


def is_busy(error: Exception) -> bool:
    """Whether others held the lock for longer than one waits."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def is_damage(error: Exception) -> bool:
    """Whether the file is not what it should be. By the words: Python 3.10 does not pass SQLite's codes on."""
    said = str(error)
    return (
        type(error) is sqlite3.DatabaseError  # not its subclasses, which tell of the disk and of values
        or "malformed" in said
        or said.startswith(("no such table", "no such column", "table entries has"))
    )


def pragma(db: sqlite3.Connection, name: str) -> int:
    """A number that SQLite tells about the database."""
    return int(db.execute(f"PRAGMA {name}").fetchall()[0][0])


# ------------------------------------------------------------------------------------------------------- forks

# SQLite keeps what it knows of locks in the process's memory, where a child would take its parent's locks for its own
# and harm the file. So connections are closed while a process forks, and both sides open new ones when they need them.

_sides: weakref.WeakSet[Side] = weakref.WeakSet()
_forking = threading.Lock()
_held: list[Side] = []
_abandoned: list[object] = []

FORK_WAIT_S = 5.0
"""How long a fork waits for threads that use a cache; after that the child goes without it."""


def _before_fork() -> None:
    _forking.acquire()
    for side in list(_sides):
        if side.lock.acquire(timeout=FORK_WAIT_S):
            side.close()
            _held.append(side)


def _after_fork() -> None:
    for side in _held:
        side.lock.release()
    _held.clear()
    _forking.release()


def _after_fork_in_child() -> None:
    for side in list(_sides):
        if side not in _held:
            side.break_off()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
