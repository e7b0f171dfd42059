"""KServe's protobuf messages, read and written by hand.

protobuf's own parser takes some forty bytes of memory for each byte of empty messages in a message, and copies each
picture twice; here fields are counted, and what is long stays where it is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeAlias

from gateway.request import Buffer, InferRequest, Parameter, Tensor, file_parts, malformed
from gateway.settings import Settings

Field: TypeAlias = "tuple[int, int | memoryview]"

NOT_SERVING = b"\x08\x02"  # of grpc.health.v1

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Reader:
    """Reads messages of so many fields at most, whose bytes beside the tensors are bounded."""

    def __init__(self, max_fields: int, max_bytes: int) -> None:
        self._fields = max_fields
        self._max_bytes = max_bytes

    def fields(self, message: memoryview) -> Iterator[Field]:
        """Each field's number and value: a number, or the bytes of what is longer; InvalidOption where malformed."""
        position = 0
        while position < len(message):
            self._fields -= 1
            if self._fields < 0:
                raise malformed("too many fields", "a request of this server")
            key, position = _varint(message, position)
            kind, number = key & 7, key >> 3
            if kind == _VARINT:
                value, position = _varint(message, position)
                yield number, value
                continue
            if kind == _LENGTH:
                length, position = _varint(message, position)
            else:
                length = {_FIXED64: 8, _FIXED32: 4}.get(kind, len(message))
            if number == 0 or position + length > len(message):
                raise malformed("a field is cut off", "a protobuf message")
            yield number, message[position : position + length]
            position += length

    def strings(self, message: Buffer) -> dict[int, str]:
        """The fields of a message that has texts only; others are left out."""
        found = self.fields(memoryview(message))
        return {number: _text(value) for number, value in found if isinstance(value, memoryview)}

    def infer_request(self, message: Buffer) -> InferRequest:
        """A ``ModelInferRequest``, not checked yet; InvalidOption where malformed."""
        request, raw, outside = InferRequest(""), [], len(message)
        for number, value in self.fields(memoryview(message)):
            match number, value:
                case 1, memoryview():
                    request.model = _text(value)
                case 2, memoryview():
                    request.version = _text(value)
                case 3, memoryview():
                    request.id = _text(value)
                case 4, memoryview():
                    self._parameter_into(request.parameters, value)
                case 5, memoryview():
                    tensor = self.tensor(value)
                    request.inputs.append(tensor)
                    outside -= sum(map(len, tensor.parts))
                case 6, memoryview():
                    request.outputs.append(self._output(value))
                case 7, memoryview():
                    raw.append(value)
                    outside -= len(value)
        if outside > self._max_bytes:
            raise malformed("it is long beside its tensors", f"at most {self._max_bytes} bytes")
        if raw:
            if len(raw) != len(request.inputs) or any(tensor.parts for tensor in request.inputs):
                raise malformed("it has other tensors than it names", "raw contents for each input")
            for tensor, content in zip(request.inputs, raw, strict=True):
                tensor.parts = [content]
        return request

    def tensor(self, message: memoryview) -> Tensor:
        tensor = Tensor("", "", [])
        for number, value in self.fields(message):
            match number, value:
                case 1, memoryview():
                    tensor.name = _text(value)
                case 2, memoryview():
                    tensor.datatype = _text(value)
                case 3, int():
                    tensor.shape.append(_signed(value))
                case 3, memoryview():
                    tensor.shape += map(_signed, self._packed(value))
                case 4, memoryview():
                    raise malformed("a parameter of an input", "none: there is no shared memory here")
                case 5, memoryview():
                    tensor.parts = self._contents(value)
        return tensor

    def _contents(self, message: memoryview) -> list[Buffer]:
        parts: list[Buffer] = []
        for number, value in self.fields(message):
            match number, value:
                case 8, memoryview():
                    parts += file_parts([value])
                case 4, memoryview():
                    try:
                        parts.append(bytes(self._packed(value)))
                    except ValueError:
                        raise malformed("a number over 255 for UINT8", "0 to 255") from None
                case _:
                    raise malformed("contents of another type", "bytes_contents, uint_contents, raw_input_contents")
        return parts

    def _output(self, message: memoryview) -> str:
        name, parameters = "", dict[str, Parameter]()
        for number, value in self.fields(message):
            if number == 1 and isinstance(value, memoryview):
                name = _text(value)
            elif number == 2 and isinstance(value, memoryview):
                self._parameter_into(parameters, value)
        for parameter in parameters.keys() - {"binary_data"}:
            raise malformed(f"a parameter {parameter[:40]!r} of an output", "binary_data")
        return name

    def _parameter_into(self, parameters: dict[str, Parameter], entry: memoryview) -> None:
        name, value = "", memoryview(b"")
        for number, part in self.fields(entry):
            if number == 1 and isinstance(part, memoryview):
                name = _text(part)
            elif number == 2 and isinstance(part, memoryview):
                value = part
        for number, part in self.fields(value):
            match number, part:
                case 1, int():
                    parameters[name] = part != 0
                case 2, int():
                    parameters[name] = _signed(part)
                case 5, int():
                    parameters[name] = part
                case 3, memoryview():
                    parameters[name] = _text(part)
                case 4, memoryview() if len(part) == 8:
                    parameters[name] = struct.unpack("<d", part)[0]

    def _packed(self, message: memoryview) -> Iterator[int]:
        if len(message) > self._max_bytes:
            raise malformed("a long list of numbers", "raw_input_contents")
        position = 0
        while position < len(message):
            value, position = _varint(message, position)
            yield value


def infer_request(request: InferRequest) -> bytes:
    """A checked request as a ``ModelInferRequest``: the one copy that is made of its tensors."""
    parts: list[Buffer] = [named(request.model, request.version), _bytes(3, request.id.encode())]
    for name, value in request.parameters.items():
        parts.append(_bytes(4, _bytes(1, name.encode()) + _bytes(2, _parameter(value))))
    for tensor in request.inputs:
        shape = b"".join(map(_number, tensor.shape))
        parts.append(_bytes(5, named(tensor.name, tensor.datatype) + _bytes(3, shape)))
    parts += [_bytes(6, _bytes(1, name.encode())) for name in request.outputs]
    for tensor in request.inputs:
        parts += [_key(7, _LENGTH), _number(sum(map(len, tensor.parts))), *tensor.parts]
    return b"".join(parts)


def named(*texts: str) -> bytes:
    """A message whose first fields are these texts."""
    return b"".join(_bytes(number, text.encode()) for number, text in enumerate(texts, 1) if text)


def truth(value: bool) -> bytes:
    """A message whose first field is this."""
    return _key(1, _VARINT) + _number(value)


def infer_response(message: bytes) -> tuple[dict[str, str], list[Tensor]]:
    """The texts of Triton's ``ModelInferResponse`` by name, and its outputs, which stay where they are; ValueError
    where it has other tensors than it names."""
    reader = Reader(Settings.max_fields, Settings.max_json_bytes)
    texts, outputs, raw = dict[str, str](), list[Tensor](), list[memoryview]()
    for number, value in reader.fields(memoryview(message)):
        match number, value:
            case 1 | 2 | 3, memoryview():
                texts[("model_name", "model_version", "id")[number - 1]] = _text(value)
            case 5, memoryview():
                outputs.append(reader.tensor(value))
            case 6, memoryview():
                raw.append(value)
    for tensor, content in zip(outputs, raw, strict=True):
        tensor.parts = [content]
    return texts, outputs


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number of up to 64 bits, and where it ends."""
    value = 0
    for index, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + index + 1
    raise malformed("a number is cut off", "a protobuf message")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _text(value: memoryview) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise malformed("a text is no UTF-8", "UTF-8") from None


def _parameter(value: Parameter) -> bytes:
    match value:
        case bool():
            return truth(value)
        case int() if value < 2**63:
            return _key(2, _VARINT) + _number(value)
        case int():
            return _key(5, _VARINT) + _number(value)
        case float():
            return _key(4, _FIXED64) + struct.pack("<d", value)
        case str():
            return _bytes(3, value.encode())


def _key(number: int, kind: int) -> bytes:
    return bytes([number << 3 | kind])  # of one byte: there is no field above 15


def _number(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, _LENGTH) + _number(len(value)) + value
