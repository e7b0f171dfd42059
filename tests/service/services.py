"""The HTTP service in a gate of its own before a test's Triton."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.gateway.gates import LIMIT_S, GateProcess, gate_before

REMOVE = "/api/background-removal/remove"


@dataclass
class Running:
    """A service that runs."""

    gate: GateProcess
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **given: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=LIMIT_S, trust_env=False, **given)

    def post(self, path: str, **given: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=LIMIT_S, trust_env=False, **given)

    def remove(self, picture: bytes, name: str = "photo.jpg", kind: str = "image/jpeg", **given: Any) -> httpx.Response:
        return self.post(REMOVE, files={"image": (name, picture, kind)}, **given)


@contextmanager
def service_before(
    triton: dict[str, str], *options: str, log: Path | None = None, **variables: str
) -> Iterator[Running]:
    """The service of a gate in front of a Triton; every caller has the tier "pro" unless the options say otherwise."""
    with gate_before(triton, *options, log=log, service_port=0, variables=variables) as gate:
        yield Running(gate, gate.service)


def encoded(image: Image.Image, form: str = "JPEG", **given: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **given)
    return file.getvalue()


def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
