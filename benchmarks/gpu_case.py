"""One way of running a matting network, measured in this process: for `benchmarks.gpu_models`."""

from __future__ import annotations

import gc
import importlib
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

NETWORKS = {"swin-t": "lite", "swin-l": "general", "nano": None}
"""By name: the variant of BiRefNet; None is the bundled one, which has an ONNX file alone."""
WARM_UP = 3
MIB = 2**20

Alphas = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """One way of running a network.

    `mode` is "eager" or "graph" (a CUDA graph that is recorded once). `folder` holds `pictures.npy`, the network's ONNX
    files and, once the float32 case ran, `wanted.npy`.
    """

    network: str
    runtime: str
    precision: str
    mode: str
    device: str
    side_px: int
    batches: tuple[int, ...]
    rounds: int
    folder: str

    @property
    def name(self) -> str:
        words = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime"}[self.runtime]
        return f"{words} {self.precision}{', CUDA graph' if self.mode == 'graph' else ''}"

    @property
    def is_standard(self) -> bool:
        """Whether this case's alphas are what the others' are compared with."""
        return self.precision == "float32" and (self.runtime == "torch") == (NETWORKS[self.network] is not None)


@dataclass(frozen=True)
class Row:
    """One batch size of one case."""

    network: str
    way: str
    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    memory_mib: float
    """Held on the GPU after the batch, the process's own share; on the CPU its peak in main memory."""
    mean: float
    """Difference of alphas, of 255."""
    largest: float
    iou: float


def run_case(case: Case, say: Callable[[str], None] = lambda _: None) -> list[Row]:
    """Measure all batches of one case in this process."""
    pictures: Alphas = np.load(Path(case.folder) / "pictures.npy")
    before = device_memory() if case.device == "cuda" else 0
    memory = device_memory if case.device == "cuda" else peak_memory
    runs = torch_runs(case, pictures) if case.runtime == "torch" else onnxruntime_runs(case, pictures)
    rows = []
    for batch, run, alphas in runs:
        for _ in range(WARM_UP if case.device == "cuda" else 0):
            run()
        times = []
        for _ in range(case.rounds):
            begun = time.perf_counter()
            run()
            times.append((time.perf_counter() - begun) * 1000)
        found = alphas()
        path = Path(case.folder) / f"wanted_{batch}.npy"
        if case.is_standard:
            np.save(path, found)
        cuts = statistics.quantiles(times, n=10) if len(times) > 1 else [times[0]] * 9
        timed = statistics.median(times), cuts[0], cuts[-1]
        apart = difference(found, np.load(path))
        rows.append(Row(case.network, case.name, batch, *timed, (memory() - before) / MIB, *apart))
        say(f"{case.network}: {case.name}, batch {batch}: {rows[-1].median_ms:.1f} ms")
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


Runs = Iterator[tuple[int, Callable[[], None], Callable[[], Alphas]]]
"""(batch, what runs it once and waits for it, what returns the alphas of the last run)"""


def build_torch(variant: str, side_px: int, half: bool) -> Any:
    """The exported form from uint8 pictures to uint8 alphas, with the rule's weights, as a PyTorch module."""
    graphs: Any = importlib.import_module("export.graphs")
    birefnet: Any = importlib.import_module("export.networks.birefnet_export")
    form = birefnet.export_form(importlib.import_module("export.verify").filled(variant), side_px)
    if half:
        to_half_module(form)
    return graphs.MatteGraph(graphs.BehindImageNet(form)).eval()


def to_half_module(form: Any) -> None:
    """Make the module compute in half precision, in place, from float32 pictures to float32 logits.

    The places of a deformable convolution's taps stay float32, as in the half ONNX file.
    """
    branch: Any = importlib.import_module("export.networks.birefnet_export").StripBranch
    places = {
        (module, name): getattr(module, name)
        for module in form.modules()
        if isinstance(module, branch)
        for name in ("columns", "rows")
    }
    form.half()
    for (module, name), values in places.items():
        setattr(module, name, values)
    form.register_forward_pre_hook(lambda _module, inputs: tuple(each.half() for each in inputs))
    form.register_forward_hook(lambda _module, _inputs, output: output.float())


def torch_runs(case: Case, pictures: Alphas) -> Runs:
    torch: Any = importlib.import_module("torch")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    variant = NETWORKS[case.network]
    assert variant is not None
    network = build_torch(variant, case.side_px, case.precision == "half").to(case.device)
    for batch in case.batches:
        images = torch.from_numpy(pictures[:batch]).to(case.device)
        result: list[Any] = [None]
        begin = recorded if case.mode == "graph" else plain
        yield batch, begin(torch, network, images, result), partial(on_host, result)
        del images, result
        gc.collect()


def on_host(result: list[Any]) -> Alphas:
    alphas: Alphas = result[0].cpu().numpy()
    return alphas


def plain(torch: Any, network: Any, images: Any, result: list[Any]) -> Callable[[], None]:
    """A call runs the network and waits for it."""

    def call() -> None:
        with torch.inference_mode():
            result[0] = network(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    return call


def recorded(torch: Any, network: Any, images: Any, result: list[Any]) -> Callable[[], None]:
    """Record the network's kernels once; a call replays them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            network(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        result[0] = network(images)

    def call() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return call


def onnxruntime_runs(case: Case, pictures: Alphas) -> Runs:
    file = Path(case.folder) / case.network / ("half.onnx" if case.precision == "half" else "float32.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for batch in case.batches:
        # A recorded graph is of one batch, and an arena never shrinks: a session for each.
        providers: list[Any] = ["CPUExecutionProvider"]
        if case.device == "cuda":
            ort.preload_dlls()
            cuda = {
                "enable_cuda_graph": "1" if case.mode == "graph" else "0",
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


def resized(pictures: Alphas, side_px: int) -> Alphas:
    """The pictures at the side of a network that has one of its own."""
    if pictures.shape[1] == side_px:
        return pictures
    cv2: Any = importlib.import_module("cv2")
    return np.stack([cv2.resize(each, (side_px, side_px), interpolation=cv2.INTER_AREA) for each in pictures])
