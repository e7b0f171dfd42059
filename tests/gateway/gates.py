"""Gates of their own in front of a test's Triton, and what a stranger sends by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import ROOT
from tests.integration.processes import resident_bytes

LIMIT_S = 60.0
PIPELINE, STREAM = "ensemble_pipeline", "stream_pipeline"
NETWORKS = ("yolov8_seg", "yolov8_seg_free", "birefnet_trt", "no_such_model")


@dataclass
class GateProcess:
    """A gate that runs, by its ports on 127.0.0.1."""

    process: subprocess.Popen[str]
    http: int
    grpc: int
    metrics: int

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    @property
    def http_address(self) -> str:
        return f"127.0.0.1:{self.http}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://{self.grpc_address}"

    @property
    def resident_bytes(self) -> int:
        return resident_bytes(self.process.pid)

    def infer(self, model: str = PIPELINE, **given: Any) -> httpx.Response:
        return httpx.post(f"{self.http_url}/v2/models/{model}/infer", timeout=LIMIT_S, trust_env=False, **given)

    def cut(self, data: bytes) -> httpx.Response:
        return self.infer(content=data, headers={"Inference-Header-Content-Length": "0"})

    def metric(self, line: str) -> float:
        """The value of a metric by name and labels, as the scrape has them; 0.0 where it is not there."""
        for found in httpx.get(f"http://127.0.0.1:{self.metrics}/metrics", timeout=LIMIT_S).text.splitlines():
            if found.startswith(f"{line} "):
                return float(found.rpartition(" ")[2])
        return 0.0


@contextmanager
def gate_before(triton: dict[str, str], *options: str, log: Path | None = None) -> Iterator[GateProcess]:
    """A gate in front of a Triton, by its addresses by name: http, grpc, metrics."""
    ports = [word for name in triton for word in (f"--{name}-port", "0")]
    addresses = [word for name, address in triton.items() for word in (f"--triton-{name}", address)]
    with (log or Path(os.devnull)).open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *ports, *addresses, *options],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    try:
        yield GateProcess(process, **json.loads(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait(LIMIT_S)
        process.stdout.close()


def by_hand(port: int, *sent: bytes) -> bytes:
    """What comes back on a plain connection until its end, also where the sender is cut off."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        try:
            for part in sent:
                connection.sendall(part)
        except OSError:
            pass
        return to_end(connection)


def to_end(connection: socket.socket) -> bytes:
    """Everything until the peer closes."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except OSError:
        pass
    return received


def post(path: str, *headers: str) -> bytes:
    """The head of a POST by hand, after whose answer the connection ends."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode()
