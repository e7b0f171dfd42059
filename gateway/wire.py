"""KServe's protobuf messages: raw tensors stay where they are, and protobuf sees what is beside them, within bounds.

protobuf alone takes some forty bytes of memory for each byte of a message of empty messages, and copies pictures twice.
"""

from __future__ import annotations

from typing import Any

from cutaway.contract.errors import InvalidOption
from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from gateway.request import Buffer, InferRequest, Parameter, Tensor, file_parts, malformed
from gateway.settings import Settings

_MAX_TENSORS = 16
_RAW_REQUEST, _RAW_RESPONSE = 7, 6  # numbers of the fields that hold tensors
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def infer_request(message: bytes, settings: Settings) -> InferRequest:
    """A ``ModelInferRequest``, not checked yet; InvalidOption where malformed."""
    sent, raw = _split(message, _RAW_REQUEST, ModelInferRequest, settings.max_json_bytes)
    request = InferRequest(sent.model_name, sent.model_version, sent.id, _parameters(sent.parameters))
    for tensor in sent.inputs:
        if tensor.parameters:
            raise malformed("a parameter of an input", "none: there is no shared memory here")
        request.inputs.append(Tensor(tensor.name, tensor.datatype, list(tensor.shape), _contents(tensor)))
    _fill(request.inputs, raw)
    for output in sent.outputs:
        for parameter in output.parameters.keys() - {"binary_data"}:
            raise malformed(f"a parameter {parameter[:40]!r} of an output", "binary_data")
        request.outputs.append(output.name)
    return request


def infer_response(message: bytes) -> tuple[dict[str, str], list[Tensor]]:
    """The texts of Triton's ``ModelInferResponse`` by name, and its outputs; InvalidOption where malformed."""
    sent, raw = _split(message, _RAW_RESPONSE, ModelInferResponse, Settings.max_json_bytes)
    outputs = [Tensor(each.name, each.datatype, list(each.shape)) for each in sent.outputs]
    _fill(outputs, raw)
    return {name: getattr(sent, name) for name in ("id", "model_name", "model_version") if getattr(sent, name)}, outputs


def framed(request: InferRequest) -> bytes:
    """A checked request as a ``ModelInferRequest``: the one copy that is made of its tensors."""
    sent = ModelInferRequest(model_name=request.model, model_version=request.version, id=request.id)
    for name, value in request.parameters.items():
        parameter = sent.parameters[name]
        match value:
            case bool():
                parameter.bool_param = value
            case int() if value < 2**63:
                parameter.int64_param = value
            case int():
                parameter.uint64_param = value
            case float():
                parameter.double_param = value
            case str():
                parameter.string_param = value
    for tensor in request.inputs:
        sent.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for name in request.outputs:
        sent.outputs.add(name=name)
    parts: list[Buffer] = [sent.SerializeToString()]
    for tensor in request.inputs:  # fields of a message may follow one another, and so may its encodings
        parts += [bytes([_RAW_REQUEST << 3 | _LENGTH]), _number(sum(map(len, tensor.parts))), *tensor.parts]
    return b"".join(parts)


def _split(message: bytes, raw_field: int, kind: Any, max_bytes: int) -> tuple[Any, list[memoryview]]:
    """A message without its raw tensors, and these."""
    view, position, kept_from = memoryview(message), 0, 0
    kept, raw = list[memoryview](), list[memoryview]()
    while position < len(view):
        begin = position
        key, position = _varint(view, position)
        length = {_VARINT: 0, _FIXED64: 8, _FIXED32: 4}.get(key & 7, len(view))
        if key & 7 == _LENGTH:
            length, position = _varint(view, position)
        elif key & 7 == _VARINT:
            _, position = _varint(view, position)
        if position + length > len(view):
            raise malformed("a field is cut off", "a protobuf message")
        if key >> 3 == raw_field:
            raw.append(view[position : position + length])
            kept.append(view[kept_from:begin])
            kept_from = position + length
        position += length
        beside = position - sum(map(len, raw))
        if beside > max_bytes or len(raw) > _MAX_TENSORS:
            raise malformed("it is too long beside its raw contents", f"at most {max_bytes} bytes")
    try:
        return kind.FromString(b"".join((*kept, view[kept_from:]))), raw
    except DecodeError:
        raise malformed("it is no such message, or a text is no UTF-8", "protobuf") from None


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for index, byte in enumerate(view[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise malformed("a number is cut off", "a protobuf message")


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _parameters(sent: Any) -> dict[str, Parameter]:
    chosen = ((name, value, value.WhichOneof("parameter_choice")) for name, value in sent.items())
    return {name: getattr(value, choice) for name, value, choice in chosen if choice}


def _contents(tensor: Any) -> list[Buffer]:
    """The values of a tensor without raw contents."""
    contents = tensor.contents
    if tensor.datatype == "BYTES":
        return [part for each in contents.bytes_contents for part in file_parts([each])]
    if max(contents.uint_contents, default=0) > 255:
        raise malformed("a number over 255", "0 to 255 for UINT8")
    return [bytes(contents.uint_contents)] if contents.uint_contents else []


def _fill(tensors: list[Tensor], raw: list[memoryview]) -> None:
    if raw:
        if len(raw) != len(tensors) or any(tensor.parts for tensor in tensors):
            raise InvalidOption("There are other tensors than are named.", details={"name": "raw_input_contents"})
        for tensor, content in zip(tensors, raw, strict=True):
            tensor.parts = [content]
