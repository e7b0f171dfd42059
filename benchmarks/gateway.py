"""What the gate adds to Triton itself, by the same requests in turns (`python -m benchmarks.gateway`).

"no networks" sends a megapixel and is told to detect nothing, so that what is added shows; "cut" is the whole work. The
added milliseconds are the median of the differences within rounds; throughput is that of eight clients in turns of some
seconds each.
"""

from __future__ import annotations

import argparse
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
from PIL import Image

from benchmarks.machine import head, load_before, say, sentence
from runtime.compose import CHECKOUT
from runtime.demo import SAMPLES
from runtime.server import Server, ServerOptions

SIZE_PX = (1152, 864)
CLIENTS = 8
TURNS, TURN_S = 4, 6.0


@contextmanager
def gate_before(server: Server) -> Iterator[dict[str, str]]:
    """The URLs of both ways, by names such as "grpc direct"."""
    triton = server._addresses
    ports = {"http": triton.http, "grpc": triton.grpc, "metrics": triton.metrics}
    words = [f"--triton-{name}={triton.reachable}:{port}" for name, port in ports.items()]
    command = [sys.executable, "-m", "gateway", *words, *(f"--{name}-port=0" for name in ports)]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        of_gate = json.loads(process.stdout.readline())
        urls = {"direct": ports, "gate": of_gate}
        yield {f"{name} {way}": f"{name}://127.0.0.1:{urls[way][name]}" for name in ("grpc", "http") for way in urls}
        process.terminate()


async def added_ms(urls: dict[str, str], data: bytes, rounds: int) -> None:
    for protocol in ("grpc", "http"):
        ways = f"{protocol} direct", f"{protocol} gate"
        async with cutaway.AsyncClient(urls[ways[0]]) as direct, cutaway.AsyncClient(urls[ways[1]]) as gate:
            for work in ("no networks", "cut"):
                times: dict[Any, list[float]] = {direct: [], gate: []}
                for number in range(rounds if work == "no networks" else rounds // 3):
                    for client in (direct, gate) if number % 2 else (gate, direct):
                        begun = time.perf_counter()
                        await (client.detect(data, subject="all") if work == "no networks" else client.cut(data))
                        times[client].append((time.perf_counter() - begun) * 1000)
                added = statistics.median(b - a for a, b in zip(*times.values(), strict=True))
                p50, p50_gate = (statistics.median(each) for each in times.values())
                print(f"{protocol}, {work}: p50 {p50:.1f} ms, through the gate {p50_gate:.1f}, added {added:+.2f}")


async def pictures(url: str, data: bytes) -> int:
    """How many clients together get in a turn."""
    end = time.monotonic() + TURN_S
    async with cutaway.AsyncClient(url) as client:

        async def one() -> int:
            done = 0
            while time.monotonic() < end:
                await client.cut(data)
                done += 1
            return done

        return sum(await asyncio.gather(*(one() for _ in range(CLIENTS))))


async def throughput(urls: dict[str, str], data: bytes) -> None:
    for protocol in ("grpc", "http"):
        ways = [urls[f"{protocol} {way}"] for way in ("direct", "gate")]
        counts = [[await pictures(url, data) for url in ways] for _ in range(TURNS)]
        direct, gate = (sum(each) for each in zip(*counts, strict=True))
        print(f"{protocol}, {CLIENTS} clients: {direct} pictures, through the gate {gate} ({gate / direct - 1:+.1%})")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=90, help="per protocol (default: 90)")
    rounds, load, file = parser.parse_args().rounds, load_before(), io.BytesIO()
    Image.open(SAMPLES / "astronaut.jpg").resize(SIZE_PX).save(file, "JPEG", quality=90)
    with Server(ServerOptions(canary_interval_s=3600.0), say=say) as server, gate_before(server) as urls:
        asyncio.run(added_ms(urls, file.getvalue(), rounds))
        asyncio.run(throughput(urls, file.getvalue()))
    print(sentence(head(("grpcio", "uvicorn"), load)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
