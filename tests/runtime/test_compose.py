"""What is served here keeps the contract of `model_repository/`: names, inputs, outputs and batching."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from cutaway.contract.limits import (
    DETECTOR_SIDE_PX,
    MODEL_MAX_BATCH,
    PROCESSING_TIMEOUT_S,
    STREAM_IDLE_S,
)
from stream.tuning import STREAMS_MAX

from runtime.checks import RuntimeProblem
from runtime.compose import PIPELINE, SOURCE, Composed, compose, contract, read_config
from runtime.devices import Device, Plan
from runtime.onnx_file import Signature, TensorInfo
from runtime.server import ServerOptions
from runtime.weights import FREE_DETECTOR, WHOLE_MATTING, Network, load_networks

MODELS = sorted(path.parent.name for path in SOURCE.glob("*/config.pbtxt"))
CPU = Device("cpu", "cpu")


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    return load_networks(ServerOptions().weights_dir)


@pytest.fixture(scope="module")
def composed(networks: dict[str, Network], tmp_path_factory: pytest.TempPathFactory) -> Composed:
    target = tmp_path_factory.mktemp("composed") / "repository"
    return compose(target, profile="nano", networks=networks, device=CPU, plan=Plan(instances=3, threads=2))


def resized(found: dict[str, Any], side: int) -> dict[str, Any]:
    """A contract with the released variants' matte side of 1024 replaced."""
    changed = dict(found)
    for kind in ("inputs", "outputs"):
        changed[kind] = {
            name: (dtype, tuple(side if size == 1024 else size for size in dims))
            for name, (dtype, dims) in found[kind].items()
        }
    return changed


def test_same_models(composed: Composed) -> None:
    assert sorted(path.name for path in composed.folder.iterdir()) == sorted([*MODELS, FREE_DETECTOR, WHOLE_MATTING])
    assert MODELS == ["birefnet_trt", "ensemble_pipeline", "stream_pipeline", "yolov8_seg"]


@pytest.mark.parametrize("model", MODELS)
def test_same_contract(composed: Composed, model: str) -> None:
    source, here = read_config(SOURCE / model), read_config(composed.folder / model)
    expected = contract(source)
    if model == "birefnet_trt":
        expected = resized(expected, composed.matte_side_px)
    assert contract(here) == expected


@pytest.mark.parametrize("model", MODELS)
def test_nothing_else_differs(composed: Composed, model: str) -> None:
    """Clear what may differ from both configurations; what is left is the same, field for field."""
    source, here = read_config(SOURCE / model), read_config(composed.folder / model)
    for config in (source, here):
        for name in ("platform", "backend", "instance_group", "model_warmup", "parameters", "input", "output"):
            config.ClearField(name)
        if config.HasField("dynamic_batching"):
            config.dynamic_batching.max_queue_delay_microseconds = 0
        if model == PIPELINE:
            config.dynamic_batching.default_queue_policy.ClearField("max_queue_size")
            config.dynamic_batching.ClearField("priority_levels")
            config.dynamic_batching.ClearField("default_priority_level")
    assert here == source


@pytest.mark.parametrize("model", ["birefnet_trt", "yolov8_seg"])
def test_source_is_what_a_gpu_triton_loads(model: str) -> None:
    config = read_config(SOURCE / model)
    assert config.platform == "tensorrt_plan"
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.preferred_batch_size
    assert {warmup.batch_size for warmup in config.model_warmup} == {1, MODEL_MAX_BATCH}


def test_source_keeps_to_the_table_of_limits() -> None:
    detector = contract(read_config(SOURCE / "yolov8_seg"))
    assert detector["max_batch_size"] == MODEL_MAX_BATCH
    assert detector["inputs"] == {"images": ("UINT8", (DETECTOR_SIDE_PX, DETECTOR_SIDE_PX, 3))}
    assert detector["outputs"]["boxes"] == ("FP32", (300, 4))
    policy = read_config(SOURCE / "ensemble_pipeline").dynamic_batching.default_queue_policy
    assert policy.max_queue_size > 0
    assert policy.default_timeout_microseconds == PROCESSING_TIMEOUT_S * 1e6
    assert policy.allow_timeout_override


def test_pipeline_takes_one_picture_and_has_one_input() -> None:
    """One input of one element: what lets `curl --data-binary` send a picture as it is."""
    assert contract(read_config(SOURCE / "ensemble_pipeline")) == {
        "name": "ensemble_pipeline",
        "max_batch_size": 0,
        "inputs": {"image": ("STRING", (1,))},
        "outputs": {
            "images": ("STRING", (-1,)),
            "boxes": ("FP32", (-1, 4)),
            "scores": ("FP32", (-1,)),
            "report": ("STRING", (1,)),
        },
    }


def test_pipeline_parameters(composed: Composed, networks: dict[str, Network]) -> None:
    config = read_config(composed.folder / "ensemble_pipeline")
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    assert parameters["profile"] == "nano"
    assert parameters["device"] == "cpu"
    assert parameters["matte_side_px"] == str(composed.matte_side_px)
    assert parameters["birefnet_trt_sha256"] == networks["birefnet_trt"].sha256
    assert config.instance_group[0].count == 3
    assert parameters["whole_matte"] == WHOLE_MATTING
    assert composed.processes == 8


def test_streams_have_a_detector_for_pictures_of_any_size_on_a_cpu(composed: Composed) -> None:
    free, squares = read_config(composed.folder / FREE_DETECTOR), contract(read_config(SOURCE / "yolov8_seg"))
    opened = {"images": (-1, -1, 3), "prototypes": (32, -1, -1)}
    assert contract(free) == {
        "name": FREE_DETECTOR,
        "max_batch_size": squares["max_batch_size"],
        **{
            kind: {name: (dtype, opened.get(name, dims)) for name, (dtype, dims) in squares[kind].items()}
            for kind in ("inputs", "outputs")
        },
    }
    assert all(-1 not in warmup.inputs["images"].dims for warmup in free.model_warmup)
    parameters = read_config(composed.folder / "stream_pipeline").parameters
    assert parameters["detector"].string_value == FREE_DETECTOR
    assert int(parameters["detector_pixels"].string_value) < DETECTOR_SIDE_PX**2 * 0.6


def test_whole_pictures_have_a_network_of_their_own(composed: Composed, networks: dict[str, Network]) -> None:
    """Its contract is the other matting network's, at its own side."""
    config = read_config(composed.folder / WHOLE_MATTING)
    parameters = read_config(composed.folder / "ensemble_pipeline").parameters
    side = int(parameters["whole_matte_side_px"].string_value)
    assert side != composed.matte_side_px
    wanted = resized(contract(read_config(SOURCE / "birefnet_trt")), side)
    assert contract(config) == wanted | {"name": WHOLE_MATTING}
    assert [list(warmup.inputs["images"].dims) for warmup in config.model_warmup] == [[side, side, 3]]
    link = composed.folder / WHOLE_MATTING / "1" / "model.onnx"
    assert link.resolve() == networks[WHOLE_MATTING].path


def test_a_profile_may_have_no_such_network(networks: dict[str, Network], tmp_path: Path) -> None:
    there = {name: each for name, each in networks.items() if name != WHOLE_MATTING}
    composed = compose(tmp_path / "r", profile="lite", networks=there, device=CPU, plan=Plan(instances=1, threads=1))
    assert not (composed.folder / WHOLE_MATTING).exists()
    parameters = read_config(composed.folder / "ensemble_pipeline").parameters
    assert not [name for name in parameters if name.startswith("whole")]


@pytest.mark.parametrize("why", ["a GPU", "no file"])
def test_streams_use_the_other_detector_else(networks: dict[str, Network], tmp_path: Path, why: str) -> None:
    device = Device("cuda", "cuda (NVIDIA H200)") if why == "a GPU" else CPU
    there = {name: each for name, each in networks.items() if why == "a GPU" or name != FREE_DETECTOR}
    plan = Plan(instances=1, threads=1)
    composed = compose(tmp_path / "r", profile="nano", networks=there, device=device, plan=plan)
    assert sorted(path.name for path in composed.folder.iterdir()) == sorted([*MODELS, WHOLE_MATTING])
    parameters = read_config(composed.folder / "stream_pipeline").parameters
    assert parameters["detector"].string_value == "yolov8_seg"
    assert parameters["detector_pixels"].string_value == "0"
    assert parameters["device"].string_value == device.name


def test_stream_keeps_to_the_table_of_limits() -> None:
    config = read_config(SOURCE / "stream_pipeline")
    assert config.sequence_batching.max_sequence_idle_microseconds == STREAM_IDLE_S * 1e6
    # Whoever is let in without a place is told so; whoever is not let in waits. Refused streams stay for ten seconds.
    assert config.sequence_batching.oldest.max_candidate_sequences >= 8 * STREAMS_MAX


def test_files(composed: Composed, networks: dict[str, Network]) -> None:
    for name, network in networks.items():
        assert (composed.folder / name / "1" / "model.onnx").resolve() == network.path
        assert (composed.folder / name / "1" / "model.py").is_file()
    copied = composed.folder / "ensemble_pipeline" / "1"
    source = SOURCE / "ensemble_pipeline" / "1"
    names = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    assert {str(path.relative_to(copied)) for path in copied.rglob("*") if path.is_file()} >= names


@pytest.mark.parametrize(("kind", "instances", "places"), [("cpu", 1, 8), ("cpu", 2, 16), ("cuda", 2, 64)])
def test_on_a_cpu_no_more_may_wait_than_is_served_in_time(
    networks: dict[str, Network], tmp_path: Path, kind: Literal["cpu", "cuda"], instances: int, places: int
) -> None:
    plan = Plan(instances=instances, threads=1)
    device = Device(kind, kind)
    composed = compose(tmp_path / "r", profile="nano", networks=networks, device=device, plan=plan)
    policy = read_config(composed.folder / "ensemble_pipeline").dynamic_batching.default_queue_policy
    assert policy.max_queue_size == places


def test_queue_size_can_be_set(networks: dict[str, Network], tmp_path: Path) -> None:
    plan = Plan(instances=1, threads=1)
    composed = compose(tmp_path / "r", profile="nano", networks=networks, device=CPU, plan=plan, queue_size=2)
    policy = read_config(composed.folder / "ensemble_pipeline").dynamic_batching.default_queue_policy
    assert policy.max_queue_size == 2


def test_a_picture_may_be_given_more_time(networks: dict[str, Network], tmp_path: Path) -> None:
    """It may wait as long as it may take, as in the source."""
    plan = Plan(instances=1, threads=1)
    composed = compose(
        tmp_path / "r", profile="nano", networks=networks, device=CPU, plan=plan, processing_timeout_s=240
    )
    config = read_config(composed.folder / "ensemble_pipeline")
    assert config.parameters["processing_timeout_s"].string_value == "240"
    assert config.dynamic_batching.default_queue_policy.default_timeout_microseconds == 240_000_000


def test_cuda_is_passed_on(networks: dict[str, Network], tmp_path: Path) -> None:
    device = Device("cuda", "cuda (NVIDIA H200)")
    plan = Plan(instances=1, threads=1)
    composed = compose(tmp_path / "r", profile="nano", networks=networks, device=device, plan=plan)
    matting = read_config(composed.folder / "birefnet_trt")
    assert matting.parameters["device"].string_value == "cuda"
    assert matting.dynamic_batching.max_queue_delay_microseconds > 0
    assert [warmup.batch_size for warmup in matting.model_warmup] == list(range(1, MODEL_MAX_BATCH + 1))
    assert read_config(composed.folder / "ensemble_pipeline").parameters["device"].string_value == device.name


def test_network_that_does_not_fit(networks: dict[str, Network], tmp_path: Path) -> None:
    detector = networks["yolov8_seg"]
    outputs = dict(detector.signature.outputs) | {"scores": TensorInfo("FP16", (-1, 300))}
    wrong = Network(detector.name, detector.path, detector.sha256, Signature(detector.signature.inputs, outputs))
    with pytest.raises(RuntimeProblem) as problem:
        compose(
            tmp_path / "r",
            profile="nano",
            networks={**networks, "yolov8_seg": wrong},
            device=CPU,
            plan=Plan(instances=1, threads=1),
        )
    assert "output scores must be FP32 [batch, 300], and is FP16 [batch, 300]" in str(problem.value)
