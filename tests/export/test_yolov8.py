"""YOLOv8 by its published names and shapes, and checkpoints that are read without being run."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from export.networks.yolov8 import SCALES, YoloV8
from export.weights_io import YOLOV8N_SHA256, WeightsError, load_ultralytics, read_checkpoint

CHECKOUT = Path(__file__).resolve().parents[2]

#: Parameters of the released YOLOv8-seg models, in millions, as Ultralytics' documentation states them.
SEG_PARAMETERS_M = {"n": 3.4, "s": 11.8, "m": 27.3, "l": 46.0, "x": 71.8}


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    path = CHECKOUT.parent / "shared" / "weights" / "yolov8n.pt"
    if not path.is_file():
        pytest.skip("no ../shared/weights/yolov8n.pt beside the checkout: nothing to load")
    return load_ultralytics(path, YOLOV8N_SHA256)


def test_released_detector_loads_strictly(released: dict[str, torch.Tensor]) -> None:
    """Every tensor of the released file has its place and every place its tensor."""
    YoloV8("n", masks=False).load_state_dict(released, strict=True)


def test_mask_branches_are_all_that_segmentation_adds(released: dict[str, torch.Tensor]) -> None:
    """YOLOv8n-seg takes the detector's weights; only `cv4` and `proto` are missing."""
    result = YoloV8("n").load_state_dict(released, strict=False)
    assert not result.unexpected_keys
    assert {name.split(".")[2] for name in result.missing_keys} == {"cv4", "proto"}


@pytest.mark.parametrize("scale", SCALES)
def test_sizes_are_the_published_ones(scale: str) -> None:
    """The number of parameters of every size is the released model's."""
    with torch.device("meta"):
        model = YoloV8(scale)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(SEG_PARAMETERS_M[scale], rel=0.02)


def test_outputs_have_the_documented_shapes() -> None:
    """A picture of any size in multiples of 32 gives one candidate per cell of the three strides."""
    with torch.no_grad():
        found = YoloV8("n", classes=3).eval()(torch.rand(2, 3, 96, 64))
    cells = 12 * 8 + 6 * 4 + 3 * 2
    assert found.boxes.shape == (2, cells, 4)
    assert found.class_scores.shape == (2, cells, 3)
    assert found.coefficients is not None
    assert found.coefficients.shape == (2, cells, 32)
    assert found.prototypes is not None
    assert found.prototypes.shape == (2, 32, 24, 16)


class Hostile:
    """Pickles itself as a call of a function that leaves a trace."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def archive_of(path: Path, content: Any) -> Path:
    data = io.BytesIO()
    pickle.Pickler(data, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", data.getvalue())
    return path


def test_nothing_in_a_checkpoint_is_called(tmp_path: Path) -> None:
    """A pickle that names a function to be called gets a stand-in: the function does not run."""
    trace = tmp_path / "trace"
    path = archive_of(tmp_path / "hostile.pt", {"model": Hostile(Path.touch, trace), "x": Hostile(eval, "1/0")})
    read_checkpoint(path)
    assert not trace.exists()
    with pytest.raises(WeightsError, match="holds no"):
        load_ultralytics(path)


def test_other_content_than_expected_is_an_error(tmp_path: Path) -> None:
    """A wrong checksum and a file that is no archive are told apart from a good one, and say so."""
    path = archive_of(tmp_path / "good.pt", {"model": None})
    with pytest.raises(WeightsError, match="SHA-256 is"):
        read_checkpoint(path, "0" * 64)
    path.write_bytes(b"not a zip file")
    with pytest.raises(WeightsError, match="not a readable PyTorch archive"):
        read_checkpoint(path)


def test_tensors_come_back_as_they_were_saved(tmp_path: Path) -> None:
    """Dtype, shape, strides and shared storage of tensors survive the reader."""
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    saved = {"a": base, "view": base.t()[1:], "half": base.half(), "count": torch.tensor(7), "empty": torch.empty(0)}
    torch.save(saved, tmp_path / "tensors.pt")
    found = read_checkpoint(tmp_path / "tensors.pt")
    assert found.keys() == saved.keys()
    for name, value in saved.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
