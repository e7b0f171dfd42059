"""The matting networks on a GPU: milliseconds, memory and what half precision changes, in PyTorch and ONNX Runtime.

    python -m benchmarks.gpu_models                        # Swin-T and Swin-L at 1024 px, and nano, batches of 1, 4, 8
    python -m benchmarks.gpu_models --network swin-t
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
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

from benchmarks.gpu_case import NETWORKS, Alphas, Case, Row, build_torch, run_case
from benchmarks.machine import head, load_before, publish, say, sentence
from export.check_pictures import middle_square
from export.precision import to_half

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "export" / "weights" / "nano"
SAMPLES = ROOT / "samples"
PEOPLE = ROOT / ".." / "shared" / "people" / "eval"
CASE_LIMIT_S = 900.0
"""Seconds after which a case is given up."""


def find_pictures(number: int) -> list[Path]:
    """The samples, then photographs from all folders of the evaluation set, where it lies beside the checkout."""
    found = sorted(SAMPLES.glob("*.jpg"))
    folders = [sorted((folder / "images").glob("*.jpg")) for folder in sorted(PEOPLE.glob("*")) if folder.is_dir()]
    for place in range(number):
        found += [folder[place * len(folder) // number % len(folder)] for folder in folders if folder]
    return list(dict.fromkeys(found))[:number]


def squares(paths: Sequence[Path], side_px: int) -> Alphas:
    """The middle square of each picture, RGB uint8 [N, side, side, 3], as the matting network is fed."""
    return np.stack([middle_square(Image.open(path).convert("RGB"), side_px) for path in paths])


def cases_of(network: str, args: argparse.Namespace, folder: Path) -> list[Case]:
    """All ways of running this network, the one that the others are compared with first."""
    variant = NETWORKS[network]
    modes = ("eager", "graph") if args.device == "cuda" else ("eager",)
    ways = [
        (runtime, *way)
        for runtime in ("torch", "onnxruntime")
        for way in (("float32", "eager"), *(("half", mode) for mode in modes))
        if variant or runtime == "onnxruntime"
    ]
    return [
        Case(network, *way, args.device, args.side, tuple(sorted(args.batches)), args.rounds, str(folder))
        for way in ways
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
    lines += [
        f"| {row.network} | {row.way} | {row.batch} | {row.median_ms:.1f} ({row.p10_ms:.1f}–{row.p90_ms:.1f}) | "
        f"{row.memory_mib:.0f} | {row.mean:.3f} | {row.largest:.0f} | {row.iou:.4f} |"
        for row in rows
    ]
    return "\n".join([*lines, *(f"\n{failure}" for failure in failures)])


def device_name(device: str) -> str:
    """What the figures are of.

    Raises:
        SystemExit: when there is no such device.
    """
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
        rows = run_case(Case(**fields | {"batches": tuple(fields["batches"])}), say)
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    load, _ = load_before()
    device = device_name(args.device)
    rows = []
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
                    failure
                    or f"{network}: {case.name}: " + ", ".join(f"{r.batch}: {r.median_ms:.1f} ms" for r in found)
                )
    report: dict[str, Any] = {
        "device": device,
        **head(("torch", "onnx"), load),
        "onnxruntime": ort.__version__,
        "side_px": args.side,
        "rounds": args.rounds,
        "rows": [asdict(row) for row in rows],
        "failures": failures,
    }
    publish(args.output, "gpu_models", report, f"### {device}\n\n{table(rows, failures)}\n\n{sentence(report)}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
