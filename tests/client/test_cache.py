"""The result cache: what is put in comes out unchanged or not at all, whoever uses it and whatever the disk does."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cutaway.cache import ResultCache, default_folder
from cutaway.cache_file import FILE_NAME
from cutaway.contract import limits
from cutaway.contract.errors import InvalidOption
from cutaway.contract.options import parse_options
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.client.cached import answer, same

OUTPUTS = ("images", "boxes", "scores", "report")
SERVER = "grpc://localhost:8001"


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def change(folder: Path, statement: str, *values: object) -> None:
    """Do something to the database that nobody holds open."""
    with sqlite3.connect(folder / FILE_NAME) as db:
        assert db.execute(statement, values).rowcount != 0
    db.close()


PRELUDE = """
import logging, os, signal, sys, threading, warnings
from pathlib import Path
from cutaway.contract import limits
from cutaway.cache import ResultCache
from tests.client.cached import answer, same
"""


def run(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, after the imports of `PRELUDE`."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


# --------------------------------------------------------------------------------------------- round trips


@given(
    outputs=st.dictionaries(
        st.text(max_size=20),
        st.lists(st.binary(max_size=50), max_size=4)
        | hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
        max_size=5,
    )
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_in_comes_out(tmp_path: Path, outputs: dict) -> None:
    with ResultCache(tmp_path) as cache:
        cache.put("key", outputs)
        got = cache.get("key")
        assert same(got, outputs)
        for value in got.values():
            if isinstance(value, np.ndarray) and value.size:
                value[...] = 7  # the caller's own
        assert same(cache.get("key"), outputs)


def test_another_object_finds_it(tmp_path: Path) -> None:
    with ResultCache(tmp_path) as one:
        one.put("key", answer(1))
    with ResultCache(tmp_path) as other:
        assert same(other.get("key"), answer(1))
        assert other.get("other") is None
        other.put("key", answer(2))
        assert same(one.get("key"), answer(2)), "a closed one opens the file again"
        stats = other.stats()
        assert (stats.results, stats.uploads, stats.hits, stats.misses) == (1, 0, 1, 1)
        assert 0 < stats.file_bytes <= stats.max_bytes == limits.CACHE_MAX_BYTES
        one.close()


def test_only_outputs_of_the_contract_are_kept(tmp_path: Path) -> None:
    with ResultCache(tmp_path) as cache:
        for value in ("text", [b"", "text"], np.zeros(3), None):
            with pytest.raises(TypeError, match="'images'"):
                cache.put("key", {"images": value})
        assert cache.get("key") is None


# ---------------------------------------------------------------------------------------------------- keys


def test_a_default_that_is_said_changes_no_key(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)

    def key(options: object, data: bytes = b"picture", outputs: object = OUTPUTS, server: object = SERVER) -> str:
        return cache.key(data, options, outputs, server)  # type: ignore[arg-type]

    assert key({}) == key({"subject": "people", "min_confidence": 0.35, "select": None}) == key(parse_options({}))
    assert key({"background": "#00ff00"}) == key({"background": "#00FF00"})
    assert key({"boxes": [[1, 2, 3, 4]]}) == key({"boxes": "[[1.0, 2, 3, 4]]"})
    assert key({}, server=["b", "a"]) == key({}, server=("a", "b", "a"))
    assert key({}, outputs=reversed(OUTPUTS)) == key({})
    assert len(key({})) == 64

    others = [
        key({}),
        key({"subject": "all"}),
        key({"min_confidence": 0.36}),
        key({"output": "webp"}),
        key({}, data=b"picture "),
        key({}, outputs=OUTPUTS[1:]),
        key({}, server="grpc://localhost:8002"),
        key({}, server=[SERVER, "a"]),
        ResultCache(tmp_path, namespace="other").key(b"picture", {}, OUTPUTS, SERVER),
    ]
    assert len(set(others)) == len(others)
    with pytest.raises(InvalidOption):
        key({"subject": "nobody"})


def test_namespaces_do_not_see_each_other(tmp_path: Path) -> None:
    with ResultCache(tmp_path, namespace="a") as a, ResultCache(tmp_path, namespace="b", keep_uploads=True) as b:
        a.put("key", answer(1))
        assert b.get("key") is None
        b.put("key", answer(2))
        b.put_upload(b"picture")
        a.clear()
        assert a.get("key") is None
        assert same(b.get("key"), answer(2))
        assert (a.stats().results, b.stats().results, b.stats().uploads) == (0, 1, 1)


# -------------------------------------------------------------------------------------------- ages and sizes


def test_ages(tmp_path: Path) -> None:
    clock = Clock()
    with ResultCache(tmp_path, clock=clock, keep_uploads=True) as cache:
        cache.put("key", answer(1))
        digest = cache.put_upload(b"picture")
        clock.now += 3 * 86400
        assert same(cache.get("key"), answer(1)), "three days old is not older than three days"
        clock.now += 1
        assert cache.get("key") is None
        assert cache.stats().results == 0
        clock.now += 4 * 86400 - 1
        assert cache.get_upload(digest) == b"picture"
        clock.now += 1
        assert cache.get_upload(digest) is None

        cache.put("later", answer(2))
        clock.now -= 7200
        assert cache.get("later") is None, "from the future: the clock was set back, and nobody knows how old it is"
        cache.put("key", answer(3))
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        assert db.execute("SELECT key FROM entries").fetchall() == [("key",)], "the next writer removes what is old"
    db.close()


def test_uploads_are_kept_only_on_request(tmp_path: Path) -> None:
    with ResultCache(tmp_path) as careful, ResultCache(tmp_path, keep_uploads=True) as keeping:
        digest = careful.put_upload(b"picture")
        assert careful.get_upload(digest) is None
        assert keeping.put_upload(b"picture") == digest
        assert careful.get_upload(digest) == b"picture"
        assert careful.get(digest) is None, "an upload is no answer"


def test_what_was_not_used_longest_goes_first(tmp_path: Path) -> None:
    clock = Clock()
    with ResultCache(tmp_path, max_bytes=limits.MIB, clock=clock) as cache:
        for number in range(6):
            cache.put(f"key {number}", answer(number, 100_000))
            clock.now += 100
        assert cache.get("key 0") is not None
        clock.now += 100
        for number in range(6, 10):
            cache.put(f"key {number}", answer(number, 100_000))
            clock.now += 100
            assert cache.stats().file_bytes <= limits.MIB
        left = [number for number in range(10) if cache.get(f"key {number}") is not None]
        assert 0 in left and 1 not in left and left[-4:] == [6, 7, 8, 9], left
        assert len(left) >= 5, "room is used"


def test_what_is_too_old_goes_before_what_is_in_use(tmp_path: Path) -> None:
    clock = Clock()
    with ResultCache(tmp_path, max_bytes=limits.MIB, clock=clock, results_max_age_s=1000) as cache:
        for number in range(4):
            cache.put(f"old {number}", answer(number, 100_000))
        clock.now += 900
        cache.put("young", answer(10, 100_000))
        clock.now += 50
        for number in range(4):
            assert cache.get(f"old {number}") is not None  # and so used later than the young one
        clock.now += 100
        cache.put("large", answer(11, 600_000))
        assert same(cache.get("young"), answer(10, 100_000))
        assert cache.get("large") is not None


def test_it_never_grows_beyond_its_size(tmp_path: Path) -> None:
    sizes = np.random.default_rng(5).integers(0, 400_000, 60)
    with ResultCache(tmp_path, max_bytes=limits.MIB) as cache:
        for number, size in enumerate(sizes):
            cache.put(f"key {number}", answer(number, int(size)))
            assert same(cache.get(f"key {number}"), answer(number, int(size)))
            assert cache.stats().file_bytes <= limits.MIB
        cache.put("too large", answer(1, limits.MIB))
        assert cache.get("too large") is None
        assert cache.stats().results > 0, "for one that never fits nothing is thrown away"
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limits.MIB


def test_cleared_means_gone_from_the_disk(tmp_path: Path) -> None:
    with ResultCache(tmp_path, keep_uploads=True) as cache:
        for number in range(20):
            cache.put_upload(b"a person's picture" * 5000 + b"%d" % number)
        cache.clear()
        assert cache.stats().uploads == 0
        said = subprocess.run(["cat", *tmp_path.iterdir()], capture_output=True, check=True).stdout
        assert b"a person's picture" not in said
        assert len(said) < 400_000


@pytest.mark.parametrize("wrong", [{"max_bytes": 1000}, {"results_max_age_s": 0}, {"uploads_max_age_s": float("nan")}])
def test_numbers_that_make_no_sense(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ResultCache(tmp_path, **wrong)


# ----------------------------------------------------------------------------------------- threads, processes


def test_threads_share_one(tmp_path: Path) -> None:
    wrong: list[object] = []

    with ResultCache(tmp_path, max_bytes=2 * limits.MIB) as cache:

        def work(me: int) -> None:
            try:
                for turn in range(30):
                    number = (me * 7 + turn) % 25
                    cache.put(f"key {number}", answer(number, 40_000))
                    got = cache.get(f"key {turn % 25}")
                    if got is not None and not same(got, answer(turn % 25, 40_000)):
                        wrong.append((me, turn))
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(me,)) for me in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert cache.stats().file_bytes <= 2 * limits.MIB
        assert cache.stats().hits > 0


WRITER = """
    me, folder = int(sys.argv[1]), sys.argv[2]
    logging.basicConfig(stream=sys.stdout)
    with ResultCache(folder, max_bytes=2 * limits.MIB) as cache:
        for turn in range(40):
            number = (me * 7 + turn) % 25
            cache.put(f"key {number}", answer(number, 40_000))
            got = cache.get(f"key {turn % 25}")
            assert got is None or same(got, answer(turn % 25, 40_000)), (me, turn)
            assert cache.stats().file_bytes <= 2 * limits.MIB
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    said: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda me=me: said.append(run(WRITER, me, tmp_path))) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(one.returncode, one.stdout, one.stderr) for one in said] == [(0, "", "")] * 4
    with ResultCache(tmp_path) as cache:
        assert cache.stats().results > 5
        assert not [path for path in tmp_path.iterdir() if "damaged" in path.name]


def test_a_killed_writer_leaves_a_cache_that_works(tmp_path: Path) -> None:
    code = """
        with ResultCache(sys.argv[1], max_bytes=2 * limits.MIB) as cache:
            cache.put("first", answer(0, 40_000))
            print("going", flush=True)
            for turn in range(1_000_000):
                cache.put(f"key {turn % 25}", answer(turn % 25, 40_000))
    """
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code), tmp_path],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        with process:
            assert process.stdout.readline() == "going\n"
            process.send_signal(signal.SIGKILL)
        with ResultCache(tmp_path) as cache:
            for number in range(25):
                got = cache.get(f"key {number}")
                assert got is None or same(got, answer(number, 40_000))
            cache.put("mine", answer(99))
            assert same(cache.get("mine"), answer(99))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_while_threads_use_it(tmp_path: Path) -> None:
    code = """
        warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
        logging.basicConfig(stream=sys.stdout)
        made = [answer(seed, 30_000) for seed in range(9)]  # beforehand: NumPy imports when asked, which forks break
        cache = ResultCache(sys.argv[1])
        over = threading.Event()
        def work(me):
            turn = 0
            while not over.is_set():
                turn += 1
                cache.put(f"{me} {turn % 9}", made[turn % 9])
                assert same(cache.get(f"{me} {turn % 9}"), made[turn % 9])
        threads = [threading.Thread(target=work, args=(me,)) for me in range(3)]
        for thread in threads:
            thread.start()
        children = []
        for child in range(8):
            pid = os.fork()
            if pid == 0:
                ok = False
                try:
                    cache.put(f"child {child}", made[child])
                    ok = same(cache.get(f"child {child}"), made[child])
                    cache.close()
                finally:
                    os._exit(0 if ok else 1)
            children.append(pid)
        statuses = [os.waitpid(pid, 0)[1] for pid in children]
        over.set()
        for thread in threads:
            thread.join()
        assert statuses == [0] * 8, statuses
        for child in range(8):
            assert same(cache.get(f"child {child}"), made[child]), child
        cache.close()
    """
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_fork_does_not_wait_for_ever(tmp_path: Path) -> None:
    code = """
        warnings.simplefilter("ignore")
        from cutaway import cache_connection
        cache_connection.FORK_WAIT_S = 0.1
        cache = ResultCache(sys.argv[1])
        cache.put("key", answer(1))
        held = cache._file._reading
        held.lock.acquire()  # as a thread that reads from a disk which hangs
        pid = os.fork()
        if pid == 0:
            ok = cache.get("key") is None
            cache.put("key", answer(2))
            os._exit(0 if ok else 1)
        assert os.waitpid(pid, 0)[1] == 0
        held.lock.release()
        assert same(cache.get("key"), answer(2))
        cache.close()
    """
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a thread used it when the process was forked" in done.stderr


# -------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("statement", "value"),
    [
        ("UPDATE entries SET body = ?", b"\x05\0\0\0[]"),
        ("UPDATE entries SET body = substr(body, 1, length(body) - 1), used_at = used_at + ?", 0),
        ("UPDATE entries SET digest = ?", b"nothing"),
        ("UPDATE entries SET digest = ?", 12),
        ("UPDATE entries SET body = ?", "text"),
        ("UPDATE entries SET format = ?", 2),
        ("UPDATE entries SET format = ?", "new"),
        ("UPDATE entries SET made_at = ?", "yesterday"),
        ("UPDATE entries SET used_at = ?", "never"),
    ],
)
def test_a_damaged_entry_is_a_miss_and_removed(tmp_path: Path, statement: str, value: object) -> None:
    with ResultCache(tmp_path, keep_uploads=True) as cache:
        cache.put("key", answer(1))
        digest = cache.put_upload(b"picture")
    change(tmp_path, statement, value)
    with ResultCache(tmp_path, keep_uploads=True) as cache:
        assert cache.get("key") is None
        assert cache.get_upload(digest) is None
        if "_at" not in statement:
            assert cache.stats().results == cache.stats().uploads == 0
        cache.put("key", answer(2))
        assert same(cache.get("key"), answer(2))


def test_what_lies_under_another_key_is_a_miss(tmp_path: Path) -> None:
    with ResultCache(tmp_path) as cache:
        cache.put("mine", answer(1))
    change(tmp_path, "UPDATE entries SET key = ?", "yours")
    with ResultCache(tmp_path) as cache:
        assert cache.get("yours") is None
        assert cache.stats().results == 0


@given(body=st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"\x18\0\0\0" + tail))
@settings(max_examples=200)
def test_whatever_is_packed_is_read_or_a_miss(body: bytes) -> None:
    from cutaway.cache import _unpacked

    _unpacked(body)


@pytest.mark.parametrize(
    "head",
    [
        b"{}x",
        b"[1]",
        b'[["a", "bytes", [2, 3]]]',
        b'[["a", "bytes", [-1]]]',
        b'[["a", "float32", [1e3]]]',
        b'[["a", "float32", [999999999999, 999999999999]]]',
        b'[["a", "float32", [0, 9999999999999999999999]]]',
        b'[["a", "object", [1]]]',
        b'[["a", "bytes", 3]]',
        b'[["a", "bytes"]]',
        b'[[1, "bytes", [1]]]',
        b'[["a", "bytes", [true]]]',
        b"[" * 100_000,
    ],
)
def test_heads_that_say_nonsense(head: bytes) -> None:
    from cutaway.cache import _unpacked

    assert _unpacked(len(head).to_bytes(4, "little") + head + b"x") is None


def overwritten(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def another_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE cookies (name)")
    db.close()


def another_schema(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE entries")
        db.execute("CREATE TABLE entries (key, value)")
    db.close()


def scribbled_over(path: Path) -> None:
    """Every page but the first, so that it opens well."""
    with path.open("r+b") as file:
        file.seek(16 * 1024)
        file.write(os.urandom(path.stat().st_size - 16 * 1024))


@pytest.mark.parametrize("harm", [overwritten, cut_short, another_program, another_schema, scribbled_over])
def test_a_damaged_or_foreign_file_is_begun_anew(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    with ResultCache(tmp_path) as cache:
        for number in range(5):
            cache.put(f"key {number}", answer(number, 50_000))
    harm(tmp_path / FILE_NAME)
    with ResultCache(tmp_path) as cache:
        for number in range(5):
            got = cache.get(f"key {number}")
            assert got is None or same(got, answer(number, 50_000))
        for number in range(5):
            cache.put(f"key {number}", answer(number, 50_000))
        for number in range(5):
            assert same(cache.get(f"key {number}"), answer(number, 50_000))


def test_a_folder_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    with ResultCache(tmp_path / "cache") as cache:
        cache.put("key", answer(1))
        assert cache.get("key") is not None
        shutil.rmtree(tmp_path / "cache")
        assert cache.get("key") is None
        cache.put("key", answer(2))
        assert same(cache.get("key"), answer(2))
        with ResultCache(tmp_path / "cache") as other:
            assert same(other.get("key"), answer(2))


# ---------------------------------------------------------------------------------------------- the disk


FULL_DISK = """
    import resource
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    cache = ResultCache(sys.argv[1])
    cache.put("before", answer(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))
    for number in range(5):
        cache.put(f"key {number}", answer(number, 700_000))
        assert cache.get(f"key {number}") is None
        assert same(cache.get("before"), answer(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    cache.put("after", answer(2, 700_000))
    assert same(cache.get("after"), answer(2, 700_000)) and same(cache.get("before"), answer(1))
    cache.close()
"""


def test_a_full_disk_is_said_once_and_fails_nothing(tmp_path: Path) -> None:
    """The kernel refuses to let files grow, as it does on a full disk."""
    done = run(FULL_DISK, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"the cache in {tmp_path} cannot be used: ") and line.endswith("; calls go on without it")


READ_ONLY = """
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    made = answer(1)  # as long as everything may be imported
    cache = ResultCache(sys.argv[1])
    folder = Path(sys.argv[1])
    if os.geteuid() == 0:  # whom nothing is read-only for
        for path in (folder, *folder.iterdir()):
            os.chown(path, 65534, 65534)
        os.setegid(65534)
        os.seteuid(65534)
    for number in range(3):
        cache.put(f"key {number}", made)
        assert cache.get(f"key {number}") is None
    assert cache.stats().results == 0
    cache.clear()
    cache.close()
"""


@pytest.mark.parametrize("begun", [False, True], ids=["empty", "with a database"])
def test_a_read_only_folder_is_said_once_and_fails_nothing(tmp_path: Path, begun: bool) -> None:
    if os.geteuid() == 0:
        for parent in (tmp_path, *tmp_path.parents[:3]):
            parent.chmod(0o755)
    folder = tmp_path / "cache"
    folder.mkdir()
    if begun:
        with ResultCache(folder) as cache:
            cache.put("old", answer(1))
        (folder / FILE_NAME).chmod(0o400)
    folder.chmod(0o500)
    done = run(READ_ONLY, folder)
    folder.chmod(0o700)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"the cache in {folder} cannot be used: ")


@pytest.mark.skipif(os.name != "posix", reason="permissions as Unix knows them")
def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with ResultCache(tmp_path / "new") as cache:
            cache.put("key", answer(1))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
            assert modes == {FILE_NAME: 0o600, f"{FILE_NAME}-wal": 0o600, f"{FILE_NAME}-shm": 0o600}
            assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
        (tmp_path / "new" / FILE_NAME).chmod(0o644)
        with ResultCache(tmp_path / "new") as cache:
            assert same(cache.get("key"), answer(1))
            assert stat.S_IMODE((tmp_path / "new" / FILE_NAME).stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_what_others_put_there_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ResultCache(tmp_path / "theirs") as theirs:
        theirs.put("key", answer(1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / FILE_NAME).symlink_to(tmp_path / "theirs" / FILE_NAME)
    with ResultCache(tmp_path / "mine") as cache:
        assert cache.get("key") is None
        assert "what lies there is no file" in caplog.text
    if os.geteuid() == 0:
        os.chown(tmp_path / "theirs" / FILE_NAME, 65534, 65534)
        with ResultCache(tmp_path / "theirs") as cache:
            assert cache.get("key") is None
            assert "belongs to somebody else" in caplog.text


def test_a_folder_that_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with ResultCache(tmp_path / "file" / "cache") as cache, caplog.at_level(logging.WARNING):
        cache.put("key", answer(1))
        assert cache.get("key") is None
    assert len(caplog.records) == 1


def test_a_long_writer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CACHE_BUSY_S", 0.05)
    clock = Clock()
    with ResultCache(tmp_path, clock=clock) as cache:
        cache.put("key", answer(1))
        db = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        clock.now += 100
        assert same(cache.get("key"), answer(1)), "who reads does not wait at all"
        cache.put("other", answer(2))
        assert cache.get("other") is None
        db.execute("ROLLBACK")
        db.close()
        cache.put("other", answer(2))
        assert same(cache.get("other"), answer(2))


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == tmp_path / ".cache" / "cutaway"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ResultCache().folder == tmp_path / "xdg" / "cutaway"
    assert not (tmp_path / "xdg").exists(), "nothing is made before it is used"


def test_the_page_says_what_the_code_does() -> None:
    page = (Path(__file__).parents[2] / "docs" / "client" / "caching.md").read_text()
    for words in (
        f"| `max_bytes` | {limits.CACHE_MAX_BYTES // limits.MIB} MiB |",
        f"a journal of up to {limits.CACHE_JOURNAL_BYTES // limits.MIB} MiB",
        f"| `results_max_age_s` | {limits.CACHE_RESULTS_MAX_AGE_S / 86400:g} days |",
        f"| `uploads_max_age_s` | {limits.CACHE_UPLOADS_MAX_AGE_S / 86400:g} days |",
        f"for at most {limits.CACHE_BUSY_S:g} s",
    ):
        assert words in " ".join(page.split()), words
