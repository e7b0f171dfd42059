"""`python -m export plan PROFILE`: a profile's ONNX files as TensorRT plans, each proven before it is installed.

For each model a plan is built from its half-precision file, run on photographs, and compared with ONNX Runtime running
the float32 file. Where it departs, a plan of float32 is built and compared instead, and the record says why. One that
departs, too, is kept aside under another name, with the reason, and nothing serves it. Beside each plan lies a record
of what it was built with and for (`runtime.plans.PlanRecord`), which the server reads.
"""

import argparse
import contextlib
import datetime
import gc
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import ExportError
from export.listing import size_text
from export.locking import alone_in
from export.onnx_models import DEFAULT_MODELS, DETECTOR, HALF_SUFFIX, MATTE, busy
from export.plans.builder import LIBRARIES, MODULES, NoGpu, Options, build, load_tensorrt, warning_of
from export.plans.gate import Arrays, Verdict, judge_detector, judge_matte, one_by_one
from export.plans.graph import Graph, read_graph
from export.plans.pictures import SAMPLES, find_pictures, take_pictures
from export.plans.running import PlanRun, cuda_version
from runtime.checks import RuntimeProblem
from runtime.digest import sha256_of
from runtime.gpus import Host, look_at_host
from runtime.plans import HALF_REFUSED, LOG, MEAN_ALPHA_ERROR, PLAN, RECORD, REFUSED, PlanRecord, plan_version
from runtime.weights import CHECKSUMS, NETWORKS, Network, load_networks, read_checksums

TIMINGS = "timing.cache"
REFUSED_PLAN, INTERRUPTED = 1, 130
MOST_BATCH = 8
"""`max_batch_size` of the model repository, and the pipeline's largest batch."""


@dataclass(frozen=True)
class Order:
    """What is to be built.

    Attributes:
        folder: the profile's folder.
        major: "10", "11" or "rtx".
        precision: "fp16", "fp32", or "auto": half, and float32 where the comparison refuses that.
        options: how.
        pictures: folder of photographs for the comparison.
        bound: of the mean alpha error.
    """

    folder: Path
    major: str
    precision: str
    options: Options
    pictures: Path
    bound: float


@dataclass(frozen=True)
class Draft:
    """A plan that was built and not judged yet, under a name that nothing serves."""

    path: Path
    graph: Graph
    record: PlanRecord


def make(order: Order, host: Host, say: Callable[[str], None] = print) -> list[str]:
    """Build, judge and install the plans of both models; the names of those that were refused.

    Raises:
        ExportError: something could not be built or compared at all.
    """
    if order.options.batch_max < MOST_BATCH:
        say(
            f"warning: plans for batches of up to {order.options.batch_max} are not served by this project's server, "
            f"which makes batches of up to {MOST_BATCH}"
        )
    trt = load_tensorrt(order.major)
    if order.major != "rtx" and not host.gpus:
        raise NoGpu(
            f"TensorRT plans are built on the GPU that serves them: {host.problem}. Without one, --trt-major rtx shows "
            "whether TensorRT takes the graphs"
        )
    try:
        networks = load_networks(order.folder)
    except RuntimeProblem as problem:
        raise ExportError(f"{problem}") from None
    _spare_others(order)
    drafts = {name: draft(trt, order, networks[name], host, say) for name in NETWORKS}
    if order.major == "rtx":
        for name, each in drafts.items():
            install(order.folder, name, each)
        return []
    files = find_pictures(order.pictures)
    views = take_pictures(files, Reference(networks[DETECTOR].path), drafts[MATTE].graph.side_px)
    say(f"comparing on {len(views.names)} views of {len(files)} pictures in {order.pictures}")
    refused = []
    for name, each in drafts.items():
        run = Reference(networks[name].path)
        images = views.squares if name == DETECTOR else views.crops
        say(f"{name}: {len(images)} pictures in ONNX Runtime, float32 …")
        wanted = one_by_one(run, images)
        del run
        gc.collect()
        verdict = compare(trt, order, each, images, wanted)
        passed = settle(order.folder, name, each, verdict, say)
        if not passed and order.precision == "auto":
            say(f"{name}: building it in float32 instead …")
            single = draft(trt, replace(order, precision="fp32"), networks[name], host, say)
            noted = single.record.options | {HALF_REFUSED: {"reasons": list(verdict.reasons), **verdict.figures}}
            single = replace(single, record=replace(single.record, options=noted))
            passed = settle(order.folder, name, single, compare(trt, order, single, images, wanted), say)
        if not passed:
            refused.append(name)
    return refused


def compare(trt: Any, order: Order, each: Draft, images: NDArray[np.uint8], wanted: Arrays) -> Verdict:
    """Run a plan and judge it by what the float32 network gives."""
    with PlanRun(trt, each.path) as plan:
        if each.record.model == DETECTOR:
            return judge_detector(plan, images, wanted, order.options.batch_max)
        return judge_matte(plan, images, wanted, order.options.batch_max, order.bound)


def draft(trt: Any, order: Order, network: Network, host: Host, say: Callable[[str], None]) -> Draft:
    """Build one plan."""
    name = network.name
    precision = "fp32" if order.precision == "fp32" else "fp16"
    source = order.folder / (f"{name}{HALF_SUFFIX}" if precision == "fp16" else f"{name}.onnx")
    sums = read_checksums(order.folder)
    if not source.is_file():
        raise ExportError(f"{source} is not there; make it first: python -m export onnx {order.folder.name}")
    digest = sha256_of(source)
    if sums.get(source.name) != digest:
        raise ExportError(f"{source} is not the file of {CHECKSUMS}; make it again: python -m export onnx")
    graph = read_graph(source)
    if (graph.signature.inputs, graph.signature.outputs) != (network.signature.inputs, network.signature.outputs):
        raise ExportError(f"{source} has other inputs or outputs than {network.path.name}; make both again")
    if warning := warning_of(trt.__version__, order.major, graph):
        say(f"warning: {warning}")
    cache = order.folder / TIMINGS if order.major != "rtx" else None
    say(f"{name}: building …")
    built = build(trt, graph, order.options, order.folder / f"{name}{LOG}", cache)
    path = order.folder / f".{name}{PLAN}.part"
    path.write_bytes(built.plan)
    header = plan_version(path)
    own = host.gpus[0] if order.major != "rtx" else None
    record = PlanRecord(
        model=name,
        profile=order.folder.name,
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        library=LIBRARIES[order.major],
        tensorrt=header[1] if header else str(trt.__version__),
        cuda=cuda_version() if own else None,
        driver_cuda=host.driver_cuda if own else None,
        gpu=own.name if own else None,
        compute_capabilities=(own.compute_capability,) if own else order.options.compute_capabilities,
        onnx={"name": source.name, "sha256": digest},
        reference={"name": network.path.name, "sha256": network.sha256},
        plan_sha256=sha256_of(path),
        side_px=graph.side_px,
        options={
            "precision": precision,
            "strongly_typed": True,
            "opset": graph.opset,
            "batches": list(order.options.batches),
            "workspace_gib": order.options.workspace_gib,
            "seconds": round(built.seconds, 1),
        },
        parity_missing="it was built ahead of time, without a GPU to run it on" if own is None else None,
    )
    say(
        f"{name}: {size_text(len(built.plan))} by TensorRT {record.tensorrt}, {built.seconds:.0f} s, "
        f"side {graph.side_px} px"
    )
    return Draft(path, graph, record)


class Reference:
    """The float32 file in ONNX Runtime on the CPU: what a plan is held to."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # One picture at a time, of networks with large maps: an arena would keep the largest of everything.
        options.enable_cpu_mem_arena = False
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [each.name for each in self._session.get_outputs()]

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """uint8 [N, side, side, 3] → the outputs by name."""
        return dict(zip(self._names, self._session.run(self._names, {"images": images}), strict=True))


def settle(folder: Path, name: str, each: Draft, verdict: Verdict, say: Callable[[str], None]) -> bool:
    """Install a plan that passed, or put it aside with the reason; whether it passed."""
    figures = ", ".join(f"{key} {_short(value)}" for key, value in verdict.figures.items())
    parity = {"passed": verdict.passed, "reasons": list(verdict.reasons), **verdict.figures}
    judged = replace(each, record=replace(each.record, parity=parity))
    if verdict.passed:
        install(folder, name, judged)
        say(f"{name}: agrees with ONNX Runtime: {figures}")
        return True
    reason = "; ".join(verdict.reasons)
    each.path.replace(folder / f"{name}{REFUSED}")
    (folder / f"{name}{REFUSED}.txt").write_text(
        f"{reason}\n\n{json.dumps(asdict(judged.record), indent=2, ensure_ascii=False)}\n"
    )
    say(f"{name}: REFUSED, it does not compute what its network does: {reason}")
    say(f"  figures: {figures}" if figures else "  no figures")
    say(f"  kept as {folder / name}{REFUSED}; TensorRT's messages are in {name}{LOG}")
    return False


def install(folder: Path, name: str, each: Draft) -> None:
    """Give a plan its name, its record and its checksum."""
    each.path.replace(folder / f"{name}{PLAN}")
    each.record.write(folder / f"{name}{RECORD}")
    for stale in (f"{name}{REFUSED}", f"{name}{REFUSED}.txt"):
        (folder / stale).unlink(missing_ok=True)
    sums = read_checksums(folder) | {f"{name}{PLAN}": each.record.plan_sha256}
    draft_sums = folder / f".{CHECKSUMS}.part"
    draft_sums.write_text("".join(f"{digest}  {file}\n" for file, digest in sorted(sums.items())))
    draft_sums.replace(folder / CHECKSUMS)


def _spare_others(order: Order) -> None:
    """Engines that cannot be served do not take the place of plans that can."""
    if order.major != "rtx":
        return
    for name in NETWORKS:
        with contextlib.suppress(RuntimeProblem):
            if PlanRecord.read(order.folder / f"{name}{RECORD}").library == LIBRARIES["10"]:
                raise ExportError(
                    f"{order.folder} holds plans that can be served; build engines for RTX from a copy of the ONNX "
                    "files: --models DIR"
                )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Build TensorRT plans of a profile's ONNX files, on the GPU that will serve them, and install those that "
        "compute what ONNX Runtime does on photographs. Exit status 1: a plan was refused."
    )
    parser.epilog = (
        "Plans are read by the version of TensorRT that wrote them alone, so build them where they are served: "
        "`docker compose run --rm export PROFILE` does. With --trt-major rtx engines are built without a GPU, to see "
        "whether TensorRT takes the graphs; Triton does not load those."
    )
    parser.add_argument("profile", metavar="PROFILE", help="a folder of --models with the profile's ONNX files")
    parser.add_argument(
        "--trt-major", required=True, choices=tuple(MODULES), help="TensorRT 10 or 11, or TensorRT for RTX"
    )
    parser.add_argument(
        "--models", metavar="DIR", type=Path, default=DEFAULT_MODELS, help="the profiles' folders (default: models)"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp16", "fp32"),
        default="auto",
        help="which of the ONNX files to build from (default: auto: fp16, and fp32 where that is refused)",
    )
    parser.add_argument(
        "--workspace-gib",
        type=_positive,
        metavar="N",
        help="memory that a network may use beside its weights (default: all that the GPU has)",
    )
    parser.add_argument(
        "--batch-max",
        type=int,
        choices=range(1, MOST_BATCH + 1),
        default=MOST_BATCH,
        metavar="N",
        help=f"the largest batch (default: {MOST_BATCH}, as the server asks for)",
    )
    parser.add_argument(
        "--compute-capability",
        action="append",
        metavar="X.Y",
        help="with rtx: build for these GPUs; may be repeated (default: 8.6 and 8.9)",
    )
    parser.add_argument(
        "--pictures", metavar="DIR", type=Path, default=SAMPLES, help="photographs to compare on (default: samples)"
    )
    parser.add_argument(
        "--bound",
        type=_positive,
        default=MEAN_ALPHA_ERROR,
        metavar="X",
        help=f"largest mean error of alpha, 0 to 1 (default: {MEAN_ALPHA_ERROR:g})",
    )


def order_of(arguments: argparse.Namespace) -> Order:
    """From the command line.

    Raises:
        ExportError: the folder is not there, or options do not go together.
    """
    folder = arguments.models / arguments.profile
    if not (folder / CHECKSUMS).is_file():
        raise ExportError(f"{folder} has no ONNX files; make them first: python -m export onnx {arguments.profile}")
    if arguments.compute_capability and arguments.trt_major != "rtx":
        raise ExportError(
            "--compute-capability is for --trt-major rtx; TensorRT itself builds for the GPU that is there"
        )
    targets = tuple(arguments.compute_capability or ("8.6", "8.9")) if arguments.trt_major == "rtx" else ()
    options = Options(arguments.batch_max, arguments.workspace_gib, targets)
    return Order(folder, arguments.trt_major, arguments.precision, options, arguments.pictures, arguments.bound)


def run(arguments: argparse.Namespace) -> int:
    order = order_of(arguments)
    try:
        with alone_in(order.folder, busy(order.folder)):
            try:
                refused = make(order, look_at_host(), say=lambda line: print(line, flush=True))
            finally:
                for left_over in order.folder.glob(f".*{PLAN}.part"):
                    left_over.unlink()
    except OSError as error:
        raise ExportError(f"{order.folder} cannot be written: {error.strerror or error}") from None
    except KeyboardInterrupt:
        print("export: stopped; plans that were there before are as they were", file=sys.stderr)
        return INTERRUPTED
    if refused:
        print(f"export: refused: {', '.join(refused)}; nothing serves what was refused", file=sys.stderr)
        return REFUSED_PLAN
    if order.major == "rtx":
        print(f"{order.folder}: TensorRT takes both graphs; these engines were not run, and Triton does not load them")
    else:
        print(f"{order.folder}: plans for this GPU. Serve them: CUTAWAY_PROFILE={order.folder.name} docker compose up")
    return 0


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("a number above 0")
    return value
