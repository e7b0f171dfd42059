"""A server's answer as the SDK takes it apart, whole and well-formed."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from tests.integration import picture_files as make

PNG = make.saved(make.picture(90, 60, "RGBA"), "PNG")
WEBP = make.saved(make.picture(90, 60, "RGBA"), "WEBP", lossless=True)
MASK = make.saved(make.picture(90, 60, "L"), "PNG")

REPORT: dict[str, Any] = {
    "picture": {"width_px": 100, "height_px": 80, "format": "jpeg", "orientation": 6},
    "people": [
        {"id": 0, "box": [1.5, 2, 90, 70], "confidence": 0.9},
        {"id": 2, "box": [5, 5, 20, 30], "confidence": 0.4},
    ],
    "cutouts": [
        {
            "id": id_,
            "people": [id_],
            "box": [1.5, 2, 90, 70],
            "confidence": 0.9,
            "frame": [5, 10, 95, 70],
            "size": [90, 60],
            "media_type": "image/png",
            "bytes": len(PNG),
        }
        for id_ in (0, 2)
    ],
    "models": {"profile": "nano", "matte": {"name": "birefnet_trt", "version": "1"}},
    "device": "cpu",
    "milliseconds": {"decode": 1.25, "total": 100},
    "warnings": [{"code": "LOW_CONFIDENCE", "message": "Unsure.", "tier": 3, "details": {"ids": [2]}}],
}


def outputs(report: Any = REPORT, images: Any = (PNG, PNG), count: int = 2) -> dict[str, Any]:
    return {
        "images": list(images),
        "boxes": np.ones((count, 4), np.float32),
        "scores": np.full(count, 0.5, np.float32),
        "report": [json.dumps(report).encode()],
    }


def wire_outputs(report: Any = REPORT, images: Any = (PNG, PNG)) -> tuple[list[dict[str, Any]], bytes]:
    """The same answer as HTTP carries it: descriptions of the outputs, and their bytes."""
    parts = {
        "images": ("BYTES", [len(images)], b"".join(_element(image) for image in images)),
        "boxes": ("FP32", [2, 4], np.ones((2, 4), "<f4").tobytes()),
        "scores": ("FP32", [2], np.full(2, 0.5, "<f4").tobytes()),
        "report": ("BYTES", [1], _element(json.dumps(report).encode())),
    }
    described = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, (datatype, shape, raw) in parts.items()
    ]
    return described, b"".join(raw for _, _, raw in parts.values())


def _element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data
