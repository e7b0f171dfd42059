"""What the gate and its HTTP service add to Triton itself, by the same requests in turns (`make bench-gateway`).

"no networks" sends a megapixel and is told to detect nothing, so that what is added shows; "cut" is the whole work; the
service's form and the SDK over KServe's HTTP ask for the same picture. Milliseconds added are the median of the
differences within rounds. `--service` measures the service alone.
"""

from __future__ import annotations

import asyncio
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cutaway
import httpx
from PIL import Image

from benchmarks.machine import head, load_before, people_only, say, sentence, spread
from runtime.compose import CHECKOUT
from runtime.demo import SAMPLES
from runtime.server import Server, ServerOptions

SIZE_PX = (1152, 864)
ROUNDS, CLIENTS, TURNS, TURN_S = 90, 8, 4, 6.0
PORTS = ("http", "grpc", "metrics")
SERVICE = ("--service-port=0", "--free-per-minute=100000", "--free-per-second=10000")
REMOVE: Any = {"subject": "all", "feather_px": 2}  # what the service's form asks for


@contextmanager
def gate_before(server: Server) -> Iterator[dict[str, str]]:
    """The URLs of both ways to a Triton without a gate, by names such as "grpc direct"."""
    direct = dict(zip(PORTS, server._addresses.targets, strict=True))
    words = [word for name in PORTS for word in (f"--triton-{name}={direct[name]}", f"--{name}-port=0")]
    command = [sys.executable, "-m", "gateway", *words, *SERVICE]
    # Its log would be between the figures.
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        gate = {name: f"127.0.0.1:{port}" for name, port in json.loads(process.stdout.readline()).items()}
        ways = {"direct": direct, "gate": gate}
        urls = {f"{name} {way}": f"{name}://{at[name]}" for name in PORTS for way, at in ways.items()}
        yield urls | {"service": f"http://{gate['service']}"}
        process.terminate()


async def added_ms(urls: dict[str, str], data: bytes) -> None:
    for protocol in ("grpc", "http"):
        ways = f"{protocol} direct", f"{protocol} gate"
        async with cutaway.AsyncClient(urls[ways[0]]) as direct, cutaway.AsyncClient(urls[ways[1]]) as gate:
            for work in ("no networks", "cut"):
                times: dict[Any, list[float]] = {direct: [], gate: []}
                for number in range(ROUNDS if work == "no networks" else ROUNDS // 3):
                    for client in (direct, gate) if number % 2 else (gate, direct):
                        begun = time.perf_counter()
                        await (client.detect(data, subject="all") if work == "no networks" else client.cut(data))
                        times[client].append((time.perf_counter() - begun) * 1000)
                added = statistics.median(b - a for a, b in zip(*times.values(), strict=True))
                p50, p50_gate = (statistics.median(each) for each in times.values())
                print(f"{protocol}, {work}: p50 {p50:.1f} ms, through the gate {p50_gate:.1f}, added {added:+.2f}")


async def service_ms(urls: dict[str, str], data: bytes) -> None:
    names = ("http direct", "http gate", "service")
    async with (
        cutaway.AsyncClient(urls[names[0]]) as direct,
        cutaway.AsyncClient(urls[names[1]]) as gate,
        httpx.AsyncClient(base_url=urls[names[2]], timeout=60.0, trust_env=False) as http,
    ):

        async def form() -> None:
            files = {"image": ("photo.jpg", data, "image/jpeg")}
            (await http.post("/api/background-removal/remove", files=files)).raise_for_status()

        calls = (lambda: direct.cut(data, **REMOVE), lambda: gate.cut(data, **REMOVE), form)
        times: list[list[float]] = [[], [], []]
        for number in range(-3, ROUNDS):
            for place in (number % 3, (number + 1) % 3, (number + 2) % 3):
                begun = time.perf_counter()
                await calls[place]()
                if number >= 0:
                    times[place].append((time.perf_counter() - begun) * 1000)
    for name, each in zip(names, times, strict=True):
        added = [b - a for a, b in zip(times[0], each, strict=True)]
        ratio = statistics.median(each) / statistics.median(times[0])
        print(f"{name}, cut: p50 {spread(each, 1)} ms, ratio {ratio:.3f}, added {spread(added, 1)}")


async def pictures(url: str, data: bytes) -> int:
    """How many clients together get in a turn."""
    end, done = time.monotonic() + TURN_S, 0
    async with cutaway.AsyncClient(url) as client:

        async def one() -> None:
            nonlocal done
            while time.monotonic() < end:
                await client.cut(data)
                done += 1

        await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return done


async def throughput(urls: dict[str, str], data: bytes) -> None:
    for protocol in ("grpc", "http"):
        ways = [urls[f"{protocol} {way}"] for way in ("direct", "gate")]
        counts = [[await pictures(url, data) for url in ways] for _ in range(TURNS)]
        direct, gate = (sum(each) for each in zip(*counts, strict=True))
        print(f"{protocol}, {CLIENTS} clients: {direct} pictures, through the gate {gate} ({gate / direct - 1:+.1%})")


def main() -> int:
    load, file = load_before(), io.BytesIO()
    Image.open(SAMPLES / "astronaut.jpg").resize(SIZE_PX).save(file, "JPEG", quality=90)
    with (
        people_only("nano") as weights,
        Server(ServerOptions(weights=weights, canary_interval_s=3600.0, direct=True), say=say) as server,
        gate_before(server) as urls,
    ):
        asyncio.run(service_ms(urls, file.getvalue()))
        if "--service" not in sys.argv:
            asyncio.run(added_ms(urls, file.getvalue()))
            asyncio.run(throughput(urls, file.getvalue()))
    print(sentence(head(("grpcio", "uvicorn"), load)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
