"""Requests, answers and addresses of all transports. Every length, shape and form from the network is validated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from cutaway.transports.failures import malformed, no_triton

Tensor: TypeAlias = list[bytes] | NDArray[np.float32] | NDArray[np.uint8]
"""A BYTES tensor as a list, an FP32 or UINT8 tensor as an array of its shape, which may be written to."""

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 443, "http": 8000, "https": 443}


@dataclass(frozen=True)
class SequencePart:
    """A request's place in a stateful model's sequence."""

    id: int
    begins: bool = False
    ends: bool = False


@dataclass(frozen=True)
class InferRequest:
    """One call of a model that takes one encoded picture, or `inputs` by name instead of it: encoded files (BYTES) and
    arrays (UINT8). The server computes the named `outputs` only; `timeout_s` is for the whole call; `headers`, in lower
    case, are sent with this call only."""

    model: str
    image: bytes
    outputs: tuple[str, ...]
    parameters: Mapping[str, str | int | bool] = field(default_factory=dict)
    request_id: str = ""
    timeout_s: float = 30.0
    headers: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, bytes | NDArray[np.uint8]] | None = None
    sequence: SequencePart | None = None

    @property
    def all_inputs(self) -> Mapping[str, bytes | NDArray[np.uint8]]:
        """The picture, or `inputs` where there are any."""
        return {"image": self.image} if self.inputs is None else self.inputs


@dataclass(frozen=True)
class ModelInfo:
    """A server's metadata of a model: the versions that it serves, its backend (`platform`), such as "python", the
    state: "READY", "UNAVAILABLE" (known, but loading, unloading or failed), or "NOT_FOUND"; and of its inputs and
    outputs the "name", the "datatype", such as "FP32", and the "shape", -1 where any size goes."""

    name: str
    versions: tuple[str, ...] = ()
    state: str = "UNAVAILABLE"
    platform: str = ""
    inputs: tuple[Mapping[str, Any], ...] = ()
    outputs: tuple[Mapping[str, Any], ...] = ()

    @property
    def ready(self) -> bool:
        return self.state == "READY"


class Transport(Protocol):
    """The connections to one server; cancelling a task ends its request at the server.

    Every method raises only :class:`cutaway.CutawayError`, within its seconds; and RuntimeError where it is used
    wrongly: after it was closed, in another event loop than the first, or over gRPC in a fork of its process.
    """

    async def infer(self, request: InferRequest) -> dict[str, Tensor]:
        """The outputs by name: not validated against the requested ones, of which some may be missing."""
        ...

    async def server_ready(self, timeout_s: float) -> bool: ...

    async def model_ready(self, model: str, timeout_s: float) -> bool: ...

    async def metadata(self, model: str, timeout_s: float) -> ModelInfo:
        """The server's metadata of a ready model; ServerUnavailable where it is not ready."""
        ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True)
class Address:
    """A server's address; IPv6 in brackets, and `path` is the prefix of ``/v2`` behind a proxy."""

    scheme: str
    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"


def parse_address(url: str) -> Address:
    """Read ``grpc://host:8001``, ``grpcs://host``, ``http://host:8000`` or ``https://host/path``; ValueError for
    anything else, and for credentials, since addresses end up in logs."""
    hint = "write grpc://host:8001 or http://host:8000 (grpcs:// and https:// for TLS)"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no address: {error}; {hint}") from None
    if "@" in parts.netloc:
        raise ValueError(f"an address holds no user or password; {hint}")
    extra = parts.query or parts.fragment or (parts.scheme.startswith("grpc") and parts.path.strip("/"))
    if parts.scheme not in DEFAULT_PORTS or not host or extra:
        raise ValueError(f"{url!r} is no address of a server; {hint}")
    port = DEFAULT_PORTS[parts.scheme] if port is None else port
    return Address(parts.scheme, f"[{host}]" if ":" in host else host, port, parts.path.rstrip("/"))


def read_model(found: Mapping[str, Any], address: str) -> ModelInfo:
    """A ready model's metadata from KServe's JSON; ServerRefused where it is no answer of Triton."""
    try:
        inputs, outputs = (tuple(map(_read_tensor, found.get(part, ()))) for part in ("inputs", "outputs"))
        versions = tuple(map(str, found.get("versions", ())))
        return ModelInfo(str(found["name"]), versions, "READY", str(found.get("platform", "")), inputs, outputs)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise no_triton(address, "JSON that describes no model") from None


def _read_tensor(found: Mapping[str, Any]) -> Mapping[str, Any]:
    shape = list(map(int, found["shape"]))
    return {"name": str(found["name"]), "datatype": str(found["datatype"]), "shape": shape}


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
