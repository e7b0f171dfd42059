"""Two replicas behind a real HAProxy with the project's file: nothing is lost while one hangs, ends, or is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator

import httpx
import pytest
from cutaway import Stream

from benchmarks.fleet import CONFIGURATION, Balancer, Replica, haproxy
from benchmarks.replicas import SDK, Fleet, Load, answers
from loadtest import pictures
from runtime.checks import RuntimeProblem
from tests.runtime.leftovers import wait_for

pytestmark = pytest.mark.triton

LIMIT_S = 120.0
FRAMES = re.compile(
    r'^cutaway_gateway_requests_total\{code="OK",model="stream_pipeline",protocol="\w+"\} ([0-9.]+)$', re.MULTILINE
)

SESSIONS = re.compile(r'^haproxy_server_current_sessions\{proxy="\w+",server="replica1"\} ([0-9.]+)$', re.MULTILINE)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    try:
        haproxy()
    except RuntimeProblem as problem:
        assert not os.environ.get("CI"), "CI installs haproxy"
        pytest.skip(str(problem))
    folder = tmp_path_factory.mktemp("fleet")
    replicas = [Replica(folder, number) for number in (1, 2)]
    try:
        for each in replicas:
            each.start()
        for each in replicas:
            each.wait_ready()
        with Balancer(folder, replicas) as balancer:
            balancer.wait_up(2)
            yield Fleet(replicas, folder, balancer)
    finally:
        for each in replicas:
            each.kill()


@pytest.fixture(scope="module")
def expected(fleet: Fleet) -> dict[tuple[str, int], object]:
    return answers(fleet.replicas[1].ports)


@pytest.fixture
def load(fleet: Fleet, expected: dict[tuple[str, int], object]) -> Iterator[Load]:
    """Callers, who have been served when the test begins; whether they went on to be is for it to say."""
    with Load(fleet.balancer, expected) as load:
        assert wait_for(lambda: served(load, 4), LIMIT_S)
        yield load
        goes_on = len(load.right)
        assert wait_for(lambda: served(load, goes_on + 6), LIMIT_S)
    assert load.right
    assert not [reason for who, reason in load.lost if who == SDK]


def served(load: Load, count: int) -> bool:
    return len(load.right) + len(load.lost) >= count


def test_the_file_is_valid() -> None:
    """As it stands in the repository, where the replicas' names mean nothing."""
    try:
        program = haproxy()
    except RuntimeProblem as problem:
        pytest.skip(str(problem))
    found = subprocess.run([program, "-c", "-dr", "-f", CONFIGURATION], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert not [line for line in found.stderr.splitlines() if "WARNING" in line and "could not resolve" not in line]


def waiting(fleet: Fleet) -> float:
    """Requests that HAProxy has with the first replica."""
    text = httpx.get(f"http://127.0.0.1:{fleet.balancer.ports['8404']}/metrics").text
    return sum(map(float, SESSIONS.findall(text)))


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_stream_stays_with_one_replica(scheme: str, fleet: Fleet) -> None:
    def frames() -> list[float]:
        """So many each replica has served."""
        texts = [httpx.get(f"http://127.0.0.1:{each.ports['metrics']}/metrics").text for each in fleet.replicas]
        return [sum(map(float, FRAMES.findall(text))) for text in texts]

    url, log = fleet.balancer.urls[scheme], fleet.balancer.file.with_suffix(".log")
    for _ in range(3):  # where a busy machine costs a replica its place, streams move
        before, lines = frames(), log.read_text().count(" is DOWN")
        with Stream(url, timeout_s=LIMIT_S) as one, Stream(url, timeout_s=LIMIT_S) as other:
            for number in range(8):
                for stream in (one, other):
                    stream.submit(pictures.frame(number))
                    done = stream.latest(timeout_s=LIMIT_S)
                    assert done is not None
                    assert not done.untouched, done.error
            served = [after - first for after, first in zip(frames(), before, strict=True)]
        if log.read_text().count(" is DOWN") == lines:
            break
        fleet.balancer.wait_up(2)
    assert sorted(served) in ([0, 16], [8, 8])


def test_one_that_hangs(fleet: Fleet, load: Load) -> None:
    hung = fleet.replicas[0]
    hung.send(signal.SIGSTOP)
    try:
        assert wait_for(lambda: fleet.balancer.up() == 1, LIMIT_S)
        assert wait_for(lambda: waiting(fleet) == 0, 30.0)  # nobody waits for it until it goes on
    finally:
        hung.send(signal.SIGCONT)
    fleet.balancer.wait_up(2)


def test_all_replaced_one_after_the_other(fleet: Fleet, load: Load) -> None:
    """Who does not send again loses nothing, either."""
    for each in fleet.replicas:
        each.end()
        fleet.again(each)
    assert not load.lost


def test_one_that_is_killed(fleet: Fleet, load: Load) -> None:
    fleet.replicas[0].kill()
    assert wait_for(lambda: fleet.balancer.up() == 1, LIMIT_S)
    fleet.again()
