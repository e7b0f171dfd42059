"""Triton's glue against a stand-in of its Python API: what callers get, also when models fail or callers leave."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.pipeline import stand_ins

MODEL = Path(__file__).resolve().parents[2] / "model_repository" / "ensemble_pipeline" / "1" / "model.py"
OUTPUTS = ["images", "boxes", "scores", "report"]
SCENE = stand_ins.picture(640, 400, [(150, 200, 60, 150), (450, 240, 50, 110)])


class Tensor:
    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array


class TritonError:
    INTERNAL, INVALID_ARG, CANCELLED, UNAVAILABLE, NOT_FOUND = range(5)

    def __init__(self, message: str, code: int = 0) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class MetricFamily:
    COUNTER, GAUGE = range(2)
    values: ClassVar[dict[str, float]] = {}

    def __init__(self, *, name: str, description: str, kind: int) -> None:
        assert description
        self._name, self._kind = name, kind

    def Metric(self, *, labels: dict[str, str]) -> types.SimpleNamespace:  # noqa: N802 (Triton's name)
        key = self._name + "".join(f" {name}={value}" for name, value in labels.items())
        self.values.setdefault(key, 0.0)
        if self._kind == self.GAUGE:
            return types.SimpleNamespace(set=lambda value: self.values.__setitem__(key, value))
        return types.SimpleNamespace(increment=lambda value: self.values.__setitem__(key, self.values[key] + value))


class Response:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors = {tensor.name(): tensor.as_numpy() for tensor in output_tensors or []}
        self._error = error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError:
        assert self._error is not None
        return self._error


class Request:
    """What a caller sent."""

    def __init__(self, data: Any = SCENE, outputs: list[str] | None = None, **options: Any) -> None:
        self._data, self._outputs = data, OUTPUTS if outputs is None else outputs
        self.given: Any = json.dumps(options) if options else ""
        self.cancelled_after = 10**9
        self.looked = 0
        self.id: Any = "seven"

    def tensors(self) -> NDArray[np.object_]:
        return np.array([self._data, None], np.object_)[:1]

    def parameters(self) -> str:
        """As Triton has it, which decodes when it is asked."""
        return str(self.given.decode() if isinstance(self.given, bytes) else self.given)

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def request_id(self) -> str:
        return str(self.id.decode() if isinstance(self.id, bytes) else self.id)

    def trace(self) -> None:
        return None

    def is_cancelled(self) -> bool:
        self.looked += 1
        return self.looked > self.cancelled_after


class Server:
    """The models behind, and how they fail."""

    def __init__(self) -> None:
        self.failures: dict[str, TritonError] = {}
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        self.timeouts_us: list[int] = []
        self.log: list[str] = []

    def infer(self, model: str, images: NDArray[np.uint8], names: list[str]) -> Response:
        self.calls.append((model, images.shape))
        if model in self.failures:
            return Response(error=self.failures[model])
        outputs = stand_ins.detector(images) if model == "yolov8_seg" else {"alphas": stand_ins.matter(images)}
        return Response([Tensor(name, outputs[name]) for name in names])


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def model(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The model, initialized as Triton does it."""

    class InferenceRequest:
        def __init__(
            self, *, model_name: str, requested_output_names: list[str], inputs: list[Tensor], timeout: int, **_: Any
        ):
            server.timeouts_us.append(timeout)
            self._call = (model_name, inputs[0].as_numpy(), requested_output_names)

        def exec(self) -> Response:
            return server.infer(*self._call)

    api = types.ModuleType("triton_python_backend_utils")
    api.Tensor, api.TritonError, api.InferenceResponse = Tensor, TritonError, Response  # type: ignore[attr-defined]
    api.InferenceRequest = InferenceRequest  # type: ignore[attr-defined]
    api.PreferredMemory = lambda *_: None  # type: ignore[attr-defined]
    api.TRITONSERVER_MEMORY_CPU = 0  # type: ignore[attr-defined]
    api.Logger = types.SimpleNamespace(log_error=server.log.append)  # type: ignore[attr-defined]
    api.get_input_tensor_by_name = lambda request, name: Tensor(name, request.tensors())  # type: ignore[attr-defined]
    api.get_output_tensor_by_name = lambda response, name: Tensor(name, response.tensors[name])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", api)
    api.MetricFamily = MetricFamily  # type: ignore[attr-defined]
    for name in ("serving", "metrics"):  # they keep the API that they were imported with
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("yolov8_seg/1", "yolov8_seg/12", "birefnet_trt/3", "ensemble_pipeline/1"):
        (tmp_path / name).mkdir(parents=True)
    spec = importlib.util.spec_from_file_location("ensemble_pipeline_model", MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parameters = {"profile": "nano", "device": "cpu", "matte_side_px": str(stand_ins.SIDE)}
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    instance = module.TritonPythonModel()
    repository = str(tmp_path / "ensemble_pipeline")
    instance.initialize(
        {"model_config": json.dumps(config), "model_repository": repository, "model_instance_name": "pipeline_0_0"}
    )
    yield instance
    instance.finalize()


def answer(model: Any, request: Request) -> Response:
    (response,) = model.execute([request])
    return response


def refused(response: Response) -> tuple[int, dict[str, Any]]:
    return response.error().code(), json.loads(response.error().message())


def test_a_picture_goes_through(model: Any, server: Server) -> None:
    response = answer(model, Request(subject="each", padding_px="5"))
    assert not response.has_error()
    assert list(response.tensors) == OUTPUTS
    images, report = response.tensors["images"], json.loads(response.tensors["report"][0])
    assert images.dtype == np.object_
    assert images.shape == (2,)
    assert all(isinstance(image, bytes) and image.startswith(b"\x89PNG") for image in images)
    assert response.tensors["boxes"].dtype == response.tensors["scores"].dtype == np.float32
    assert report["models"] == {
        "profile": "nano",
        "detector": {"name": "yolov8_seg", "version": "12"},
        "matte": {"name": "birefnet_trt", "version": "3", "side_px": stand_ins.SIDE},
    }
    side = stand_ins.SIDE
    assert server.calls == [("yolov8_seg", (1, 640, 640, 3)), ("birefnet_trt", (2, side, side, 3))]


def test_only_what_was_asked_for_is_sent_and_matted(model: Any, server: Server) -> None:
    response = answer(model, Request(outputs=["boxes", "report"]))
    assert set(response.tensors) == {"boxes", "report"}
    assert [name for name, _ in server.calls] == ["yolov8_seg"]


def test_one_bad_request_does_not_hurt_the_others(model: Any) -> None:
    responses = model.execute([Request(), Request(b"no picture"), Request(subject="cat"), Request(outputs=["scores"])])
    assert [response.has_error() for response in responses] == [False, True, True, False]
    assert refused(responses[1])[0] == TritonError.INVALID_ARG
    assert refused(responses[1])[1]["code"] == "INVALID_FORMAT"
    assert refused(responses[2])[1]["code"] == "INVALID_OPTION"
    assert refused(responses[2])[1]["details"]["name"] == "subject"


def test_nobody_there_is_the_callers_picture(model: Any) -> None:
    code, form = refused(answer(model, Request(stand_ins.picture(300, 200, []))))
    assert (code, form["code"], form["tier"]) == (TritonError.INVALID_ARG, "NO_PERSON_DETECTED", 2)


@pytest.mark.parametrize(
    ("message", "given", "code", "expected"),
    [
        ("bad node /srv/secret.onnx", TritonError.INTERNAL, TritonError.INTERNAL, "INFERENCE_ERROR"),
        ("CUDA error: out of memory", TritonError.INTERNAL, TritonError.UNAVAILABLE, "GPU_MEMORY_EXHAUSTED"),
        ("Exceeds maximum queue size", TritonError.UNAVAILABLE, TritonError.UNAVAILABLE, "OVERLOADED"),
        ("asleep: plan 7", TritonError.UNAVAILABLE, TritonError.UNAVAILABLE, "UNAVAILABLE"),
        ("Request timeout expired", TritonError.UNAVAILABLE, TritonError.UNAVAILABLE, "PROCESSING_TIMEOUT"),
    ],
)
def test_a_failing_model_is_logged_and_told_without_its_words(
    model: Any, server: Server, message: str, given: int, code: int, expected: str
) -> None:
    server.failures["birefnet_trt"] = TritonError(message, given)
    got, form = refused(answer(model, Request()))
    assert (got, form["code"]) == (code, expected)
    assert message not in json.dumps(form)
    assert any(message in line for line in server.log)


def test_a_fault_of_our_own_is_logged_with_its_traceback_and_not_told(model: Any, server: Server) -> None:
    server.infer = lambda *_: Response([])  # type: ignore[method-assign]
    code, form = refused(answer(model, Request()))
    assert (code, form["code"]) == (TritonError.INTERNAL, "INFERENCE_ERROR")
    assert "KeyError" not in json.dumps(form)
    assert any("Traceback" in line and "'seven'" in line for line in server.log)


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_a_caller_who_left_costs_nothing_more(model: Any, server: Server, looks: int) -> None:
    request = Request()
    request.cancelled_after = looks
    code, form = refused(answer(model, request))
    assert (code, form["code"]) == (TritonError.CANCELLED, "CANCELLED")
    assert len(server.calls) == looks


def test_a_picture_that_takes_too_long_is_given_up(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 5.0, 31.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setitem(type(model)._respond.__globals__, "time", clock)
    code, form = refused(answer(model, Request()))
    assert (code, form["code"]) == (TritonError.UNAVAILABLE, "PROCESSING_TIMEOUT")
    assert form["details"] == {"elapsed_seconds": 31.0}


def test_calls_of_networks_carry_what_is_left_of_the_deadline(model: Any, server: Server) -> None:
    answer(model, Request())
    assert len(server.timeouts_us) == 2
    assert all(0 < timeout_us <= 30_000_000 for timeout_us in server.timeouts_us)
    assert server.timeouts_us == sorted(server.timeouts_us, reverse=True)


@pytest.mark.parametrize("given", [b'{"subject": "\xff"}', b'{"\xc3(": "each"}', b'{"background": "#\xe9\xe9"}'])
def test_parameters_that_are_no_text(model: Any, given: bytes) -> None:
    request = Request()
    request.given = given
    code, form = refused(answer(model, request))
    assert (code, form["code"], form["details"]["name"]) == (TritonError.INVALID_ARG, "INVALID_OPTION", "parameters")


@pytest.mark.parametrize("data", [SCENE, b"no picture"])
def test_an_id_that_is_no_text(model: Any, data: bytes) -> None:
    """Nothing is raised into Triton, which would answer with the traceback and its paths."""
    request = Request(data)
    request.id = b"\xff\xfe"
    code, form = refused(answer(model, request))
    assert (code, form["code"], form["details"]["name"]) == (TritonError.INVALID_ARG, "INVALID_OPTION", "id")


def test_half_a_surrogate_pair_in_an_option_is_refused_in_text_that_can_be_sent(model: Any) -> None:
    response = answer(model, Request(subject="\ud800", select='["\\ud800"]'))
    assert refused(response)[1]["code"] == "INVALID_OPTION"
    response.error().message().encode()


def test_the_log_has_the_beginning_of_an_id(model: Any, server: Server) -> None:
    server.infer = lambda *_: Response([])  # type: ignore[method-assign]
    request = Request()
    request.id = "i" * 1_000_000
    answer(model, request)
    assert max(map(len, server.log)) < 10_000


def test_who_sends_is_no_option(model: Any) -> None:
    assert not answer(model, Request(caller="ip:192.0.2.1")).has_error()


def test_input_that_is_no_file(model: Any) -> None:
    code, form = refused(answer(model, Request(17)))
    assert (code, form["code"]) == (TritonError.INVALID_ARG, "INVALID_FORMAT")


def test_outcomes_are_counted_by_code(model: Any) -> None:
    MetricFamily.values.clear()
    model.execute([Request(), Request(b"no picture"), Request(b"no picture"), Request(subject="each")])
    model.finalize()
    values = MetricFamily.values
    assert values["cutaway_requests_total code=OK"] == 2
    assert values["cutaway_requests_total code=INVALID_FORMAT"] == 2
    assert values["cutaway_people_sum"] == 4
    assert values["cutaway_people_bucket le=1"] == 0
    assert values["cutaway_people_bucket le=2"] == values["cutaway_people_bucket le=+Inf"] == 2
    assert values["cutaway_stage_seconds_count stage=matte"] == 2
    assert 0 < values["cutaway_stage_seconds_sum stage=decode"] < values["cutaway_stage_seconds_sum stage=total"]
    assert values["cutaway_pictures_in_flight instance=pipeline_0_0"] == 0
