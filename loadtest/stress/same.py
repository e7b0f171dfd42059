"""Answers under load are those that the server gives to one caller alone (`make stress-same`).

Every request is asked once alone. Then many threads ask all of them, each in an order of its own, over gRPC and
HTTP, so that the networks' batches mix callers; each answer is compared with the one that was given alone.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from loadtest import pictures
from loadtest.figures import models
from loadtest.running import Target, own_server
from loadtest.scenarios import DETECTION_OUTPUTS, SERVED, Ask
from loadtest.stress.common import Claim, Found, script_main
from loadtest.watching import look
from loadtest.ways import Reply, Way
from runtime.server import ServerOptions

MAX_DIFFERENCE = 1
"""Of 255."""
MAX_BOX_PX = 0.5


@dataclass
class Compared:
    """What the comparison of all answers came to: how many were identical, byte for byte, the largest difference of any
    pixel (of 255) and of any box (pixels), and what was altogether another answer, in words."""

    answers: int = 0
    identical: int = 0
    difference: int = 0
    box_px: float = 0.0
    strange: list[str] = field(default_factory=list)


def asks() -> list[Ask]:
    """Pictures of which no two are alike in size, so that an answer that went astray is recognised."""
    bad = pictures.portrait(0.35)
    return [
        Ask("one person", pictures.portrait(0.3)),
        Ask("one person, mirrored", pictures.portrait(0.5, 2)),
        Ask("another person", pictures.portrait(0.4, 1)),
        Ask("two people", pictures.crowd(2, 0.6)),
        Ask("each of three", pictures.crowd(3, 0.7), {"subject": "each"}),
        Ask("a thing", pictures.thing(0.8), {"subject": "all"}),
        Ask("green screen", pictures.portrait(0.9, 3), {"background": "#00FF00", "output": "webp"}),
        Ask("mask", pictures.portrait(1.0, 1), {"output": "mask"}),
        Ask("detection", pictures.crowd(4, 1.1), outputs=DETECTION_OUTPUTS),
        Ask("half a file", bad[: len(bad) // 2]),
    ]


def measure(options: argparse.Namespace, _folder: Path) -> Found:
    # As many pipelines as callers: the networks then have requests of several callers waiting, and batch them.
    server = ServerOptions(profile=options.profile, instances=min(8, options.threads))
    with own_server(server, ("grpc", "http")) as target:
        return compare(target, asks(), threads=options.threads, rounds=options.rounds)


def compare(target: Target, wanted: Sequence[Ask], *, threads: int, rounds: int) -> Found:
    """Ask alone, then together, and judge."""
    with closing(Way("gRPC", target.grpc)) as way:
        alone = [way.send(ask, f"alone-{number}") for number, ask in enumerate(wanted)]
    before = look(target.metrics_url, target.pid)
    found, lock = Compared(), threading.Lock()

    def caller(number: int) -> None:
        way = Way("gRPC", target.grpc) if number % 2 == 0 else Way("HTTP", target.http)
        chance = random.Random(number)
        with closing(way):
            for turn in range(rounds):
                for index in chance.sample(range(len(wanted)), len(wanted)):
                    # `send` itself finds an answer that bears another request's id.
                    reply = way.send(wanted[index], f"{number}-{turn}-{index}")
                    with lock:
                        add(found, wanted[index].kind, alone[index], reply)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(caller, range(threads)))
    return judge(found, models([before, look(target.metrics_url, target.pid)]))


def add(found: Compared, kind: str, alone: Reply, reply: Reply) -> None:
    """Compare one answer with the one given alone."""
    found.answers += 1
    if reply.code != alone.code:
        found.strange.append(f"{kind}: {reply.code or 'served'} instead of {alone.code or 'served'}: {reply.message}")
        return
    if reply.code != SERVED:
        found.identical += 1
        return
    same = True
    arrays, others = _arrays(reply), _arrays(alone)
    for name in {**arrays, **others}:
        mine, other = arrays.get(name), others.get(name)
        if mine is None or other is None or mine.shape != other.shape:
            found.strange.append(f"{kind}: {name} is of another shape, or one of the answers has none")
            return
        if not np.array_equal(mine, other):
            same, apart = False, float(np.abs(mine - other).max())
            if name == "boxes":
                found.box_px = max(found.box_px, apart)
            elif name != "scores":
                found.difference = max(found.difference, int(apart))
    found.identical += same and list(reply.outputs.get("images", ())) == list(alone.outputs.get("images", ()))


def _arrays(reply: Reply) -> dict[str, NDArray[np.float32]]:
    """Boxes, scores and the pixels of each cut-out."""
    images = enumerate(reply.outputs.get("images", ()))
    pixels = {f"cut-out {number}": np.asarray(Image.open(io.BytesIO(file)), np.float32) for number, file in images}
    return {name: np.asarray(reply.outputs[name], np.float32) for name in ("boxes", "scores")} | pixels


def judge(found: Compared, batches: dict[str, dict[str, float]]) -> Found:
    matting = batches.get("birefnet_trt", {}).get("mean_batch", 1.0)
    claims = [
        Claim(
            "no answer, id or order is another's",
            f"{len(found.strange)} of {found.answers}" + "".join(f"; {text}" for text in found.strange[:3]),
            not found.strange,
        ),
        Claim(
            f"every pixel is within {MAX_DIFFERENCE}/255 of the answer alone",
            f"{found.identical} of {found.answers} identical to the byte; largest difference {found.difference}/255",
            found.difference <= MAX_DIFFERENCE,
        ),
        Claim(f"every box is within {MAX_BOX_PX:g} px of it", f"{found.box_px:.3f} px", found.box_px <= MAX_BOX_PX),
        Claim("requests were batched meanwhile", f"mean batch of the matting network {matting:.2f}", matting > 1.0),
    ]
    return Found(claims, {"compared": vars(found), "models": batches})


if __name__ == "__main__":
    options = {"threads": (8, "callers at once"), "rounds": (3, "how often each caller asks everything")}
    sys.exit(script_main("same", __doc__, measure, options))
