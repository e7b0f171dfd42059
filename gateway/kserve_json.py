"""KServe's JSON with binary tensors, as HTTP carries it: requests read within bounds, answers written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from cutaway.contract.errors import InvalidOption, invalid_option

from gateway import wire
from gateway.request import MODELS, Body, Buffer, InferRequest, Parameter, Tensor, file_parts, malformed
from gateway.settings import Settings

# A text is matched whether it ends or not, and never a second time: else many quotes take minutes.
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_NUMBERS = {"FP32": "<f4", "UINT8": "u1"}


Wanted: TypeAlias = "Callable[[str], bool]"
"""Whether an output, by name, is asked for in binary form."""


def infer_request(model: str, body: Body, json_length: int | None, settings: Settings) -> tuple[InferRequest, Wanted]:
    """A request, not checked yet, and the form of its answer.

    Args:
        json_length: how much of the body is JSON: all where None; 0 where it is one file and nothing else.

    Raises:
        InvalidOption: it cannot be read.
    """
    if json_length == 0:
        (name, kind), *others = MODELS[model].inputs.items()
        if others:
            raise malformed("a file without JSON", "that for models with one input")
        image = Tensor(name, kind.datatype, [1], file_parts(body.take(body.size)))
        return InferRequest(model, inputs=[image]), lambda _: True
    length = body.size if json_length is None else json_length
    try:
        head = _load(b"".join(body.take(length)), settings.max_json_depth)
        request = InferRequest(model, id=_of(head, "id", str, ""), parameters=_parameters(head))
        binary = request.parameters.pop("binary_data_output", False)
        request.inputs = [_tensor(each, body) for each in _of(head, "inputs", list, [])]
        outputs = [_output(each) for each in _of(head, "outputs", list, [])]
    except InvalidOption:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise malformed(str(error)[:200], "KServe's JSON, as docs say") from None
    if body.size:
        raise malformed(f"{body.size} bytes too many", "the tensors that the JSON names")
    request.outputs = [name for name, _ in outputs]
    forms = {name: form for name, form in outputs if form is not None}
    return request, lambda name: forms.get(name, binary) is True


def _load(text: bytes, max_depth: int) -> dict[str, Any]:
    """A JSON object; its depth is counted before it is parsed, since parsers use the stack."""
    depth = 0
    for found in _BRACKETS.finditer(text):
        if (bracket := found[0]) in (b"[", b"{"):
            depth += 1
            if depth > max_depth:
                raise ValueError(f"JSON nested deeper than {max_depth}")
        elif bracket in (b"]", b"}"):
            depth -= 1
    head = json.loads(str(text, "utf-8"))
    if not isinstance(head, dict):
        raise TypeError("no JSON object")
    return head


def _of(form: dict[str, Any], name: str, kind: type[Any], default: Any) -> Any:
    value = form.get(name, default)
    if type(value) is not kind:
        raise TypeError(f"{name} is no {kind.__name__}")
    if kind is str:
        value.encode()  # a lone surrogate is none of UTF-8
    return value


def _parameters(form: dict[str, Any]) -> dict[str, Parameter]:
    parameters = _of(form, "parameters", dict, {})
    for name, value in parameters.items():
        if not isinstance(value, (bool, int, float, str)):
            raise invalid_option(name, type(value).__name__, "a text, a number, true or false")
        f"{name}{value if isinstance(value, str) else ''}".encode()
    return dict(parameters)


def _tensor(form: Any, body: Body) -> Tensor:
    parameters = _parameters_of(form, "binary_data_size")
    tensor = Tensor(_of(form, "name", str, ""), _of(form, "datatype", str, ""), _of(form, "shape", list, []))
    if not all(type(side) is int for side in tensor.shape):
        raise TypeError("a shape is of whole numbers")
    if "data" in form:
        tensor.parts = _values(tensor.datatype, form["data"])
    else:
        tensor.parts = body.take(_of(parameters, "binary_data_size", int, -1))
    return tensor


def _values(datatype: str, data: Any) -> list[Buffer]:
    """The raw form of values as JSON has them, nested or flat."""
    values, parts = [data], list[Buffer]()
    while values:
        value = values.pop()
        if isinstance(value, list):
            values += reversed(value)
        elif datatype == "BYTES" and isinstance(value, str):
            parts += file_parts([value.encode()])
        elif datatype == "UINT8" and type(value) is int and 0 <= value <= 255:
            parts.append(value.to_bytes())
        else:
            raise TypeError("data is of another datatype")
    return [b"".join(parts)]


def _output(form: Any) -> tuple[str, bool | None]:
    parameters = _parameters_of(form, "binary_data")
    return _of(form, "name", str, ""), parameters.get("binary_data")


def _parameters_of(form: Any, allowed: str) -> dict[str, Any]:
    """The parameters of an input or output, which may have one; there are no classes here, and no shared memory."""
    if not isinstance(form, dict):
        raise TypeError("an input or output is no object")
    parameters: dict[str, Any] = _of(form, "parameters", dict, {})
    if others := parameters.keys() - {allowed}:
        raise ValueError(f"a parameter {min(others)[:40]!r} of an input or output")
    return parameters


def answer(message: bytes, wanted: Wanted, settings: Settings) -> tuple[bytes, list[Buffer]]:
    """The JSON of an answer, and its binary tensors, which are not copied.

    Raises:
        InvalidOption: an output was asked for in JSON that JSON cannot carry.
        ValueError: Triton's message is malformed.
    """
    texts, tensors = wire.infer_response(message)
    outputs, raw = [], list[Buffer]()
    for tensor in tensors:
        described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if wanted(tensor.name):
            described["parameters"] = {"binary_data_size": sum(map(len, tensor.parts))}
            raw += tensor.parts
        else:
            described["data"] = _data(tensor, settings)
        outputs.append(described)
    return json.dumps({**texts, "outputs": outputs}, ensure_ascii=False).encode(), raw


def _data(tensor: Tensor, settings: Settings) -> list[Any]:
    content = b"".join(tensor.parts)
    if tensor.datatype in _NUMBERS:
        numbers = np.frombuffer(content, _NUMBERS[tensor.datatype])
        if numbers.size <= settings.max_json_values:
            return list(numbers.tolist())
    else:
        texts, body = list[str](), Body([content])
        try:
            while body.size:
                length = int.from_bytes(b"".join(body.take(4)), "little")
                texts.append(str(b"".join(body.take(length)), "utf-8"))
        except UnicodeDecodeError:
            pass
        else:
            return texts
    raise invalid_option("outputs", tensor.name, '"binary_data": true for this output, which JSON cannot carry')


def json_length(header: bytes | None, settings: Settings) -> int | None:
    """What ``Inference-Header-Content-Length`` says; InvalidOption where it is no number, or a large one."""
    if header is None:
        return None
    if not header.isdigit() or len(header) > 9 or int(header) > settings.max_json_bytes:
        raise malformed("Inference-Header-Content-Length", f"a number up to {settings.max_json_bytes}")
    return int(header)
