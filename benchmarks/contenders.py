"""Who takes part in `benchmarks.side_by_side`: this project's server, and others around the same network.

Each takes the bytes of a picture and answers with those of a PNG. The others run in an environment of their own, since
rembg needs a newer numpy than the bundled Triton takes.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cutaway
import httpx

from runtime.checks import RuntimeProblem, free_ports
from runtime.compose import CHECKOUT
from runtime.server import Server

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 300.0  # rembg's imports alone take a minute where their compiled functions are not cached yet
REQUEST_TIMEOUT_S = 300.0
END_TIMEOUT_S = 20.0
LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=64)
DOES = {
    "people": "finds people, mattes each from a crop, keeps what belongs to nobody out, cleans the colours of edges",
    "all": "mattes the whole picture, enlarges the matte along the picture's edges, cleans the colours of edges",
    "rembg s": "mattes the whole picture, enlarges the matte, mixes edges with black; looks for no people",
    "hand-made": "mattes the whole picture, enlarges the matte; edges keep the background's colour",
}


@dataclass(frozen=True)
class Contender:
    """One way to have a picture cut out.

    Attributes:
        name, does: for the report.
        cut: an encoded picture → a PNG; called from several threads.
    """

    name: str
    does: str
    cut: Callable[[bytes], bytes]


@contextmanager
def ours(server: Server) -> Iterator[list[Contender]]:
    """This project's server: over gRPC and HTTP, people and whatever the picture shows."""

    def contender(way: str, client: cutaway.Client, subject: Any) -> Contender:
        def cut(data: bytes) -> bytes:
            return client.cut(data, subject=subject).images[0]

        return Contender(f"Cutaway, {way}, {subject}", DOES[subject], cut)

    with (
        cutaway.Client(server.grpc_url, timeout_s=REQUEST_TIMEOUT_S) as grpc,
        cutaway.Client(server.http_url, timeout_s=REQUEST_TIMEOUT_S) as http,
    ):
        ways = ("gRPC", grpc), ("HTTP", http)
        yield [contender(way, client, subject) for subject in ("people", "all") for way, client in ways]


def rembg(data: bytes) -> dict[str, Any]:
    """A request to `rembg s`."""
    return {"url": "/api/remove", "files": {"file": data}, "data": {"model": "cutaway"}}


def handmade(data: bytes) -> dict[str, Any]:
    """A request to FastAPI with the network in the process."""
    return {"url": "/cut", "content": data}


PEERS = (("rembg s", "rembg", rembg), ("hand-made", "handmade", handmade))


@contextmanager
def peer(
    name: str, module: str, request: Callable[[bytes], dict[str, Any]], python: Path, network: Path, folder: Path
) -> Iterator[Contender]:
    """Another's service, from its first answer on; it is ended afterwards, and its log is in the folder.

    Raises:
        RuntimeProblem: when it does not start.
    """
    (port,) = free_ports(LOOPBACK, 1)
    url, log = f"http://{LOOPBACK}:{port}", folder / f"{module}.log"
    command = [str(python), "-m", f"benchmarks.{module}_service", "--network", str(network), "--port", str(port)]
    with log.open("wb") as said:
        try:
            process = subprocess.Popen(command, cwd=CHECKOUT, stdout=said, stderr=said)
        except OSError as error:
            raise RuntimeProblem(f"{python} cannot be run: {error.strerror}; make bench creates it") from None
    try:
        with httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT_S, limits=LIMITS, trust_env=False) as client:
            _wait_for(client, module, process, log)

            def cut(data: bytes) -> bytes:
                response = client.post(**request(data))
                if response.status_code != httpx.codes.OK:
                    raise RuntimeProblem(f"{response.url} answered {response.status_code}: {response.text[:200]}")
                return response.content

            yield Contender(name, DOES[name], cut)
    finally:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(client: httpx.Client, module: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise RuntimeProblem(f"{module} ended: {lines[-1] if lines else 'it said nothing'}; see {log}")
        try:
            client.get("/", timeout=1.0)
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeProblem(f"{module} did not answer within {START_TIMEOUT_S:g} s; see {log}")
