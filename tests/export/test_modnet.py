"""MODNet takes the published weights, and nothing else for them."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from export.check_pictures import check_pictures
from export.networks.modnet import MODNet, load_published
from export.weights_io import WeightsError

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / ".." / "shared" / "weights" / "modnet.onnx"


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="../shared/weights/modnet.onnx, the published file, is not there")
@pytest.mark.parametrize("side_px", [256, 320])
def test_published_weights_say_the_same(side_px: int) -> None:
    pictures = torch.from_numpy(check_pictures(2, side_px)).permute(0, 3, 1, 2).float() / 255
    session = onnxruntime.InferenceSession(PUBLISHED, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"input": (pictures * 2 - 1).numpy()})
    with torch.no_grad():
        found = load_published(PUBLISHED)(pictures).sigmoid().numpy()
    assert wanted.std() > 0.1
    assert np.abs(found - wanted).max() < 1e-3


def test_another_network_is_refused() -> None:
    with pytest.raises(WeightsError, match="SHA-256"):
        load_published(ROOT / "export" / "weights" / "nano" / "yolov8_seg.onnx")


def test_a_fourth_channel_of_images_changes_nothing() -> None:
    torch.manual_seed(3)
    model, pictures = MODNet().eval(), torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        wanted = model(pictures)
        model.pad_images()
        torch.testing.assert_close(model(pictures), wanted, atol=1e-5, rtol=1e-4)
    assert wanted.std() > 1e-3
    assert [each.conv.in_channels % 4 for each in (model.fine_2x[1], model.join_4x[0], model.fuse)] == [0, 0, 0]
