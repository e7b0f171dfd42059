"""Reads what goes into and comes out of an ONNX file, without onnx or a session.

An ONNX file is a protobuf message. Its fields are walked by their tags and lengths, and the weights are skipped over,
so a file of a gigabyte is read in a millisecond.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ELEMENT_TYPES = {1: "FP32", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "FP16", 11: "FP64"}
"""Triton's names of `onnx.TensorProto.DataType`."""

_Span = tuple[int, int]


@dataclass(frozen=True)
class TensorInfo:
    """One input or output: its element type by Triton's name, and its dims, -1 where the file leaves one open."""

    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph by name. The first dimension of each is the batch."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


def read_signature(path: Path) -> Signature:
    """Inputs and outputs of the ONNX file at `path`.

    Raises:
        ValueError: when the file is not an ONNX model.
    """
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError("it is empty") from None
        with data:
            try:
                return _model(data)
            except (IndexError, UnicodeDecodeError):
                raise ValueError("it is not an ONNX model") from None


def _model(data: mmap.mmap) -> Signature:
    inputs: dict[str, TensorInfo] = {}
    outputs: dict[str, TensorInfo] = {}
    weights: set[str] = set()
    for field, graph in _spans(data, (0, len(data))):
        if field != 7:  # ModelProto.graph
            continue
        for part, span in _spans(data, graph):
            if part == 5:  # GraphProto.initializer: old files list weights among the inputs too
                weights.add(_text(data, span, 8))
            elif part in (11, 12):  # GraphProto.input, .output
                (inputs if part == 11 else outputs)[_text(data, span, 1)] = _tensor_info(data, span)
    if not outputs:
        raise ValueError("it is not an ONNX model")
    return Signature({name: info for name, info in inputs.items() if name not in weights}, outputs)


def _tensor_info(data: mmap.mmap, value_info: _Span) -> TensorInfo:
    dtype, dims = "", []
    for tensor in _path(data, value_info, 2, 1):  # ValueInfoProto.type, TypeProto.tensor_type
        for field, value in _fields(data, tensor):
            if field == 1 and isinstance(value, int):
                dtype = ELEMENT_TYPES.get(value, f"ONNX type {value}")
        for dim in _path(data, tensor, 2, 1):  # Tensor.shape, TensorShapeProto.dim
            sizes = [value for field, value in _fields(data, dim) if field == 1 and isinstance(value, int)]
            dims.append(sizes[0] if sizes else -1)
    return TensorInfo(dtype, tuple(dims))


def _text(data: mmap.mmap, message: _Span, field: int) -> str:
    """The last string in `field` of a message, "" where it has none."""
    return next((data[a:b].decode() for number, (a, b) in reversed(list(_spans(data, message))) if number == field), "")


def _path(data: mmap.mmap, message: _Span, outer: int, inner: int) -> Iterator[_Span]:
    for first, span in _spans(data, message):
        if first == outer:
            for second, deeper in _spans(data, span):
                if second == inner:
                    yield deeper


def _spans(data: mmap.mmap, message: _Span) -> Iterator[tuple[int, _Span]]:
    """The fields of a message that have a length: strings, bytes and messages."""
    for field, value in _fields(data, message):
        if isinstance(value, tuple):
            yield field, value


def _fields(data: mmap.mmap, message: _Span) -> Iterator[tuple[int, int | _Span]]:
    """Each field's number with its whole number, or its span where it has a length."""
    position, end = message
    while position < end:
        tag, position = _varint(data, position, end)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position, end)
            yield field, value
            continue
        if wire == 2:
            length, position = _varint(data, position, end)
            yield field, (position, position + length)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError("it is not an ONNX model")
        position += length
        if position > end:
            raise ValueError("it ends in the middle of a field: the file is not complete")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value, shift = 0, 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("it ends in the middle of a number: the file is not complete, or not an ONNX model")
