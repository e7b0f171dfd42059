"""Write the bundled network for whole pictures, `u2netp.onnx`: U²-Net-P as published, smaller, mirrored and in 8 bits.

    python -m export.nano.whole_pictures --data ../shared --weights ../shared/weights/u2netp.onnx

Nothing is trained. ONNX Runtime's static quantization takes its ranges from pictures of the training sets; weights have
7 bits, with which 16-bit sums cannot saturate on CPUs without VNNI, so that one file is right everywhere. Figures of
pictures that were not used go into `training/u2netp.json`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from export.graphs import MATTE_OUTPUTS, BehindImageNet, MatteGraph
from export.nano.evaluate import iou
from export.nano.pictures import HELD_OUT_SEED, Image
from export.networks.u2net import Mirrored, load_published
from export.onnx_export import compare, export_graph
from runtime.digest import sha256_of
from runtime.weights import WHOLE_MATTING

SIDE_PX = 288
CALIBRATED, HELD_OUT = 6, 20
"""Pictures of each set for the ranges, and for the figures."""
SETS = (
    "objects/train/coco",
    "objects/train/clothing_pseudo",
    "objects/train/trashnet_pseudo",
    "people/train/ccp",
    "people/train2/ccp",
    "people/train2/cc0_faces_pseudo",
    "people/train2/pd_officials_pseudo",
)
QUANTIZED = ("Conv", "Relu", "Add", "Concat", "MaxPool", "Resize")
FLOAT = ("/decoder.3/up.", "/decoder.3/Concat", "/decoder.3/Resize", "/decoder.3/Add", "/side/")
"""Parts of names of nodes that stay float32: the last stage's own decoder, whose large maps cancel in the logits."""
MAX_GREY_LEVELS, MIN_IOU = 1.0, 0.98
"""Of the float32 graph from PyTorch, and of the 8-bit file from it on average; beyond them the command fails."""

Matter = Callable[[Image], Image]


def names(data: Path, source: str) -> tuple[list[str], list[str]]:
    """Names of a set's pictures for the figures, the first of a shuffle, and for the ranges, the next ones.

    Raises:
        FileNotFoundError: there are none.
    """
    found = sorted(path.stem for path in (data / source / "images").glob("*.jpg"))
    if not found:
        raise FileNotFoundError(f"no pictures in {data / source / 'images'}")
    np.random.default_rng(HELD_OUT_SEED).shuffle(found)
    held_out = min(HELD_OUT, len(found) * 3 // 4)
    return found[:held_out], found[held_out : held_out + CALIBRATED]


def square(path: Path) -> Image:
    """A picture as the network gets it: uint8 RGB [S, S, 3]."""
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.resize(image, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA), np.uint8)


class Pictures(CalibrationDataReader):
    """What the ranges are taken from."""

    def __init__(self, data: Path) -> None:
        paths = [data / source / "images" / f"{name}.jpg" for source in SETS for name in names(data, source)[1]]
        self._inputs: Iterator[Path] = iter(paths)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next picture, uint8 [1, S, S, 3]; None after the last one."""
        path = next(self._inputs, None)
        return None if path is None else {"images": square(path)[None]}


def quantize(source: Path, target: Path, pictures: CalibrationDataReader) -> None:
    """Write the 8-bit copy of a float32 file: weights per output channel, maps uint8."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        kept = [
            node.name
            for node in onnx.load(prepared).graph.node
            if any(part in node.name for part in FLOAT) or not ("/encoder." in node.name or "/decoder." in node.name)
        ]
        quantize_static(
            str(prepared),
            str(target),
            pictures,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=kept,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    model = onnx.load(target)
    model.producer_name = model.producer_version = ""
    del model.metadata_props[:]
    standard = [entry for entry in model.opset_import if not entry.domain]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    onnx.checker.check_model(model)
    onnx.save(model, target)


def matter(path: Path) -> Matter:
    """An ONNX file as a function: uint8 RGB [S, S, 3] → uint8 alpha [S, S]."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["alphas"], {"images": image[None]})[0][0]


def figures(data: Path, source: str, exact: Matter, file: Matter) -> dict[str, float]:
    """IoU at half alpha with a set's masks, mean and median, and mean with the float32 graph's."""
    true: list[float] = []
    same: list[float] = []
    for name in names(data, source)[0]:
        picture = square(data / source / "images" / f"{name}.jpg")
        truth = cv2.imread(str(data / source / "masks" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        found = file(picture)
        true.append(iou(cv2.resize(found, truth.shape[::-1]) >= 128, truth >= 128))
        same.append(iou(found >= 128, exact(picture) >= 128))
    values = {"pictures": len(true), "mean": np.mean(true), "median": np.median(true), "as_float32": np.mean(same)}
    return {key: round(float(value), 4) for key, value in values.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, its checksum and its figures; exit status 1 where it is further from PyTorch than it may be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="folder of objects/ and people/")
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights/u2netp.onnx"))
    parser.add_argument("--out", type=Path, default=Path("export/weights/nano"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(2)
    graph = MatteGraph(BehindImageNet(Mirrored(load_published(options.weights)))).eval()
    target = options.out / f"{WHOLE_MATTING}.onnx"
    with tempfile.TemporaryDirectory() as folder:
        float32 = Path(folder) / "float32.onnx"
        export_graph(graph, SIDE_PX, MATTE_OUTPUTS, float32)
        levels = max(each.largest for each in compare(graph, float32, SIDE_PX, MATTE_OUTPUTS))
        quantize(float32, target, Pictures(options.data))
        exact, file = matter(float32), matter(target)
        found = {source: figures(options.data, source, exact, file) for source in SETS}
    print(f"{target.name}: {levels:g} grey levels from PyTorch in float32")
    for source, values in found.items():
        print(source, values)
    (options.out / "training" / f"{WHOLE_MATTING}.json").write_text(json.dumps(found, indent=1) + "\n")
    sums = [f"{sha256_of(each)}  {each.name}\n" for each in sorted(options.out.glob("*.onnx"))]
    (options.out / "SHA256SUMS").write_text("".join(sums))
    alike = float(np.mean([values["as_float32"] for values in found.values()]))
    return 0 if levels <= MAX_GREY_LEVELS and alike >= MIN_IOU else 1


if __name__ == "__main__":
    sys.exit(main())
