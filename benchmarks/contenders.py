"""Who takes part in `benchmarks.side_by_side`: this project's server, and others around the same network.

Each takes the bytes of a picture and answers with those of a PNG. The others run in an environment of their own, since
rembg needs a newer numpy than the bundled Triton takes.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cutaway
import httpx

from benchmarks.machine import cpu_seconds
from runtime.checks import RuntimeProblem, free_ports
from runtime.compose import CHECKOUT
from runtime.server import Server

Subject = Literal["people", "all"]
SUBJECTS: tuple[Subject, ...] = ("people", "all")
LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 300.0
"""rembg's imports alone take a minute where their compiled functions are not cached yet."""
REQUEST_TIMEOUT_S = 300.0
END_TIMEOUT_S = 20.0
CONNECTIONS = 64


@dataclass(frozen=True)
class Contender:
    """One way to have a picture cut out.

    Attributes:
        name: for the report.
        does: what happens to a picture, in a sentence.
        cut: an encoded picture → a PNG; called from several threads.
        cpu_s: CPU seconds that the server has taken since it started.
        stages_ms: what the server said of each answer's stages, where it says such things.
    """

    name: str
    does: str
    cut: Callable[[bytes], bytes]
    cpu_s: Callable[[], float]
    stages_ms: list[dict[str, float]] = field(default_factory=list)


@contextmanager
def ours(server: Server) -> Iterator[list[Contender]]:
    """This project's server: over gRPC and HTTP, people and whatever the picture shows."""
    with (
        cutaway.Client(server.grpc_url, timeout_s=REQUEST_TIMEOUT_S) as grpc,
        cutaway.Client(server.http_url, timeout_s=REQUEST_TIMEOUT_S) as http,
    ):
        yield [
            _asking(f"Cutaway, {way}, {subject}", client, subject, lambda: cpu_seconds(server.process.pid))
            for subject in SUBJECTS
            for way, client in (("gRPC", grpc), ("HTTP", http))
        ]


_DOES = {
    "people": "finds people, mattes each from a crop, keeps what belongs to nobody out, cleans the colours of edges",
    "all": "mattes the whole picture, enlarges the matte along the picture's edges, cleans the colours of edges",
}


def _asking(name: str, client: cutaway.Client, subject: Subject, cpu_s: Callable[[], float]) -> Contender:
    stages_ms: list[dict[str, float]] = []

    def cut(data: bytes) -> bytes:
        result = client.cut(data, subject=subject)
        stages_ms.append(dict(result.timings_ms))
        return result.images[0]

    return Contender(name, _DOES[subject], cut, cpu_s, stages_ms)


@contextmanager
def rembg(python: Path, network: Path, log: Path) -> Iterator[Contender]:
    """`rembg s`."""
    with _service(python, "benchmarks.rembg_service", network, log) as (url, pid), _http_client() as client:

        def cut(data: bytes) -> bytes:
            return _answer(client.post(f"{url}/api/remove", files={"file": data}, data={"model": "cutaway"}))

        does = "mattes the whole picture, enlarges the matte, mixes edges with black; looks for no people"
        yield Contender("rembg s", does, cut, lambda: cpu_seconds(pid))


@contextmanager
def handmade(python: Path, network: Path, log: Path) -> Iterator[Contender]:
    """FastAPI with the network in the process."""
    with _service(python, "benchmarks.handmade_service", network, log) as (url, pid), _http_client() as client:

        def cut(data: bytes) -> bytes:
            return _answer(client.post(f"{url}/cut", content=data))

        does = "mattes the whole picture, enlarges the matte; edges keep the background's colour"
        yield Contender("hand-made", does, cut, lambda: cpu_seconds(pid))


def _answer(response: httpx.Response) -> bytes:
    if response.status_code != httpx.codes.OK:
        raise RuntimeProblem(f"{response.url} answered {response.status_code}: {response.text[:200]}")
    return response.content


def _http_client() -> httpx.Client:
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    return httpx.Client(timeout=REQUEST_TIMEOUT_S, limits=limits, trust_env=False)


@contextmanager
def _service(python: Path, module: str, network: Path, log: Path) -> Iterator[tuple[str, int]]:
    """A service's URL and process id, from its first answer on; it is ended afterwards.

    Raises:
        RuntimeProblem: when it does not start.
    """
    (port,) = free_ports(LOOPBACK, 1)
    command = [str(python), "-m", module, "--network", str(network), "--port", str(port)]
    with log.open("wb") as said:
        try:
            process = subprocess.Popen(command, cwd=CHECKOUT, stdout=said, stderr=said)
        except OSError as error:
            raise RuntimeProblem(f"{python} cannot be run: {error.strerror}; make bench creates it") from None
        try:
            url = f"http://{LOOPBACK}:{port}"
            _wait_for(url, module, process, log)
            yield url, process.pid
        finally:
            process.terminate()
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(url: str, module: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise RuntimeProblem(f"{module} ended: {lines[-1] if lines else 'it said nothing'}; see {log}")
        try:
            httpx.get(url, timeout=1.0, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeProblem(f"{url} did not answer within {START_TIMEOUT_S:g} s; see {log}")
