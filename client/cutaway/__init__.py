"""Cutaway: cut people and objects out of pictures with a Cutaway server on NVIDIA Triton.

    >>> import cutaway
    >>> with cutaway.Client("grpc://localhost:8001") as client:
    ...     client.cut("photo.jpg").save("cutout.png")

Names load when they are first used: the pipeline inside the server imports the shared table, options, errors and header
checks from this package and must not pull in a network client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.async_client import AsyncClient
    from cutaway.cache import ResultCache
    from cutaway.cancel import Cancel
    from cutaway.client import Client
    from cutaway.contract.errors import (
        CorruptImage,
        CutawayError,
        FileTooLarge,
        GpuMemoryExhausted,
        ImageBomb,
        InferenceError,
        InputError,
        InvalidFormat,
        InvalidOption,
        NoPersonDetected,
        Overloaded,
        ProcessingTimeout,
        RateLimitExceeded,
        RequestCancelled,
        ResolutionTooLarge,
        ResolutionTooSmall,
        ServerRefused,
        ServerUnavailable,
        ServiceError,
        TooManyPixels,
    )
    from cutaway.contract.limits import InputLimits, Tier
    from cutaway.fallback import Fallback, NeedsDetection, NobodyServed, Tried
    from cutaway.frames import StreamFrame, StreamStatistics
    from cutaway.health import Health
    from cutaway.inputs import LossyEncodingWarning
    from cutaway.many import Outcome
    from cutaway.report import Notice, Report
    from cutaway.resilience import RetryPolicy
    from cutaway.result import Cutout, CutResult, Detection, UpscaleResult
    from cutaway.stream import AsyncStream, Stream
    from cutaway.transports.base import ModelInfo
    from cutaway.transports.connection import InsecureTokenWarning, Tls

__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "async_client",
    "AsyncStream": "stream",
    "Cancel": "cancel",
    "Client": "client",
    "CorruptImage": "contract.errors",
    "CutResult": "result",
    "CutawayError": "contract.errors",
    "Cutout": "result",
    "Detection": "result",
    "Fallback": "fallback",
    "FileTooLarge": "contract.errors",
    "GpuMemoryExhausted": "contract.errors",
    "Health": "health",
    "ImageBomb": "contract.errors",
    "InferenceError": "contract.errors",
    "InputError": "contract.errors",
    "InputLimits": "contract.limits",
    "InsecureTokenWarning": "transports.connection",
    "InvalidFormat": "contract.errors",
    "InvalidOption": "contract.errors",
    "LossyEncodingWarning": "inputs",
    "ModelInfo": "transports.base",
    "NeedsDetection": "fallback",
    "NoPersonDetected": "contract.errors",
    "NobodyServed": "fallback",
    "Notice": "report",
    "Outcome": "many",
    "Overloaded": "contract.errors",
    "ProcessingTimeout": "contract.errors",
    "RateLimitExceeded": "contract.errors",
    "Report": "report",
    "RequestCancelled": "contract.errors",
    "ResolutionTooLarge": "contract.errors",
    "ResolutionTooSmall": "contract.errors",
    "ResultCache": "cache",
    "RetryPolicy": "resilience",
    "ServerRefused": "contract.errors",
    "ServerUnavailable": "contract.errors",
    "ServiceError": "contract.errors",
    "Stream": "stream",
    "StreamFrame": "frames",
    "StreamStatistics": "frames",
    "Tier": "contract.limits",
    "Tls": "transports.connection",
    "TooManyPixels": "contract.errors",
    "Tried": "fallback",
    "UpscaleResult": "result",
}

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Cancel",
    "Client",
    "CorruptImage",
    "CutResult",
    "CutawayError",
    "Cutout",
    "Detection",
    "Fallback",
    "FileTooLarge",
    "GpuMemoryExhausted",
    "Health",
    "ImageBomb",
    "InferenceError",
    "InputError",
    "InputLimits",
    "InsecureTokenWarning",
    "InvalidFormat",
    "InvalidOption",
    "LossyEncodingWarning",
    "ModelInfo",
    "NeedsDetection",
    "NoPersonDetected",
    "NobodyServed",
    "Notice",
    "Outcome",
    "Overloaded",
    "ProcessingTimeout",
    "RateLimitExceeded",
    "Report",
    "RequestCancelled",
    "ResolutionTooLarge",
    "ResolutionTooSmall",
    "ResultCache",
    "RetryPolicy",
    "ServerRefused",
    "ServerUnavailable",
    "ServiceError",
    "Stream",
    "StreamFrame",
    "StreamStatistics",
    "Tier",
    "Tls",
    "TooManyPixels",
    "Tried",
    "UpscaleResult",
    "__version__",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cutaway' has no attribute {name!r}")
    value = getattr(import_module(f"cutaway.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
