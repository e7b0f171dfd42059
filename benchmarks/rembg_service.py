"""`rembg s` with the project's matting network, for `benchmarks.side_by_side`; runs in an environment of its own.

The server, its threads, and everything around the network are rembg's. Only its session class, where rembg has one for
each network, is from here: it resizes as rembg's sessions do and hands over bytes, since normalisation is in the graph.
That spares rembg the floating-point picture that its own sessions make, and the stretching of the mask from its
smallest to its largest value, so it is rather faster here than with a session of its own.

    python -m benchmarks.rembg_service --network birefnet_trt.onnx --port 7000
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rembg import sessions
from rembg.cli import main as rembg
from rembg.sessions.base import BaseSession

MODEL = "cutaway"  # by which requests ask for the network


def session_class(network: Path) -> type:
    """A class of rembg sessions on an ONNX file: (N, S, S, 3) uint8 RGB in, (N, S, S) uint8 alpha out."""

    class Session(BaseSession):  # type: ignore[misc] # rembg is not installed where types are checked
        def predict(self, img: Image.Image, *_args: Any, **_options: Any) -> list[Image.Image]:
            (images,) = self.inner_session.get_inputs()
            side = images.shape[1]
            square = img.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            (alphas,) = self.inner_session.run(["alphas"], {images.name: np.asarray(square)[None]})
            return [Image.fromarray(alphas[0]).resize(img.size, Image.Resampling.LANCZOS)]

        @classmethod
        def download_models(cls, *_args: Any, **_options: Any) -> str:
            return str(network)

        @classmethod
        def name(cls, *_args: Any, **_options: Any) -> str:
            return MODEL

    return Session


def serve(network: Path, port: int) -> None:
    """Run `rembg s` until it is ended."""
    session = session_class(network)
    sessions.sessions[MODEL] = session
    sessions.sessions_class.append(session)
    sessions.sessions_names.append(MODEL)
    rembg(["s", "--host", "127.0.0.1", "--port", str(port), "--log_level", "warning", "--no-ui"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rembg_service", allow_abbrev=False)
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    serve(arguments.network, arguments.port)
