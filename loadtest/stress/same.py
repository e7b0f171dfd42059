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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cutaway.result import DETECTION_OUTPUTS
from numpy.typing import NDArray
from PIL import Image

from loadtest import pictures
from loadtest.driving import Target
from loadtest.figures import models
from loadtest.running import own_server, say
from loadtest.scenarios import SERVED, Ask
from loadtest.stress.common import Claim, Found, script_main
from loadtest.watching import Watcher
from loadtest.ways import Grpc, Http, Reply, Way
from runtime.server import ServerOptions

MAX_DIFFERENCE = 1
"""Of 255."""
MAX_BOX_PX = 0.5
TIMEOUT_S = 60.0


@dataclass
class Compared:
    """What the comparison of all answers came to.

    Attributes:
        answers: how many.
        identical: of them, byte for byte.
        difference: the largest of any pixel, of 255.
        box_px: the largest of any box, in pixels.
        strange: what was altogether another answer, in words.
    """

    answers: int = 0
    identical: int = 0
    difference: int = 0
    box_px: float = 0.0
    strange: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    return script_main("same", (__doc__ or "").split("\n\n")[0], _options, measure, arguments)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=8, help="callers at once (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="so often each caller asks everything (default: 3)")


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
    with own_server(server, ("grpc", "http"), say) as target:
        return compare(target, asks(), threads=options.threads, rounds=options.rounds, say=say)


def compare(target: Target, wanted: Sequence[Ask], *, threads: int, rounds: int, say: Callable[[str], None]) -> Found:
    """Ask alone, then together, and judge."""
    with _closing(Grpc(target.grpc, TIMEOUT_S)) as way:
        alone = [way.send(ask, f"alone-{number}") for number, ask in enumerate(wanted)]
    watcher = Watcher(target.metrics_url, target.pid)
    before = watcher.look()
    found, lock = Compared(), threading.Lock()

    def caller(number: int) -> None:
        way: Way = Grpc(target.grpc, TIMEOUT_S) if number % 2 == 0 else Http(target.http, TIMEOUT_S)
        with _closing(way):
            chance = random.Random(number)
            for turn in range(rounds):
                for index in chance.sample(range(len(wanted)), len(wanted)):
                    # `send` itself finds an answer that bears another request's id.
                    reply = way.send(wanted[index], f"{number}-{turn}-{index}")
                    with lock:
                        add(found, wanted[index].kind, alone[index], reply)

    say(f"{len(wanted)} requests alone, then {threads} callers with {rounds} rounds of them")
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(caller, range(threads)))
    batches = models([before, watcher.look()])
    return judge(found, batches)


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
    for name in ("boxes", "scores"):
        mine, other = reply.outputs[name], alone.outputs[name]
        if mine.shape != other.shape:
            found.strange.append(f"{kind}: {name} of shape {mine.shape} instead of {other.shape}")
            return
        if mine.size:
            same &= bool(np.array_equal(mine, other))
            if name == "boxes":
                found.box_px = max(found.box_px, float(np.abs(mine - other).max()))
    files, others = list(reply.outputs.get("images", ())), list(alone.outputs.get("images", ()))
    if len(files) != len(others):
        found.strange.append(f"{kind}: {len(files)} cut-outs instead of {len(others)}")
        return
    for file, other in zip(files, others, strict=True):
        if file != other:
            same = False
            mine, theirs = _pixels(file), _pixels(other)
            if mine.shape != theirs.shape:
                found.strange.append(f"{kind}: a cut-out of shape {mine.shape} instead of {theirs.shape}")
                return
            found.difference = max(found.difference, int(np.abs(mine - theirs).max()))
    found.identical += same


def _pixels(file: bytes) -> NDArray[np.int16]:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image).astype(np.int16)


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
    return Found(claims, {"compared": vars(found), "models": batches}, "", {})


class _closing:  # noqa: N801 - like contextlib's, which wants an annotation that mypy cannot follow through a Protocol
    def __init__(self, way: Way) -> None:
        self._way = way

    def __enter__(self) -> Way:
        return self._way

    def __exit__(self, *_: object) -> None:
        self._way.close()


if __name__ == "__main__":
    sys.exit(main())
