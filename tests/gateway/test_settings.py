"""The tables agree: the gate's with the models' configurations, and Envoy's with the gate's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.grpc.model_config_pb2 as pb
from google.protobuf import text_format
from ruamel.yaml import YAML

from gateway.request import MODELS
from gateway.settings import Settings, parse
from tests.conftest import ROOT

TRITON = ("--triton-http=a:1", "--triton-grpc=a:2", "--triton-metrics=a:3")
KSERVE = {"TYPE_STRING": "BYTES", "TYPE_UINT8": "UINT8", "TYPE_FP32": "FP32"}


@pytest.mark.parametrize("name", MODELS)
def test_tensors_are_those_of_the_models(name: str) -> None:
    config = text_format.Parse((ROOT / "model_repository" / name / "config.pbtxt").read_text(), pb.ModelConfig())
    for declared, known in ((config.input, MODELS[name].inputs), (config.output, MODELS[name].outputs)):
        found = {each.name: (KSERVE[pb.DataType.Name(each.data_type)], tuple(each.dims)) for each in declared}
        assert found == {name: (kind.datatype, kind.shape) for name, kind in known.items()}
    assert MODELS[name].optional == all(each.optional for each in config.input)


def test_every_bound_has_a_reason_and_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    for name, each in Settings.__dataclass_fields__.items():
        assert len(each.metadata["reason"]) > 10, name
    given = parse([*TRITON, "--max-bytes=7", "--hosts=a", "--hosts=b", "--header-timeout-s=0.5"])
    assert (given.max_bytes, given.hosts, given.header_timeout_s) == (7, ("a", "b"), 0.5)
    assert parse(TRITON) == Settings(triton_http="a:1", triton_grpc="a:2", triton_metrics="a:3")
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "--max-json-depth" in capsys.readouterr().out


def named(node: Any, name: str) -> Iterator[Any]:
    """All values of a key, at any depth."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key == name:
            yield value
        yield from named(value, name)


def test_envoy_has_the_same_bounds() -> None:
    envoy = YAML(typ="safe").load((ROOT / "deploy" / "envoy.yaml").read_text())
    bounds = parse(TRITON)
    expected = {
        "max_request_headers_kb": {bounds.max_header_bytes // 1024},
        "request_headers_timeout": {bounds.header_timeout_s},
        "request_timeout": {bounds.body_timeout_s},
        "stream_idle_timeout": {bounds.answer_timeout_s},
        "drain_timeout": {bounds.drain_timeout_s},
        "idle_timeout": {bounds.idle_timeout_s},
        "grpc_timeout_header_max": {bounds.request_timeout_s},
        "max_concurrent_streams": {bounds.max_streams},
        "max_connections": {bounds.max_connections},
        "max_requests": {bounds.max_requests},
        "max_request_bytes": {bounds.max_body_bytes(name) for name in MODELS},
        "max_active_downstream_connections": {2 * bounds.max_connections},
    }
    for name, values in expected.items():
        assert {float(str(value).rstrip("s")) for value in named(envoy, name)} == values, name
    paths = [re.compile(each) for each in named(envoy, "regex")]
    for model in (*MODELS, "birefnet_trt", "yolov8_seg"):
        assert any(path.fullmatch(f"/v2/models/{model}/infer") for path in paths) == (model in MODELS)
    listeners = envoy["static_resources"]["listeners"]
    assert {each["address"]["socket_address"]["port_value"] for each in listeners} == {8000, 8001}
