"""A profile `lite` that is small enough for tests: BiRefNet_lite's own network at 256 px, weights by a rule, and the
bundled detector. Its weights lie in a hub on loopback, in half precision, as the released ones of Swin-L do."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save

from export.networks.birefnet import BiRefNet
from export.networks.birefnet_config import VARIANTS
from export.verify import weight_for
from tests.export.fetching import COMMIT
from tests.export.loopback_hub import LoopbackHub, Repository

SIDE_PX = 256
REPOSITORY = "owner/BiRefNet_lite"
CATALOG = f"""
[profiles.lite]
matte = "birefnet-lite"
detector = "nano-detector"
input_wh_px = [{SIDE_PX}, {SIDE_PX}]
speed = "fast"
purpose = "Tests."

[weights.birefnet-lite]
source = "hub"
network = "lite"
repository = "{REPOSITORY}"
revision = "main"
file = "model.safetensors"
licence = "MIT"
parameters = 44_313_720

[weights.nano-detector]
source = "bundled"
network = "yolov8n-seg"
file = "export/weights/nano/yolov8_seg.onnx"
sha256 = "63cf6f58b3364f3baa10e900cdb21b571370fbddc2a0aa97cd8b378e8930f132"
licence = "AGPL-3.0"
parameters = 3_409_968
"""


@cache
def released_state() -> dict[str, torch.Tensor]:
    """A state dict as a hub would have it: BiRefNet_lite's names, values by the rule of `verify`, in half precision."""
    own = BiRefNet(VARIANTS["lite"]).state_dict()
    return {
        key: torch.from_numpy(weight_for(key, tuple(tensor.shape))).half() if tensor.is_floating_point() else tensor
        for key, tensor in own.items()
    }


def as_published() -> BiRefNet:
    """The network in the form of the paper, with those weights: what every export of it is held against."""
    network = BiRefNet(VARIANTS["lite"])
    network.load_state_dict({key: value.float() for key, value in released_state().items()})
    return network.eval()


def publish(hub: LoopbackHub) -> None:
    """Put the weights into the hub."""
    state = {key: value.clone() for key, value in released_state().items()}
    hub.repositories[REPOSITORY] = Repository({COMMIT: {"model.safetensors": save(state)}}, {"main": COMMIT})


def arguments(hub: LoopbackHub, place: Path) -> list[str]:
    """What `python -m export models lite` is given to do all of it in one folder."""
    (place / "catalog.toml").write_text(CATALOG)
    where = {"catalog": "catalog.toml", "weights": "weights", "models": "models"}
    named = [text for option, name in where.items() for text in (f"--{option}", str(place / name))]
    return [*named, "--mirror", hub.url]
