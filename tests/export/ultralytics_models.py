"""Weights in Ultralytics' own network, and its own files of them: run as a process of its own, with the environment of
`export.detector_agreement.QUIET`.

    python -m tests.export.ultralytics_models FOLDER

Every `<size>.state` of the folder, a state dict, is loaded strictly. `<size>.npz` holds what the network makes of
`inputs.npy`, float32 [N, 3, H, W]; `<size>.pt` is what Ultralytics saves, for the sizes that `saved.json` lists, and
`ema.pt` the first of them in the form of a training's checkpoint.
"""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch


def main(folder: Path) -> None:
    from ultralytics import YOLO

    torch.set_num_threads(1)
    inputs = torch.from_numpy(np.load(folder / "inputs.npy"))
    saved = json.loads((folder / "saved.json").read_text())
    for path in sorted(folder.glob("*.state")):
        size = path.stem
        model = YOLO(f"yolov8{size}-seg.yaml", task="segment")
        model.model.load_state_dict(torch.load(path), strict=True)
        with torch.no_grad():
            (found, prototypes), _ = model.model.eval()(inputs)
        np.savez(folder / f"{size}.npz", found=found.numpy(), prototypes=prototypes.numpy())
        if size in saved:
            model.save(folder / f"{size}.pt")
        if size == saved[0]:
            checkpoint = torch.load(folder / f"{size}.pt", weights_only=False)
            other = copy.deepcopy(checkpoint["model"])
            for parameter in other.parameters():
                parameter.data.zero_()
            torch.save({**checkpoint, "ema": checkpoint["model"], "model": other}, folder / "ema.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
