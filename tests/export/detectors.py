"""YOLOv8-seg with weights that find something: `n` as it is bundled, any size with seeded ones.

    python -m tests.export.detectors FOLDER

writes Ultralytics' files of both, to try `python -m export verify-detector` with.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from export.detector_agreement import QUIET
from export.networks.yolov8 import HEAD_LAYERS, YoloV8
from export.plans.pictures import CHECKOUT, import_pipeline
from export.verify_detector import read_pictures

BUNDLED = CHECKOUT / "export" / "weights" / "nano" / "yolov8_seg.onnx"
#: A small input for all sizes; the last stride has 2×3 cells.
SMALL_HW = (64, 96)


def bundled_state() -> dict[str, Tensor]:
    """The state dict of the bundled detector, out of its ONNX file.

    Its batch normalisation is in the convolutions there, so the normalisation here adds a bias and nothing else.
    """
    graph = onnx.load(BUNDLED).graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    network = YoloV8("n")
    state = network.state_dict()
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        name = _module(node.name)
        weight, *bias = (torch.from_numpy(values[each].copy()) for each in node.input[1:])
        assert state[f"{name}.weight"].shape == weight.shape
        state[f"{name}.weight"] = weight
        if f"{name}.bias" in state:
            (state[f"{name}.bias"],) = bias
        elif bias:
            norm = name.removesuffix("conv") + "bn"
            eps = network.get_submodule(norm).eps
            state |= {
                f"{norm}.weight": torch.ones_like(bias[0]),
                f"{norm}.bias": bias[0],
                f"{norm}.running_mean": torch.zeros_like(bias[0]),
                f"{norm}.running_var": torch.full_like(bias[0], 1 - eps),
            }
    return state


def _module(node: str) -> str:
    """A node's module: `/model/model.2/cv1/conv/Conv` → `model.2.cv1.conv`, `/model/cv2.0/cv2.0.2/Conv` →
    `model.22.cv2.0.2`."""
    parts = node.split("/")[2:-1]
    if parts[0].startswith("model."):
        return ".".join(parts)
    return ".".join(["model.22", *parts[1 if parts[1].startswith(f"{parts[0]}.") else 0 :]])


def seeded(scale: str, inputs: Tensor, seed: int = 1) -> YoloV8:
    """An untrained network whose people score between about 0 and 0.8 on the pictures that it was adjusted to.

    As it is initialised, a network scores every cell alike and puts the same box on it. So the statistics of its
    normalisation are taken on `inputs`, float32 [N, 3, H, W] in [0, 1], and the last convolutions are scaled for
    results that differ from cell to cell: boxes of many sizes, and scores of which about a hundredth exceeds 0.25 for
    people, and none for anything else.
    """
    torch.manual_seed(seed)
    model = YoloV8(scale)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(inputs)
        model.eval()
        results = model.layers(inputs)
        people = torch.arange(80) == 0
        for level, layer in enumerate(HEAD_LAYERS):
            _spread(model.head.cv2[level], results[layer], torch.zeros(64), torch.full((64,), 3.0))
            means, deviations = torch.where(people, -6.0, -9.0), torch.where(people, 1.5, 0.5)
            _spread(model.head.cv3[level], results[layer], means, deviations)
            _spread(model.head.cv4[level], results[layer], torch.zeros(32), torch.ones(32))
    return model


def _spread(branch: nn.Sequential, features: Tensor, means: Tensor, deviations: Tensor) -> None:
    """Scale the last convolution so that its channels have these means and deviations over all cells."""
    logits = branch(features)
    factors = deviations / logits.std(dim=(0, 2, 3)).clamp_min(1e-6)
    last = branch[-1]
    last.bias.data.sub_(logits.mean(dim=(0, 2, 3))).mul_(factors).add_(means)
    last.weight.data.mul_(factors[:, None, None, None])


def make(folder: Path, pictures: Mapping[str, NDArray[np.uint8]], unsaved: str = "") -> None:
    """Files of Ultralytics' in a folder: `n.pt` with the bundled weights, `s.pt` with seeded ones.

    Beside them lie `ema.pt`, and for these sizes and the `unsaved` ones `<size>.state` and `<size>.npz`, as
    `tests.export.ultralytics_models` says.

    Args:
        pictures: RGB, uint8 [H, W, 3], which the seeded weights are adjusted to.
    """
    from pipeline.letterbox import letterbox

    squares = np.stack([letterbox(each)[0] for each in pictures.values()])
    small = torch.rand(4, 3, *SMALL_HW, generator=torch.Generator().manual_seed(0))
    np.save(folder / "inputs.npy", small[:1].numpy())
    torch.save(bundled_state(), folder / "n.state")
    torch.save(seeded("s", torch.from_numpy(squares).permute(0, 3, 1, 2) / 255).state_dict(), folder / "s.state")
    for scale in unsaved:
        torch.save(seeded(scale, small).state_dict(), folder / f"{scale}.state")
    (folder / "saved.json").write_text(json.dumps(["n", "s"]))
    settings = folder / "settings"
    settings.mkdir()
    subprocess.run(
        [sys.executable, "-m", "tests.export.ultralytics_models", str(folder.resolve())],
        cwd=CHECKOUT,
        env={**os.environ, **QUIET, "YOLO_CONFIG_DIR": str(settings)},
        check=True,
    )


if __name__ == "__main__":
    import_pipeline()
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    make(Path(sys.argv[1]), read_pictures(CHECKOUT / "samples"))
