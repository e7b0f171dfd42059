"""KServe-v2 with binary tensors over HTTP: requests to bytes, answers to arrays.

tritonclient's own HTTP client needs gevent, belongs to one thread, and does not validate a server's lengths. Here every
length, shape and form from the network is validated.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.transports.base import InferRequest, ModelInfo, Tensor
from cutaway.transports.failures import malformed, no_triton

JSON_LENGTH = "Inference-Header-Content-Length"  # the number of JSON bytes in a body; the raw tensors follow them

# Of the timeout in the queue over the caller's: Triton does not detect that an HTTP caller has gone, and the caller's
# own timeout is to end the call.
QUEUE_TIMEOUT_FACTOR = 1.1


def message_of(request: InferRequest) -> tuple[bytes, dict[str, str]]:
    """The body of an inference request, and its headers."""
    raw: list[bytes] = []
    inputs: list[dict[str, Any]] = []
    for name, value in inputs_of(request).items():
        parts = (struct.pack("<I", len(value)), value) if isinstance(value, bytes) else (value.tobytes(),)
        datatype, shape = ("BYTES", [1]) if isinstance(value, bytes) else ("UINT8", list(value.shape))
        size = {"binary_data_size": sum(map(len, parts))}
        inputs.append({"name": name, "datatype": datatype, "shape": shape, "parameters": size})
        raw += parts
    parameters = {**request.parameters, "timeout": round(request.timeout_s * QUEUE_TIMEOUT_FACTOR * 1e6)}
    if (part := request.sequence) is not None:
        parameters |= {"sequence_id": part.id, "sequence_start": part.begins, "sequence_end": part.ends}
    head = json.dumps(
        {
            "id": request.request_id,
            "parameters": parameters,
            "inputs": inputs,
            "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs],
        }
    ).encode()
    return b"".join((head, *raw)), {JSON_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}


def inputs_of(request: InferRequest) -> Mapping[str, bytes | NDArray[np.uint8]]:
    """The request's inputs; the picture where it has no others."""
    return {"image": request.image} if request.inputs is None else request.inputs


def tensors_of(headers: Mapping[str, str], body: bytes, address: str) -> dict[str, Tensor]:
    """The outputs in an answer; InferenceError where they are malformed, ServerRefused where it is none of Triton's."""
    written = headers.get(JSON_LENGTH, str(len(body)))
    # Digits are bounded, because int() raises another error for thousands of them.
    length = int(written) if written.isascii() and written.isdigit() and len(written) < 20 else -1
    if not 0 <= length <= len(body):
        raise malformed("the length of its header is impossible")
    outputs = _json(body[:length], address).get("outputs")
    if not isinstance(outputs, list):
        raise no_triton(address, "JSON without outputs")
    view, position = memoryview(body), length
    tensors: dict[str, Tensor] = {}
    for output in outputs:
        match output:
            case {"name": str(name), "datatype": str(datatype), "shape": list(shape), "parameters": dict(parameters)}:
                size = parameters.get("binary_data_size")
            case _:
                raise malformed("an output is not described")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise malformed("an output is not binary")
        if size > len(body) - position:
            raise malformed(f"output {name!r} is cut off")
        tensors[name] = tensor(name, datatype, shape, view[position : position + size])
        position += size
    return tensors


def tensor(name: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Tensor:
    """One output tensor from its raw little-endian bytes; InferenceError where they do not fit datatype and shape."""
    if any(not isinstance(side, int) or isinstance(side, bool) or side < 0 for side in shape):
        raise malformed(f"output {name!r} has an impossible shape")
    count = math.prod(shape)
    if datatype == "BYTES":
        return _strings(name, raw, count)
    if datatype in ("FP32", "UINT8"):
        if len(raw) != (4 if datatype == "FP32" else 1) * count:
            raise malformed(f"output {name!r} has {len(raw)} bytes for {count} numbers")
        try:
            if datatype == "UINT8":
                return np.frombuffer(raw, dtype=np.uint8).reshape(tuple(shape)).copy()
            return np.frombuffer(raw, dtype="<f4").reshape(tuple(shape)).astype(np.float32)
        except (ValueError, OverflowError):  # more sides, or longer ones, than an array has
            raise malformed(f"output {name!r} has an impossible shape") from None
    raise malformed(f"output {name!r} is of the unexpected type {datatype[:20]!r}")


def _strings(name: str, raw: bytes | memoryview, count: int) -> list[bytes]:
    strings: list[bytes] = []
    position = 0
    while position < len(raw):
        length = int.from_bytes(raw[position : position + 4], "little")
        end = position + 4 + length
        if end > len(raw):
            raise malformed(f"output {name!r} ends inside an element")
        strings.append(bytes(raw[position + 4 : end]))
        position = end
    if len(strings) != count:
        raise malformed(f"output {name!r} has {len(strings)} elements instead of {count}")
    return strings


def model_of(body: bytes, address: str) -> ModelInfo:
    """A ready model's metadata; ServerRefused where it is no answer of Triton."""
    head = _json(body, address)
    try:
        versions = tuple(map(str, head.get("versions", ())))
        return ModelInfo(str(head["name"]), versions, "READY", str(head.get("platform", "")))
    except (KeyError, TypeError):
        raise no_triton(address, "JSON that describes no model") from None


def _json(body: bytes, address: str) -> dict[str, Any]:
    try:
        head = json.loads(body)
    except (ValueError, RecursionError):
        head = None
    if not isinstance(head, dict):
        raise no_triton(address, "no JSON")
    return head
