"""Ultralytics' own predict, in a process of its own: what `verify-detector` holds the pipeline to.

    python -m export.ultralytics_predict FOLDER

Ultralytics is under AGPL-3.0, and whoever imports it gets another `torch.save`, other threads in OpenCV and other
environment variables. So nothing else of this project runs here, and pictures and results pass as files: the folder
holds `order.json` (the weights' path, threads, the options of predict) and pictures as `<number>.npy`, uint8 [H, W, 3]
RGB; `<number>.npz` come back, with an entry for each field of `export.detector_agreement.Found`. Whoever starts this
sets the environment of `export.detector_agreement.QUIET`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main(folder: Path) -> None:
    """Predict every picture in the folder twice: with masks of the letterbox's size, and of the picture's.

    Ultralytics drops a detection whose mask is empty at the size asked for. Those without one in the letterbox are
    left out; those without one in the picture have an empty one.
    """
    from ultralytics import YOLO
    from ultralytics.models.yolo.segment import SegmentationPredictor

    class Predictor(SegmentationPredictor):
        """Ultralytics' own but for warming up, which on a CPU does nothing except to import torchvision.

        Not every build of torch takes every wheel of torchvision. Where it is not imported, Ultralytics suppresses
        overlaps by code of its own, to the same result.
        """

        def setup_model(self, *arguments: Any, **options: Any) -> None:
            super().setup_model(*arguments, **options)
            self.done_warmup = True

    order = json.loads((folder / "order.json").read_text())
    torch.set_num_threads(order["threads"])
    model = YOLO(order["weights"], task="segment")
    options = {**order["predict"], "predictor": Predictor, "rect": False, "device": "cpu", "verbose": False}
    for path in sorted(folder.glob("*.npy")):
        bgr = np.ascontiguousarray(np.load(path)[..., ::-1])
        (square,) = model.predict(bgr, retina_masks=False, **options)
        (picture,) = model.predict(bgr, retina_masks=True, **options)
        rows = square.boxes.data.numpy()
        square_masks = np.zeros((0, 1, 1), bool) if square.masks is None else square.masks.data.numpy() > 0
        masks = np.zeros((len(rows), *bgr.shape[:2]), bool)
        places = {row.tobytes(): index for index, row in enumerate(picture.boxes.data.numpy())}
        for row, mask in zip(rows, masks, strict=True):
            if row.tobytes() in places:
                mask[:] = picture.masks.data[places[row.tobytes()]].numpy() > 0
        np.savez(
            path.with_suffix(".npz"),
            boxes=rows[:, :4].astype(np.float32),
            scores=rows[:, 4].astype(np.float32),
            square_masks=square_masks,
            masks=masks,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
