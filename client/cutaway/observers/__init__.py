"""Observers for OpenTelemetry and Prometheus: ``Client(url, observers=[OpenTelemetry(), Prometheus()])``.

Each needs its extra, ``cutaway[otel]`` or ``cutaway[prometheus]``, and is imported with its name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.observers.otel import OpenTelemetry
    from cutaway.observers.prometheus import Prometheus

__all__ = ["OpenTelemetry", "Prometheus"]


def __getattr__(name: str) -> Any:
    module = {"OpenTelemetry": "otel", "Prometheus": "prometheus"}.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
