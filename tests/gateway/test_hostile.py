"""What kills Triton, fills its memory or reaches its networks when it is sent straight is refused by the gate, and the
very same Triton serves on."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.gateway.gates import LIMIT_S, NETWORKS, PIPELINE, STREAM, GateProcess, by_hand, gate_before, post
from tests.integration.kserve import runs_of

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("unharmed")]

MIB = 1024 * 1024
GROWTH_BYTES = 64 * MIB
INFER = "/inference.GRPCInferenceService/ModelInfer"
FRAME = {"name": "frame", "datatype": "UINT8", "shape": [2**62, 4, 3]}


def refused(response: httpx.Response, code: str = "INVALID_OPTION", status: int = 400) -> dict[str, Any]:
    """The error form of a refusal, in which no path is."""
    assert response.status_code == status, response.text[:500]
    form: dict[str, Any] = json.loads(response.json()["error"])
    assert form["code"] == code
    assert "/" not in form["message"].replace("/v2", "")
    return form


def refused_grpc(gate: GateProcess, request: Any, compression: Any = None) -> grpc.RpcError:
    message = request if isinstance(request, bytes) else request.SerializeToString()
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(gate.grpc_address, options) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary(INFER)(message, timeout=LIMIT_S, compression=compression)
    return refusal.value


def grpc_request(model: str, name: str, datatype: str, shape: list[int], raw: bytes = b"") -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


# ------------------------------------------------------------------------------------ what ends Triton's process


@pytest.mark.parametrize("given", [{"data": [1] * 12}, {"parameters": {"binary_data_size": 0}}], ids=["json", "binary"])
@pytest.mark.parametrize("shape", [[2**62, 4, 3], [2**31, 2**31, 3], [0, 4, 3], [-1, 4, 3], [2**200, 4, 3], [1] * 4000])
def test_shapes_over_http(shape: list[int], given: dict[str, Any], gate: GateProcess) -> None:
    form = refused(gate.infer(STREAM, json={"inputs": [{**FRAME, "shape": shape, **given}]}))
    assert "frame" in form["details"]["name"]


@pytest.mark.parametrize("shape", [[2**62, 4, 3], [2**31, 2**31, 3], [0, 4, 3], [-1, 4, 3], [1] * 4000])
def test_shapes_over_grpc(shape: list[int], gate: GateProcess) -> None:
    error = refused_grpc(gate, grpc_request(STREAM, "frame", "UINT8", shape, b"123"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert json.loads(error.details())["details"]["name"] == "frame.shape"


def test_free_sizes_of_a_network(gate: GateProcess) -> None:
    error = refused_grpc(gate, grpc_request("yolov8_seg_free", "images", "UINT8", [1, 2**62, 4, 3]))
    assert error.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("library", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def test_classes_of_a_text(library: Any, gate: GateProcess, samples: list[Path]) -> None:
    address = gate.grpc_address if library is tritonclient.grpc else gate.http_address
    image = library.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([samples[0].read_bytes()], np.object_))
    wanted = library.InferRequestedOutput("report", class_count=3)
    with library.InferenceServerClient(address) as client, pytest.raises(InferenceServerException) as refusal:
        client.infer(PIPELINE, [image], outputs=[wanted])
    assert json.loads(refusal.value.message())["code"] == "INVALID_OPTION"


@pytest.mark.parametrize("library", [tritonclient.http, tritonclient.grpc], ids=["http", "grpc"])
def test_shared_memory(library: Any, gate: GateProcess) -> None:
    address = gate.grpc_address if library is tritonclient.grpc else gate.http_address
    image = library.InferInput("image", [1], "BYTES")
    image.set_shared_memory("region", 64)
    with library.InferenceServerClient(address) as client:
        with pytest.raises(InferenceServerException) as refusal:
            client.infer(PIPELINE, [image])
        assert json.loads(refusal.value.message())["code"] == "INVALID_OPTION"
        with pytest.raises(InferenceServerException):
            client.register_system_shared_memory("region", "/region", 64)


def test_deep_json(gate: GateProcess) -> None:
    deep = b'{"inputs": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    assert "deeper" in refused(gate.infer(content=deep))["message"]
    refused(gate.infer(content=b'{"inputs": ' + b"[" * 150_000 + b"]" * 150_000 + b"}"))


def test_quotes_without_end(gate: GateProcess) -> None:
    for quotes in (b'"' + b'\\"' * 32_000, b'"' * 64_000, b'{"' + b"\\" * 64_000):
        begun = time.monotonic()
        refused(gate.infer(content=quotes))
        assert time.monotonic() - begun < LIMIT_S / 4


def test_a_page_elsewhere(gate: GateProcess) -> None:
    headers = {"Content-Type": "text/plain", "Origin": "http://elsewhere.example"}
    response = gate.infer(content=b"[" * 150_000, headers=headers)
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_chunks_of_one_byte(gate: GateProcess) -> None:
    head = post(f"/v2/models/{PIPELINE}/infer", "Transfer-Encoding: chunked", "Inference-Header-Content-Length: 0")
    before = gate.resident_bytes
    answer = by_hand(gate.http, head, b"1\r\nx\r\n" * 600_000, b"0\r\n\r\n")
    assert not answer.startswith(b"HTTP/1.1 200")
    assert gate.resident_bytes - before < GROWTH_BYTES


# --------------------------------------------------------------------------------------------- what fills memory


def test_a_gzip_bomb_over_http(gate: GateProcess) -> None:
    before = gate.resident_bytes
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([*(packer.compress(bytes(MIB)) for _ in range(1024)), packer.flush()])
    assert len(bomb) < 1.1 * MIB
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": "0"}
    response = gate.infer(content=bomb, headers=headers)
    assert response.status_code == 415
    assert gate.infer("yolov8_seg_free", content=gzip.compress(bytes(10 * MIB)), headers=headers).status_code == 404
    assert gate.resident_bytes - before < GROWTH_BYTES


def test_a_gzip_bomb_over_grpc(gate: GateProcess) -> None:
    before = gate.resident_bytes
    request = grpc_request(PIPELINE, "image", "BYTES", [1], bytes(30 * MIB))
    error = refused_grpc(gate, request, grpc.Compression.Gzip)
    assert error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL)
    assert gate.resident_bytes - before < GROWTH_BYTES


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_of_256_mb(chunked: bool, gate: GateProcess) -> None:
    before = gate.resident_bytes
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {256 * MIB}"
    head = post(f"/v2/models/{PIPELINE}/infer", length, "Inference-Header-Content-Length: 0")
    part = b"%x\r\n%s\r\n" % (MIB, bytes(MIB)) if chunked else bytes(MIB)
    answer = by_hand(gate.http, head, *[part] * 256)
    assert b"FILE_TOO_LARGE" in answer
    assert gate.resident_bytes - before < GROWTH_BYTES


def test_messages_of_256_mb(gate: GateProcess) -> None:
    before = gate.resident_bytes
    error = refused_grpc(gate, grpc_request(PIPELINE, "image", "BYTES", [1], bytes(256 * MIB)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in error.details()
    assert gate.resident_bytes - before < GROWTH_BYTES


def test_a_message_of_empty_messages(gate: GateProcess) -> None:
    before = gate.resident_bytes
    error = refused_grpc(gate, b"\x2a\x00" * (10 * MIB))
    assert json.loads(error.details())["code"] == "INVALID_OPTION"
    assert gate.resident_bytes - before < GROWTH_BYTES


def test_more_bytes_than_are_held(triton: dict[str, str]) -> None:
    with gate_before(triton, "--max-bytes", str(MIB)) as small:
        response = small.cut(bytes(2 * MIB))
        refused(response, "OVERLOADED", 503)
        assert response.headers["Retry-After"] == "1"
        error = refused_grpc(small, grpc_request(PIPELINE, "image", "BYTES", [1], bytes(2 * MIB)))
        assert json.loads(error.details())["code"] == "OVERLOADED"
        assert small.metric('cutaway_gateway_shed_total{bound="bytes"}') == 2
        refused(small.cut(b"no picture"), "INVALID_FORMAT")
        assert small.metric("cutaway_gateway_bytes_in_flight") == 0


# ----------------------------------------------------------------------------------------- what is nobody's to call


@pytest.mark.parametrize("model", NETWORKS)
def test_networks_cannot_be_reached(model: str, server: Any, gate: GateProcess) -> None:
    """Whether they are ready, and their metadata, is told; no tensor reaches them."""
    for path in ("/infer", "/versions/1/infer"):
        response = httpx.post(f"{gate.http_url}/v2/models/{model}{path}", timeout=LIMIT_S)
        assert response.status_code == 404
        assert response.json()["error"] == f"Request for unknown model: {model!r} is not found"
    with tritonclient.grpc.InferenceServerClient(gate.grpc_address) as client:
        if model in ("yolov8_seg", "birefnet_trt"):
            assert client.is_model_ready(model)
        with pytest.raises(InferenceServerException, match="unknown model") as refusal:
            client.get_model_metadata("yolov8_seg_free")
        assert refusal.value.status() == "StatusCode.NOT_FOUND"
    error = refused_grpc(gate, grpc_request(model, "images", "UINT8", [1, 640, 640, 3], bytes(640 * 640 * 3)))
    assert error.code() is grpc.StatusCode.NOT_FOUND


ELSEWHERE = (
    "repository/index", "systemsharedmemory/status", "cudasharedmemory/status", "logging", "trace/setting",
    "models/stats", f"models/{PIPELINE}/config", f"models/{PIPELINE}/stats", "../metrics", "",
    f"models/{PIPELINE}%2f..%2fbirefnet_trt/infer", f"models/{PIPELINE}/versions/1%0a/ready", "health/../models",
)  # fmt: skip


@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_paths(method: str, path: str, gate: GateProcess) -> None:
    request = f"{method} /v2/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    status = by_hand(gate.http, request.encode()).split(b" ")[1]
    assert status in (b"404", b"405")


def test_outputs_twice(gate: GateProcess, samples: list[Path]) -> None:
    request = grpc_request(PIPELINE, "image", "BYTES", [1], b"\0\0\0\0")
    for _ in range(2):
        request.outputs.add(name="report")
    assert json.loads(refused_grpc(gate, request).details())["details"]["name"] == "outputs"


def test_no_network_ran(server: Any, gate: GateProcess) -> None:
    before = runs_of(server, "birefnet_trt")
    for model in NETWORKS:
        gate.infer(model, json={"inputs": []})
    assert runs_of(server, "birefnet_trt") == before


# ------------------------------------------------------------------------------------------------ ids and texts


def test_long_ids(triton: dict[str, str], samples: list[Path], tmp_path: Path) -> None:
    picture = samples[0].read_bytes()
    size = {"binary_data_size": len(picture) + 4}
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": size}

    def sent(request_id: str) -> httpx.Response:
        asked = {"id": request_id, "inputs": [image], "parameters": {"binary_data_output": True}}
        head = json.dumps(asked).encode()
        body = head + len(picture).to_bytes(4, "little") + picture
        return one.infer(content=body, headers={"Inference-Header-Content-Length": str(len(head))})

    log = tmp_path / "log"
    with gate_before(triton, log=log) as one:
        refused(sent("x" * MIB))
        answer = sent("y\n" * 5000)
        head = json.loads(answer.content[: int(answer.headers["Inference-Header-Content-Length"])])
        assert head["id"] == "y?" * 64
        request = grpc_request(PIPELINE, "image", "BYTES", [1], bytes(5))
        request.id = "z" * MIB
        assert json.loads(refused_grpc(one, request).details())["code"] == "INVALID_OPTION"
        for _ in range(20):
            sent("x" * MIB)
    assert log.stat().st_size < 10_000


@pytest.mark.parametrize("where", ["id", "parameter", "name", "input"])
def test_text_that_is_no_utf_8(where: str, gate: GateProcess) -> None:
    for bad in (b"\xff\xfe", b"\xed\xa0\x80"):
        head = b'{"id": "1", "parameters": {"subject": "2"}, "inputs": [{"name": "3"}]}'
        target = {"id": b"1", "parameter": b"2", "name": b"subject", "input": b"3"}[where]
        refused(gate.infer(content=head.replace(target, bad)))
        refused(gate.infer(content=head.replace(target, b"\\ud800")))
        request = grpc_request(PIPELINE, "3", "BYTES", [1], b"\0\0\0\0")
        request.id = "1"
        request.parameters["subject"].string_param = "2"
        message = request.SerializeToString().replace(target, bad[: len(target)] + b"\xff" * (len(target) - len(bad)))
        error = refused_grpc(gate, message)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert json.loads(error.details())["code"] == "INVALID_OPTION"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 5000, str(2**64), str(-(2**63) - 1)])
def test_numbers_that_fit_nowhere(number: str, gate: GateProcess) -> None:
    refused(gate.infer(content=f'{{"parameters": {{"quality": {number}}}, "inputs": []}}'.encode()))


@pytest.mark.parametrize("value", ["text", "1.5", "-1", "[1]", "null", str(2**64 - 1)])
def test_sequence_ids(value: str, gate: GateProcess) -> None:
    """A number of 64 bits is one, though no such stream has begun; what is none is refused."""
    written = value if value[0] in "-[n1" else f'"{value}"'
    body = f'{{"parameters": {{"sequence_id": {written}}}, "inputs": []}}'
    response = gate.infer(STREAM, content=body.encode())
    assert response.status_code == 400
    assert str(2**64 - 1) == value or json.loads(response.json()["error"])["code"] == "INVALID_OPTION"


# ------------------------------------------------------------------------------------------------------- metrics


def test_refused_pictures_are_counted(gate: GateProcess) -> None:
    line = f'cutaway_gateway_requests_total{{code="INVALID_FORMAT",model="{PIPELINE}",protocol="http"}}'
    before = gate.metric(line)
    for _ in range(10):
        refused(gate.cut(b"no picture"), "INVALID_FORMAT")
    assert gate.metric(line) - before == 10
    labels = f'{{model="{PIPELINE}",protocol="http"}}'
    assert gate.metric(f"cutaway_gateway_request_bytes_total{labels}") >= 100
    assert gate.metric(f"cutaway_gateway_request_seconds_count{labels}") >= 10
    assert gate.metric("cutaway_gateway_requests_in_flight") == 0
    # Triton's own, on the same scrape.
    assert gate.metric(f'nv_inference_request_success{{model="{PIPELINE}",version="1"}}') >= 10


def test_a_gate_before_another_tells_of_itself_alone(triton: dict[str, str], gate: GateProcess) -> None:
    """The other is scraped, too; the same names would be there twice."""
    with gate_before(triton | {"metrics": f"127.0.0.1:{gate.metrics}"}) as outer:
        lines = httpx.get(f"http://127.0.0.1:{outer.metrics}/metrics", timeout=LIMIT_S).text.splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series)) > 10
    assert all(name.startswith("cutaway_") for name in series)
