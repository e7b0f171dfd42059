"""What the gate adds to Triton itself, by the same requests in turns (`python -m benchmarks.gateway`).

One client sends a megapixel and asks for nothing, so that what is added shows: the median of the differences within
rounds. Eight clients have people cut out of it.
"""

from __future__ import annotations

import asyncio
import io
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import cutaway
from PIL import Image

from benchmarks.machine import head, load_before, say, sentence
from runtime.compose import CHECKOUT
from runtime.demo import SAMPLES
from runtime.server import Server, ServerOptions

SIZE_PX, ROUNDS, CLIENTS, TURNS, TURN_S = (1152, 864), 90, 8, 4, 6.0
PORTS = ("http", "grpc", "metrics")


@contextmanager
def gate_before(server: Server) -> Iterator[dict[str, str]]:
    """The URLs of both ways to a Triton without a gate, by names such as "grpc direct"."""
    direct = dict(zip(PORTS, server._addresses.targets, strict=True))
    words = [word for name in PORTS for word in (f"--triton-{name}={direct[name]}", f"--{name}-port=0")]
    with subprocess.Popen([sys.executable, "-m", "gateway", *words], cwd=CHECKOUT, stdout=subprocess.PIPE) as process:
        try:
            ports = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            ways = {"direct": direct, "gate": {name: f"127.0.0.1:{port}" for name, port in ports.items()}}
            yield {f"{name} {way}": f"{name}://{at[name]}" for name in PORTS for way, at in ways.items()}
        finally:
            process.terminate()


async def added_ms(urls: list[str], data: bytes) -> str:
    async with cutaway.AsyncClient(urls[0]) as direct, cutaway.AsyncClient(urls[1]) as gate:
        times: dict[cutaway.AsyncClient, list[float]] = {direct: [], gate: []}
        for number in range(ROUNDS):
            for client in (direct, gate) if number % 2 else (gate, direct):
                begun = time.perf_counter()
                await client.detect(data, subject="all")
                times[client].append((time.perf_counter() - begun) * 1000)
    added = statistics.median(b - a for a, b in zip(*times.values(), strict=True))
    return f"p50 {statistics.median(times[direct]):.1f} ms, the gate adds {added:+.2f} ms"


async def pictures(url: str, data: bytes) -> int:
    """How many clients together get in a turn."""
    end, done = time.monotonic() + TURN_S, Counter[str]()
    async with cutaway.AsyncClient(url) as client, asyncio.TaskGroup() as group:

        async def one() -> None:
            while time.monotonic() < end:
                await client.cut(data)
                done[url] += 1

        for _ in range(CLIENTS):
            group.create_task(one())
    return done[url]


async def measure(urls: dict[str, str], data: bytes) -> None:
    for protocol in ("grpc", "http"):
        ways = [urls[f"{protocol} {way}"] for way in ("direct", "gate")]
        print(f"{protocol}, one client:", await added_ms(ways, data))
        turns = [[await pictures(url, data) for url in ways] for _ in range(TURNS)]
        direct, gate = (sum(each) for each in zip(*turns, strict=True))
        print(f"{protocol}, {CLIENTS} clients: {direct} pictures, through the gate {gate} ({gate / direct - 1:+.1%})")


def main() -> None:
    load, file = load_before(), io.BytesIO()
    Image.open(SAMPLES / "astronaut.jpg").resize(SIZE_PX).save(file, "JPEG", quality=90)
    with Server(ServerOptions(canary_interval_s=3600.0, direct=True), say=say) as server, gate_before(server) as urls:
        asyncio.run(measure(urls, file.getvalue()))
    print(sentence(head(("grpcio", "uvicorn"), load)))


if __name__ == "__main__":
    main()
