"""The GPU benchmark runs from end to end where there is no GPU, at small sizes, and its half networks are right."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu_models
from benchmarks.gpu_models import Case, build_torch, difference, find_pictures, run_case, squares
from export.networks.birefnet_config import VARIANTS, BiRefNetConfig
from export.networks.swin import SwinConfig

SIDE_PX = 64
SMALL_SWIN = SwinConfig(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2), window=4)
SMALL = BiRefNetConfig(SMALL_SWIN, block_width=8, branch_width=8, input_width=8, gate_width=4)


def test_command_on_the_cpu(tmp_path: Path) -> None:
    """nano in float32 and half, each in a process of its own: a row for each, and half is near float32."""
    given = ["--device", "cpu", "--network", "nano", "--batches", "2", "1", "--rounds", "2", "--side", "512"]
    assert gpu_models.main([*given, "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu_models.json").read_text())
    assert report["failures"] == []
    rows = {(row["way"], row["batch"]): row for row in report["rows"]}
    assert set(rows) == {(f"ONNX Runtime {kind}", batch) for kind in ("float32", "half") for batch in (1, 2)}
    for (way, _), row in rows.items():
        assert len(row["ms"]) == 2 and min(row["ms"]) > 0
        assert row["memory_mib"] > 10
        assert (row["mean"] == 0) == (way == "ONNX Runtime float32")
        assert row["mean"] <= 0.2
        assert row["iou"] >= 0.999
    assert "| nano | ONNX Runtime half | 2 |" in (tmp_path / "gpu_models.md").read_text()


def test_pytorch_in_half_keeps_places_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small BiRefNet in PyTorch's half precision: weights are half, the taps' places are not, alphas stay near."""
    monkeypatch.setitem(VARIANTS, "lite", SMALL)
    np.save(tmp_path / "pictures.npy", squares(find_pictures(1), SIDE_PX))
    rows = [
        run_case(Case("swin-t", "torch", precision, "cpu", SIDE_PX, (1,), 1, str(tmp_path)))
        for precision in ("float32", "half")
    ]
    assert [row.mean for row in rows[0]] == [0]
    assert 0 < rows[1][0].mean <= 1  # random weights answer every difference with a larger one
    network = build_torch("lite", SIDE_PX, half=True)
    kinds = {name: tensor.dtype for name, tensor in network.model.model.named_buffers()}
    places = {name for name in kinds if name.rpartition(".")[2] in ("columns", "rows")}
    assert places
    assert {kinds[name] for name in places} == {torch.float32}
    assert {tensor.dtype for tensor in network.model.model.parameters()} == {torch.float16}


def test_difference() -> None:
    wanted = np.array([[0, 127], [128, 255]], np.uint8)
    found = np.array([[0, 128], [128, 250]], np.uint8)
    assert difference(found, wanted) == (1.5, 5.0, 2 / 3)


def test_a_case_that_fails_is_told(tmp_path: Path) -> None:
    """A way that cannot run leaves its reason, not a traceback."""
    np.save(tmp_path / "pictures.npy", squares(find_pictures(1), SIDE_PX))
    case = Case("nano", "onnxruntime", "half", "cpu", SIDE_PX, (1,), 1, str(tmp_path))
    rows, failure = gpu_models.in_child(case)
    assert rows == []
    assert failure.startswith("nano: ONNX Runtime half: ")
    assert "half.onnx" in failure


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no CUDA device here"):
        gpu_models.main(["--output", str(tmp_path)])
