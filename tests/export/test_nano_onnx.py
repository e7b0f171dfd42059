"""The bundled ONNX files keep the contract of the model repository, and the exporter makes such files."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.check_pictures import check_pictures
from export.graphs import CANDIDATES, DETECTOR_OUTPUTS, DETECTOR_SIDE_PX, MATTE_OUTPUTS, DetectorGraph, MatteGraph
from export.networks.modnet import MODNet
from export.networks.yolov8 import YoloV8
from export.onnx_export import (
    OPSET,
    NothingToCompare,
    _same_candidates,
    compare,
    example_pictures,
    export_graph,
    export_modnet,
)
from tests.export.half_graphs import DEFORMABLE

WEIGHTS = Path(__file__).resolve().parents[2] / "export" / "weights" / "nano"
DETECTOR, MATTE, WHOLE = (WEIGHTS / f"{name}.onnx" for name in ("yolov8_seg", "birefnet_trt", "u2netp"))
LARGEST_FILE_BYTES = 15_000_000

DETECTOR_CONTRACT = {
    "boxes": ("tensor(float)", [300, 4]),
    "scores": ("tensor(float)", [300]),
    "classes": ("tensor(int32)", [300]),
    "coefficients": ("tensor(float)", [300, 32]),
    "prototypes": ("tensor(float)", [32, 160, 160]),
}


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("path", [DETECTOR, MATTE, WHOLE], ids=lambda path: path.stem)
def test_file_is_small_standard_and_as_listed(path: Path) -> None:
    """At most 15 MB, opset 18, operators of the ONNX standard alone, checksum as in SHA256SUMS."""
    data = path.read_bytes()
    assert len(data) <= LARGEST_FILE_BYTES
    listed = dict(line.split()[::-1] for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines())
    assert listed[path.name] == hashlib.sha256(data).hexdigest()
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.metadata_props
    assert "doc_string" not in {field.name for node in model.graph.node for field, _ in node.ListFields()}


def test_detector_contract() -> None:
    """Names, element types and layouts of `yolov8_seg`; only the batch is free."""
    found = session(DETECTOR)
    (images,) = found.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [640, 640, 3])
    assert isinstance(images.shape[0], str)
    assert {each.name: (each.type, each.shape[1:]) for each in found.get_outputs()} == DETECTOR_CONTRACT
    assert all(isinstance(each.shape[0], str) for each in found.get_outputs())


@pytest.mark.parametrize("path", [MATTE, WHOLE], ids=lambda path: path.stem)
def test_matte_contract(path: Path) -> None:
    """Names, element types and layouts of matting networks: squares of a multiple of 32 px."""
    found = session(path)
    (images,), (alphas,) = found.get_inputs(), found.get_outputs()
    side_px = images.shape[1]
    assert side_px % 32 == 0
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [side_px, side_px, 3])
    assert (alphas.name, alphas.type, alphas.shape[1:]) == ("alphas", "tensor(uint8)", [side_px, side_px])


@pytest.mark.parametrize("path", [DETECTOR, MATTE, WHOLE], ids=lambda path: path.stem)
def test_batch_changes_nothing(path: Path) -> None:
    """Three pictures in one run come out as in three runs, and the same run twice is the same to the bit."""
    running = session(path)
    pictures = check_pictures(3, int(running.get_inputs()[0].shape[1]))
    together = running.run(None, {"images": pictures})
    assert together[0].std() > 5, "there is nothing in what is compared"
    again = running.run(None, {"images": pictures})
    for first, second in zip(together, again, strict=True):
        assert np.array_equal(first, second)
    for number in range(3):
        alone = running.run(None, {"images": pictures[number : number + 1]})
        for output, batch, single in zip(running.get_outputs(), together, alone, strict=True):
            gap = np.abs(batch[number].astype(np.float64) - single[0].astype(np.float64))
            # One grey level of alpha, a hundredth of a pixel; candidates of almost equal score may change places.
            tolerance = {"alphas": 1.0, "boxes": 1e-2, "scores": 1e-4, "prototypes": 1e-3}.get(output.name)
            if tolerance is None or output.name == "boxes":
                assert np.mean(gap > (tolerance or 1e-2)) < 0.02
            else:
                assert gap.max() <= tolerance


def test_scores_descend() -> None:
    """Candidates come best first, with scores in [0, 1] and classes of COCO."""
    running = session(DETECTOR)
    _, scores, classes, _, _ = running.run(list(DETECTOR_OUTPUTS), {"images": example_pictures(2, DETECTOR_SIDE_PX)})
    assert np.all(np.diff(scores, axis=1) <= 0)
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert set(np.unique(classes)) <= set(range(80))


def test_export_keeps_the_network(tmp_path: Path) -> None:
    """A freshly exported matting network differs from PyTorch by one grey level at most, whatever its size."""
    torch.manual_seed(1)
    model = MODNet().eval()
    torch.nn.init.normal_(model.out.weight, std=2.0)  # untrained, it says one half everywhere
    path = tmp_path / "matte.onnx"
    for difference in export_modnet(model, 96, path):
        assert difference.largest <= 1
    assert path.stat().st_size < 2.2 * sum(each.numel() for each in model.parameters())
    pictures = example_pictures(2, 96)
    with torch.no_grad():
        wanted = MatteGraph(model)(torch.from_numpy(pictures)).numpy()
    (found,) = session(path).run(list(MATTE_OUTPUTS), {"images": pictures})
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1


def test_exported_candidates_are_the_best(tmp_path: Path) -> None:
    """The graph returns the 300 best of all cells with their own class, box and coefficients."""
    torch.manual_seed(1)
    model = YoloV8("n")
    pictures = check_pictures(2, DETECTOR_SIDE_PX)
    for module in model.modules():  # an untrained network scores every cell alike: take statistics once
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    inputs = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        model.train()(inputs)
    model.eval()
    graph = DetectorGraph(model).eval()
    path = tmp_path / "seg.onnx"
    export_graph(graph, DETECTOR_SIDE_PX, DETECTOR_OUTPUTS, path)
    with torch.no_grad():
        everything = model(inputs)
    best, classes = everything.class_scores[0].max(dim=1)
    order = best.argsort(descending=True)[:CANDIDATES]
    boxes, scores, found_classes, coefficients, _ = session(path).run(list(DETECTOR_OUTPUTS), {"images": pictures})
    np.testing.assert_allclose(scores[0], best[order].numpy(), atol=1e-4)
    gaps = -np.diff(best[order].numpy().astype(np.float64))
    distinct = np.flatnonzero((gaps[:-1] > 1e-5) & (gaps[1:] > 1e-5)) + 1
    assert len(distinct) > 0
    for k in distinct:
        anchor = order[k]
        np.testing.assert_allclose(boxes[0, k], everything.boxes[0, anchor].numpy(), atol=1e-2)
        np.testing.assert_allclose(coefficients[0, k], everything.coefficients[0, anchor].numpy(), atol=1e-3)
        assert found_classes[0, k] == classes[anchor]
    differences = compare(graph, path, DETECTOR_SIDE_PX, DETECTOR_OUTPUTS)
    assert {each.output for each in differences} == set(DETECTOR_OUTPUTS)
    assert max(each.largest for each in differences if each.output == "boxes") <= 0.05

    class Shifted(torch.nn.Module):
        """The same graph with each box half a pixel aside."""

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            boxes, *others = graph(images)
            return boxes + 0.5, *others

    shifted = compare(Shifted(), path, DETECTOR_SIDE_PX, DETECTOR_OUTPUTS)
    assert min(each.largest for each in shifted if each.output == "boxes") >= 0.45


def test_nothing_to_compare_is_no_agreement() -> None:
    """Where all candidates tie, a comparison of none of them must not look like one that went well."""
    results = [np.zeros((1, 300, 4)), np.full((1, 300), 0.01)]
    with pytest.raises(ValueError, match="nothing to compare"):
        _same_candidates(results, results, ("boxes", "scores"))


def test_candidates_that_changed_places_are_paired() -> None:
    """Two of the same score are told apart by their boxes."""
    scores = np.array([[0.9, 0.5, 0.5, 0.1]])
    boxes = np.arange(16.0).reshape(1, 4, 4)
    places = [0, 2, 1, 3]
    same = _same_candidates([boxes, scores], [boxes[:, places], scores[:, places]], ("boxes", "scores"))
    assert same.wanted.tolist() == [0, 1, 2]
    assert same.found.tolist() == [0, 2, 1]


def nearest(model: onnx.ModelProto) -> None:
    """What TensorRT makes of GridSample from opset 20 on."""
    set_attribute(model, "mode", b"nearest")


def corners(model: onnx.ModelProto) -> None:
    set_attribute(model, "align_corners", 1)


def set_attribute(model: onnx.ModelProto, name: str, value: bytes | int) -> None:
    for node in model.graph.node:
        if node.op_type == "GridSample":
            kept = [each for each in node.attribute if each.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def turned_channels(model: onnx.ModelProto) -> None:
    """The first convolution reads blue where red is."""
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    weights = next(each for each in model.graph.initializer if each.name == first.input[1])
    values = onnx.numpy_helper.to_array(weights)[:, ::-1].copy()
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))


class AsOnnx(torch.nn.Module):
    """The file as it is, in the network's place."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.running = session(path)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.running.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize("spoil", [None, nearest, corners, turned_channels])
def test_a_file_that_computes_something_else_is_seen(
    spoil: Callable[[onnx.ModelProto], None] | None, tmp_path: Path
) -> None:
    """Each of these faults changes what the trained network says of photographs by more than a grey level."""
    model = onnx.load(DEFORMABLE)
    if spoil is not None:
        spoil(model)
    onnx.save(model, tmp_path / "spoilt.onnx")
    side_px = int(session(DEFORMABLE).get_inputs()[0].shape[1])
    found = compare(AsOnnx(DEFORMABLE), tmp_path / "spoilt.onnx", side_px, MATTE_OUTPUTS)
    assert (max(each.largest for each in found) <= 1) == (spoil is None)


def test_flat_mattes_prove_nothing() -> None:
    """A network that finds nothing in photographs is not compared: whatever finds nothing would agree with it."""

    class Blank(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(images.shape[:3], dtype=torch.uint8)

    with pytest.raises(NothingToCompare, match="flat"):
        compare(Blank(), MATTE, int(session(MATTE).get_inputs()[0].shape[1]), MATTE_OUTPUTS)
