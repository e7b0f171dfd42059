"""Records of plans as `python -m export plan` writes them on an L4 with the TensorRT of the GPU image."""

from __future__ import annotations

from typing import Any

from runtime.plans import PlanRecord


def a_record(model: str, **values: Any) -> PlanRecord:
    """The record of a profile `lite`; `plan_sha256` and `side_px` have to be given, anything else may be."""
    usual = {
        "profile": "lite",
        "made": "2026-11-21T12:00:00+00:00",
        "library": "tensorrt",
        "tensorrt": "10.13.3.9",
        "cuda": "13.0",
        "driver_cuda": "13.0",
        "gpu": "NVIDIA L4",
        "compute_capabilities": ("8.9",),
        "onnx": {"name": f"{model}.fp16.onnx", "sha256": "0" * 64},
        "reference": {"name": f"{model}.onnx", "sha256": "0" * 64},
        "options": {"batches": [1, 4, 8]},
    }
    return PlanRecord(model=model, **{**usual, **values})
