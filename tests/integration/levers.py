"""A real server whose pipeline has levers: a request's id may have it take its time first, or skip the networks.

    slow-20-…     a stage of 20 s comes first, which gives up as all stages do when the caller has gone
    echo-…        the file comes back as the cut-out, without detection or matte

Calls of `cut_many` have ids of their own making; there the picture is the lever (:func:`lazy_picture`).

Everything else (Triton, its queue, its processes, the pipeline after the levers) is as it is in production.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from runtime.compose import PIPELINE, SOURCE
from tests.integration import picture_files as make

LAZY_HEIGHT_PX = 65
"""The pipeline with levers knows it, too."""

MODEL_PY = """
import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils
import whole
from cutaway.contract.headers import check_picture

LAZY_HEIGHT_PX = 65
ECHO_S = 0.01
# Callers who leave together reach Triton one by one; a place that is free at once would go to one who is leaving, too.
LEAVING_S = 1.0


class TritonPythonModel(whole.TritonPythonModel):
    def _respond(self, request):
        lever, _, rest = request.request_id().partition("-")
        pb_utils.Logger.log_info(f"lever: began {request.request_id()}")
        try:
            if lever == "slow":
                proceed = whole._deadline_check(request, self.processing_timeout_s)
                end = time.monotonic() + float(rest.partition("-")[0])
                while time.monotonic() < end:
                    proceed()
                    time.sleep(0.01)
            header = check_picture(whole._file(request))
            if header.height_px == LAZY_HEIGHT_PX:
                return echo(request, header, header.width_px / 1000)
            return echo(request, header, ECHO_S) if lever == "echo" else super()._respond(request)
        except whole.RequestCancelled:
            pb_utils.Logger.log_info(f"lever: gave up {request.request_id()}")
            time.sleep(LEAVING_S)
            raise


def echo(request, header, seconds):
    time.sleep(seconds)
    data = whole._file(request)
    frame = [0, 0, header.width_px, header.height_px]
    cutout = {"id": 0, "people": [], "box": frame, "confidence": 1.0, "frame": frame, "bytes": len(data)}
    picture = {"width_px": frame[2], "height_px": frame[3], "orientation": 1}
    report = {"picture": picture, "people": [], "cutouts": [cutout], "id": request.request_id()}
    tensors = [
        pb_utils.Tensor("images", np.array([data, None], np.object_)[:-1]),
        pb_utils.Tensor("boxes", np.zeros((1, 4), np.float32)),
        pb_utils.Tensor("scores", np.ones(1, np.float32)),
        pb_utils.Tensor("report", np.array([json.dumps(report).encode()], np.object_)),
    ]
    wanted = set(request.requested_output_names())
    return pb_utils.InferenceResponse([tensor for tensor in tensors if tensor.name() in wanted])
"""


def repository(folder: Path) -> Path:
    """Write the repository of such a server into a new folder."""
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    version = folder / PIPELINE / "1"
    (version / "model.py").rename(version / "whole.py")
    (version / "model.py").write_text(MODEL_PY)
    return folder


def lazy_picture(milliseconds: int) -> bytes:
    """A picture whose echo takes so long, 64 at least: its width."""
    return make.saved(Image.fromarray(make.noise(milliseconds, LAZY_HEIGHT_PX, seed=milliseconds)), "PNG")


def began(server: Any, request_id: str) -> bool:
    """Whether the pipeline has taken the request up."""
    return f"lever: began {request_id}\n" in _said(server)


def gave_up(server: Any, request_id: str) -> bool:
    """Whether the pipeline has noticed that the caller has gone."""
    return f"lever: gave up {request_id}\n" in _said(server)


def _said(server: Any) -> str:
    return str(server.process.log_text()).replace('"\n', "\n")


def pending(server: Any) -> int:
    """How many requests wait in the pipeline's queue."""
    return _metric(server, "nv_inference_pending_request_count")


def cancelled(server: Any) -> int:
    """How many requests Triton took out of the pipeline's queue because their callers had gone."""
    return _metric(server, "nv_inference_request_failure", 'reason="CANCELED"')


def _metric(server: Any, name: str, label: str = "") -> int:
    for line in httpx.get(server.metrics_url, timeout=10).text.splitlines():
        if re.match(rf'{name}\{{.*model="{PIPELINE}"', line) and label in line:
            return int(float(line.rpartition(" ")[2]))
    return 0
