"""A server is ready when a picture went through, serves side by side with others, and ends without a trace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cutaway
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from runtime import launcher, runs
from runtime.checks import RuntimeProblem
from runtime.server import Server, ServerOptions
from tests.integration.levers import pending
from tests.runtime.leftovers import GONE_S, assert_nothing_left, processes_of, wait_for

pytestmark = pytest.mark.triton

SILENT = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([], pb_utils.TritonError("out of order")) for _ in requests]
"""

DEAD = """
class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("the lens is missing")

    def execute(self, requests):
        return []
"""

GATED = """
import time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        while not Path("{gate}").exists():
            time.sleep(0.01)
        text = np.array([b"{{}}"], np.object_)
        tensors = [
            pb_utils.Tensor("images", text),
            pb_utils.Tensor("boxes", np.zeros((0, 4), np.float32)),
            pb_utils.Tensor("scores", np.zeros(0, np.float32)),
            pb_utils.Tensor("report", text),
        ]
        with open("{gate}", "a") as file:
            file.write("picture\\n" * len(requests))
        return [pb_utils.InferenceResponse(tensors) for _ in requests]
"""
"""Answers once the file `gate` is there, and writes a line into it before each answer."""


@pytest.fixture
def lines() -> list[str]:
    """What the server says."""
    return []


@pytest.fixture
def running(tmp_path: Path, lines: list[str]) -> Iterator[Server]:
    """A server to be harmed."""
    with Server(ServerOptions(cache_dir=tmp_path / "cache", instances=1), say=lines.append) as server:
        yield server
    assert_nothing_left(tmp_path / "cache", seconds=GONE_S)  # killed ones may be about to end


def cut(server: Server, picture: Path) -> cutaway.CutResult:
    with cutaway.Client(server.grpc_url) as client:
        return client.cut(picture)


def test_not_ready_while_the_pipeline_fails(tmp_path: Path, broken_repository: Callable[[str], Path]) -> None:
    """Triton's own readiness is fine with this repository; only a picture tells."""
    options = ServerOptions(cache_dir=tmp_path / "cache", source=broken_repository(SILENT))
    with pytest.raises(RuntimeProblem) as problem:
        Server(options).start()
    assert "the first picture failed: out of order; see " in str(problem.value)
    assert_nothing_left(tmp_path / "cache")


def test_not_ready_before_all_canaries_are_answered(tmp_path: Path, broken_repository: Callable[[str], Path]) -> None:
    """One goes through detection, and one through each kind of matting."""
    gate = tmp_path / "gate"
    options = ServerOptions(cache_dir=tmp_path / "cache", source=broken_repository(GATED.format(gate=gate)))
    server = Server(options)
    starting = threading.Thread(target=server.start)
    starting.start()
    try:
        assert wait_for(lambda: server.probe.ready()), "Triton is not ready"
        assert starting.is_alive(), "it was ready before a picture was answered"
        gate.touch()
        starting.join(GONE_S)
        assert gate.read_text() == "picture\n" * 3
    finally:
        gate.touch()
        starting.join()
        server.stop()


def test_model_that_cannot_start(tmp_path: Path, broken_repository: Callable[[str], Path]) -> None:
    options = ServerOptions(cache_dir=tmp_path / "cache", source=broken_repository(DEAD))
    with pytest.raises(RuntimeProblem) as problem:
        Server(options).start()
    text = str(problem.value)
    assert "Triton ended while starting" in text
    assert "the lens is missing" in text
    assert "\n" not in text
    assert_nothing_left(tmp_path / "cache")


def test_a_model_process_that_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where Python itself cannot start in it: Triton waits for it for ever, and the server says so in a line."""
    stub = tmp_path / "stub.sh"
    stub.write_text("#!/bin/sh\necho the lens is missing >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setattr(runs, "MODEL_PROCESS", stub)
    monkeypatch.setattr(launcher, "START_PROGRESS_INTERVAL_S", 0.5)
    with pytest.raises(RuntimeProblem, match="a model's process ended while starting: the lens is missing; see "):
        Server(ServerOptions(cache_dir=tmp_path / "cache")).start()
    assert_nothing_left(tmp_path / "cache")


def test_overload_is_refused_and_is_not_death(tmp_path: Path, samples: list[Path]) -> None:
    """A queue of two, ten callers: some are refused at once with OVERLOADED, the others served, nothing restarted."""
    options = ServerOptions(cache_dir=tmp_path / "cache", instances=1, queue_size=2, canary_interval_s=0.3)
    with Server(options) as server, cutaway.Client(server.grpc_url) as client:

        def one(_: int) -> str:
            try:
                client.cut(samples[0])
            except cutaway.Overloaded:
                return "refused"
            return "served"

        with ThreadPoolExecutor(10) as pool:
            outcomes = list(pool.map(one, range(20)))
        assert set(outcomes) == {"refused", "served"}
        assert server.restarts == 0


def test_waiting_request_is_given_up_after_its_own_timeout(
    tmp_path: Path, samples: list[Path], broken_repository: Callable[[str], Path]
) -> None:
    """The queue's default timeout makes Triton heed the caller's shorter one."""
    gate = tmp_path / "gate"
    gate.touch()
    data = np.array([samples[0].read_bytes()], np.object_)

    def infer(timeout_us: int | None) -> str:
        with tritonclient.http.InferenceServerClient(server.http_address) as client:
            image = tritonclient.http.InferInput("image", [1], "BYTES")
            image.set_data_from_numpy(data)
            try:
                client.infer("ensemble_pipeline", [image], timeout=timeout_us)
            except InferenceServerException as error:
                return str(error.message())
            return "served"

    source = broken_repository(GATED.format(gate=gate))
    options = ServerOptions(
        cache_dir=tmp_path / "cache", instances=1, source=source, canary_interval_s=3600.0, direct=True
    )
    with Server(options) as server, ThreadPoolExecutor(3) as pool:
        gate.unlink()
        try:
            patient = [pool.submit(infer, None) for _ in range(2)]
            assert wait_for(lambda: pending(server) == 1)
            hasty = pool.submit(infer, 10_000)
            assert wait_for(lambda: hasty.done() or pending(server) == 2)
            time.sleep(0.05)  # longer than its timeout
        finally:
            gate.touch()
        assert "Request timeout expired" in hasty.result()
        assert [future.result() for future in patient] == ["served", "served"]


def test_two_servers_side_by_side(tmp_path: Path, samples: list[Path]) -> None:
    """Different options, one cache folder: both serve, and the end of one does not touch the other."""
    options = [ServerOptions(cache_dir=tmp_path / "cache", instances=count, threads=1) for count in (1, 2)]
    with Server(options[0]) as one:
        with Server(options[1]) as other:
            assert len({one.http_url, one.grpc_url, other.http_url, other.grpc_url}) == 4
            assert len(one.process.stubs()) == 6
            assert len(other.process.stubs()) == 7
            assert cut(one, samples[0]).images == cut(other, samples[0]).images
        assert len(cut(one, samples[0]).cutouts) == 1
        assert one.restarts == 0
        assert processes_of(tmp_path / "cache")
    assert_nothing_left(tmp_path / "cache")


def test_dangerous_apis_are_closed(tmp_path: Path) -> None:
    """Nobody registers shared memory, unloads models or turns the log up, also where no gate stands in front."""
    options = ServerOptions(cache_dir=tmp_path / "cache", instances=1, direct=True)
    lines: list[str] = []
    with (
        Server(options, say=lines.append) as server,
        tritonclient.http.InferenceServerClient(server.http_address) as client,
    ):
        assert any(line.startswith("warning: direct: there is no gate") for line in lines)
        assert client.is_model_ready("ensemble_pipeline")
        for call in (
            lambda: client.register_system_shared_memory("mine", "/mine", 64),
            lambda: client.unload_model("birefnet_trt"),
            lambda: client.update_log_settings({"log_verbose_level": 4}),
        ):
            with pytest.raises(InferenceServerException, match="403"):
                call()
        words = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().decode().split("\0")
        keys = {word.rpartition(":")[2].partition("=")[0] for word in words if "restricted" in word}
        # No header can have such a name: there is no key that could be read from the process list and sent.
        assert keys == {"\r\n\x7f"}
