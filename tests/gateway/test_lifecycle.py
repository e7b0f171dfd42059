"""The gate's life: callers that leave, Triton away and back, draining, and who is let in."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc
from cutaway import Client, Stream
from cutaway.contract.errors import ServerUnavailable

from runtime.server import Server, ServerOptions
from tests.gateway.conftest import triton_of
from tests.gateway.gates import LIMIT_S, PIPELINE, GateProcess, gate_before, post, to_end
from tests.integration import levers
from tests.runtime.leftovers import wait_for

pytestmark = pytest.mark.triton

JSON_LENGTH_0 = "Inference-Header-Content-Length: 0"
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
            with pytest.raises(ServerUnavailable, match="shutting down" if protocol == "http" else "not available"):
                other.cut(picture, timeout_s=2)
            assert httpx.get(f"{gate.http_url}/v2/health/live").status_code == 200
            assert call.result(LIMIT_S).images
        assert gate.process.wait(LIMIT_S) == 0


def test_draining_waits_for_a_body_that_arrives(triton: dict[str, str], samples: list[Path]) -> None:
    """A request whose headers are there was let in."""
    picture = samples[0].read_bytes()
    head = post(f"/v2/models/{PIPELINE}/infer", JSON_LENGTH_0, f"Content-Length: {len(picture)}")
    with gate_before(triton) as gate, socket.create_connection(("127.0.0.1", gate.http), timeout=LIMIT_S) as connection:
        connection.sendall(head + picture[: len(picture) // 2])
        assert wait_for(lambda: gate.metric("cutaway_gateway_bytes_in_flight") > 0, LIMIT_S)
        gate.process.send_signal(signal.SIGTERM)
        assert wait_for(lambda: gate.cut(picture).status_code == 503, LIMIT_S)
        connection.sendall(picture[len(picture) // 2 :])
        assert to_end(connection).startswith(b"HTTP/1.1 200")
        assert gate.process.wait(LIMIT_S) == 0


def test_draining_waits_for_all_pictures_of_a_batch(slow: Server) -> None:
    """Also for those that have not been sent to Triton when the gate begins to drain."""
    pictures = [("images", (f"{ms}.png", levers.lazy_picture(ms), "image/png")) for ms in range(700, 712)]
    options = ("--free-per-minute", "1000", "--free-per-second", "1000")
    with gate_before(triton_of(slow), *options, service_port=0) as gate:
        url = f"http://127.0.0.1:{gate.service}/api/background-removal/remove-batch"
        lines = []
        with httpx.stream("POST", url, files=pictures, timeout=LIMIT_S, trust_env=False) as answer:
            for line in answer.iter_lines():
                if not lines:
                    gate.process.send_signal(signal.SIGTERM)
                    assert wait_for(lambda: gate.cut(b"").status_code == 503, LIMIT_S)
                lines.append(json.loads(line))
        assert [line["success"] for line in lines] == [True] * len(pictures), lines
        assert gate.process.wait(LIMIT_S) == 0


def test_a_notice_before_draining(triton: dict[str, str], samples: list[Path]) -> None:
    """Balancers see that the gate leaves, and what they send until then is served; connections are not kept."""
    picture = samples[0].read_bytes()
    with gate_before(triton, "--drain-notice-s", "4") as gate, Client(gate.grpc_url) as client:
        assert client.cut(picture).images
        ready, rotation = (f"{gate.http_url}/v2/health/{path}" for path in ("ready", "rotation"))
        assert httpx.get(rotation).status_code == 200
        gate.process.send_signal(signal.SIGTERM)
        assert wait_for(lambda: httpx.get(ready).status_code == 503, LIMIT_S)
        assert httpx.get(rotation).status_code == 404
        answer = gate.cut(picture)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert client.cut(picture, timeout_s=LIMIT_S).images
        assert gate.process.wait(LIMIT_S) == 0
        with pytest.raises(ServerUnavailable):
            client.cut(picture, timeout_s=2)


def test_several_servers_of_one_name(triton: dict[str, str], samples: list[Path]) -> None:
    """A gate before two: it asks both, and is ready while one of them leaves."""
    picture, served = samples[0].read_bytes(), 'cutaway_gateway_requests_total{code="OK",model="ensemble_pipeline"'
    notice = ("--drain-notice-s", "600", "--drain-timeout-s", "600")
    with gate_before(triton, *notice) as leaving, gate_before(triton) as staying:
        both = f"ipv4:127.0.0.1:{leaving.grpc},127.0.0.1:{staying.grpc}"
        address = {"http": leaving.http_address, "grpc": both, "metrics": ""}
        with gate_before(address) as front:
            assert [front.cut(picture).status_code for _ in range(6)] == [200] * 6
            assert all(each.metric(served + ',protocol="grpc"}') >= 2 for each in (leaving, staying))
            with Stream(front.grpc_url, timeout_s=LIMIT_S) as stream:
                for _ in range(4):
                    stream.submit(np.zeros((96, 128, 3), np.uint8))
                    assert stream.latest(LIMIT_S) is not None
            frames = [
                each.metric(served.replace("ensemble", "stream") + ',protocol="grpc"}') for each in (leaving, staying)
            ]
            assert min(frames) == 0 and max(frames) >= 4, "a stream's past is at one server"
            leaving.process.send_signal(signal.SIGTERM)
            assert wait_for(lambda: httpx.get(f"{leaving.http_url}/v2/health/ready").status_code == 503, LIMIT_S)
            for _ in range(4):
                assert wait_for(lambda: httpx.get(f"{front.http_url}/v2/health/ready").status_code == 200, LIMIT_S)
            assert front.metric("cutaway_gateway_triton_reachable") == 1
        leaving.process.kill()


def test_connections_that_grow_old(triton: dict[str, str], samples: list[Path]) -> None:
    """A caller is served over one connection after another, without an error."""
    picture, peers = samples[0].read_bytes(), set()
    with gate_before(triton, "--connection-age-s", "0.5") as gate, Client(gate.grpc_url) as client:
        for _ in range(200):
            assert client.cut(picture, timeout_s=LIMIT_S).images
            peers |= {
                each.laddr.port for each in psutil.Process().net_connections("tcp") if each.raddr[1:] == (gate.grpc,)
            }
            if len(peers) > 2:
                return
    pytest.fail(f"the connection was kept: {peers}")


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
