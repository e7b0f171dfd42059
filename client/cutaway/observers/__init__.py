"""Observers for what many run already; each needs its extra: ``cutaway[otel]``, ``cutaway[prometheus]``.

    Client(url, observers=[OpenTelemetry(), Prometheus()])

How to write one of your own stands in :mod:`cutaway.observe`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutaway.observers.otel import OpenTelemetry
    from cutaway.observers.prometheus import Prometheus

__all__ = ["OpenTelemetry", "Prometheus"]


def __getattr__(name: str) -> Any:
    if name == "OpenTelemetry":
        from cutaway.observers.otel import OpenTelemetry

        return OpenTelemetry
    if name == "Prometheus":
        from cutaway.observers.prometheus import Prometheus

        return Prometheus
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
