"""Real engines, built without a GPU by TensorRT for RTX: its parser and types take what plans are built from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.__main__ import main
from export.onnx_export import example_pictures, export_birefnet
from export.onnx_tidy import widen_stored
from export.plan import Reference
from export.plans.builder import Built, NodeRefused, Options, OutOfMemory, PlanProblem, build, configure, load_tensorrt
from export.plans.graph import Graph, GraphRefused, read_graph
from export.plans.watching import make_logger
from export.precision import cast_pictures_first, to_half
from runtime.checks import RuntimeProblem
from runtime.digest import sha256_of
from runtime.gpus import Gpu, Host
from runtime.onnx_file import TensorInfo, read_signature
from runtime.plans import PlanRecord, check_plans, plan_version
from runtime.weights import read_checksums
from tests.export.small_lite import as_published

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT for RTX is for Linux on x86-64 alone (requirements/rtx.txt)"
)
from tests.export.half_graphs import DEFORMABLE

MATTE, DETECTOR = "birefnet_trt", "yolov8_seg"
TARGETS = ("8.6", "8.9")
RTX_VERSION = "1.7.1.116"


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the profile `nano`, as `export onnx` makes it."""
    models = tmp_path_factory.mktemp("models")
    assert main(["onnx", "nano", "--models", str(models)]) == 0
    return models / "nano"


def built(graph: Graph, log: Path, **options: Any) -> Any:
    return build(load_tensorrt("rtx"), graph, Options(compute_capabilities=TARGETS, **options), log, None)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engines_of_both_models_are_built_and_not_served(
    nano: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "nano", "--models", str(nano.parent), "--trt-major", "rtx", "--precision", precision]) == 0
    assert "TensorRT takes both graphs" in capsys.readouterr().out
    sums = read_checksums(nano)
    for name, side_px in ((MATTE, 320), (DETECTOR, 640)):
        plan = nano / f"{name}.plan"
        record = PlanRecord.read(nano / f"{name}.plan.json")
        assert plan_version(plan) == ("TensorRT for RTX", RTX_VERSION)
        assert sums[plan.name] == record.plan_sha256 == sha256_of(plan)
        suffix = ".fp16.onnx" if precision == "fp16" else ".onnx"
        assert record.onnx == {"name": name + suffix, "sha256": sums[name + suffix]}
        assert (record.library, record.tensorrt, record.side_px) == ("tensorrt-rtx", RTX_VERSION, side_px)
        assert (record.compute_capabilities, record.gpu) == (TARGETS, None)
        assert record.options["batches"] == [1, 4, 8] and record.options["precision"] == precision
        assert "[VERBOSE]" in (nano / f"{name}.plan.log").read_text()
        signature = read_signature(nano / f"{name}.onnx")
        content = plan.read_bytes()
        assert all(tensor.encode() in content for tensor in (*signature.inputs, *signature.outputs))
        # Half the weights' bytes, where weights are halves.
        assert (len(content) < 25e6) == (precision == "fp16" or name == DETECTOR)
    host = Host("10.13.3.9", "13.0", (Gpu("NVIDIA L4", "8.9"),))
    with pytest.raises(RuntimeProblem, match=r"was never compared with its network .*without a GPU to run it on"):
        check_plans(nano, host)


def test_tensorrt_reads_the_contract(nano: Path, tmp_path: Path) -> None:
    graph = read_graph(nano / f"{DETECTOR}.fp16.onnx")
    engine = built(graph, tmp_path / "log")
    assert engine.inputs == {"images": TensorInfo("UINT8", (-1, 640, 640, 3))}
    assert engine.outputs == {
        "boxes": TensorInfo("FP32", (-1, 300, 4)),
        "scores": TensorInfo("FP32", (-1, 300)),
        "classes": TensorInfo("INT32", (-1, 300)),
        "coefficients": TensorInfo("FP32", (-1, 300, 32)),
        "prototypes": TensorInfo("FP32", (-1, 32, 160, 160)),
    }


def test_an_engine_of_birefnet_is_built(tmp_path: Path) -> None:
    """BiRefNet with Swin-T, whole, in half precision, at a small side: sizes change, nodes and types do not."""
    export_birefnet(as_published(), 64, tmp_path / "lite.onnx")
    to_half(tmp_path / "lite.onnx", tmp_path / "lite.fp16.onnx")
    graph = read_graph(tmp_path / "lite.fp16.onnx")
    assert graph.operators["GridSample"] >= 20 and not graph.operators["DeformConv"]
    engine = built(graph, tmp_path / "log")
    assert engine.outputs == {"alphas": TensorInfo("UINT8", (-1, 64, 64))}
    # 44 million weights of two bytes, and little beside them: they are halves, and there once.
    assert 88e6 < len(engine.plan) < 150e6


class Remembering(Reference):
    """ONNX Runtime, but what one network was asked once is not computed again."""

    answers: ClassVar[dict[tuple[str, bytes], dict[str, np.ndarray]]] = {}

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = path.name

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        key = (self._file, images.tobytes())
        if key not in self.answers:
            self.answers[key] = super().__call__(images)
        return self.answers[key]


class InThePlansPlace:
    """ONNX Runtime where a GPU would run the plan; the matting network answers for the wrong picture if asked to."""

    mixed_up = False

    def __init__(self, _trt: object, plan: Path) -> None:
        assert plan.is_file() and plan.name.endswith(".part")
        self._matte = MATTE in plan.name
        self._run = Remembering(plan.parent / f"{MATTE if self._matte else DETECTOR}.onnx")

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return self._run(np.roll(images, 1, axis=0) if self._matte and self.mixed_up else images)

    def __enter__(self) -> InThePlansPlace:
        return self

    def __exit__(self, *_details: object) -> None:
        pass


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_the_whole_way_of_a_plan(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a GPU host, but TensorRT for RTX builds in TensorRT's place, and ONNX Runtime runs in the plan's."""
    folder = tmp_path / "nano"
    folder.mkdir()
    for path in [*nano.glob("*.onnx"), nano / "SHA256SUMS"]:
        shutil.copy(path, folder)
    rtx, host = load_tensorrt("rtx"), Host(RTX_VERSION, "13.0", (Gpu("NVIDIA L4", "8.9"),))
    monkeypatch.setattr("export.plan.load_tensorrt", lambda _major: rtx)
    monkeypatch.setattr("export.plan.look_at_host", lambda: host)
    monkeypatch.setattr("export.plan.PlanRun", InThePlansPlace)
    monkeypatch.setattr("export.plan.Reference", Remembering)
    # Without a GPU its target has to be named.
    monkeypatch.setattr(
        "export.plan.Options",
        lambda batch_max, workspace_gib, _targets: Options(batch_max, workspace_gib, ("8.9",)),
    )
    command = ["plan", "nano", "--models", str(tmp_path), "--trt-major", "10"]
    assert main(command) == 0
    plans = check_plans(folder, host)
    assert plans[MATTE].record.parity["mean_alpha_error"] < 1e-4
    assert plans[MATTE].record.parity["batches"] == list(range(1, 9)) == plans[DETECTOR].record.parity["batches"]
    assert {plan.record.gpu for plan in plans.values()} == {"NVIDIA L4"}
    assert (folder / "timing.cache").stat().st_size > 0
    proven = {name: plan.path.read_bytes() for name, plan in plans.items()}
    capsys.readouterr()

    monkeypatch.setattr(InThePlansPlace, "mixed_up", True)
    assert main(command) == 1
    told = capsys.readouterr()
    assert "refused: birefnet_trt;" in told.err
    assert "mixed up" in (folder / f"{MATTE}.plan.refused.txt").read_text().splitlines()[0]
    assert not (folder / f"{DETECTOR}.plan.refused").exists()
    assert check_plans(folder, host)[MATTE].path.read_bytes() == proven[MATTE], "the refused plan is served"
    Remembering.answers.clear()


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_half_precision_that_is_wrong_becomes_float32_by_itself(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A builder that gets GridSample wrong in half precision, as TensorRT from 10.14.1 on is reported to."""
    folder = tmp_path / "nano"
    folder.mkdir()
    for path in [*nano.glob("*.onnx"), nano / "SHA256SUMS"]:
        shutil.copy(path, folder)
    shutil.copy(DEFORMABLE, folder / f"{MATTE}.onnx")
    to_half(folder / f"{MATTE}.onnx", folder / f"{MATTE}.fp16.onnx")
    sums = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(folder.glob("*.onnx"))]
    (folder / "SHA256SUMS").write_text("".join(sums))
    host = Host("11.2.1.2", "13.4", (Gpu("NVIDIA L4", "8.9"),))
    built_from: list[tuple[str, bool]] = []

    def sabotaged(_trt: Any, graph: Graph, *_rest: Any) -> Built:
        """A "plan" that is the graph; of GridSample in half precision the nearest value."""
        model = onnx.load_from_string(graph.model)
        widen_stored(model)
        half = any(each.data_type == TensorProto.FLOAT16 for each in model.graph.initializer)
        built_from.append((MATTE if "alphas" in graph.signature.outputs else DETECTOR, half))
        for node in model.graph.node:
            if half and node.op_type == "GridSample":
                kept = [each for each in node.attribute if each.name != "mode"]
                del node.attribute[:]
                node.attribute.extend([*kept, helper.make_attribute("mode", "nearest")])
        return Built(model.SerializeToString(), graph.signature.inputs, graph.signature.outputs, 1.0)

    class Running(Reference):
        """ONNX Runtime where a GPU would run the plan."""

        def __init__(self, _trt: object, plan: Path) -> None:
            super().__init__(plan)

        def __enter__(self) -> Running:
            return self

        def __exit__(self, *_details: object) -> None:
            pass

    stand_in = SimpleNamespace(__version__="11.2.1.2")
    monkeypatch.setattr("export.plan.load_tensorrt", lambda _major: stand_in)
    monkeypatch.setattr("export.plan.look_at_host", lambda: host)
    monkeypatch.setattr("export.plan.build", sabotaged)
    monkeypatch.setattr("export.plan.PlanRun", Running)
    command = ["plan", "nano", "--models", str(tmp_path), "--trt-major", "11"]
    assert main(command) == 0
    assert built_from == [(DETECTOR, True), (MATTE, True), (MATTE, False)]
    told = capsys.readouterr().out
    assert "warning: from TensorRT 10.14.1 on" in told
    assert "birefnet_trt: REFUSED" in told and "birefnet_trt: building it in float32 instead" in told
    plans = check_plans(folder, host)
    assert {name: plan.record.options["precision"] for name, plan in plans.items()} == {DETECTOR: "fp16", MATTE: "fp32"}
    record = plans[MATTE].record
    assert record.onnx["name"] == "birefnet_trt.onnx" and record.parity["passed"]
    assert record.options["opset"] == 18
    assert any("mean alpha error" in reason for reason in record.options["half_precision_refused"]["reasons"])
    assert any("computes in float32" in line and "mean alpha error" in line for line in plans[MATTE].warnings)
    assert not plans[DETECTOR].warnings
    assert not list(folder.glob("*.refused*"))

    # Whoever asks for half precision alone gets no other.
    assert main([*command, "--precision", "fp16"]) == 1
    assert check_plans(folder, host)[MATTE].record.options["precision"] == "fp32"


# ------------------------------------------------------------------------------------------------ what is refused


def small_graph(path: Path, operator: str, opset: int = 19, **attributes: Any) -> Path:
    """A graph in which one operator works on what a convolution says of the picture."""
    floats = {
        "offset_weights": np.zeros((18 if operator == "DeformConv" else 2, 3, 3, 3), np.float32),
        "weights": np.ones((1, 3, 3, 3), np.float32),
    }
    constants = [numpy_helper.from_array(values, name) for name, values in floats.items()]
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "offset_weights"], ["offsets"], pads=[1] * 4),
    ]
    if operator == "DeformConv":
        nodes.append(
            helper.make_node(
                operator, ["planes", "weights", "offsets"], ["result"], "/decoder/DeformConv", pads=[1] * 4
            )
        )
    else:
        nodes += [
            helper.make_node("Transpose", ["offsets"], ["grid"], perm=[0, 2, 3, 1]),
            helper.make_node(operator, ["planes", "grid"], ["sampled"], "/sample", **attributes),
            helper.make_node("ReduceMax", ["sampled", "axis"], ["result"], keepdims=1),
        ]
    nodes += [
        helper.make_node("Squeeze", ["result", "axis"], ["alpha"]),
        helper.make_node("Cast", ["alpha"], ["alphas"], to=TensorProto.UINT8),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 32, 32, 3])
    alphas = helper.make_tensor_value_info("alphas", TensorProto.UINT8, ["batch", 32, 32])
    graph = helper.make_graph(nodes, "small", [images], [alphas], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def test_a_node_that_is_refused_is_named(tmp_path: Path) -> None:
    graph = read_graph(small_graph(tmp_path / "deform.onnx", "DeformConv"))
    with pytest.raises(
        NodeRefused, match=r"^TensorRT refuses the node /decoder/DeformConv \(DeformConv\): \S+"
    ) as told:
        built(graph, tmp_path / "log")
    assert "Plugin not found" in str(told.value) and "\n" not in str(told.value)


def test_sampling_that_tensorrt_would_misread_is_refused_before(tmp_path: Path) -> None:
    """Opset 20 says "linear", which TensorRT takes for nearest without a word."""
    read_graph(small_graph(tmp_path / "fine.onnx", "GridSample", opset=18, mode="bilinear"))
    misread = small_graph(tmp_path / "misread.onnx", "GridSample", opset=20, mode="linear")
    with pytest.raises(GraphRefused, match="GridSample of opset 20"):
        read_graph(misread)


def test_the_picture_is_cast_first(nano: Path, tmp_path: Path) -> None:
    """As PyTorch writes them, the bundled files are refused; exchanged, they compute the same."""
    model = onnx.load(nano / f"{DETECTOR}.onnx")
    before = model.SerializeToString()
    cast_pictures_first(model)
    assert model.SerializeToString() != before
    onnx.checker.check_model(model, full_check=True)
    pictures = example_pictures(2, 640)
    answers = []
    for content in (before, model.SerializeToString()):
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"images": pictures}))
    for first, second in zip(*answers, strict=True):
        np.testing.assert_array_equal(first, second)
    graph = read_graph(nano / f"{DETECTOR}.onnx")
    as_written = Graph(before, graph.signature, graph.side_px, graph.opset, graph.operators)
    with pytest.raises(NodeRefused, match=r"the node /Transpose \(Transpose\): .*UInt8"):
        built(as_written, tmp_path / "log")


def test_too_small_a_workspace_is_said(nano: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"its workspace of 0.01 GiB .*--workspace-gib.*--side") as told:
        built(read_graph(nano / f"{MATTE}.onnx"), tmp_path / "log", workspace_gib=0.01)
    assert "--batch-max" not in str(told.value), "the server does not take plans for smaller batches"


def test_what_stands_in_float32_is_computed_in_float32(nano: Path, tmp_path: Path) -> None:
    """TensorRT would round it to TensorFloat-32."""
    trt = load_tensorrt("rtx")
    with (tmp_path / "log").open("w") as file:
        builder = trt.Builder(make_logger(trt, file))
        config = builder.create_builder_config()
        assert config.get_flag(trt.BuilderFlag.TF32), "it is no longer the default, so this says nothing"
        graph = read_graph(nano / f"{DETECTOR}.fp16.onnx")
        configure(trt, builder, config, graph, Options(compute_capabilities=TARGETS), None)
        assert not config.get_flag(trt.BuilderFlag.TF32)


def test_a_target_that_is_not_known_is_named(nano: Path, tmp_path: Path) -> None:
    graph = read_graph(nano / f"{DETECTOR}.onnx")
    options = Options(compute_capabilities=("9.0",))
    with pytest.raises(PlanProblem, match=r"not build for compute capability 9\.0, but for 7\.5, .*8\.9"):
        build(load_tensorrt("rtx"), graph, options, tmp_path / "log", None)


def test_ctrl_c_stops_a_build(nano: Path, tmp_path: Path) -> None:
    """Between two steps of TensorRT's, and not by an exception within its callbacks, which would end the process."""
    graph = read_graph(nano / f"{MATTE}.onnx")
    before = signal.getsignal(signal.SIGINT)
    pressed = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    pressed.start()

    def build_for_ever() -> None:
        while True:
            built(graph, tmp_path / "log")

    with pytest.raises(KeyboardInterrupt):
        build_for_ever()
    pressed.join()
    assert signal.getsignal(signal.SIGINT) == before


def test_engines_do_not_take_the_place_of_plans(nano: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = nano / f"{MATTE}.plan.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "library": "tensorrt"}))
    try:
        assert main(["plan", "nano", "--models", str(nano.parent), "--trt-major", "rtx"]) == 2
    finally:
        path.write_text(json.dumps(values))
    assert "holds plans that can be served" in capsys.readouterr().err
