"""Whether shared memory pays: pictures to the bundled server on this machine, sent and shared (`python -m
benchmarks.shared_memory`).

In every round each request goes to the same server twice, with the picture sent and in shared memory; which comes first
alternates. The figure is the median of the ratios within the rounds, with the interval that holds it in 95 of 100 such
runs: a machine that does other work as well slows both down. "way" is a request with an option that the pipeline
refuses as soon as it has the picture, so that only the picture's way is measured; "cut" is the whole work.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import cutaway
import numpy as np
from cutaway.calls import PIPELINE
from cutaway.contract.errors import InvalidOption
from cutaway.result import CUT_OUTPUTS
from cutaway.shared_memory.transports import SharingTransport
from cutaway.transports import Connection, open_transport
from cutaway.transports.base import InferRequest, Transport, parse_address
from PIL import Image

from benchmarks.machine import load_before, machine, sentence, versions
from runtime.checks import RuntimeProblem
from runtime.demo import SAMPLES
from runtime.server import Server, ServerOptions

SIZES_PX = {"1 MP": (1024, 1024), "20 MP": (5472, 3648)}
NOISE = 6.0
"""Standard deviation, of 255: with it the enlarged sample is as large a file as a camera's."""
QUALITY = 88
CUTS_SHARE = 5
"""A whole cut is measured in every so many-th round."""
WARM_UP_ROUNDS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_memory")
    parser.add_argument("--rounds", type=int, default=100, help="measurements of each request (default: 100)")
    rounds = parser.parse_args(arguments).rounds
    load, warning = load_before()
    if warning:
        print(f"bench: {warning}", flush=True)
    options = ServerOptions(canary_interval_s=3600.0, allow_shared_memory=True)
    try:
        with Server(options, say=lambda line: print(f"bench: {line}", flush=True)) as server:
            print(report(server, {name: photograph(*size) for name, size in SIZES_PX.items()}, rounds))
    except RuntimeProblem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print()
    print(
        sentence(
            {
                "machine": machine(load),
                "versions": versions(("cutaway", "tritonclient", "grpcio", "httpx", "nvidia-pytriton")),
            }
        )
    )
    return 0


def photograph(width_px: int, height_px: int) -> bytes:
    """A sample picture of this size, as a JPEG."""
    sample = Image.open(Path(SAMPLES) / "astronaut.jpg").convert("RGB").resize((width_px, height_px))
    noise = np.random.default_rng(7).normal(0.0, NOISE, (height_px, width_px, 1))
    pixels = np.clip(np.asarray(sample) + noise, 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


def report(server: Server, pictures: dict[str, bytes], rounds: int) -> str:
    """The figures as a table."""
    lines = ["| request | picture | sent | shared | shared ÷ sent |", "|---|---|--:|--:|--:|"]
    for scheme, url in (("gRPC", server.grpc_url), ("HTTP", server.http_url)):
        connection = Connection(parse_address(url))
        with ExitStack() as stack:
            sending: Transport = open_transport(connection)
            sharing: Transport = SharingTransport(connection, cutaway.SharedMemory())
            stack.callback(sending.close)
            stack.callback(sharing.close)
            clients = (
                stack.enter_context(cutaway.Client(url)),
                stack.enter_context(cutaway.Client(url, shared_memory="system")),
            )
            for name, picture in pictures.items():
                size = f"{name}, {len(picture) / 1e6:.1f} MB"
                way = compared([_refused(each, picture) for each in (sending, sharing)], rounds)
                lines.append(f"| {scheme}, way | {size} | {way}")
                cut = compared([_cut(each, picture) for each in clients], max(1, rounds // CUTS_SHARE))
                lines.append(f"| {scheme}, cut | {size} | {cut}")
    return "\n".join(lines)


def compared(calls: Sequence[Callable[[], None]], rounds: int) -> str:
    """Median milliseconds of both, and the median of their ratios with its interval."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-WARM_UP_ROUNDS, rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            begun = time.perf_counter()
            calls[which]()
            if number >= 0:
                times[which].append((time.perf_counter() - begun) * 1000)
    ratios = sorted(shared / sent for sent, shared in zip(*times, strict=True))
    outside = max(0, math.floor(len(ratios) / 2 - 0.98 * math.sqrt(len(ratios))) - 1)
    sent, shared = map(statistics.median, times)
    return (
        f"{sent:.1f} ms | {shared:.1f} ms | "
        f"{statistics.median(ratios):.2f} [{ratios[outside]:.2f}, {ratios[-1 - outside]:.2f}] |"
    )


def _refused(transport: Transport, picture: bytes) -> Callable[[], None]:
    request = InferRequest(PIPELINE, picture, CUT_OUTPUTS, {"subject": "nobody"}, timeout_s=60.0)

    def call() -> None:
        try:
            transport.infer(request)
        except InvalidOption:
            return
        raise AssertionError("the pipeline took an option that there is not")

    return call


def _cut(client: cutaway.Client, picture: bytes) -> Callable[[], None]:
    def call() -> None:
        client.cut(picture, subject="all", timeout_s=120.0)

    return call


if __name__ == "__main__":
    sys.exit(main())
