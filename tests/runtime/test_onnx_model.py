"""The ONNX model that stands in for a TensorRT plan: one run for many requests, and no request hurts another."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.compose import ONNX_MODEL
from runtime.digest import sha256_of
from runtime.server import ServerOptions

WEIGHTS = ServerOptions().weights_dir


class Tensor:
    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self._array


class TritonError(SimpleNamespace):
    CANCELLED, INTERNAL = "CANCELLED", "INTERNAL"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message=message, code=code)


class Request(SimpleNamespace):
    def __init__(self, images: np.ndarray[Any, Any] | None, *names: str, cancelled: bool = False) -> None:
        super().__init__(images=images, names=names or ("doubled",), cancelled=cancelled)

    def requested_output_names(self) -> tuple[str, ...]:
        return self.names

    def is_cancelled(self) -> bool:
        return self.cancelled


class Session:
    """Doubles what it gets, counts its runs, and fails when a 13 is among the values."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.wanted: list[list[str]] = []

    def run(self, wanted: list[str], inputs: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        images = inputs["images"]
        self.batches.append(len(images))
        self.wanted.append(wanted)
        if (images == 13).any():
            raise RuntimeError("unlucky")
        return [images * 2 if name == "doubled" else images + 1 for name in wanted]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The model's module, with a stand-in for what Triton's stub provides."""
    pb_utils = SimpleNamespace(
        Tensor=Tensor,
        TritonError=TritonError,
        InferenceResponse=lambda tensors, error=None: SimpleNamespace(
            tensors={tensor.name(): tensor.as_numpy() for tensor in tensors}, error=error
        ),
        Logger=SimpleNamespace(log_info=lambda text: None, log_error=lambda text: None),
        get_input_tensor_by_name=lambda request, name: Tensor(name, request.images),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    spec = importlib.util.spec_from_file_location("onnx_model_under_test", ONNX_MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(module: ModuleType) -> Any:
    model = module.TritonPythonModel()
    model._name, model._inputs, model._session = "toy", ["images"], Session()
    return model


def rows(*values: int) -> np.ndarray[Any, Any]:
    """A batch with one row of two equal numbers for each value."""
    return np.array([[value, value] for value in values], np.int32)


def test_requests_are_stacked_into_one_run_and_split_again(model: Any) -> None:
    answers = model.execute([Request(rows(1)), Request(rows(2, 3)), Request(rows(4))])
    assert model._session.batches == [4]
    for answer, expected in zip(answers, (rows(2), rows(4, 6), rows(8)), strict=True):
        np.testing.assert_array_equal(answer.tensors["doubled"], expected)


def test_failure_of_one_does_not_hurt_the_others(model: Any) -> None:
    answers = model.execute([Request(rows(1)), Request(rows(13)), Request(rows(2))])
    assert model._session.batches == [3, 1, 1, 1]
    np.testing.assert_array_equal(answers[0].tensors["doubled"], rows(2))
    assert "unlucky" in answers[1].error.message
    np.testing.assert_array_equal(answers[2].tensors["doubled"], rows(4))


def test_input_that_cannot_be_read_does_not_hurt_the_others(model: Any, module: ModuleType) -> None:
    def read(request: Request, name: str) -> Tensor | None:
        return None if request.images is None else Tensor(name, request.images)

    module.pb_utils.get_input_tensor_by_name = read
    answers = model.execute([Request(None), Request(rows(2))])
    assert "cannot read its input" in answers[0].error.message
    np.testing.assert_array_equal(answers[1].tensors["doubled"], rows(4))


def test_cancelled_requests_are_not_computed(model: Any) -> None:
    answers = model.execute([Request(rows(1), cancelled=True), Request(rows(2)), Request(rows(3), cancelled=True)])
    assert model._session.batches == [1]
    assert [answer.error and answer.error.code for answer in answers] == ["CANCELLED", None, "CANCELLED"]


def test_nothing_is_run_when_all_are_cancelled(model: Any) -> None:
    answers = model.execute([Request(rows(1), cancelled=True)])
    assert model._session.batches == []
    assert answers[0].error.code == "CANCELLED"


def test_each_gets_the_outputs_it_asked_for(model: Any) -> None:
    answers = model.execute(
        [Request(rows(1), "doubled"), Request(rows(2), "next"), Request(rows(3), "next", "doubled")]
    )
    assert model._session.wanted == [["doubled", "next"]]
    assert [sorted(answer.tensors) for answer in answers] == [["doubled"], ["next"], ["doubled", "next"]]


@pytest.mark.parametrize(("name", "output"), [("birefnet_trt", "alphas"), ("yolov8_seg", "boxes")])
def test_stacked_is_the_same_as_one_by_one(module: ModuleType, name: str, output: str) -> None:
    """The bundled networks: what a picture gives does not depend on the pictures beside it."""
    session = module.open_session(WEIGHTS / f"{name}.onnx", "cpu", 2)
    side = session.get_inputs()[0].shape[1]
    pictures = np.random.default_rng(1).integers(0, 255, (3, side, side, 3), np.uint8)
    requests = [{"images": pictures[:1]}, {"images": pictures[1:]}]
    stacked = module.run_stacked(session, requests, [output])
    for request, outputs in zip(requests, stacked, strict=True):
        for index, picture in enumerate(request["images"]):
            (alone,) = session.run([output], {"images": picture[None]})
            difference = np.abs(outputs[output][index].astype(float) - alone[0].astype(float))
            assert difference.max() <= 1


def test_cuda_that_does_not_come_up_is_an_error(module: ModuleType) -> None:
    """ONNX Runtime itself warns and takes the CPU."""
    if "CUDAExecutionProvider" in module.ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(RuntimeError, match="without it"):
        module.open_session(WEIGHTS / "birefnet_trt.onnx", "cuda", 1)


def test_initialise_reads_its_configuration(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").symlink_to((WEIGHTS / "birefnet_trt.onnx").resolve())
    config = {
        "input": [{"name": "images"}],
        "output": [{"name": "alphas"}],
        "parameters": {
            "device": {"string_value": "cpu"},
            "threads": {"string_value": "1"},
            "sha256": {"string_value": sha256_of(WEIGHTS / "birefnet_trt.onnx")},
        },
    }
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(tmp_path),
            "model_version": "1",
            "model_name": "birefnet_trt",
        }
    )
    side = model._session.get_inputs()[0].shape[1]
    (answer,) = model.execute([Request(np.zeros((2, side, side, 3), np.uint8), "alphas")])
    assert answer.tensors["alphas"].shape == (2, side, side)
    model.finalize()


def test_another_file_than_the_server_was_started_with_is_not_loaded(module: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"weights")
    digest = sha256_of(file)
    module.check_file(file, digest)
    file.write_bytes(b"others")
    with pytest.raises(RuntimeError, match="has changed since the server was started"):
        module.check_file(file, digest)
