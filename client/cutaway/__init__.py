"""Cutaway: cut people and objects out of pictures with a Cutaway server on NVIDIA Triton.

    >>> import cutaway
    >>> with cutaway.Client("grpc://localhost:8001") as client:
    ...     client.cut("photo.jpg").save("cutout.png")

Names load when they are first used: the pipeline inside the server imports the shared table, options, errors and header
checks from this package and must not pull in a network client.
"""

# ruff: noqa: F403, F405 (the errors, for type checkers alone)

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.async_client import AsyncClient, Outcome
    from cutaway.cache import ResultCache
    from cutaway.client import Client
    from cutaway.contract.errors import *
    from cutaway.contract.limits import InputLimits, Tier
    from cutaway.fallback import Fallback, NeedsDetection, NobodyServed, Tried
    from cutaway.inputs import LossyEncodingWarning
    from cutaway.loop import Cancel
    from cutaway.report import Notice, Report
    from cutaway.resilience import RetryPolicy
    from cutaway.result import Cutout, CutResult, Detection, UpscaleResult
    from cutaway.servers import Health
    from cutaway.stream import AsyncStream, Stream, StreamFrame, StreamStatistics
    from cutaway.transports.base import ModelInfo
    from cutaway.transports.connection import InsecureTokenWarning, Tls

__version__ = "0.1.0"

_NAMES = {
    "async_client": "AsyncClient Outcome",
    "cache": "ResultCache",
    "client": "Client",
    "contract.limits": "InputLimits Tier",
    "fallback": "Fallback NeedsDetection NobodyServed Tried",
    "inputs": "LossyEncodingWarning",
    "loop": "Cancel",
    "report": "Notice Report",
    "resilience": "RetryPolicy",
    "result": "CutResult Cutout Detection UpscaleResult",
    "servers": "Health",
    "stream": "AsyncStream Stream StreamFrame StreamStatistics",
    "transports.base": "ModelInfo",
    "transports.connection": "InsecureTokenWarning Tls",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

# fmt: off
__all__ = [
    "AsyncClient", "AsyncStream", "Cancel", "Client", "CorruptImage", "CutResult", "CutawayError", "Cutout",
    "Detection", "Fallback", "FileTooLarge", "GpuMemoryExhausted", "Health", "ImageBomb", "InferenceError",
    "InputError", "InputLimits", "InsecureTokenWarning", "InvalidFormat", "InvalidOption", "LossyEncodingWarning",
    "ModelInfo", "NeedsDetection", "NoPersonDetected", "NobodyServed", "Notice", "Outcome", "Overloaded",
    "ProcessingTimeout", "RateLimitExceeded", "Report", "RequestCancelled", "ResolutionTooLarge",
    "ResolutionTooSmall", "ResultCache", "RetryPolicy", "ServerRefused", "ServerUnavailable", "ServiceError",
    "Stream", "StreamFrame", "StreamStatistics", "Tier", "Tls", "TooManyPixels", "Tried", "UpscaleResult",
    "__version__",
]
# fmt: on


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cutaway' has no attribute {name!r}")
    value = getattr(import_module(f"cutaway.{_HOMES.get(name, 'contract.errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
