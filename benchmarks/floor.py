"""What no server can be faster than with these networks: each network's own run, and reading and writing the picture.

All of it happens in the process that asks, one thing after the other, with the session options of `runtime`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.compose import SOURCE
from runtime.sessions import keep_memory, onnx_model

STAGES = ("decode", "detect", "matte", "encode")
PIPELINE = SOURCE / "ensemble_pipeline" / "1"
OPENCV_THREADS = 2  # as in the pipeline


class Floor:
    """The parts, ready to run.

    Args:
        networks: ONNX files by model name.
        threads: of one network's run.
    """

    def __init__(self, networks: dict[str, Path], threads: int) -> None:
        keep_memory()
        open_session = onnx_model().open_session
        self._detector = open_session(networks["yolov8_seg"], "cpu", threads)
        self._matter = open_session(networks["birefnet_trt"], "cpu", threads)
        sys.path.insert(0, str(PIPELINE))
        from pipeline.decode import decode
        from pipeline.encode import png
        from pipeline.letterbox import letterbox
        from pipeline.matte import matte_crops
        from pipeline.pixels import Pixels

        cv2.setNumThreads(OPENCV_THREADS)
        self._decode, self._letterbox, self._matte_crops = decode, letterbox, matte_crops
        self._png: Callable[[NDArray[np.uint8]], bytes] = lambda array: png(Pixels.of(array))
        self._side = int(self._matter.get_inputs()[0].shape[1])

    def alpha(self, data: bytes) -> NDArray[np.uint8]:
        """The network's own alpha (H, W) uint8 of a whole picture, enlarged and nothing else."""
        picture = self._decode(data)
        matte = self._matte_crops(picture.rgb, [picture.frame], self._run_matter, self._side)[picture.frame]
        return np.asarray(cv2.resize(matte, (picture.width, picture.height)), np.uint8)

    def run(self, data: bytes, cutout: NDArray[np.uint8]) -> dict[str, float]:
        """Milliseconds of each stage, once.

        Args:
            data: the encoded picture.
            cutout: (H, W, 4) uint8, what has to be written.
        """
        times: dict[str, float] = {}

        def timed(stage: str, work: Callable[[], Any]) -> Any:
            begun = time.perf_counter()
            result = work()
            times[stage] = (time.perf_counter() - begun) * 1000
            return result

        picture = timed("decode", lambda: self._decode(data))
        square = self._letterbox(picture.rgb)[0][None]
        timed("detect", lambda: self._detector.run(None, {"images": square}))
        crop = np.asarray(cv2.resize(picture.rgb, (self._side, self._side)), np.uint8)[None]
        timed("matte", lambda: self._run_matter(crop))
        timed("encode", lambda: self._png(cutout))
        return times

    def _run_matter(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        (alphas,) = self._matter.run(["alphas"], {"images": crops})
        return np.asarray(alphas, np.uint8)
