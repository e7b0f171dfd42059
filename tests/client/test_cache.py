"""The result cache: what is put in comes out unchanged or not at all, whoever uses it and whatever the disk does."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cutaway.cache import ResultCache
from cutaway.contract import limits
from cutaway.contract.options import parse_options
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.client.cached import answer, same

OUTPUTS = ("images", "boxes", "scores", "report")
SERVER = "grpc://localhost:8001"


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.answer"))


def only(folder: Path) -> Path:
    (path,) = files(folder)
    return path


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def age(path: Path, seconds: float) -> None:
    """Make a file older, without a use of it."""
    found = path.stat()
    os.utime(path, (found.st_atime, found.st_mtime - seconds))


def unused_for(path: Path, seconds: float) -> None:
    found = path.stat()
    os.utime(path, (found.st_atime - seconds, found.st_mtime))


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
    cache = ResultCache(tmp_path)
    cache.put("key", outputs)
    got = cache.get("key")
    assert same(got, outputs)
    for value in got.values():
        if isinstance(value, np.ndarray) and value.size:
            value[...] = 7  # the caller's own
    assert same(cache.get("key"), outputs)


def test_another_object_finds_it(tmp_path: Path) -> None:
    one = ResultCache(tmp_path)
    one.put("key", answer(1))
    other = ResultCache(tmp_path)
    assert same(other.get("key"), answer(1))
    assert other.get("other") is None
    other.put("key", answer(2))
    assert same(one.get("key"), answer(2)), "a closed one goes on"


# ---------------------------------------------------------------------------------------------------- keys


def test_a_default_that_is_said_changes_no_key(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)

    def key(options: dict, data: bytes = b"picture", outputs: object = OUTPUTS, servers: object = (SERVER,)) -> str:
        return cache.key(data, parse_options(options), outputs, servers)  # type: ignore[arg-type]

    assert key({}) == key({"subject": "people", "min_confidence": 0.35, "select": None})
    assert key({"background": "#00ff00"}) == key({"background": "#00FF00"})
    assert key({"boxes": [[1, 2, 3, 4]]}) == key({"boxes": "[[1.0, 2, 3, 4]]"})
    assert key({}, servers=["b", "a"]) == key({}, servers=("a", "b", "a"))
    assert key({}, outputs=reversed(OUTPUTS)) == key({})
    assert len(key({})) == 64

    others = [
        key({}),
        key({"subject": "all"}),
        key({"min_confidence": 0.36}),
        key({"output": "webp"}),
        key({}, data=b"picture "),
        key({}, outputs=OUTPUTS[1:]),
        key({}, servers=["grpc://localhost:8002"]),
        key({}, servers=[SERVER, "a"]),
    ]
    assert len(set(others)) == len(others)


# -------------------------------------------------------------------------------------------- ages and sizes


def test_ages(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    cache.put("key", answer(1))
    age(only(tmp_path), 3 * 86400 - 60)
    assert same(cache.get("key"), answer(1)), "less than three days"
    assert same(cache.get("key"), answer(1)), "being used makes nothing younger"
    age(only(tmp_path), 120)
    assert cache.get("key") is None
    cache.put("later", answer(2))
    assert same(cache.get("later"), answer(2))
    assert len(files(tmp_path)) == 1, "a writer removes what is too old"


def test_what_was_not_used_longest_goes_first(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path, max_bytes=limits.MIB)
    for number in range(6):
        known = set(files(tmp_path))
        cache.put(f"key {number}", answer(number, 100_000))
        (path,) = set(files(tmp_path)) - known
        unused_for(path, 1000 - 100 * number)
    assert cache.get("key 0") is not None
    for number in range(6, 9):
        cache.put(f"key {number}", answer(number, 100_000))
        assert size(tmp_path) <= limits.MIB
    left = [number for number in range(9) if cache.get(f"key {number}") is not None]
    assert left == [0, 3, 4, 5, 6, 7, 8]


def test_it_never_grows_beyond_its_size(tmp_path: Path) -> None:
    sizes = np.random.default_rng(5).integers(0, 400_000, 60)
    cache = ResultCache(tmp_path, max_bytes=limits.MIB)
    for number, n_bytes in enumerate(sizes):
        cache.put(f"key {number}", answer(number, int(n_bytes)))
        assert same(cache.get(f"key {number}"), answer(number, int(n_bytes)))
        assert size(tmp_path) <= limits.MIB
    kept = files(tmp_path)
    cache.put("too large", answer(1, limits.MIB))
    assert cache.get("too large") is None
    assert files(tmp_path) == kept, "for one that never fits nothing is thrown away"


def test_what_a_killed_writer_left_goes_when_it_is_old(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    for name, seconds in (("old.part", 4 * 86400), ("young.part", 0)):
        (tmp_path / name).write_bytes(b"part")
        age(tmp_path / name, seconds)
    cache.put("key", answer(1))
    assert sorted(path.name for path in tmp_path.glob("*.part")) == ["young.part"]


def test_cleared_means_gone_from_the_disk(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    for number in range(5):
        cache.put(f"key {number}", answer(number))
    (tmp_path / "notes.txt").write_text("somebody else's")
    cache.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("wrong", [{"max_bytes": 1000}, {"results_max_age_s": 0}, {"results_max_age_s": float("nan")}])
def test_numbers_that_make_no_sense(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ValueError, match="has to be at least"):
        ResultCache(tmp_path, **wrong)


# ----------------------------------------------------------------------------------------- threads, processes


def test_threads_share_one(tmp_path: Path) -> None:
    wrong: list[object] = []

    cache = ResultCache(tmp_path, max_bytes=2 * limits.MIB)

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
    assert size(tmp_path) <= 2 * limits.MIB


WRITER = """
    me, folder = int(sys.argv[1]), sys.argv[2]
    logging.basicConfig(stream=sys.stdout)
    cache = ResultCache(folder, max_bytes=2 * limits.MIB)
    for turn in range(40):
        number = (me * 7 + turn) % 25
        cache.put(f"key {number}", answer(number, 40_000))
        got = cache.get(f"key {turn % 25}")
        assert got is None or same(got, answer(turn % 25, 40_000)), (me, turn)
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    said: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda me=me: said.append(run(WRITER, me, tmp_path))) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(one.returncode, one.stdout, one.stderr) for one in said] == [(0, "", "")] * 4
    assert len(files(tmp_path)) > 5
    assert not list(tmp_path.glob("*.part"))
    assert size(tmp_path) <= 2 * limits.MIB


def test_a_killed_writer_leaves_a_cache_that_works(tmp_path: Path) -> None:
    code = """
        cache = ResultCache(sys.argv[1], max_bytes=2 * limits.MIB)
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
        cache = ResultCache(tmp_path)
        for number in range(25):
            got = cache.get(f"key {number}")
            assert got is None or same(got, answer(number, 40_000))
        cache.put("mine", answer(99))
        assert same(cache.get("mine"), answer(99))


# -------------------------------------------------------------------------------------------------- damage


def overwritten(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def huge(path: Path) -> None:
    os.truncate(path, 2 * limits.CACHE_MAX_BYTES)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("harm", [overwritten, one_bit, cut_short, emptied, huge, a_folder, a_pipe])
def test_a_damaged_or_foreign_file_is_a_miss(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    cache = ResultCache(tmp_path)
    cache.put("key", answer(1, 50_000))
    harm(only(tmp_path))
    assert cache.get("key") is None
    cache.put("other", answer(2))
    assert same(cache.get("other"), answer(2))
    if harm is not a_folder:
        cache.put("key", answer(3))
        assert same(cache.get("key"), answer(3))


def test_what_lies_under_another_key_is_a_miss(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    cache.put("mine", answer(1))
    mine = only(tmp_path)
    cache.put("yours", answer(2))
    (yours,) = set(files(tmp_path)) - {mine}
    shutil.copy(mine, yours)
    assert cache.get("yours") is None
    assert same(cache.get("mine"), answer(1))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"7",
        b"[1]",
        b'{"a": 3}',
        b'{"a": [1]}',
        b'{"a": ["AAAAA"]}',
        b'{"a": {}}',
        b'{"a": {"shape": [3], "data": "AAAA"}}',
        b'{"a": {"shape": [-1, -1], "data": "AAAAAA=="}}',
        b'{"a": {"shape": [999999999999, 999999999999], "data": ""}}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_files_that_say_nonsense(tmp_path: Path, body: bytes) -> None:
    """With the right digest, as another version of this cache might write it."""
    cache = ResultCache(tmp_path)
    cache.put("key", answer(1))
    path = only(tmp_path)
    path.write_bytes(hashlib.sha256(path.name.encode() + body).digest() + body)
    assert cache.get("key") is None


def test_a_folder_removed_meanwhile_is_made_again(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "cache")
    cache.put("key", answer(1))
    assert cache.get("key") is not None
    shutil.rmtree(tmp_path / "cache")
    assert cache.get("key") is None
    cache.put("key", answer(2))
    assert same(cache.get("key"), answer(2))
    other = ResultCache(tmp_path / "cache")
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
    cache.clear()
"""


@pytest.mark.parametrize("begun", [False, True], ids=["empty", "with an answer"])
def test_a_read_only_folder_is_said_once_and_fails_nothing(tmp_path: Path, begun: bool) -> None:
    if os.geteuid() == 0:
        for parent in (tmp_path, *tmp_path.parents[:3]):
            parent.chmod(0o755)
    folder = tmp_path / "cache"
    folder.mkdir()
    if begun:
        cache = ResultCache(folder)
        cache.put("old", answer(1))
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
        cache = ResultCache(tmp_path / "new")
        cache.put("key", answer(1))
        assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()] == [0o600]
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_links_are_not_followed(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    cache.put("key", answer(1))
    path = only(tmp_path)
    path.rename(tmp_path / "theirs")
    path.symlink_to(tmp_path / "theirs")
    assert cache.get("key") is None


def test_a_folder_that_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    cache = ResultCache(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        cache.put("key", answer(1))
        assert cache.get("key") is None
    assert len(caplog.records) == 1


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert ResultCache().folder == tmp_path / ".cache" / "cutaway"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ResultCache().folder == tmp_path / "xdg" / "cutaway"
    assert not (tmp_path / "xdg").exists(), "nothing is made before it is used"
