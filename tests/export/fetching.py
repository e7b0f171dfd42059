"""Small weights of the right forms, entries for them, and a hub on loopback that has them."""

from __future__ import annotations

import hashlib
import io
import json
import random
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from export.catalog import HUB, RELEASE, Weights
from export.fetching import Settings
from tests.export.loopback_hub import LoopbackHub, Repository

COMMIT, LATER = "a" * 40, "b" * 40
REPOSITORY, ASSETS = "owner/BiRefNet_x", "owner/assets"
TOKEN = "hf_s3cr3tT0kenThatNeverShows"
MIB = 1 << 20


@cache
def safetensors(values: int = 3 * MIB, seed: int = 1) -> bytes:
    """A whole file of one tensor of bytes."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [values], "data_offsets": [0, values]}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(values)


@cache
def archive(values: int = 3 * MIB, seed: int = 2) -> bytes:
    """A file of the form that `torch.save` writes; what is in it is never read."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(zipfile.ZipInfo("yolov8n-seg/data.pkl"), b"not a pickle")
        file.writestr(zipfile.ZipInfo("yolov8n-seg/data/0"), random.Random(seed).randbytes(values))
    return buffer.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


MATTE = Weights("birefnet-x", HUB, "lite", "model.safetensors", "MIT", 1, REPOSITORY, "main")


DETECTOR = Weights(
    "yolov8n-seg", RELEASE, "yolov8n-seg", "yolov8n-seg.pt", "AGPL-3.0", 1, ASSETS, "v1", sha256=digest(archive())
)


def known(weights: Weights, content: bytes) -> Weights:
    """The entry, with the digest that the catalogue would have."""
    return replace(weights, sha256=digest(content))


def filled(hub: LoopbackHub) -> LoopbackHub:
    hub.tokens = (TOKEN,)
    hub.repositories[REPOSITORY] = Repository({COMMIT: {"model.safetensors": safetensors()}}, {"main": COMMIT})
    hub.assets[f"{ASSETS}/v1/yolov8n-seg.pt"] = archive()
    return hub


def settings(hub: LoopbackHub, place: Path, **changes: object) -> Settings:
    usual = Settings(place / "weights", hub=hub.url, releases=hub.url)
    return replace(usual, **changes)  # type: ignore[arg-type]


def files_in(folder: Path) -> set[str]:
    """Names of the files in the folder of weights, without the one that keeps a second fetch out, and the pins."""
    return {each.name for each in folder.iterdir()} - {".writing", "SHA256SUMS"} if folder.exists() else set()
