"""Fuzz of the gate's codec, with atheris (libFuzzer): any body gives a request within bounds or a typed refusal.

    python -m tests.fuzz.gateway CORPUS -max_total_time=60

What is let through is framed anew, and read by protobuf's own parser: it has to say the same. The first byte of an
input chooses the form: protobuf, JSON with tensors after it, or JSON alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "client"))

with atheris.instrument_imports(include=["gateway"]):
    from cutaway.contract.errors import InputError

    from gateway import kserve_json, wire
    from gateway.request import MODELS, Body, InferRequest
    from gateway.settings import Settings

from tritonclient.grpc import service_pb2  # noqa: E402 (after what is instrumented)

SETTINGS = Settings(triton_http="", triton_grpc="", triton_metrics="")
NAMES = tuple(MODELS)
PICTURE = b"\4\0\0\0abcd"
FRAME = {"name": "frame", "datatype": "UINT8", "shape": [1, 2, 3]}


def one_input(data: bytes) -> None:
    form, rest = data[:1], data[1:]
    try:
        if form < b"\x40":
            request = wire.infer_request(rest, SETTINGS)
            if request.model not in MODELS:
                return
        else:
            cut = rest[:7]
            parts = [rest[:7], rest[7:9], rest[9:]]
            length = None if form < b"\x80" else int.from_bytes(cut[:2], "little")
            body = Body(parts if length is None else [rest[2:7], rest[7:9], rest[9:]])
            request, _ = kserve_json.infer_request(NAMES[form[0] & 1], body, length, SETTINGS)
        request.check(SETTINGS)
    except InputError as error:
        json.loads(error.to_json())
        return
    check(request, service_pb2.ModelInferRequest.FromString(wire.framed(request)))


def check(request: InferRequest, sent: Any) -> None:
    """What protobuf reads is what was checked, and within the contract."""
    model = MODELS[request.model]
    assert (sent.model_name, sent.model_version, sent.id) == (request.model, request.version, request.id)
    assert len(sent.id) <= SETTINGS.max_id_chars
    assert len(sent.inputs) == len(sent.raw_input_contents) <= len(model.inputs)
    for tensor, raw, checked in zip(sent.inputs, sent.raw_input_contents, request.inputs, strict=True):
        assert b"".join(checked.parts) == raw
        assert list(tensor.shape) == checked.shape
        assert tensor.datatype == model.inputs[tensor.name].datatype
        assert not tensor.parameters
        sides = 1
        for side in tensor.shape:
            assert side > 0
            sides *= side
        assert len(raw) == (4 + int.from_bytes(raw[:4], "little") if tensor.datatype == "BYTES" else sides)
    for output in sent.outputs:
        assert output.name in model.outputs
        assert not output.parameters
    values = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in sent.parameters.items()}
    assert values == request.parameters


def seeds() -> Iterator[bytes]:
    """A request in each form, with everything in it."""
    for name, model in MODELS.items():
        request = service_pb2.ModelInferRequest(model_name=name, model_version="1", id="é")
        described = []
        for tensor, kind in model.inputs.items():
            shape = [1, 2, 3] if kind.datatype == "UINT8" else [1]
            raw = bytes(6) if kind.datatype == "UINT8" else PICTURE
            request.inputs.add(name=tensor, datatype=kind.datatype, shape=shape)
            request.raw_input_contents.append(raw)
            size = {"binary_data_size": len(raw)}
            described.append({"name": tensor, "datatype": kind.datatype, "shape": shape, "parameters": size})
        for output in model.outputs:
            request.outputs.add(name=output).parameters["binary_data"].bool_param = True
        request.parameters["boxes"].string_param = "[[0, 0, 9, 9]]"
        request.parameters["quality"].int64_param = 90
        request.parameters["crop"].bool_param = True
        request.parameters["smoothing"].double_param = 0.5
        request.parameters["sequence_id"].uint64_param = 2**63
        yield b"\0" + request.SerializeToString()
        request.ClearField("raw_input_contents")
        request.inputs[0].contents.bytes_contents.append(b"abcd")
        request.inputs[0].contents.uint_contents.extend([1, 255])
        yield b"\0" + request.SerializeToString()
        asked = {"id": "é", "parameters": {"quality": 90, "crop": True, "smoothing": 0.5, "sequence_id": 2**63}}
        asked |= {"inputs": described, "outputs": [{"name": "report", "parameters": {"binary_data": True}}]}
        head = json.dumps(asked).encode()
        raw = b"".join(request.raw_input_contents)
        yield b"\x80" + len(head).to_bytes(2, "little") + head + PICTURE + bytes(6)
        yield b"\x81" + len(head).to_bytes(2, "little") + head + bytes(6) + PICTURE * 2
    yield b"\x41" + json.dumps({"inputs": [{**FRAME, "data": [[[1, 2, 3], [4, 5, 255]]]}]}).encode()
    yield b"\x40" + b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":["abcd"]}]}'


def main() -> None:
    arguments = sys.argv[1:]
    corpus = Path(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else Path(".cache/fuzz-gateway")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
    limits = ["-rss_limit_mb=1024", "-timeout=5", "-max_len=8192"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *arguments], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
