"""What ends, stops, hangs or fails in a running server is noticed, whatever others send, and the least is restarted.

Before, failed requests counted as life, any death restarted all of it, and the sixth ended it for good.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cutaway
import pytest
from cutaway.contract.errors import CutawayError
from cutaway.resilience import RetryPolicy

from runtime import budgets as budgets_module
from runtime import supervision
from runtime.checks import SHM
from runtime.compose import PIPELINE, STREAM
from runtime.devices import has_vnni
from runtime.launcher import Launcher
from runtime.metrics import Metrics
from runtime.procfs import Stub, is_gone, stat
from runtime.server import Server, ServerOptions
from runtime.supervision import BACKOFF_S, WINDOW_S, Backoff, Supervisor
from runtime.weights import load_networks
from tests.runtime.leftovers import GONE_S, assert_nothing_left, wait_for

pytestmark = pytest.mark.triton

INTERVAL_S = 2.0
ONCE = RetryPolicy(retries=0)
PATIENT = RetryPolicy(retries=8)
NETWORKS = ("yolov8_seg", "birefnet_trt")


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What the server says."""
    return []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> Iterator[Server]:
    cache_dir = tmp_path_factory.mktemp("supervision")
    options = ServerOptions(cache_dir=cache_dir, instances=2, canary_interval_s=INTERVAL_S)
    with Server(options, say=said.append) as server:
        yield server
    assert_nothing_left(cache_dir, seconds=GONE_S)


@pytest.fixture
def server(shared: Server, said: list[str]) -> Server:
    """A server to be harmed, without a past."""
    assert shared._supervisor is not None
    shared._supervisor._backoff = Backoff()
    said.clear()
    return shared


def stubs(server: Server, model: str) -> list[Stub]:
    assert server._launcher is not None
    return [stub for stub in server._launcher.stubs if stub.model == model]


def cut(server: Server, picture: Path) -> cutaway.CutResult:
    with cutaway.Client(server.grpc_url, retry=PATIENT) as client:
        return client.cut(picture)


@contextmanager
def strangers(server: Server, picture: Path) -> Iterator[None]:
    """A request a second, whatever comes of it."""
    stop = threading.Event()

    def ask() -> None:
        with cutaway.Client(server.grpc_url, retry=ONCE, timeout_s=5) as client:
            while not stop.wait(1.0):
                try:
                    client.cut(picture)
                except CutawayError:
                    continue

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("model", [*NETWORKS, PIPELINE, STREAM, "yolov8_seg_free"])
def test_a_killed_model_process_is_loaded_anew_and_nothing_else(
    model: str, server: Server, said: list[str], samples: list[Path]
) -> None:
    triton, reloads = server.process.pid, server.reloads
    others = [stub for other in (*NETWORKS, PIPELINE, STREAM) if other != model for stub in stubs(server, other)]
    victim = stubs(server, model)[0]
    os.kill(victim.pid, signal.SIGKILL)
    assert wait_for(lambda: server.reloads == reloads + 1), said
    assert said[0] == f"the process of {model} ({victim.pid}) was killed by SIGKILL; loading {model} anew"
    assert said[1].startswith(f"{model} is back after ")
    assert (server.process.pid, server.restarts) == (triton, 0)
    assert not any(is_gone(stub) for stub in others)
    assert len(cut(server, samples[0]).cutouts) == 1


def test_the_death_of_streams_does_not_stop_cutting(server: Server, samples: list[Path]) -> None:
    reloads = server.reloads
    with cutaway.Client(server.grpc_url, retry=ONCE) as client:
        os.kill(stubs(server, STREAM)[0].pid, signal.SIGKILL)
        while server.reloads == reloads:
            assert len(client.cut(samples[0]).cutouts) == 1


@pytest.mark.parametrize(
    ("model", "count"), [(PIPELINE, 2), (PIPELINE, 1), ("birefnet_trt", 1), ("yolov8_seg", 1), (STREAM, 1)]
)
def test_stopped_processes_are_noticed_while_a_request_a_second_comes(
    model: str, count: int, server: Server, said: list[str], samples: list[Path]
) -> None:
    """Every one answered each second with an error counted as life before: 130 s, and longer."""
    victims = stubs(server, model)[:count]
    with strangers(server, samples[0]):
        for victim in victims:
            os.kill(victim.pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        assert wait_for(lambda: any("was stopped (SIGSTOP)" in line for line in said))
        noticed_s = time.monotonic() - stopped_at
        assert wait_for(lambda: any(" back after " in line or "ready again" in line for line in said)), said
    assert noticed_s <= 2 * INTERVAL_S
    assert all(is_gone(victim) for victim in victims)
    assert len(cut(server, samples[0]).cutouts) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_gate_that_ends_or_stops_is_restarted_alone(
    number: signal.Signals, server: Server, said: list[str], samples: list[Path]
) -> None:
    assert server.gate is not None
    triton, url, launches = server.process.pid, server.grpc_url, server.gate.launches
    os.kill(server.gate.pid, number)
    assert wait_for(lambda: server.gate.launches == launches + 1), said  # type: ignore[union-attr]
    what = "ended by itself (was killed by SIGKILL)" if number == signal.SIGKILL else "was stopped (SIGSTOP)"
    assert said[0] == f"the gate {what}; restarting it"
    assert (server.process.pid, server.grpc_url) == (triton, url)
    assert len(cut(server, samples[0]).cutouts) == 1


@pytest.mark.parametrize(
    ("victim", "number", "reason"),
    [
        ("tritonserver", signal.SIGKILL, "Triton ended by itself (was killed by SIGKILL)"),
        ("tritonserver", signal.SIGSTOP, "Triton was stopped (SIGSTOP)"),
        ("keeper", signal.SIGKILL, "Triton ended by itself (its keeper was killed by SIGKILL)"),
    ],
)
def test_a_triton_that_ends_comes_back(
    victim: str, number: signal.Signals, reason: str, server: Server, said: list[str], samples: list[Path]
) -> None:
    restarts, url = server.restarts, server.grpc_url
    pid = server.process.pid if victim == "tritonserver" else server.process._keeper.pid
    # One that cannot notice that Triton is gone: nothing of it may be left all the same.
    os.kill(stubs(server, "yolov8_seg")[0].pid, signal.SIGSTOP)
    os.kill(pid, number)
    assert wait_for(lambda: server.restarts == restarts + 1), said
    assert said[0] == f"{reason}; restarting the server"
    assert server.grpc_url == url
    assert len(cut(server, samples[0]).cutouts) == 1


def test_a_log_of_a_gigabyte_does_not_delay_a_restart(
    server: Server, said: list[str], samples: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut at once, and only its end is read; before, 2.1 GB were read."""
    restarts = server.restarts
    os.truncate(server.log, 2**30)
    assert wait_for(lambda: server.log.stat().st_size < 2**20)
    kept = server.log.with_name("server.log.1")
    assert kept.stat().st_size <= 16 * 2**20
    os.truncate(server.log, 2**30)
    os.kill(server.process.pid, signal.SIGKILL)
    assert wait_for(lambda: server.restarts == restarts + 1), said
    assert len(server.process.log_text()) <= 2**20
    assert len(cut(server, samples[0]).cutouts) == 1


def test_other_users_see_no_pictures_and_connections_are_many(server: Server) -> None:
    assert server._run is not None
    regions = list(SHM.glob(f"{server._run.shm_prefix}*"))
    assert len(regions) >= 6
    for path in (*regions, server.log, server._run.folder, server._run.sockets):
        assert path.stat().st_mode & 0o077 == 0, path
    for pid in (server.process.pid, server.gate.pid):  # type: ignore[union-attr]
        limits = Path(f"/proc/{pid}/limits").read_text()
        soft, hard = next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3:5]
        assert int(soft) == min(int(hard), 2**16)


def test_a_process_beyond_its_budget_is_recycled_between_requests(
    server: Server, said: list[str], samples: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request fails for it: the new process is there before the old one ends."""
    reloads = server.reloads
    region_bytes = []
    over = budgets_module.Budgets.over

    def small(self: budgets_module.Budgets, given: object) -> object:
        self.region_bytes = 6 * 2**20
        region_bytes.append(self.region_bytes)
        return over(self, given)  # type: ignore[arg-type]

    stop, failures = threading.Event(), list[str]()

    def ask() -> None:
        with cutaway.Client(server.grpc_url, retry=ONCE) as client:
            while not stop.is_set():
                try:
                    client.cut(samples[0])
                except CutawayError as error:
                    failures.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        monkeypatch.setattr(budgets_module.Budgets, "over", small)
        assert wait_for(lambda: server.reloads > reloads), said
    finally:
        monkeypatch.undo()
        stop.set()
        thread.join()
    assert "MiB of /dev/shm, of 6 MiB; loading " in said[0]
    assert failures == []


@pytest.mark.parametrize("what", ["memory", "/dev/shm"])
def test_budgets_count_what_stays(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large picture in work is not held against a process."""
    held = {"memory": 100, "/dev/shm": 0}
    monkeypatch.setattr(budgets_module, "own_bytes", lambda _pid: held["memory"] * 2**20)

    class Region:
        def stat(self) -> os.stat_result:
            return os.stat_result((0,) * 10, {"st_blocks": held["/dev/shm"] * 2**11})

    monkeypatch.setattr(budgets_module, "regions_of", lambda *_: [Region()])
    now = [100.0]
    stub = Stub(1, 1, PIPELINE)
    budgets = budgets_module.Budgets([stub], "prefix", 1024, clock=lambda: now[0])
    budgets.growth_bytes = budgets.region_bytes = 2**30

    def looks(count: int) -> list[bool]:
        found = []
        for _ in range(count):
            now[0] += 1.0
            found.append(budgets.over([stub]) is not None)
        return found

    assert looks(3) == [False] * 3
    held[what] += 2000
    assert looks(2) == [False] * 2
    held[what] -= 2000
    assert looks(3) == [False] * 3
    held[what] += 2000
    assert looks(4) == [False, False, True, False]  # once is enough for a while


BLOCKED = """
import ctypes, os, time

if ctypes.CDLL(None).vfork() == 0:  # its parent is in state D until it ends
    time.sleep(300)
    os._exit(0)
"""


def test_a_process_that_hangs_in_the_kernel_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "BLOCKED_S", 0.3)
    with subprocess.Popen([sys.executable, "-c", BLOCKED], start_new_session=True) as blocked:
        try:
            assert wait_for(lambda: (found := stat(blocked.pid)) is not None and found.state == "D")
            ticks = stat(blocked.pid).start_ticks  # type: ignore[union-attr]
            launcher: Any = SimpleNamespace(stubs=[Stub(blocked.pid, ticks, "a_model")], kill=Launcher.kill)
            unwritten = Metrics(tmp_path / "metrics", ())
            supervisor = Supervisor(
                launcher,
                None,
                unwritten,
                canary_interval_s=1,
                canary_timeout_s=1,
                stopping=threading.Event(),
                say=print,
            )
            assert supervisor._broken_models() == {}
            assert wait_for(supervisor._broken_models)
            assert wait_for(lambda: blocked.poll() is not None)
        finally:
            os.killpg(blocked.pid, signal.SIGKILL)


def test_waiting_grows_to_a_cap_and_is_forgotten() -> None:
    now = 0.0
    backoff = Backoff(lambda: now)
    assert tuple(backoff.next_s("x") for _ in BACKOFF_S) == BACKOFF_S
    assert [backoff.next_s("x") for _ in range(50)] == [BACKOFF_S[-1]] * 50
    assert backoff.next_s("y") == 0.0
    now += WINDOW_S + BACKOFF_S[-1]
    assert backoff.next_s("x") == 0.0


def test_it_is_never_given_up(
    server: Server, said: list[str], samples: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six deaths of Triton in a row; the sixth ended the server before."""
    monkeypatch.setattr(supervision, "BACKOFF_S", (0.0,))
    for _ in range(6):
        restarts = server.restarts
        os.kill(server.process.pid, signal.SIGKILL)
        assert wait_for(lambda: server.restarts == restarts + 1), said  # noqa: B023
    assert server.failure is None
    assert len(cut(server, samples[0]).cutouts) == 1


def test_changed_weights_are_never_served(
    tmp_path: Path, samples: list[Path], monkeypatch: pytest.MonkeyPatch, weights_copy: Callable[[], Path]
) -> None:
    """Whatever dies meanwhile, nothing runs but the file whose digest is reported; restored, it is served again."""
    weights, said = weights_copy(), list[str]()
    options = ServerOptions(cache_dir=tmp_path / "cache", instances=1, weights=weights, canary_interval_s=INTERVAL_S)
    monkeypatch.setattr(supervision, "BACKOFF_S", (0.5,))
    with Server(options, say=said.append) as server:
        file = load_networks(weights, int8=has_vnni())["birefnet_trt"].path
        right = file.read_bytes()
        file.write_bytes(right + b"\0")
        os.kill(stubs(server, "birefnet_trt")[0].pid, signal.SIGKILL)
        assert wait_for(lambda: any("has changed since the server was started" in line for line in said)), said
        file.write_bytes(right)
        assert wait_for(lambda: "ready again" in said[-1] or "is back" in said[-1]), said
        assert len(cut(server, samples[0]).cutouts) == 1
