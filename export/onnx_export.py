"""From PyTorch networks to ONNX files with the inputs and outputs that the model repository declares.

Normalisation, decoding and rounding are in the graph, so that uint8 pictures travel and no client can get them
wrong. Opset 18: TensorRT reads the bilinear GridSample of later opsets as nearest. Only the batch is dynamic.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.networks.nano import DecoderStage, DeformableBranch, NanoMatte
from export.networks.yolov8 import YoloV8

OPSET = 18
DETECTOR_SIDE_PX = 640
#: Candidates that leave the detector, best first; suppression of overlaps is the caller's.
CANDIDATES = 300
DETECTOR_OUTPUTS = ("boxes", "scores", "classes", "coefficients", "prototypes")
MATTE_OUTPUTS = ("alphas",)
#: Scores closer than this are a tie: float32 in another order of summation differs by about 1e-6.
CLEAR_SCORE_GAP = 1e-5
#: Batches at which an exported file is compared with PyTorch.
CHECKED_BATCHES = (1, 3)


class DetectorGraph(nn.Module):
    """YOLOv8-seg from uint8 pictures to its best candidates."""

    def __init__(self, model: YoloV8) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Map letterboxed RGB, uint8 [N, 640, 640, 3], to the outputs of the model repository's `yolov8_seg`.

        Returns:
            boxes float32 [N, 300, 4] (x1, y1, x2, y2, letterboxed pixels), scores float32 [N, 300] (best class,
            descending), classes int32 [N, 300], coefficients float32 [N, 300, 32] and prototypes float32
            [N, 32, 160, 160].
        """
        detections = self.model(images.permute(0, 3, 1, 2).float() / 255.0)
        best, classes = detections.class_scores.max(dim=2)
        scores, order = best.topk(CANDIDATES, dim=1)
        boxes = detections.boxes.gather(1, order[..., None].expand(-1, -1, 4))
        coefficients = detections.coefficients
        coefficients = coefficients.gather(1, order[..., None].expand(-1, -1, int(coefficients.shape[2])))
        return boxes, scores, classes.gather(1, order).int(), coefficients, detections.prototypes


class MatteGraph(nn.Module):
    """A matting network from uint8 pictures to uint8 alpha.

    Args:
        model: maps float RGB [N, 3, S, S] in [0, 1] to logits [N, 1, S, S].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map RGB, uint8 [N, S, S, 3], to alpha, uint8 [N, S, S]."""
        logits = self.model(images.permute(0, 3, 1, 2).float() / 255.0)
        return (logits.squeeze(1).sigmoid() * 255.0).round().to(torch.uint8)


def fold_deformable_norms(model: nn.Module) -> None:
    """Put the batch normalisation that follows each deformable convolution into its weights, in place.

    The exporter does this for plain convolutions; a deformable one is a matrix product by then.
    """
    for branch in model.modules():
        if isinstance(branch, DeformableBranch) and isinstance(branch.bn, nn.BatchNorm2d):
            norm, conv = branch.bn, branch.conv.regular_conv
            scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
            conv.weight.data.mul_(scale[:, None, None, None])
            bias = conv.bias.detach() if conv.bias is not None else torch.zeros_like(scale)
            conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias.detach())
            branch.bn = nn.Identity()


def fold_patches(model: nn.Module) -> None:
    """Make one strided convolution of the cutting into patches and the 1x1 convolution that follows, in place.

    The same sums in another order; as a transpose, the cutting alone takes a fifth of the network's time.
    """
    for stage in model.modules():
        if isinstance(stage, DecoderStage) and isinstance(stage.unshuffle, nn.PixelUnshuffle):
            side_px = stage.unshuffle.downscale_factor
            narrow = stage.patches[0][0]
            strided = nn.Conv2d(3, narrow.out_channels, side_px, stride=side_px, bias=False)
            strided.weight.data.copy_(narrow.weight.detach().reshape(strided.weight.shape))
            stage.patches[0][0] = strided
            stage.unshuffle = nn.Identity()


def export_graph(graph: nn.Module, side_px: int, outputs: tuple[str, ...], path: Path) -> None:
    """Trace a graph that takes `images`, uint8 [N, side, side, 3], and write it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    example = torch.zeros((1, side_px, side_px, 3), dtype=torch.uint8)
    with warnings.catch_warnings():
        # Sizes become constants on purpose; the exporter is the older one on purpose.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.eval().to(memory_format=torch.contiguous_format),
            (example,),
            str(path),
            input_names=["images"],
            output_names=list(outputs),
            dynamic_axes={name: {0: "batch"} for name in ("images", *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
    _name_shapes(path, graph, example)


def _name_shapes(path: Path, graph: nn.Module, example: Tensor) -> None:
    """Write every fixed dimension of the outputs into the file: tracing leaves some unnamed."""
    import onnx

    with torch.no_grad():
        results = graph(example)
    results = results if isinstance(results, tuple) else (results,)
    model = onnx.load(path)
    for value, result in zip(model.graph.output, results, strict=True):
        shape = value.type.tensor_type.shape
        for dimension, size in zip(shape.dim[1:], result.shape[1:], strict=True):
            dimension.dim_value = int(size)
    onnx.checker.check_model(model)
    onnx.save(model, path)


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
    """Run the file in ONNX Runtime and the graph in PyTorch on the same pictures, for `CHECKED_BATCHES`.

    Candidates of almost equal score may change places, so of the detector's candidates those are compared whose
    score differs from their neighbours' by more than `CLEAR_SCORE_GAP`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    differences = []
    for batch in CHECKED_BATCHES:
        pictures = example_pictures(batch, side_px)
        with torch.no_grad():
            wanted = graph(torch.from_numpy(pictures))
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        found = session.run(list(outputs), {"images": pictures})
        clear = _clearly_placed(wanted[outputs.index("scores")].numpy()) if "scores" in outputs else None
        for name, torch_result, result in zip(outputs, wanted, found, strict=True):
            gap = np.abs(torch_result.numpy().astype(np.float64) - result.astype(np.float64))
            if clear is not None and gap.shape[:2] == clear.shape:
                gap = gap[clear]
            differences.append(Difference(name, batch, float(gap.max()), float(gap.mean())))
    return differences


def _clearly_placed(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of the descending scores, [N, 300], stand clear of both neighbours. The last one's is unknown."""
    gaps = -np.diff(scores.astype(np.float64), axis=1) > CLEAR_SCORE_GAP
    edge = np.ones((len(scores), 1), bool)
    return np.concatenate((edge, gaps), axis=1) & np.concatenate((gaps, ~edge), axis=1)


def export_nano_matte(model: NanoMatte, side_px: int, path: Path) -> list[Difference]:
    """Write the matting network as `birefnet_trt` of the profile `nano` and compare it with PyTorch."""
    fold_deformable_norms(model)
    fold_patches(model)
    graph = MatteGraph(model).eval()
    export_graph(graph, side_px, MATTE_OUTPUTS, path)
    return compare(graph, path, side_px, MATTE_OUTPUTS)


def export_detector(model: YoloV8, path: Path) -> list[Difference]:
    """Write YOLOv8-seg as `yolov8_seg` and compare it with PyTorch."""
    graph = DetectorGraph(model).eval()
    export_graph(graph, DETECTOR_SIDE_PX, DETECTOR_OUTPUTS, path)
    return compare(graph, path, DETECTOR_SIDE_PX, DETECTOR_OUTPUTS)
