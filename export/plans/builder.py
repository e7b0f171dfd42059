"""TensorRT's own API: from a graph to a serialized plan.

One road for TensorRT 10, TensorRT 11 and TensorRT for RTX: a strongly typed network, in which each type is the one that
stands in the graph. That is all that 11 and RTX know, and 10 takes it; flags that let TensorRT choose types are gone
from 11, and asking there whether they exist quietly builds a float32 plan.

Not by polygraphy 0.53.6: of a refused node it says "Could not parse ONNX correctly", it does not find bindings under
their own name (`tensorrt_bindings`), and it compares outputs by tolerance; it would replace about 100 of 1,300 lines.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from export import ExportError
from export.plans.graph import INPUT, Graph
from export.plans.watching import make_logger, make_monitor, stoppable
from runtime.onnx_file import TensorInfo

MODULES = {
    "10": ("tensorrt", "tensorrt_bindings"),
    "11": ("tensorrt", "tensorrt_bindings"),
    "rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""What TensorRT is imported as, by its major version. Packages of bindings alone, which take the libraries of the
system, have names of their own."""
LIBRARIES = {"10": "tensorrt", "11": "tensorrt", "rtx": "tensorrt-rtx"}
INSTALL = {
    "10": "NVIDIA's image brings TensorRT, and the extra 'plan' its Python bindings (docs/deploy.md)",
    "11": "install NVIDIA's TensorRT 11 with its Python package",
    "rtx": "pip install -r requirements/rtx.txt",
}
EXCLUDED = {"10.2.0": "Ultralytics' own exporter excludes it for YOLOv8"}
"""Versions that are not used at all, and why."""
SUSPECT_FROM = (10, 14, 1)
"""From here on GridSample in float32 within a half-precision network is reported wrong: pytorch/TensorRT issue 4074."""

TYPICAL_BATCH = 4
"""TensorRT picks its kernels for this size within the range: a few people, or a few callers at once, which is when time
matters. All sizes run; which of them would gain from another choice was not measured."""

TYPES = {"UINT8": "UINT8", "FLOAT": "FP32", "HALF": "FP16", "INT32": "INT32", "INT64": "INT64"}
"""TensorRT's names of types, in Triton's."""


class PlanProblem(ExportError):
    """No plan can be built, in words of one line."""


class TensorRTMissing(PlanProblem):
    """The TensorRT that was asked for is not installed, or not whole."""


class NoGpu(PlanProblem):
    """TensorRT found no GPU to build for."""


class NodeRefused(PlanProblem):
    """TensorRT's parser does not take a node of the graph.

    TensorRT refuses the node /decoder/DeformConv (DeformConv): Plugin not found
    """


class OutOfMemory(PlanProblem):
    """What building needs is more than the workspace, or the GPU, has."""


@dataclass(frozen=True)
class Options:
    """How plans are built.

    Attributes:
        batch_max: the largest batch; from 1 on every size runs.
        workspace_gib: memory that a network may use beside its weights; all of the GPU's where None.
        compute_capabilities: what engines are built for without a GPU, such as ("8.6", "8.9"); TensorRT for RTX alone.
    """

    batch_max: int = 8
    workspace_gib: float | None = None
    compute_capabilities: tuple[str, ...] = ()

    @property
    def batches(self) -> tuple[int, int, int]:
        """Smallest, typical and largest batch."""
        return 1, min(TYPICAL_BATCH, self.batch_max), self.batch_max


@dataclass(frozen=True)
class Built:
    """A serialized plan.

    Attributes:
        plan: its bytes.
        inputs, outputs: what TensorRT understood of the graph, by name; -1 for the batch.
        seconds: how long it took.
    """

    plan: bytes = field(repr=False)
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    seconds: float


def load_tensorrt(major: str) -> Any:
    """TensorRT's Python module.

    Raises:
        TensorRTMissing: it is not there, its libraries are not, or it has another major version.
        PlanProblem: its version is one that is not used.
    """
    reasons = []
    for name in MODULES[major]:
        try:
            trt = import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                reasons.append(str(error))
            continue
        except (ImportError, OSError, RuntimeError) as error:  # its libraries do not load
            reasons.append(str(error).strip().splitlines()[0])
            continue
        check_version(trt.__version__, major)
        return trt
    label = "TensorRT for RTX" if major == "rtx" else f"TensorRT {major}"
    raise TensorRTMissing(f"{label} is not installed here ({'; '.join(reasons) or 'no package'}): {INSTALL[major]}")


def check_version(version: str, major: str) -> None:
    """Whether a TensorRT of this version is the one that was asked for.

    Raises:
        TensorRTMissing: it has another major version.
        PlanProblem: it is a version that is not used.
    """
    if major != "rtx" and version.split(".")[0] != major:
        raise TensorRTMissing(
            f"TensorRT {major} was asked for, and this environment has {version}; plans are read by the version that "
            f"wrote them alone: say --trt-major {version.split('.')[0]}, or {INSTALL[major]}"
        )
    for excluded, why in EXCLUDED.items():
        if version == excluded or version.startswith(f"{excluded}."):
            raise PlanProblem(f"TensorRT {version} is not used: {why}; take another 10.x")


def warning_of(version: str, major: str, graph: Graph) -> str | None:
    """What should be known of this version beforehand."""
    numbers = tuple(int(part) for part in version.split(".") if part.isdecimal())
    if major == "rtx" or not graph.operators["GridSample"] or numbers < SUSPECT_FROM:
        return None
    return (
        f"from TensorRT 10.14.1 on, and this is {version}, GridSample in float32 within a half-precision network is "
        "reported wrong; the comparison at the end decides"
    )


def build(trt: Any, graph: Graph, options: Options, log: Path, cache: Path | None) -> Built:
    """Build a plan.

    Args:
        trt: see `load_tensorrt`.
        graph: what to build.
        options: how.
        log: the file that all of TensorRT's messages go to.
        cache: the file of timings, read and written, which makes later builds shorter; none for TensorRT for RTX.

    Raises:
        PlanProblem: the kinds named above.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        logger = make_logger(trt, file)
        try:
            builder = trt.Builder(logger)
        except TypeError:  # what the bindings make of a null pointer
            raise NoGpu(f"TensorRT does not start: {_first(logger.errors)}; plans are built on a GPU") from None
        load_plugins(trt, logger)
        network = builder.create_network(_network_flags(trt))
        parse(trt, network, graph, logger)
        config = builder.create_builder_config()
        configure(trt, builder, config, graph, options, cache)
        stopped = threading.Event()
        config.progress_monitor = make_monitor(trt, log.name.partition(".")[0], stopped)
        inputs = _tensors(network.get_input(place) for place in range(network.num_inputs))
        outputs = _tensors(network.get_output(place) for place in range(network.num_outputs))
        if (inputs, outputs) != (graph.signature.inputs, graph.signature.outputs):
            raise PlanProblem(f"TensorRT reads other inputs or outputs from the graph than it has: {inputs}, {outputs}")
        with stoppable(stopped):
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise _failure(logger.errors, options, log)
        if cache is not None:
            _write_cache(config, cache)
        return Built(bytes(plan), inputs, outputs, time.monotonic() - began)


def load_plugins(trt: Any, logger: Any) -> None:
    """Make TensorRT's own plugins known, where this TensorRT has any."""
    if hasattr(trt, "init_libnvinfer_plugins"):
        trt.init_libnvinfer_plugins(logger, "")


def parse(trt: Any, network: Any, graph: Graph, logger: Any) -> None:
    """Put the graph into an empty network.

    Raises:
        NodeRefused: with the node's name and operator, and what TensorRT says of it.
    """
    parser = trt.OnnxParser(network, logger)
    if parser.parse(graph.model):
        return
    refused = [parser.get_error(index) for index in range(parser.num_errors)]
    if not refused:
        raise NodeRefused(f"TensorRT refuses the graph: {_first(logger.errors)}")
    named = [f"the node {each.node_name()} ({each.node_operator()}): {_reason(each.desc())}" for each in refused[:3]]
    more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
    raise NodeRefused("TensorRT refuses " + "; ".join(named) + more)


def _network_flags(trt: Any) -> int:
    """A strongly typed network, said outright where the flag is there: TensorRT 10 needs it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def configure(trt: Any, builder: Any, config: Any, graph: Graph, options: Options, cache: Path | None) -> None:
    """Say how to build, in place.

    Raises:
        PlanProblem: this TensorRT does not take the batches, or does not build for the GPUs that are named.
    """
    profile = builder.create_optimization_profile()
    picture = graph.signature.inputs[INPUT].dims[1:]
    profile.set_shape(INPUT, *((batch, *picture) for batch in options.batches))
    if config.add_optimization_profile(profile) < 0:
        raise PlanProblem(f"TensorRT does not take batches of {options.batches} of pictures {picture}")
    if options.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30))
    # On by default. What stands in float32 in the graph needs it, and TensorFloat-32 has half precision's mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.compute_capabilities:
        _aim(trt, config, options.compute_capabilities)
    if cache is not None:
        known = cache.read_bytes() if cache.is_file() else b""
        # Timings of another GPU or version, or a damaged file, are not taken; then there are none.
        timings = config.create_timing_cache(known)
        if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _aim(trt: Any, config: Any, capabilities: Sequence[str]) -> None:
    """Build for GPUs that are not there.

    Raises:
        PlanProblem: this TensorRT cannot build for one of them, or for none that is not there.
    """
    if not hasattr(trt, "ComputeCapability"):
        raise PlanProblem("this TensorRT builds for the GPU that is there alone; --compute-capability is for rtx")
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    config.num_compute_capabilities = len(capabilities)
    for place, text in enumerate(capabilities):
        name = "SM" + text.replace(".", "")
        if name not in known:
            there = ", ".join(f"{each[2:-1]}.{each[-1]}" for each in known)
            raise PlanProblem(
                f"TensorRT {trt.__version__} does not build for compute capability {text}, but for {there}"
            )
        config.set_compute_capability(known[name], place)


def _write_cache(config: Any, cache: Path) -> None:
    draft = cache.with_name(f"{cache.name}.part")
    draft.write_bytes(bytes(config.get_timing_cache().serialize()))
    draft.replace(cache)


def _tensors(tensors: Any) -> dict[str, TensorInfo]:
    return {
        each.name: TensorInfo(TYPES.get(each.dtype.name, each.dtype.name), tuple(int(size) for size in each.shape))
        for each in tensors
    }


def _failure(errors: Sequence[str], options: Options, log: Path) -> PlanProblem:
    """What a build that gave nothing failed of."""
    for message in errors:
        if "outofmemory" in message.replace(" ", "").lower():
            limit = f"its workspace of {options.workspace_gib:g} GiB" if options.workspace_gib else "the GPU's memory"
            return OutOfMemory(
                f"building needs more than {limit} ({_reason(message)}); other programs on the GPU take of it too. "
                "Try a larger --workspace-gib or --precision fp16; or a network of a smaller side (python -m export "
                "onnx --side PX), or the profile 512"
            )
    return PlanProblem(f"TensorRT built nothing: {_first(errors)}; {log} has all that it said")


def _first(errors: Sequence[str]) -> str:
    return _reason(errors[0]) if errors else "it gave no reason"


def _reason(message: str) -> str:
    """The first line of TensorRT's words that says something, without where in its own source it stands."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line in lines:
        if not line.startswith("Invalid Node - "):
            return line.split("] ", 1)[-1] if line.startswith("[") else line
    return lines[0] if lines else "it gave no reason"
