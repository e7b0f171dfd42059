"""From PyTorch networks to ONNX files with the inputs and outputs that the model repository declares.

Normalisation, decoding and rounding are in the graph (`export.graphs`). Sides are fixed, only the batch is dynamic, and
every file is run on photographs and compared with PyTorch before anybody else gets it.
"""

import gc
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export import ExportError
from export.check_pictures import check_pictures
from export.graphs import (
    DETECTOR_OUTPUTS,
    DETECTOR_SIDE_PX,
    MATTE_OUTPUTS,
    BehindImageNet,
    DetectorGraph,
    MatteGraph,
)
from export.networks.birefnet import SIDE_MULTIPLE_PX, BiRefNet
from export.networks.birefnet_export import export_form
from export.networks.deform_onnx import DEFORM_CONV_OPSET, use_onnx_operator
from export.networks.modnet import MODNet
from export.networks.yolov8 import YoloV8
from export.onnx_tidy import store_half, tidy

OPSET = 18
"""Not 20 or later: there the bilinear GridSample is called "linear", which TensorRT's parser does not know and silently
takes for nearest. 18 has LayerNormalization as one node and is read by every TensorRT since 8.6."""
#: Scores closer than this are a tie: float32 in another order of summation differs by about 1e-6.
TIE = 1e-5
#: Standard deviation of alpha, in grey levels, below which mattes count as flat.
LEAST_ALPHA_DEVIATION = 1.0
#: Batches at which an exported file is compared with PyTorch.
CHECKED_BATCHES = (1, 3)


def export_graph(graph: nn.Module, side_px: int, outputs: tuple[str, ...], path: Path, opset: int = OPSET) -> None:
    """Trace a graph that takes `images`, uint8 [N, side, side, 3], and write it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    example = torch.zeros((1, side_px, side_px, 3), dtype=torch.uint8)
    shapes: list[torch.Size] = []

    def note_shapes(_module: nn.Module, _inputs: object, results: Tensor | tuple[Tensor, ...]) -> None:
        shapes[:] = [each.shape for each in (results if isinstance(results, tuple) else (results,))]

    # Without no_grad the trace would keep every map of the network until its end.
    with warnings.catch_warnings(), torch.no_grad(), graph.eval().register_forward_hook(note_shapes):
        # Sizes become constants on purpose; the exporter is the older one on purpose.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.to(memory_format=torch.contiguous_format),
            (example,),
            str(path),
            input_names=["images"],
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in ("images", *outputs)},
            opset_version=opset,
            dynamo=False,
        )
    _finish(path, shapes)


def _finish(path: Path, shapes: list[torch.Size]) -> None:
    """Tidy the file, write every fixed dimension of the outputs into it (tracing leaves some unnamed), and check it."""
    import onnx

    model = onnx.load(path)
    for value, found in zip(model.graph.output, shapes, strict=True):
        shape = value.type.tensor_type.shape
        for dimension, size in zip(shape.dim[1:], found[1:], strict=True):
            dimension.dim_value = int(size)
    tidy(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


class NothingToCompare(ExportError, ValueError):
    """A network says nothing of the photographs, so a file that says nothing would pass for it."""


class Difference(NamedTuple):
    """How far one output of the file is from PyTorch's, for one batch."""

    output: str
    batch: int
    largest: float
    mean: float


def example_pictures(batch: int, side_px: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random pictures with noise, uint8 [N, side, side, 3]; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side_px, 0:side_px] / side_px
    pictures = []
    for _ in range(batch):
        waves = rng.uniform(1, 12, size=(3, 2)) * 2 * np.pi
        planes = [np.sin(fx * x + fy * y) + np.sin(fx * y * x) for fx, fy in waves]
        pictures.append(np.stack(planes, axis=-1) * 50 + 128 + rng.normal(0, 8, size=(side_px, side_px, 3)))
    return np.clip(np.stack(pictures), 0, 255).astype(np.uint8)


def compare(graph: nn.Module, path: Path, side_px: int, outputs: tuple[str, ...]) -> list[Difference]:
    """Run the file in ONNX Runtime and the graph in PyTorch on the same photographs, for `CHECKED_BATCHES`.

    Candidates of almost equal score may change places, so they are compared by pairs (`_same_candidates`).

    Raises:
        NothingToCompare: PyTorch's own results say nothing: mattes without a foreground, or no candidates.
    """
    import onnxruntime

    photographs = check_pictures(max(CHECKED_BATCHES), side_px)
    alone = [_run(graph, photographs[number : number + 1]) for number in range(len(photographs))]
    together = [np.concatenate(each) for each in zip(*alone, strict=True)]
    for name, values in zip(outputs, together, strict=True):
        if name == "alphas" and not values.std() >= LEAST_ALPHA_DEVIATION:
            raise NothingToCompare(
                "PyTorch's mattes of the sample photographs are flat (a deviation of "
                f"{values.std():.2g} grey levels): the weights are not those of a trained matting network"
            )
    batches = {batch: photographs[:batch] for batch in CHECKED_BATCHES}
    wanted = {batch: [each[:batch] for each in together] for batch in CHECKED_BATCHES}
    # No arena: what one run needed is free before the next.
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    differences = []
    for batch, pictures in batches.items():
        found = session.run(list(outputs), {"images": pictures})
        same = _same_candidates(wanted[batch], found, outputs) if "scores" in outputs else None
        for name, torch_result, result in zip(outputs, wanted[batch], found, strict=True):
            gap = np.abs(torch_result.astype(np.float64) - result.astype(np.float64))
            if same is not None and name in ("boxes", "classes", "coefficients"):
                ours, theirs = torch_result[same.pictures, same.wanted], result[same.pictures, same.found]
                gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
            differences.append(Difference(name, batch, float(gap.max()), float(gap.mean())))
    return differences


def _run(graph: nn.Module, pictures: NDArray[np.uint8]) -> list[NDArray[np.generic]]:
    """The network's own results. One picture at a time, since the published form holds a gigabyte for each."""
    with torch.no_grad():
        results = graph.eval()(torch.from_numpy(pictures))
    return [each.numpy() for each in (results if isinstance(results, tuple) else (results,))]


class _Same(NamedTuple):
    """Which candidate of the file is which of PyTorch's: three lists of the same length."""

    pictures: NDArray[np.intp]
    wanted: NDArray[np.intp]
    found: NDArray[np.intp]


def _same_candidates(
    wanted: list[NDArray[np.generic]], found: list[NDArray[np.generic]], outputs: tuple[str, ...]
) -> _Same:
    """Pair the candidates: of those whose score is the same but for `TIE`, the one with the nearest box.

    Left out are those that tie with the last one, since which of them come in is a matter of rounding.

    Raises:
        NothingToCompare: all candidates tie with the last one.
    """
    score, box = outputs.index("scores"), outputs.index("boxes")
    scores = wanted[score].astype(np.float64)
    tie = np.abs(scores[:, :, np.newaxis] - found[score].astype(np.float64)[:, np.newaxis, :]) <= TIE
    apart = np.abs(wanted[box][:, :, np.newaxis].astype(np.float64) - found[box][:, np.newaxis]).max(axis=-1)
    nearest = np.where(tie, apart, np.inf).argmin(axis=2)
    pictures, places = np.nonzero(scores > scores[:, -1:] + TIE)
    if not len(places):
        raise NothingToCompare("no candidate scores more than the last one: there is nothing to compare")
    return _Same(pictures, places, nearest[pictures, places])


def export_modnet(model: MODNet, side_px: int, path: Path) -> list[Difference]:
    """Write the matting network as `birefnet_trt` of the profile `nano` and compare it with PyTorch.

    The weights are rounded to half precision, in place, and stored so; the file computes in float32.
    """
    model.pad_images()
    graph = MatteGraph(model.half().float()).eval()
    export_graph(graph, side_px, MATTE_OUTPUTS, path)
    store_half(path)
    return compare(graph, path, side_px, MATTE_OUTPUTS)


def export_birefnet(
    network: BiRefNet, side_px: int, path: Path, deform: Literal["grid", "native"] = "grid"
) -> list[Difference]:
    """Write a released network as `birefnet_trt` and compare it with PyTorch.

    Args:
        network: with its weights; it stays as it is.
        side_px: of the pictures, a multiple of 32.
        path: the file to write.
        deform: "grid" for what is served: the export form in standard operators, which every TensorRT takes. "native"
            for the published structure with ONNX's `DeformConv`: slower and larger, and what "grid" is checked against.

    Returns:
        How far the file's alpha is from the network's own, in grey levels.

    Raises:
        ValueError: when the side is no multiple of 32.
    """
    write_birefnet(network, side_px, path, deform)
    gc.collect()
    return compare(MatteGraph(BehindImageNet(network.eval())), path, side_px, MATTE_OUTPUTS)


def write_birefnet(network: BiRefNet, side_px: int, path: Path, deform: Literal["grid", "native"] = "grid") -> None:
    """What `export_birefnet` writes, without the comparison.

    Raises:
        ValueError: when the side is no multiple of 32.
    """
    if side_px < SIDE_MULTIPLE_PX or side_px % SIDE_MULTIPLE_PX:
        raise ValueError(f"the side must be a multiple of {SIDE_MULTIPLE_PX} px, not {side_px}")
    if deform == "grid":
        graph = MatteGraph(BehindImageNet(export_form(network, side_px)))
        export_graph(graph, side_px, MATTE_OUTPUTS, path)
        return
    network.freeze(side_px, side_px)
    use_onnx_operator(network)
    try:
        export_graph(MatteGraph(BehindImageNet(network)), side_px, MATTE_OUTPUTS, path, DEFORM_CONV_OPSET)
    finally:
        use_onnx_operator(network, False)


def export_detector(model: YoloV8, path: Path) -> list[Difference]:
    """Write YOLOv8-seg as `yolov8_seg` and compare it with PyTorch."""
    graph = DetectorGraph(model).eval()
    export_graph(graph, DETECTOR_SIDE_PX, DETECTOR_OUTPUTS, path)
    return compare(graph, path, DETECTOR_SIDE_PX, DETECTOR_OUTPUTS)
