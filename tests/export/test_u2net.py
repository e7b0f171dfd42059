"""U²-Net-P: the published weights are read right, and the bundled file holds on every CPU."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from export.check_pictures import check_pictures
from export.graphs import BehindImageNet
from export.networks.u2net import Mirrored, U2Net, load_published

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT.parent / "shared" / "weights" / "u2netp.onnx"
WEIGHTS = ROOT / "export" / "weights" / "nano"
PUBLISHED_SIDE_PX = 320
SECOND_SIDE = 2
"""The published file's outputs: the joined sides, and each of them, finest first."""
SEVEN_BITS = 64


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="../shared/weights/u2netp.onnx is not there")
def test_the_published_weights_give_the_published_side() -> None:
    pictures = torch.from_numpy(check_pictures(1, PUBLISHED_SIDE_PX)).permute(0, 3, 1, 2).float() / 255
    behind = BehindImageNet(load_published(PUBLISHED).eval())
    with torch.no_grad():
        found = behind(pictures).sigmoid().numpy()
    session = onnxruntime.InferenceSession(PUBLISHED, providers=["CPUExecutionProvider"])
    normalised = ((pictures - behind.mean) / behind.deviation).numpy()
    published = session.run(None, {session.get_inputs()[0].name: normalised})[SECOND_SIDE]
    assert published.std() > 0.1
    assert np.abs(found - published).max() < 1e-3


def test_another_networks_file_is_refused() -> None:
    with pytest.raises(ValueError, match="convolutions"):
        load_published(WEIGHTS / "yolov8_seg.onnx")


@pytest.mark.parametrize("side_px", [64, 96])
def test_a_mirrored_picture_has_the_mirrored_matte(side_px: int) -> None:
    torch.manual_seed(3)
    network = Mirrored(U2Net()).eval()
    pictures = torch.rand(2, 3, side_px, side_px)
    with torch.no_grad():
        logits, mirrored = network(pictures), network(pictures.flip(3))
    assert logits.shape == (2, 1, side_px, side_px)
    assert logits.std() > 0
    assert torch.allclose(logits.flip(3), mirrored, atol=1e-5)


def test_sums_of_products_cannot_saturate_without_vnni() -> None:
    """AVX2 adds two products of 8 bits in 16: weights of 7 bits always fit."""
    graph = onnx.load(WEIGHTS / "u2netp.onnx").graph
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    weights = [
        arrays[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and arrays.get(node.input[0], np.zeros(0)).dtype == np.int8
    ]
    assert len(weights) > 80
    assert max(int(np.abs(each.astype(np.int16)).max()) for each in weights) <= SEVEN_BITS
