"""The detector for pictures of any size is the bundled one in all but the sizes."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from export.graphs import DETECTOR_OUTPUTS
from export.nano.free_sizes import SOURCE, TARGET, free_sizes, same_results

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "export" / "weights" / "nano"


def test_the_bundled_file_is_what_the_command_makes() -> None:
    assert free_sizes(onnx.load(WEIGHTS / SOURCE)) == onnx.load(WEIGHTS / TARGET)


def test_results_are_the_same_at_the_side_that_both_take() -> None:
    assert same_results(WEIGHTS / SOURCE, WEIGHTS / TARGET)


@pytest.mark.parametrize("size", [(512, 384), (384, 512), (576, 320)])
def test_other_sizes_find_the_same_person(size: tuple[int, int]) -> None:
    session = onnxruntime.InferenceSession(WEIGHTS / TARGET, providers=["CPUExecutionProvider"])
    with Image.open(ROOT / "samples" / "astronaut.jpg") as sample:
        pictures = {each: np.asarray(sample.resize(each))[None] for each in ((640, 640), size)}
    best = {}
    for (width, height), picture in pictures.items():
        found = dict(zip(DETECTOR_OUTPUTS, session.run(list(DETECTOR_OUTPUTS), {"images": picture}), strict=True))
        assert found["prototypes"].shape == (1, 32, height // 4, width // 4)
        assert found["classes"][0, 0] == 0
        assert found["scores"][0, 0] > 0.6
        best[width, height] = found["boxes"][0, 0] / (width, height, width, height)
    assert np.abs(best[size] - best[640, 640]).max() < 0.05


def test_another_file_is_refused() -> None:
    with pytest.raises(ValueError, match="is it our detector"):
        free_sizes(onnx.load(WEIGHTS / "birefnet_trt.onnx"))
