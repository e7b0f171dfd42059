"""The SDK's transport inside the gate's process: its requests pass the gate's core, not its ports."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from cutaway.contract.errors import InferenceError, ServerUnavailable, from_json
from cutaway.transports.base import InferRequest, ModelInfo, Tensor, tensor

from gateway import wire
from gateway.access import Entry, current
from gateway.core import STREAM, Core
from gateway.failures import Failure
from gateway.request import InferRequest as Framed
from gateway.request import Tensor as Input
from gateway.request import file_parts
from gateway.tracing import Trace

caller: ContextVar[str] = ContextVar("caller", default="service")
"""For whom a request is sent, by the gate's admission: an address, or a key's name."""


class CoreTransport:
    """See :class:`cutaway.transports.base.Transport`."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def infer(self, request: InferRequest) -> dict[str, Tensor]:
        try:
            if request.model == STREAM:
                message = await self._counted(request)
            else:
                message = await self._infer(request)
        except Failure as failure:
            error = from_json(failure.message, request_id=request.request_id)
            raise (error or InferenceError("The server failed.")) from None
        _, outputs = wire.infer_response(message)
        return {each.name: tensor(each.name, each.datatype, each.shape, b"".join(each.parts)) for each in outputs}

    async def _infer(self, request: InferRequest) -> bytes:
        framed = _framed(request)
        trace = Trace(request.headers.items()) if "traceparent" in request.headers else current().trace
        with self._core.admission.place(caller.get(), within=True) as place:
            place.hold(sum(len(part) for each in framed.inputs for part in each.parts))
            place.begin()
            return await self._core.infer(framed, place, request.timeout_s, trace.metadata())

    async def _counted(self, request: InferRequest) -> bytes:
        """A frame; pictures are counted by the engine, with what the SDK refuses by itself."""
        frame = Entry("service", model=STREAM)
        try:
            with self._core.counted(frame):
                return await self._infer(request)
        finally:
            current().model = STREAM
            current().pictures[frame.code or "CANCELLED"] += 1

    async def server_ready(self, timeout_s: float) -> bool:  # noqa: ARG002 (the gate has a timeout of its own)
        return await self._core.ready()

    async def model_ready(self, model: str, timeout_s: float) -> bool:  # noqa: ARG002
        try:
            status, _ = await self._core.upstream.get(f"/v2/models/{model}/ready")
        except Failure as failure:
            raise from_json(failure.message) or ServerUnavailable("The server is away.") from None
        return status == 200

    async def metadata(self, model: str, timeout_s: float) -> ModelInfo:  # noqa: ARG002
        raise ServerUnavailable(f"The service asks for no metadata of {model}.")

    async def aclose(self) -> None:
        """The core belongs to the gate."""


def _framed(request: InferRequest) -> Framed:
    parameters: dict[str, Any] = dict(request.parameters)
    if (part := request.sequence) is not None:
        parameters |= {"sequence_id": part.id, "sequence_start": part.begins, "sequence_end": part.ends}
    inputs = []
    for name, value in request.all_inputs.items():
        if isinstance(value, bytes):
            inputs.append(Input(name, "BYTES", [1], file_parts([value])))
        else:
            inputs.append(Input(name, "UINT8", list(value.shape), [value.tobytes()]))
    return Framed(request.model, "", request.request_id, parameters, inputs, list(request.outputs))
