"""A served matting network comes back from its file as one that can be trained on."""

from pathlib import Path

import onnxruntime
import pytest
import torch

from export.graphs import MATTE_OUTPUTS, MatteGraph
from export.nano.served import load_served
from export.nano.train_matte import make_optimizer, parse_options
from export.networks.nano import NanoMatte
from export.onnx_export import compare, export_nano_matte

WEIGHTS = Path(__file__).resolve().parents[2] / "export" / "weights" / "nano"


def test_the_bundled_file_comes_back(tmp_path: Path) -> None:
    """Its mattes of photographs are PyTorch's, at its own size and when exported anew at another."""
    path = WEIGHTS / "birefnet_trt.onnx"
    model = load_served(path)
    side_px = int(onnxruntime.InferenceSession(path).get_inputs()[0].shape[1])
    differences = compare(MatteGraph(model), path, side_px, MATTE_OUTPUTS)
    differences += export_nano_matte(model, 320, tmp_path / "again.onnx")
    assert max(each.largest for each in differences) <= 1


def test_normalisation_and_offsets_survive(tmp_path: Path) -> None:
    """Also where every layer has statistics and every deformable convolution offsets of its own."""
    torch.manual_seed(2)
    model = NanoMatte().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
        if hasattr(module, "offset_conv"):
            torch.nn.init.normal_(module.offset_conv.weight, std=0.05)
    pictures = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        wanted = model(pictures)
        export_nano_matte(model, 96, tmp_path / "matte.onnx")
        found = load_served(tmp_path / "matte.onnx")(pictures)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="convolutions"):
        load_served(WEIGHTS / "yolov8_seg.onnx")


def test_rates_follow_the_size_of_weights(tmp_path: Path) -> None:
    """Folded weights differ a thousandfold between layers, so must their rates; the coarse stages learn nothing."""
    served = WEIGHTS / "birefnet_trt.onnx"
    options = parse_options(["--init", str(served), "--out", str(tmp_path), "--lr", "0.01"])
    model = load_served(served)
    groups = make_optimizer(model, options).param_groups
    rates = {id(parameter): group["base_lr"] for group in groups for parameter in group["params"]}
    lateral, out = model.stages[0].lateral[0].weight, model.out.weight
    assert rates[id(lateral)] == pytest.approx(0.01 * float(lateral.detach().square().mean().sqrt()), rel=1e-4)
    assert rates[id(out)] > 10 * rates[id(lateral)]
    assert id(model.stages[0].side.weight) not in rates
