"""Inputs and outputs are read from an ONNX file, and what is not one is told apart, however it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.onnx_file import TensorInfo, read_signature
from runtime.server import ServerOptions

WEIGHTS = ServerOptions().weights_dir


def field(number: int, data: bytes) -> bytes:
    """A protobuf field with a length."""
    return bytes([number << 3 | 2, len(data)]) + data


def value_info(name: str, element_type: int, dims: list[int | str]) -> bytes:
    shape = b"".join(
        field(1, field(2, size.encode()) if isinstance(size, str) else bytes([1 << 3, size])) for size in dims
    )
    tensor = bytes([1 << 3, element_type]) + field(2, shape)
    return field(1, name.encode()) + field(2, field(1, tensor))


GRAPH = (
    field(5, field(8, b"weight"))
    + field(11, value_info("images", 2, ["batch", 64, 64, 3]))
    + field(11, value_info("weight", 1, [3]))
    + field(12, value_info("scores", 1, ["batch", 5]))
)
MODEL = bytes([1 << 3, 8]) + field(7, GRAPH)


def test_bundled_networks() -> None:
    signature = read_signature(WEIGHTS / "yolov8_seg.onnx")
    assert signature.inputs == {"images": TensorInfo("UINT8", (-1, 640, 640, 3))}
    assert signature.outputs["prototypes"] == TensorInfo("FP32", (-1, 32, 160, 160))
    matting = read_signature(WEIGHTS / "birefnet_trt.onnx")
    assert matting.outputs["alphas"].dtype == "UINT8"


def test_weights_among_the_inputs_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(MODEL)
    signature = read_signature(tmp_path / "model.onnx")
    assert signature.inputs == {"images": TensorInfo("UINT8", (-1, 64, 64, 3))}
    assert signature.outputs == {"scores": TensorInfo("FP32", (-1, 5))}


@pytest.mark.parametrize(
    "data",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x89PNG\r\n\x1a\n" + bytes(64), bytes(100), b"\xff" * 40],
    ids=["empty", "lfs pointer", "png", "zeros", "ones"],
)
def test_what_is_not_onnx(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ValueError, match=r"^it "):
        read_signature(tmp_path / "model.onnx")


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for length in range(len(MODEL)):
        path.write_bytes(MODEL[:length])
        with pytest.raises(ValueError, match=r"^it "):
            read_signature(path)
