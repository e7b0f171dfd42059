"""A program as somebody would write it around the SDK: mypy checks it strictly, and it runs (`consumer.py URL PHOTO`).

Each `type: ignore` is a mistake that mypy has to find: without the types in the wheel it would complain of the comment.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cutaway
import numpy as np
from cutaway import AsyncClient, Client, CutResult, Outcome
from cutaway.providers import Replicate
from numpy.typing import NDArray


def sizes(outcomes: Iterator[Outcome]) -> list[int]:
    found = []
    for outcome in outcomes:
        result: CutResult = outcome.unwrap()
        found.append(len(result.cutouts[0].image))
    return found


async def provider_of(url: str, photo: Path) -> str:
    async with AsyncClient(url) as client:
        result = await client.cut(photo, subject="all", output="mask")
        async for outcome in client.cut_many([photo], jobs=1):
            if outcome.result is None:
                raise outcome.error or RuntimeError("neither a result nor an error")
        return result.provider


def main(url: str, photo: Path) -> None:
    with Client(url, timeout_s=60, retry=cutaway.RetryPolicy(retries=1)) as client:
        result = client.cut(photo, subject="each", background="#00FF00", boxes=None)
        pixels: NDArray[np.uint8] = result.cutouts[0].numpy()
        scores: NDArray[np.float32] = client.detect(photo.read_bytes()).scores
        try:
            client.cut(photo, min_confidence=2.0)
        except cutaway.InvalidOption as error:
            code: str = error.code
        many = sizes(client.cut_many([photo, photo]))
    print(
        json.dumps(
            {
                "version": cutaway.__version__,
                "home": cutaway.__file__,
                "channels": pixels.shape[2],
                "people": len(scores),
                "code": code,
                "many": len(many),
                "provider": asyncio.run(provider_of(url, photo)),
            }
        )
    )


def mistakes(client: Client, photo: Path) -> None:
    client.cut(photo, subject="cats")  # type: ignore[arg-type]
    client.cut(photo, feather=3)  # type: ignore[call-arg]
    client.cut(3.14)  # type: ignore[arg-type]
    print(client.upscale(photo).cutouts)  # type: ignore[attr-defined]
    result: CutResult = client.cut_many([photo])  # type: ignore[assignment]
    Client(fallback=["replicate"])  # type: ignore[list-item]
    Client(fallback=[Replicate()], timeout_s="60")  # type: ignore[arg-type]
    print(result)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
