"""An inference request as it passes the gate, whatever its protocol, and what it may hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from cutaway.contract.errors import FileTooLarge, InvalidOption, invalid_option
from cutaway.contract.limits import INPUT_LIMITS

from gateway.settings import Settings

Buffer: TypeAlias = bytes | bytearray | memoryview
Parameter: TypeAlias = bool | int | float | str

_MAX_SHOWN = 8


@dataclass(frozen=True)
class TensorType:
    """KServe's datatype, and the shape; -1 where any size goes."""

    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """What `model_repository/<name>/config.pbtxt` declares."""

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    optional: bool = False


_FILE, _FRAME = TensorType("BYTES", (1,)), TensorType("UINT8", (-1, -1, 3))

MODELS = {
    "ensemble_pipeline": Model(
        {"image": _FILE},
        {
            "images": TensorType("BYTES", (-1,)),
            "boxes": TensorType("FP32", (-1, 4)),
            "scores": TensorType("FP32", (-1,)),
            "report": _FILE,
        },
    ),
    "stream_pipeline": Model(
        {"frame": _FRAME, "file": _FILE, "background": _FILE},
        {"frame": _FRAME, "jpeg": _FILE, "alpha": TensorType("UINT8", (-1, -1)), "report": _FILE},
        optional=True,
    ),
}
"""The models that can be called; the networks cannot, since only the pipelines bound what reaches them."""
NETWORKS = ("yolov8_seg", "birefnet_trt")
"""Whether they are ready, and their metadata, is told: `cutaway.Client.models()` asks."""


@dataclass
class Tensor:
    """An input; `parts` together are its little-endian bytes, those of BYTES each after its length."""

    name: str
    datatype: str
    shape: list[int]
    parts: Sequence[Buffer] = ()


@dataclass
class InferRequest:
    """A request, valid once it is checked; `outputs` are all where none is named."""

    model: str
    version: str = ""
    id: str = ""
    parameters: dict[str, Parameter] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def check(self, settings: Settings) -> None:
        """Check it against the contract, and cut its id.

        Raises:
            InvalidOption: it names what is wrong.
            FileTooLarge: an input has more bytes than a picture may.
        """
        model = MODELS[self.model]
        if len(self.version) > 9 or not re.fullmatch("[0-9]*", self.version):
            raise invalid_option("version", self.version, "a number, or none for the newest")
        self.id = "".join(char if char.isprintable() else "?" for char in self.id[: settings.max_id_chars])
        if len(self.parameters) > settings.max_parameters:
            raise invalid_option("parameters", len(self.parameters), f"at most {settings.max_parameters}")
        for name, value in self.parameters.items():
            _check_parameter(name, value, settings)
        names = [each.name for each in self.inputs]
        if len(set(names)) != len(names) or not (model.optional or names):
            raise invalid_option("inputs", ", ".join(names[:_MAX_SHOWN]), f"each once of {', '.join(model.inputs)}")
        for tensor in self.inputs:
            _check_tensor(tensor, model)
        if len(set(self.outputs)) != len(self.outputs):
            raise invalid_option("outputs", len(self.outputs), f"each once of {', '.join(model.outputs)}")
        for name in self.outputs:
            if name not in model.outputs:
                raise invalid_option("outputs", name, ", ".join(model.outputs))


def _check_parameter(name: str, value: Parameter, settings: Settings) -> None:
    if not 0 < len(name) <= settings.max_id_chars:
        raise invalid_option("parameters", name, f"names of 1 to {settings.max_id_chars} characters")
    if isinstance(value, str) and len(value) > settings.max_text_chars:
        raise invalid_option(name, value, f"at most {settings.max_text_chars} characters")
    if isinstance(value, float) and not math.isfinite(value):
        raise invalid_option(name, value, "a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise invalid_option(name, value, "a number of 64 bits")
    # Triton's own; all others are options, which the pipelines check.
    if name in ("timeout", "sequence_id", "priority") and (type(value) is not int or value < 0):
        raise invalid_option(name, value, "a whole number from 0 upwards")
    if name in ("sequence_start", "sequence_end") and type(value) is not bool:
        raise invalid_option(name, value, "true, false")


def _check_tensor(tensor: Tensor, model: Model) -> None:
    kind = model.inputs.get(tensor.name)
    if kind is None:
        raise invalid_option("inputs", tensor.name, ", ".join(model.inputs))
    if tensor.datatype != kind.datatype:
        raise invalid_option(f"{tensor.name}.datatype", tensor.datatype, kind.datatype)
    fits = len(tensor.shape) == len(kind.shape) and all(
        1 <= side < 2**31 and wanted in (-1, side) for side, wanted in zip(tensor.shape, kind.shape, strict=True)
    )
    if not fits:
        shown = tensor.shape[:_MAX_SHOWN]
        raise invalid_option(
            f"{tensor.name}.shape", shown, f"{list(kind.shape)}, where -1 is any number from 1 upwards"
        )
    size = sum(map(len, tensor.parts))
    if kind.datatype == "BYTES":
        prefix = b"".join(Body(tensor.parts).take(min(4, size)))
        expected = 4 + int.from_bytes(prefix, "little")
        if expected - 4 > INPUT_LIMITS.max_file_bytes:
            raise too_large(expected - 4)
    else:
        expected = math.prod(tensor.shape)
    if size != expected:
        raise invalid_option(tensor.name, f"{size} bytes", f"{expected} bytes, as its shape or length says")


def too_large(size_bytes: int) -> FileTooLarge:
    """The error for a file of this size, or for the body that holds it."""
    allowed = INPUT_LIMITS.max_file_bytes
    details = {"size_bytes": size_bytes, "max_bytes": allowed}
    return FileTooLarge(f"The file has {size_bytes:,} bytes; at most {allowed:,} are allowed.", details=details)


class Body:
    """A request's body in the parts in which it came, taken from its start without a copy of what is long."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self._parts = (memoryview(part) for part in parts)
        self._left = memoryview(b"")
        self.size = sum(map(len, parts))

    def take(self, size: int) -> list[memoryview]:
        """The next bytes; ValueError where there are fewer."""
        if not 0 <= size <= self.size:
            raise ValueError(f"the body has {self.size} further bytes, not {size}")
        self.size -= size
        taken: list[memoryview] = []
        while size:
            if not self._left:
                self._left = next(self._parts)
            taken.append(self._left[:size])
            self._left = self._left[size:]
            size -= len(taken[-1])
        return taken


def file_parts(data: Sequence[Buffer]) -> list[Buffer]:
    """One element of BYTES: its length, then its bytes."""
    return [sum(map(len, data)).to_bytes(4, "little"), *data]


def malformed(what: str, allowed: str) -> InvalidOption:
    """The error for a request that cannot be read."""
    return invalid_option("request", what, allowed, f"The request cannot be read: {what}.")
