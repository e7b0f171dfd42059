"""Writes the repository that a Triton loads from `model_repository/`, which itself is never edited.

Names, inputs, outputs and batching are kept. For the bundled Triton (`compose`) these differ: the platform (the Python
backend with `onnx_model/model.py` in place of a TensorRT plan), the instance groups, the matte's side (the ONNX file
says it), the warm-up (one picture; each size of a batch on a GPU), the length of the pipeline's queue on a CPU, its
parameters, and the files. For NVIDIA's Triton on a GPU (`compose_plans`) only the matte's side, the pipeline's
parameters, the instances that were asked for, and the files do.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from runtime.checks import RuntimeProblem, unwritable
from runtime.devices import Device, Plan
from runtime.onnx_file import TensorInfo
from runtime.plans import CheckedPlan
from runtime.schedule import Schedule, limit_runs
from runtime.weights import FREE_DETECTOR, WHOLE_MATTING, Network

CHECKOUT = Path(__file__).resolve().parents[1]
SOURCE = CHECKOUT / "model_repository"
ONNX_MODEL = Path(__file__).resolve().parent / "onnx_model" / "model.py"
PIPELINE = "ensemble_pipeline"
STREAM = "stream_pipeline"
DETECTOR = "yolov8_seg"
MATTING = "birefnet_trt"

CPU_QUEUE_DELAY_US = 0
"""On a CPU a batch takes as long as its pictures one by one, so waiting for batch-mates only adds to the latency."""

CPU_QUEUE_PER_INSTANCE = 8
"""Default queue length per pipeline on a CPU. Two cores and two pipelines under three times their capacity: with 64 in
the queue a picture is answered after 23 s, shortly before its timeout, with 16 after 9 s, at the same throughput; a
request that is shed at once can be retried elsewhere. A GPU is much faster."""

STREAM_INSTANCES = 1
"""On a CPU: the detector takes all cores for nine tenths of a frame's time, so a second process would only wait."""

STREAM_DETECTOR_PIXELS = 512 * 384
"""What the detector is given of a stream's frame on a CPU, near enough: half of its own square's pixels and time."""

OPEN_SIDES = {"images": (-1, -1, 3), "prototypes": (32, -1, -1)}
"""Dims of the detector for pictures of any size, where they differ from those of the one for squares."""


@dataclass(frozen=True)
class Composed:
    """A repository that was written.

    Attributes:
        folder: what `--model-repository` names.
        matte_side_px: the side of the matting network's square input.
        instances: how many model processes each Python model has.
    """

    folder: Path
    matte_side_px: int
    instances: dict[str, int]

    @property
    def processes(self) -> int:
        """How many model processes there are."""
        return sum(self.instances.values())


def read_config(folder: Path) -> Any:
    """The parsed `config.pbtxt` of a model's folder (a `ModelConfig` message)."""
    path = folder / "config.pbtxt"
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise RuntimeProblem(f"the model's configuration {path} cannot be read: {error}") from None


def contract(config: Any) -> dict[str, Any]:
    """What callers of a model rely on: its name, largest batch, and inputs and outputs with type and dims."""
    return {
        "name": config.name,
        "max_batch_size": config.max_batch_size,
        "inputs": {tensor.name: (_dtype(tensor), tuple(tensor.dims)) for tensor in config.input},
        "outputs": {tensor.name: (_dtype(tensor), tuple(tensor.dims)) for tensor in config.output},
    }


def compose(
    target: Path,
    *,
    profile: str,
    networks: dict[str, Network],
    device: Device,
    plan: Plan,
    queue_size: int | None = None,
    processing_timeout_s: float | None = None,
    schedule: Schedule = "free",
    source: Path = SOURCE,
) -> Composed:
    """Write the repository into the empty or missing folder `target`.

    Args:
        target: the folder to fill.
        profile: the name of the model pair, for the answers' report.
        networks: checked ONNX files by model name.
        device: what the networks run on.
        plan: processes and threads.
        queue_size: how many pictures may wait; where None, `CPU_QUEUE_PER_INSTANCE` for each pipeline on a CPU, and as
            `model_repository/` says on a GPU.
        processing_timeout_s: how long a picture may wait, and then how long it may take; as `model_repository/` says
            where None.
        schedule: of the networks' runs, see `runtime.schedule`; Triton has to be given its arguments.
        source: the repository to derive from.

    Raises:
        RuntimeProblem: when a network does not fit its model's contract, or `target` cannot be written.
    """
    side = _matte_side(networks[MATTING])
    instances: dict[str, int] = {}
    try:
        for folder in _models(source):
            config = read_config(folder)
            (target / folder.name / "1").mkdir(parents=True)
            if folder.name in networks:
                _network_model(config, networks[folder.name], device, plan)
                limit_runs(config, schedule)
                _link_network(target, networks[folder.name])
            elif folder.name == STREAM:
                _stream_model(config, networks, device)
                _copy_python(folder / "1", target / folder.name / "1")
            else:
                _pipeline_model(config, profile, networks, side, device, plan, queue_size, processing_timeout_s)
                _copy_python(folder / "1", target / folder.name / "1")
            instances[config.name] = sum(group.count for group in config.instance_group)
            text = text_format.MessageToString(config)
            (target / folder.name / "config.pbtxt").write_text(text)
        if _streams_freely(networks, device) and (source / STREAM).is_dir():
            detector = read_config(source / DETECTOR)
            instances[FREE_DETECTOR] = _add_free_detector(target, detector, networks, device, plan, schedule)
        if WHOLE_MATTING in networks:
            config = read_config(source / MATTING)
            config.name = WHOLE_MATTING
            instances[WHOLE_MATTING] = _add_model(target, config, networks[WHOLE_MATTING], device, plan, schedule)
    except OSError as error:
        raise unwritable(target, error) from None
    return Composed(target, side, instances)


def compose_plans(
    target: Path,
    *,
    profile: str,
    plans: Mapping[str, CheckedPlan],
    device: str,
    instances: int | None = None,
    network_instances: int | None = None,
    gpus: Sequence[int] = (),
    schedule: Schedule = "free",
    source: Path = SOURCE,
) -> Composed:
    """Write the repository of NVIDIA's Triton into the empty or missing folder `target`, with plans that were checked.

    Args:
        target: the folder to fill; the plans are linked, not copied.
        profile: the name of the model pair, for the answers' report.
        plans: by model name, see `runtime.plans.check_plans`.
        device: what they run on, for the answers' report.
        instances: pictures served at once; as `model_repository/` says where None.
        network_instances: of each network on each GPU; as `model_repository/` says where None.
        gpus: which are used, by CUDA's numbers; all where empty.
        schedule: of the networks' runs, see `runtime.schedule`; Triton has to be given its arguments.
        source: the repository to derive from.

    Raises:
        RuntimeProblem: when a plan does not fit its model's contract, or `target` cannot be written.
    """
    side = plans[MATTING].record.side_px
    processes: dict[str, int] = {}
    try:
        for folder in _models(source):
            config = read_config(folder)
            (target / folder.name / "1").mkdir(parents=True)
            if folder.name in plans:
                _plan_model(config, plans[folder.name], network_instances, gpus)
                limit_runs(config, schedule)
                (target / folder.name / "1" / "model.plan").symlink_to(plans[folder.name].path)
            elif folder.name == STREAM:
                _set(config, device=device)
                _copy_python(folder / "1", target / folder.name / "1")
            else:
                if instances is not None:
                    config.instance_group[0].count = instances
                _let_canaries_pass(config)
                _set(config, profile=profile, device=device, tensorrt="yes", matte_side_px=str(side))
                for name, plan in plans.items():
                    _set(config, **{f"{name}_sha256": plan.record.plan_sha256})
                _copy_python(folder / "1", target / folder.name / "1")
            if config.backend == "python":
                processes[config.name] = sum(group.count for group in config.instance_group)
            (target / folder.name / "config.pbtxt").write_text(text_format.MessageToString(config))
    except OSError as error:
        raise unwritable(target, error) from None
    return Composed(target, side, processes)


def _models(source: Path) -> list[Path]:
    """The models' folders of a repository."""
    return sorted(folder for folder in source.iterdir() if (folder / "config.pbtxt").is_file())


def _plan_model(config: Any, plan: CheckedPlan, instances: int | None, gpus: Sequence[int]) -> None:
    """Fit the configuration to a plan, in place."""
    for group in config.instance_group:
        group.count = instances or group.count
        group.gpus[:] = gpus
    if config.name == MATTING:
        _set_side(config, plan.record.side_px)
    side, largest = config.input[0].dims[0], plan.record.options["batches"][-1]
    if plan.record.side_px != side:
        raise RuntimeProblem(
            f"the plan {plan.path} takes pictures of {plan.record.side_px} px, and {config.name} is given {side} px"
        )
    if largest < config.max_batch_size:
        raise RuntimeProblem(
            f"the plan {plan.path} takes batches of up to {largest}, and {config.name} is given up to "
            f"{config.max_batch_size}; build it again without --batch-max"
        )


def _set_side(config: Any, side: int) -> None:
    """Replace the side of the square input in all dims, in place."""
    source_side = config.input[0].dims[0]
    warmups = [value for warmup in config.model_warmup for value in warmup.inputs.values()]
    for tensor in [*config.input, *config.output, *warmups]:
        tensor.dims[:] = [side if size == source_side else size for size in tensor.dims]


def _copy_python(source: Path, target: Path) -> None:
    """Copy the Python files of a model's version, as they are now: editing them does not reach a running server."""
    for path in sorted(source.rglob("*.py")):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _link_network(target: Path, network: Network) -> None:
    shutil.copyfile(ONNX_MODEL, target / network.name / "1" / "model.py")
    (target / network.name / "1" / "model.onnx").symlink_to(network.path)


def _streams_freely(networks: dict[str, Network], device: Device) -> bool:
    """Whether streams have a detector of their own. On a GPU the one for squares takes a millisecond or two."""
    return device.kind == "cpu" and FREE_DETECTOR in networks


def _add_free_detector(
    target: Path, config: Any, networks: dict[str, Network], device: Device, plan: Plan, schedule: Schedule
) -> int:
    """Write the detector for pictures of any size, derived from the one for squares; how many processes it has."""
    config.name = FREE_DETECTOR
    for tensor in [*config.input, *config.output]:
        tensor.dims[:] = OPEN_SIDES.get(tensor.name, tensor.dims)
    return _add_model(target, config, networks[FREE_DETECTOR], device, plan, schedule)


def _add_model(target: Path, config: Any, network: Network, device: Device, plan: Plan, schedule: Schedule) -> int:
    """Write a network that `model_repository/` has no folder for; how many processes it has."""
    (target / network.name / "1").mkdir(parents=True)
    _network_model(config, network, device, plan)
    limit_runs(config, schedule)
    _link_network(target, network)
    (target / network.name / "config.pbtxt").write_text(text_format.MessageToString(config))
    return int(config.instance_group[0].count)


def _stream_model(config: Any, networks: dict[str, Network], device: Device) -> None:
    del config.instance_group[:]
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=STREAM_INSTANCES)
    _set(config, device=device.name)
    if _streams_freely(networks, device):
        _set(config, detector=FREE_DETECTOR, detector_pixels=str(STREAM_DETECTOR_PIXELS))


def _network_model(config: Any, network: Network, device: Device, plan: Plan) -> None:
    """Turn the configuration of a TensorRT plan into that of the ONNX model, in place."""
    config.platform = ""
    config.backend = "python"
    if config.name in (MATTING, WHOLE_MATTING):
        _set_side(config, _matte_side(network))
    _check_fit(config, network)
    del config.instance_group[:]
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    if device.kind == "cpu":
        config.dynamic_batching.max_queue_delay_microseconds = CPU_QUEUE_DELAY_US
    del config.model_warmup[:]
    # CUDA prepares its kernels for each size of a batch when it first comes; on a CPU one is like another.
    for size in range(1, config.max_batch_size + 1) if device.kind == "cuda" else (1,):
        warmup = config.model_warmup.add(name=f"batch of {size}", batch_size=size)
        for tensor in config.input:
            value = warmup.inputs[tensor.name]
            value.data_type = tensor.data_type
            # A warm-up needs sides, also where the network takes any.
            value.dims[:] = (384, 512, 3) if -1 in tensor.dims else tensor.dims
            value.zero_data = True
    _set(config, device=device.kind, threads=str(plan.threads), sha256=network.sha256)


def _pipeline_model(
    config: Any,
    profile: str,
    networks: dict[str, Network],
    side: int,
    device: Device,
    plan: Plan,
    queue_size: int | None,
    processing_timeout_s: float | None,
) -> None:
    del config.instance_group[:]
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=plan.instances)
    if queue_size is None and device.kind == "cpu":
        queue_size = CPU_QUEUE_PER_INSTANCE * plan.instances
    if queue_size is not None:
        config.dynamic_batching.default_queue_policy.max_queue_size = queue_size
    _let_canaries_pass(config)
    if processing_timeout_s is not None:
        config.dynamic_batching.default_queue_policy.default_timeout_microseconds = round(processing_timeout_s * 1e6)
        _set(config, processing_timeout_s=f"{processing_timeout_s:g}")
    _set(config, profile=profile, device=device.name, tensorrt="no", matte_side_px=str(side))
    if WHOLE_MATTING in networks:
        _set(config, whole_matte=WHOLE_MATTING, whole_matte_side_px=str(_matte_side(networks[WHOLE_MATTING])))
    for network in networks.values():
        _set(config, **{f"{network.name}_sha256": network.sha256})


def _let_canaries_pass(config: Any) -> None:
    """Give health checks a queue of their own, which is served first: however many wait, they are answered when the
    picture in work is done."""
    config.dynamic_batching.priority_levels = 2
    config.dynamic_batching.default_priority_level = 2


def _set(config: Any, **parameters: str) -> None:
    for key, value in parameters.items():
        config.parameters[key].string_value = value


def _matte_side(network: Network) -> int:
    """The side of the square that the matting network takes, from its ONNX file."""
    images = network.signature.inputs.get("images")
    if images is None or len(images.dims) != 4 or images.dims[1] != images.dims[2] or images.dims[1] < 1:
        raise RuntimeProblem(f"the weight file {network.path} has no input images [batch, side, side, 3]")
    return images.dims[1]


def _check_fit(config: Any, network: Network) -> None:
    """The ONNX file's inputs and outputs are the model's, with an open batch in front."""
    for kind, tensors, there in (
        ("input", config.input, network.signature.inputs),
        ("output", config.output, network.signature.outputs),
    ):
        for tensor in tensors:
            wanted = TensorInfo(_dtype(tensor), (-1, *tensor.dims))
            if there.get(tensor.name) != wanted:
                raise RuntimeProblem(
                    f"the weight file {network.path} does not fit {config.name}: {kind} {tensor.name} must be "
                    f"{_words(wanted)}, and is {_words(there.get(tensor.name))}"
                )


def _words(info: TensorInfo | None) -> str:
    if info is None:
        return "missing"
    return f"{info.dtype} [{', '.join('batch' if size == -1 else str(size) for size in info.dims)}]"


def _dtype(tensor: Any) -> str:
    return str(model_config_pb2.DataType.Name(tensor.data_type)).removeprefix("TYPE_")
