"""Servers die under their callers: these learn it at once and what it is, or go on where they can.

With Client and AsyncClient, over gRPC and HTTP, against one real server whose processes are killed. First its
supervisor restarts it, then the test does, and in the end nobody does.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cutaway
import pytest
from cutaway.contract import limits
from cutaway.contract.errors import InferenceError, NoPersonDetected, ServerRefused, ServerUnavailable, ServiceError
from cutaway.resilience import CircuitBreaker, RetryPolicy

from runtime.compose import PIPELINE, STREAM
from runtime.launcher import Launcher
from runtime.process import TritonProcess
from runtime.server import Server, ServerOptions
from tests.client.driving import DRIVERS, Driven, driven
from tests.client.hosted.asking import hub
from tests.client.hosted.peers import HubScript, Peer, mask, png
from tests.integration import levers
from tests.integration import picture_files as make
from tests.runtime.leftovers import assert_nothing_left, wait_for

pytestmark = pytest.mark.triton

SCHEMES = ("grpc", "http")
WAYS = [(driver, scheme) for driver in DRIVERS for scheme in SCHEMES]
NETWORKS = ("birefnet_trt", "yolov8_seg")
INSTANCES = 2
NEVER_S = 3600.0
BUSY_S = 30.0
"""So long is waited for what takes a few seconds at most on a machine that has nothing else to do."""
AT_ONCE_S = 3.0
ONCE = RetryPolicy(retries=0)
PATIENT = RetryPolicy(retries=5, jitter=0.0)
"""Outlasts a restart."""


class Mortal:
    """A server that can be killed for good, and started again at the same ports."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self.urls: dict[str, str] = {}
        self._server: Server | None = None

    def alive(self) -> Server:
        """It runs."""
        if self._server is None:
            self._server = Server(self._options)
            self._server.start()
            self.urls = {scheme: url_of(self._server, scheme) for scheme in SCHEMES}
            http, grpc = (int(self.urls[scheme].rpartition(":")[2]) for scheme in ("http", "grpc"))
            self._options = replace(self._options, http_port=http, grpc_port=grpc)
        return self._server

    def dead(self) -> None:
        """Nothing runs at its addresses."""
        if self._server is not None:
            self.kill()

    def kill(self, model: str | None = None) -> None:
        """Kill all of it, or the processes of one model, and nobody comes to restart it."""
        server = self.alive()
        server.stop_supervision()
        for pid in victims_of(server, model):
            os.kill(pid, signal.SIGKILL)
        if model is None:
            self.stop()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


def victims_of(server: Server, model: str | None) -> list[int]:
    """The id of Triton's process, or those of a model's."""
    if model is None:
        return [server.process.pid]
    return [stub.pid for stub in server.process.stubs() if stub.model == model]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> ServerOptions:
    folder = tmp_path_factory.mktemp("mortal")
    return ServerOptions(
        cache_dir=folder / "cache",
        source=levers.repository(folder / "repository"),
        instances=INSTANCES,
        canary_interval_s=NEVER_S,
    )


@pytest.fixture(scope="module")
def mortal(options: ServerOptions) -> Iterator[Mortal]:
    mortal = Mortal(options)
    yield mortal
    mortal.stop()
    assert options.cache_dir is not None
    assert_nothing_left(options.cache_dir, seconds=5)  # killed ones may be about to end


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """A hosted model that would cut anything out of a picture of 512×512 pixels."""
    for name in ("HUGGINGFACE_TOKEN", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with Peer(HubScript(png(mask((512, 512))))) as peer:
        yield peer


@pytest.fixture(scope="module")
def photo(samples: list[Path]) -> Path:
    return next(sample for sample in samples if sample.stem == "astronaut")


def url_of(server: Server, scheme: str) -> str:
    return server.grpc_url if scheme == "grpc" else server.http_url


# ------------------------------------------------------------------------------------------- killed and restarted


@pytest.mark.parametrize("victim", [None, PIPELINE], ids=["triton", "pipeline"])
def test_killed_while_requests_run(victim: str | None, mortal: Mortal, hosted: Peer, photo: Path) -> None:
    """All ways at once: who does not repeat is told at once, who does is served after the restart.

    Who has a fallback is served there. The clients that were told work after the restart, too.
    """
    server = mortal.alive()
    restarts, moment = server.restarts, Future[float]()
    codes = {"UNAVAILABLE"} if victim is None else {"UNAVAILABLE", "INFERENCE_ERROR"}

    def impatient(driver: str, scheme: str) -> float:
        with driven(driver, url_of(server, scheme), retry=ONCE) as client:
            with pytest.raises(ServiceError) as caught:
                client.cut(photo, request_id=f"slow-29-{victim}-{driver}-{scheme}")
            told_s = time.monotonic() - moment.result(BUSY_S)
            assert caught.value.retry
            assert caught.value.details["requests"] == 1
            assert caught.value.code in codes
            assert wait_for(lambda: server.restarts > restarts, BUSY_S)
            assert len(client.cut(photo).cutouts) == 1
            return told_s

    def patient(driver: str, scheme: str) -> None:
        with driven(driver, url_of(server, scheme), retry=PATIENT, timeout_s=60) as client:
            result = client.cut(photo)
        assert len(result.cutouts) == 1
        assert (result.provider, result.tier, result.tried) == ("triton", 1, ())
        assert 2 <= result.requests <= 1 + PATIENT.retries

    def insured(driver: str, scheme: str) -> None:
        with driven(driver, url_of(server, scheme), retry=ONCE, fallback=[hub(hosted)]) as client:
            result = client.cut(photo, request_id=f"slow-29-{driver}-{scheme}-insured")
        assert (result.provider, result.tier) == ("huggingface", 2)
        assert [(each.provider, each.tier) for each in result.tried] == [("triton", 1)]
        assert result.tried[0].code in codes

    callers: list[Callable[[str, str], float | None]] = [impatient, patient, insured]
    with ThreadPoolExecutor(len(callers) * len(WAYS)) as pool:
        try:
            calls: list[Future[Any]] = []
            for place, each in enumerate(callers, 1):
                calls += [pool.submit(each, *way) for way in WAYS]
                assert wait_for(lambda: levers.pending(server) == place * len(WAYS) - INSTANCES, BUSY_S)  # noqa: B023
            for pid in victims_of(server, victim):
                os.kill(pid, signal.SIGKILL)
        finally:
            moment.set_result(time.monotonic())
        for call in calls:
            told_s = call.result(2 * BUSY_S)
            assert told_s is None or told_s < AT_ONCE_S
    assert server.restarts == restarts + 1
    assert len(hosted.received) == len(WAYS)


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_a_picture_of_nobody_never_falls_through(driver: str, scheme: str, mortal: Mortal, hosted: Peer) -> None:
    with driven(driver, url_of(mortal.alive(), scheme), fallback=[hub(hosted)]) as client:
        with pytest.raises(NoPersonDetected) as caught:
            client.cut(make.picture(512, 512))
        assert caught.value.details["requests"] == 1
        assert client.cut(make.picture(512, 512), subject="all").provider == "triton"
    assert hosted.received == []


# ---------------------------------------------------------------------------------------------- one of two is killed


def test_one_of_two_is_killed(
    mortal: Mortal, options: ServerOptions, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ways: calls go on at the other, the dead one soon rests, and is asked again when it is back."""
    passed_s = 0.0
    defaults = CircuitBreaker.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "clock", lambda: time.monotonic() + passed_s)
    picture = make.saved(make.picture(), "PNG")
    server, other = mortal.alive(), stack.enter_context(Server(options))
    clients: list[tuple[Driven, str, str]] = []
    for driver, scheme in WAYS:
        mine, theirs = url_of(server, scheme), url_of(other, scheme)
        clients.append((stack.enter_context(driven(driver, [mine, theirs])), mine, theirs))

    def cut(client: Driven) -> cutaway.CutResult:
        result = client.cut(picture, request_id="echo-pair")
        assert result.images == [picture]
        return result

    for client, mine, theirs in clients:
        assert {cut(client).origin.url for _ in range(4)} == {mine, theirs}
    mortal.kill()
    for client, _, theirs in clients:
        failing = [cut(client) for _ in range(2 * limits.BREAKER_FAIL_MAX)]
        assert {result.origin.url for result in failing} == {theirs}
        assert Counter(result.requests for result in failing) == {
            1: limits.BREAKER_FAIL_MAX,
            2: limits.BREAKER_FAIL_MAX,
        }
        resting = [cut(client) for _ in range(4)]
        assert {(result.origin.url, result.requests) for result in resting} == {(theirs, 1)}
        health = client.health()
        assert health.ok
        assert [each.ok for each in health.servers] == [False, True]
        assert {model.state for model in client.models()} == {"READY"}
    mortal.alive()
    for client, _, theirs in clients:
        assert {cut(client).origin.url for _ in range(2)} == {theirs}
        # gRPC connects anew within two seconds.
        assert wait_for(lambda: all(each.ok for each in client.health().servers), BUSY_S)  # noqa: B023
    passed_s = limits.BREAKER_RESET_S
    for client, mine, theirs in clients:
        assert {cut(client).origin.url for _ in range(4)} == {mine, theirs}


# ------------------------------------------------------------------------------------------------- nobody restarts it


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_all_is_well(driver: str, scheme: str, mortal: Mortal) -> None:
    with driven(driver, url_of(mortal.alive(), scheme)) as client:
        health, models = client.health(), client.models()
    assert health.ok
    assert (health.server_ready, health.model_ready, health.error) == (True, True, None)
    assert health.profile == "nano"
    assert {(model.name, model.state, model.versions) for model in models} == {
        (name, "READY", ("1",)) for name in (PIPELINE, *NETWORKS)
    }


def test_a_dead_process_in_a_ready_server(mortal: Mortal) -> None:
    """Triton calls a pipeline ready whose process is gone, and needs a second for every call to find out."""
    mortal.kill(PIPELINE)
    server = mortal.alive()

    def look(driver: str, scheme: str) -> None:
        with driven(driver, url_of(server, scheme), retry=ONCE) as client:
            health = client.health()
            assert not health.ok
            assert (health.server_ready, health.model_ready) == (True, True)
            assert isinstance(health.error, InferenceError)
            assert {model.state for model in client.models()} == {"READY"}
            with pytest.raises(InferenceError) as caught:
                client.cut(make.picture())
            assert caught.value.retry

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(look, *way) for way in (WAYS[0], WAYS[-1])]:
            done.result(BUSY_S)
    mortal.stop()


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_dead(driver: str, scheme: str, mortal: Mortal, hosted: Peer, photo: Path) -> None:
    if not mortal.urls:
        mortal.alive()
    mortal.dead()
    url = mortal.urls[scheme]
    with driven(driver, url, retry=ONCE) as client:
        begun = time.monotonic()
        with pytest.raises(ServerUnavailable) as caught:
            client.cut(photo)
        assert type(caught.value) is ServerUnavailable
        assert caught.value.retry
        with pytest.raises(ServerUnavailable):
            client.models()
        health = client.health()
        assert time.monotonic() - begun < AT_ONCE_S
    assert (health.ok, health.server_ready, health.model_ready) == (False, False, False)
    assert type(health.error) is ServerUnavailable
    with driven(driver, url, retry=ONCE, fallback=[hub(hosted)]) as client:
        result = client.cut(photo)
    assert (result.provider, result.tier, result.origin.url) == ("huggingface", 2, "")
    assert [(each.provider, each.tier, each.code) for each in result.tried] == [("triton", 1, "UNAVAILABLE")]


# -------------------------------------------------------------------------------------------------- another's server


class WithoutPipeline(Launcher):
    def launch(self) -> None:
        for name in (PIPELINE, STREAM):
            shutil.rmtree(self.run.repository / name)
        super().launch()

    def _wait_ready(self, process: TritonProcess) -> None:
        assert wait_for(lambda: self.probe.ready() or process.exit_status() is not None, BUSY_S)
        self.stubs = process.stubs()


class Another(Server):
    """A Triton with the networks and without a pipeline, and without a gate: somebody else's."""

    launcher_type = WithoutPipeline


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("another")
    with Another(ServerOptions(cache_dir=folder, canary_interval_s=NEVER_S, direct=True)) as server:
        yield server
    assert_nothing_left(folder, seconds=5)


@pytest.mark.parametrize(("driver", "scheme"), WAYS)
def test_a_server_without_the_pipeline(driver: str, scheme: str, another: Any, hosted: Peer, photo: Path) -> None:
    """That is no use repeating: the default policy would."""
    url = url_of(another, scheme)
    with driven(driver, url) as client:
        for ask in (client.cut, client.detect):
            with pytest.raises(ServerRefused) as caught:
                ask(photo)
            assert not caught.value.retry
            assert caught.value.code == "UNAVAILABLE"
            assert caught.value.details["requests"] == 1
            assert "serves no such model" in caught.value.message
        assert {(model.name, model.state) for model in client.models()} == {
            (PIPELINE, "NOT_FOUND"),
            *((name, "READY") for name in NETWORKS),
        }
        health = client.health()
        assert (health.ok, health.server_ready, health.model_ready) == (False, True, False)
        assert type(health.error) is ServerUnavailable
    with driven(driver, url, fallback=[hub(hosted)]) as client:
        assert client.cut(photo).tier == 2
