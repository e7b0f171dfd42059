"""The service that one writes first: FastAPI, the network in the process, a semaphore, Pillow around it.

It is what `benchmarks.side_by_side` compares with, and runs in an environment of its own. Nothing in it is slow on
purpose: the work is done in threads, as many pictures at once as there are cores, and all defaults are kept.

    python -m benchmarks.handmade_service --network birefnet_trt.onnx --port 7000
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, Response
from PIL import Image, ImageOps


def application(network: Path) -> FastAPI:
    """`POST /cut` takes an encoded picture as the body and answers with a PNG of the same size."""
    session = ort.InferenceSession(network, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    side = images.shape[1]
    at_once = asyncio.Semaphore(len(os.sched_getaffinity(0)))
    app = FastAPI()

    def cut(data: bytes) -> bytes:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        square = np.asarray(picture.resize((side, side)))
        (alphas,) = session.run(["alphas"], {images.name: square[None]})
        picture.putalpha(Image.fromarray(alphas[0]).resize(picture.size))
        answer = io.BytesIO()
        picture.save(answer, "PNG")
        return answer.getvalue()

    @app.post("/cut")
    async def answer(request: Request) -> Response:
        data = await request.body()
        async with at_once:
            return Response(await asyncio.to_thread(cut, data), media_type="image/png")

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.handmade_service", allow_abbrev=False)
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    uvicorn.run(application(arguments.network), host="127.0.0.1", port=arguments.port, log_level="warning")
