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
    from cutaway.client import Client, Health
    from cutaway.errors import (
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
        ServerUnavailable,
        ServiceError,
        TooManyPixels,
    )
    from cutaway.inputs import LossyEncodingWarning
    from cutaway.limits import InputLimits, Tier
    from cutaway.report import Notice, Report
    from cutaway.result import Cutout, CutResult, Detection

__version__ = "0.1.0"

_HOMES = {
    "Client": "client",
    "CorruptImage": "errors",
    "CutResult": "result",
    "CutawayError": "errors",
    "Cutout": "result",
    "Detection": "result",
    "FileTooLarge": "errors",
    "GpuMemoryExhausted": "errors",
    "Health": "client",
    "ImageBomb": "errors",
    "InferenceError": "errors",
    "InputError": "errors",
    "InputLimits": "limits",
    "InvalidFormat": "errors",
    "InvalidOption": "errors",
    "LossyEncodingWarning": "inputs",
    "NoPersonDetected": "errors",
    "Notice": "report",
    "Overloaded": "errors",
    "ProcessingTimeout": "errors",
    "RateLimitExceeded": "errors",
    "Report": "report",
    "RequestCancelled": "errors",
    "ResolutionTooLarge": "errors",
    "ResolutionTooSmall": "errors",
    "ServerUnavailable": "errors",
    "ServiceError": "errors",
    "Tier": "limits",
    "TooManyPixels": "errors",
}

__all__ = [
    "Client",
    "CorruptImage",
    "CutResult",
    "CutawayError",
    "Cutout",
    "Detection",
    "FileTooLarge",
    "GpuMemoryExhausted",
    "Health",
    "ImageBomb",
    "InferenceError",
    "InputError",
    "InputLimits",
    "InvalidFormat",
    "InvalidOption",
    "LossyEncodingWarning",
    "NoPersonDetected",
    "Notice",
    "Overloaded",
    "ProcessingTimeout",
    "RateLimitExceeded",
    "Report",
    "RequestCancelled",
    "ResolutionTooLarge",
    "ResolutionTooSmall",
    "ServerUnavailable",
    "ServiceError",
    "Tier",
    "TooManyPixels",
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
