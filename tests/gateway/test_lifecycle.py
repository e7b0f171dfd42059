"""The gate's life: callers that leave, Triton away and back, draining, and who is let in."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
from cutaway import Client
from cutaway.contract.errors import ServerUnavailable

from runtime.server import Server, ServerOptions
from tests.gateway.conftest import triton_of
from tests.gateway.gates import LIMIT_S, PIPELINE, GateProcess, gate_before
from tests.integration import levers
from tests.runtime.leftovers import wait_for

pytestmark = pytest.mark.triton

AWAY = {"http": "127.0.0.1:9", "grpc": "127.0.0.1:9", "metrics": "127.0.0.1:9"}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Triton whose pipeline takes as long as a request's id says."""
    folder = tmp_path_factory.mktemp("levers")
    options = ServerOptions(source=levers.repository(folder / "repository"), cache_dir=folder, instances=2)
    with Server(options) as running:
        yield running


def body_of(picture: bytes, request_id: str) -> dict[str, Any]:
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(picture) + 4}}
    asked = {"id": request_id, "inputs": [image], "parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    content = head + len(picture).to_bytes(4, "little") + picture
    return {"content": content, "headers": {"Inference-Header-Content-Length": str(len(head))}}


# ------------------------------------------------------------------------------------------------ who leaves


def test_who_leaves_over_http(slow: Server, samples: list[Path]) -> None:
    with gate_before(triton_of(slow)) as gate:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{gate.http_url}/v2/models/{PIPELINE}/infer",
                timeout=2,
                **body_of(samples[0].read_bytes(), "slow-60-http"),
            )
        assert wait_for(lambda: levers.gave_up(slow, "slow-60-http"), LIMIT_S)
        cancelled = f'cutaway_gateway_requests_total{{code="CANCELLED",model="{PIPELINE}",protocol="http"}}'
        assert gate.metric(cancelled) == 1
        assert gate.metric("cutaway_gateway_bytes_in_flight") == 0


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_who_leaves_over_grpc(how: str, slow: Server, samples: list[Path]) -> None:
    image = tritonclient.grpc.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([samples[0].read_bytes()], np.object_))
    request_id, over = f"slow-60-{how}", threading.Event()
    with gate_before(triton_of(slow)) as gate, tritonclient.grpc.InferenceServerClient(gate.grpc_address) as client:
        timeout_s = 2 if how == "deadline" else None
        call = client.async_infer(
            PIPELINE, [image], lambda result, error: over.set(), request_id=request_id, client_timeout=timeout_s
        )
        assert wait_for(lambda: levers.began(slow, request_id), LIMIT_S)
        if how == "cancel":
            call.cancel()
        assert over.wait(LIMIT_S)
        assert wait_for(lambda: levers.gave_up(slow, request_id), LIMIT_S)
        assert wait_for(lambda: gate.metric("cutaway_gateway_requests_in_flight") == 0, LIMIT_S)


def test_what_takes_too_long(slow: Server, samples: list[Path]) -> None:
    with gate_before(triton_of(slow), "--request-timeout-s", "2") as gate:
        response = gate.infer(**body_of(samples[0].read_bytes(), "slow-60-long"))
        assert response.status_code == 503
        assert json.loads(response.json()["error"])["code"] == "PROCESSING_TIMEOUT"
        assert wait_for(lambda: levers.gave_up(slow, "slow-60-long"), LIMIT_S)


# --------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_draining(protocol: str, slow: Server, samples: list[Path]) -> None:
    """A request in flight ends well; meanwhile the gate is not ready and takes no other."""
    picture, request_id = samples[0].read_bytes(), f"slow-4-drain-{protocol}"
    with gate_before(triton_of(slow)) as gate, ThreadPoolExecutor(1) as pool:
        url = gate.http_url if protocol == "http" else gate.grpc_url
        with Client(url) as client, Client(url) as other:
            call = pool.submit(client.cut, picture, request_id=request_id)
            assert wait_for(lambda: levers.began(slow, request_id), LIMIT_S)
            gate.process.send_signal(signal.SIGTERM)
            ready = f"{gate.http_url}/v2/health/ready"
            assert wait_for(lambda: httpx.get(ready).status_code == 503, LIMIT_S)
            with pytest.raises(ServerUnavailable, match="shutting down"):
                other.cut(picture, timeout_s=2)
            assert httpx.get(f"{gate.http_url}/v2/health/live").status_code == 200
            assert call.result(LIMIT_S).images
        assert gate.process.wait(LIMIT_S) == 0


def test_triton_away() -> None:
    with gate_before(AWAY) as gate:
        ready = httpx.get(f"{gate.http_url}/v2/health/ready")
        for response, retry_after in ((gate.cut(b"x"), "4"), (ready, "1")):  # a restart takes as long as the longer one
            assert response.status_code == 503
            assert response.headers["Retry-After"] == retry_after
            assert json.loads(response.json()["error"])["code"] == "UNAVAILABLE"
        with tritonclient.grpc.InferenceServerClient(gate.grpc_address) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
        assert gate.metric("cutaway_gateway_triton_reachable") == 0
        gate.process.terminate()
        assert gate.process.wait(LIMIT_S) == 0


def test_triton_back(triton: dict[str, str], samples: list[Path], tmp_path: Path) -> None:
    """The same gate serves again when Triton does."""
    options = ServerOptions(cache_dir=tmp_path, instances=1)
    with Server(options) as server, gate_before(triton_of(server)) as gate:
        picture = samples[0].read_bytes()
        assert gate.cut(picture).status_code == 200
        server.process.stop(force=True)
        assert wait_for(lambda: server.restarts == 1, LIMIT_S)
        assert wait_for(lambda: gate.cut(picture).status_code == 200, LIMIT_S)


def test_a_taken_port(triton: dict[str, str], gate: GateProcess) -> None:
    addresses = [word for name, address in triton.items() for word in (f"--triton-{name}", address)]
    for port in (f"--http-port={gate.http}", f"--grpc-port={gate.grpc}"):
        from gateway.__main__ import main  # the same as the process runs

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "sys.argv", ["gateway", "--metrics-port=0", "--http-port=0", "--grpc-port=0", port, *addresses]
            )
            assert main() == 1


# ---------------------------------------------------------------------------------------------------- access


HOSTS = {"localhost": 200, "127.0.0.1": 200, "[::1]:8000": 200, "server": 200, "rebound.example": 403, "a.b:80": 403}


@pytest.mark.parametrize("host", HOSTS)
def test_names_of_the_host(host: str, gate: GateProcess) -> None:
    response = httpx.get(f"{gate.http_url}/v2", headers={"Host": host})
    assert response.status_code == HOSTS[host]


def test_names_and_origins_by_setting(triton: dict[str, str], samples: list[Path]) -> None:
    page = {"Origin": "https://app.example"}
    asked = {**page, "Access-Control-Request-Method": "POST"}
    with gate_before(triton, "--hosts", "cut.example", "--origins", "https://app.example") as gate:
        infer = f"{gate.http_url}/v2/models/{PIPELINE}/infer"
        assert httpx.get(f"{gate.http_url}/v2", headers={"Host": "cut.example"}).status_code == 200
        allowed = httpx.options(infer, headers=asked)
        assert allowed.status_code == 204
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        headers = {**page, "Inference-Header-Content-Length": "0"}
        answer = gate.infer(content=samples[0].read_bytes(), headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        foreign = {**asked, "Origin": "https://other.example"}
        assert httpx.options(infer, headers=foreign).status_code == 403
        assert gate.infer(content=b"{}", headers={"Origin": "https://other.example"}).status_code == 403


def test_places_of_one_caller(slow: Server, samples: list[Path]) -> None:
    picture = samples[0].read_bytes()
    with gate_before(triton_of(slow), "--max-requests-per-caller", "1") as gate, ThreadPoolExecutor(1) as pool:
        call = pool.submit(gate.infer, **body_of(picture, "slow-3-caller"))
        assert wait_for(lambda: levers.began(slow, "slow-3-caller"), LIMIT_S)
        response = gate.cut(picture)
        assert response.status_code == 503
        assert json.loads(response.json()["error"])["code"] == "OVERLOADED"
        with grpc.insecure_channel(gate.grpc_address) as channel, pytest.raises(grpc.RpcError) as refusal:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"", timeout=LIMIT_S)
        assert refusal.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)
        assert call.result(LIMIT_S).status_code == 200
