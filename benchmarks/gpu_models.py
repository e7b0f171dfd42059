"""The matting networks on a GPU: milliseconds, memory and what half precision changes, in PyTorch and ONNX Runtime.

    python -m benchmarks.gpu_models                        # Swin-T and Swin-L at 1024 px, and nano, batches of 1, 4, 8
    python -m benchmarks.gpu_models --device cpu --side 128 --rounds 1 --network nano --batches 1     # a trial

Needs torch with CUDA (`make test-export` installs torch) and, for ONNX Runtime's rows, onnxruntime-gpu in place of
onnxruntime. Swin-T and Swin-L have the weights of `export verify`'s rule, which are random: their times are those of
any weights, their errors are those of a network that answers every difference with a larger one. nano's are trained.

Each way of running a network gets a process of its own, so memory is counted from nothing and one that fails leaves a
line in the report. Times are of one batch that lies on the GPU already, alphas uint8 included. Errors are of alphas in
grey levels, against PyTorch's float32 (nano: ONNX Runtime's) with TF32 off.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import head, load_before, publish, say, sentence, spread
from export.check_pictures import middle_square
from export.precision import to_half

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "export" / "weights" / "nano"
SAMPLES = ROOT / "samples"
PEOPLE = ROOT / ".." / "shared" / "people" / "eval"
CASE_LIMIT_S = 900.0
NETWORKS = {"swin-t": "lite", "swin-l": "general", "nano": None}  # variant of BiRefNet; None: bundled, as ONNX alone
WARM_UP = 3
MIB = 2**20

Alphas = NDArray[np.uint8]  # pictures (N, S, S, 3) and alphas (N, S, S)


@dataclass(frozen=True)
class Case:
    """One way of running a network.

    `folder` holds `pictures.npy`, the network's ONNX
    files and, once the float32 case ran, `wanted_N.npy`.
    """

    network: str
    runtime: str
    precision: str
    device: str
    side_px: int
    batches: tuple[int, ...]
    rounds: int
    folder: str

    @property
    def name(self) -> str:
        words = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}[self.runtime]
        return f"{words} {self.precision}"

    @property
    def is_standard(self) -> bool:
        """Whether this case's alphas are what the others' are compared with."""
        return self.precision == "float32" and (self.runtime == "torch") == (NETWORKS[self.network] is not None)


@dataclass(frozen=True)
class Row:
    """One batch size of one case: ms of each run; memory held on the GPU after the batch (on the CPU the peak in main
    memory), 2^20 bytes; alphas' mean and largest difference, of 255, and their IoU at half."""

    network: str
    way: str
    batch: int
    ms: list[float]
    memory_mib: float
    mean: float
    largest: float
    iou: float


# ---------------------------------------------------------------------------------------------------- the pictures
def find_pictures(number: int) -> list[Path]:
    """The samples, then photographs of the evaluation set, where it lies beside the checkout."""
    return [*sorted(SAMPLES.glob("*.jpg")), *sorted(PEOPLE.glob("*/images/*.jpg"))[::5]][:number]


def squares(paths: Sequence[Path], side_px: int) -> Alphas:
    """The middle square of each picture, RGB uint8 [N, side, side, 3], as the matting network is fed."""
    return np.stack([middle_square(Image.open(path).convert("RGB"), side_px) for path in paths])


def resized(pictures: Alphas, side_px: int) -> Alphas:
    """The pictures at the side of a network that has one of its own."""
    return np.stack([cv2.resize(each, (side_px, side_px), interpolation=cv2.INTER_AREA) for each in pictures])


# ------------------------------------------------------------------------------------- one case, in its own process
def run_case(case: Case) -> list[Row]:
    """Measure all batches of one case in this process."""
    pictures: Alphas = np.load(Path(case.folder) / "pictures.npy")
    before = device_memory() if case.device == "cuda" else 0
    memory = device_memory if case.device == "cuda" else peak_memory
    rows = []
    for batch, run, alphas in (torch_runs if case.runtime == "torch" else onnxruntime_runs)(case, pictures):
        times = []
        for _ in range(case.rounds + (WARM_UP if case.device == "cuda" else 0)):
            begun = time.perf_counter()
            run()
            times.append((time.perf_counter() - begun) * 1000)
        found, path = alphas(), Path(case.folder) / f"wanted_{batch}.npy"
        if case.is_standard:
            np.save(path, found)
        held = (memory() - before) / MIB
        rows.append(Row(case.network, case.name, batch, times[-case.rounds :], held, *difference(found, np.load(path))))
    return rows


def difference(found: Alphas, wanted: Alphas) -> tuple[float, float, float]:
    """Mean and largest difference in grey levels, and the IoU at half alpha."""
    gap = np.abs(found.astype(np.int16) - wanted)
    first, second = found >= 128, wanted >= 128
    union = np.count_nonzero(first | second)
    return float(gap.mean()), float(gap.max()), float(np.count_nonzero(first & second) / union) if union else 1.0


def device_memory() -> int:
    """Bytes in use on the GPU, by anyone."""
    torch: Any = importlib.import_module("torch")
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def peak_memory() -> int:
    """The most bytes that this process held in main memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


Runs = Iterator[tuple[int, Callable[[], None], Callable[[], Alphas]]]  # batch, what runs it, alphas of the last run


def build_torch(variant: str, side_px: int, half: bool) -> Any:
    """The exported form from uint8 pictures to uint8 alphas, with the rule's weights, as a PyTorch module."""
    graphs: Any = importlib.import_module("export.graphs")
    birefnet: Any = importlib.import_module("export.networks.birefnet_export")
    form = birefnet.export_form(importlib.import_module("export.verify").filled(variant), side_px)
    if half:
        # From float32 pictures to float32 logits. The places of a deformable convolution's taps stay float32, as in
        # the half ONNX file.
        places = [
            (module, name, getattr(module, name))
            for module in form.modules()
            if isinstance(module, birefnet.StripBranch)
            for name in ("columns", "rows")
        ]
        form.half()
        for module, name, values in places:
            setattr(module, name, values)
        form.register_forward_pre_hook(lambda _module, inputs: tuple(each.half() for each in inputs))
        form.register_forward_hook(lambda _module, _inputs, output: output.float())
    return graphs.MatteGraph(graphs.BehindImageNet(form)).eval()


def torch_runs(case: Case, pictures: Alphas) -> Runs:
    torch: Any = importlib.import_module("torch")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    network = build_torch(str(NETWORKS[case.network]), case.side_px, case.precision == "half").to(case.device)
    for batch in case.batches:
        images = torch.from_numpy(pictures[:batch]).to(case.device)
        result: list[Any] = [None]
        yield batch, make_call(torch, network, images, result), partial(on_host, result)
        del images, result
        gc.collect()


def on_host(result: list[Any]) -> Alphas:
    alphas: Alphas = result[0].cpu().numpy()
    return alphas


def make_call(torch: Any, network: Any, images: Any, result: list[Any]) -> Callable[[], None]:
    """A call runs the network and waits for it."""

    def call() -> None:
        with torch.inference_mode():
            result[0] = network(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    return call


def onnxruntime_runs(case: Case, pictures: Alphas) -> Runs:
    file = Path(case.folder) / case.network / ("half.onnx" if case.precision == "half" else "float32.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for batch in case.batches:
        # An arena never shrinks: a session for each batch.
        providers: list[Any] = ["CPUExecutionProvider"]
        if case.device == "cuda":
            ort.preload_dlls()
            cuda = {
                "use_tf32": "0",
                "cudnn_conv_algo_search": "HEURISTIC",
                "arena_extend_strategy": "kSameAsRequested",
            }
            providers.insert(0, ("CUDAExecutionProvider", cuda))
        running = ort.InferenceSession(str(file), options, providers=providers)
        if case.device == "cuda" and running.get_providers()[0] != "CUDAExecutionProvider":
            raise RuntimeError("ONNX Runtime came up without CUDA")
        side_px = case.side_px if NETWORKS[case.network] else running.get_inputs()[0].shape[1]
        given = ort.OrtValue.ortvalue_from_numpy(resized(pictures[:batch], side_px), case.device, 0)
        taken = ort.OrtValue.ortvalue_from_shape_and_type((batch, side_px, side_px), np.uint8, case.device, 0)
        binding = running.io_binding()
        binding.bind_ortvalue_input("images", given)
        binding.bind_ortvalue_output("alphas", taken)

        def call(running: Any = running, binding: Any = binding) -> None:
            running.run_with_iobinding(binding)
            binding.synchronize_outputs()

        yield batch, call, taken.numpy
        del running, binding, given, taken, call
        gc.collect()


# -------------------------------------------------------------------------------------------------- all of them
def cases_of(network: str, args: argparse.Namespace, folder: Path) -> list[Case]:
    """All ways of running this network, the one that the others are compared with first."""
    batches = tuple(sorted(args.batches))
    return [
        Case(network, runtime, precision, args.device, args.side, batches, args.rounds, str(folder))
        for runtime in (("torch", "onnxruntime") if NETWORKS[network] else ("onnxruntime",))
        for precision in ("float32", "half")
    ]


def prepare(network: str, side_px: int, folder: Path) -> None:
    """Write the network's float32 and half ONNX files into the folder."""
    own = folder / network
    own.mkdir()
    variant = NETWORKS[network]
    if variant is None:
        (own / "float32.onnx").write_bytes((NANO / "birefnet_trt.onnx").read_bytes())
    else:
        exporter: Any = importlib.import_module("export.onnx_export")
        graph = build_torch(variant, side_px, half=False)
        exporter.export_graph(graph, side_px, exporter.MATTE_OUTPUTS, own / "float32.onnx")
    to_half(own / "float32.onnx", own / "half.onnx")
    gc.collect()


def in_child(case: Case) -> tuple[list[Row], str]:
    """The rows of a case, or why there are none."""
    command = [sys.executable, "-m", "benchmarks.gpu_models", "--case", json.dumps(asdict(case))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CASE_LIMIT_S)
    except subprocess.TimeoutExpired:
        return [], f"{case.network}: {case.name}: not done within {CASE_LIMIT_S:.0f} s"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return [], f"{case.network}: {case.name}: {reason[:300]}"
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])], ""


def table(rows: Sequence[Row], failures: Sequence[str]) -> str:
    lines = [
        "| network | way | batch | ms, median (10th to 90th percentile) | memory, MiB | alpha error, mean of 255 | "
        "largest | IoU at half |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        error = f"{row.mean:.3f} | {row.largest:.0f} | {row.iou:.4f}"
        way = f"{row.network} | {row.way} | {row.batch}"
        lines.append(f"| {way} | {spread(row.ms, 1)} | {row.memory_mib:.0f} | {error} |")
    return "\n".join([*lines, *(f"\n{failure}" for failure in failures)])


def device_name(device: str) -> str:
    """What the figures are of; SystemExit where there is no such device."""
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError:
        raise SystemExit("error: needs torch; `make test-export` installs it") from None
    if device == "cpu":
        return "CPU"
    if not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here; --device cpu with a small --side tries the command out")
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_models", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--network", choices=NETWORKS, action="append", help="only this one; may be repeated")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for trying the command out")
    add("--side", type=int, default=1024, metavar="PX", help="input (default: 1024; nano has its own)")
    add("--batches", type=int, nargs="+", default=[1, 4, 8], metavar="N", help="default: 1 4 8")
    add("--rounds", type=int, default=30, metavar="N", help="runs measured (default: %(default)s)")
    add("--output", type=Path, default=Path("bench-output"), help="where the report goes")
    add("--case", help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if args.case:
        fields = json.loads(args.case)
        print(json.dumps([asdict(row) for row in run_case(Case(**fields | {"batches": tuple(fields["batches"])}))]))
        return 0
    load = load_before()
    device = device_name(args.device)
    rows: list[Row] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gpu_models-") as name:
        folder = Path(name)
        number = max(args.batches)
        pictures = squares(find_pictures(number), args.side)
        np.save(folder / "pictures.npy", np.resize(pictures, (number, *pictures.shape[1:])))
        for network in args.network or NETWORKS:
            say(f"{network}: writing ONNX files")
            prepare(network, args.side, folder)
            for case in cases_of(network, args, folder):
                found, failure = in_child(case)
                rows += found
                failures += [failure] if failure else []
                say(
                    failure or f"{network}: {case.name}: {', '.join(f'{r.batch}: {spread(r.ms, 1)} ms' for r in found)}"
                )
    report: dict[str, Any] = {
        "device": device,
        **head(("torch", "onnx", "onnxruntime", "onnxruntime-gpu"), load),
        "side_px": args.side,
        "rows": [asdict(row) for row in rows],
        "failures": failures,
    }
    publish(args.output, "gpu_models", report, f"### {device}\n\n{table(rows, failures)}\n\n{sentence(report)}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
