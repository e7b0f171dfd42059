"""BiRefNet's ONNX file against the one with ONNX's own DeformConv: time and memory (`make bench-onnx`).

Both are made of the same network here and run in ONNX Runtime as the server runs them: its session's options and its
allocator's settings. Every run has a process of its own, the two files take turns, and memory is the process's
highest (VmHWM): above what it had before the file was opened, and in all. Weights are those of the rule of
`python -m export verify`, random, with offsets over whole pixels; what is measured does not depend on them. Needs torch
(`make test-export` installs it).

The report goes into bench-output/birefnet_onnx.md and .json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import head, load_before, publish, say, sentence, spread
from runtime.devices import cores
from runtime.process import ALLOCATOR
from runtime.sessions import onnx_model

MIB = 2**20
FILES = ("grid", "native")  # the project's file, and DeformConv's
# At most: of the project's file as a share of the other's.
TARGETS = {"seconds": 0.8, "peak MiB above the empty process": 0.6, "peak MiB in all": 0.6}


def measure(folder: Path, options: argparse.Namespace, load: float) -> dict[str, Any]:
    """All figures, as JSON values; the files are written into `folder`."""
    side, threads = str(options.side), str(options.threads)
    paths = {deform: str(folder / f"{deform}.onnx") for deform in FILES}
    exports = {deform: _step("export", side, paths[deform], deform, threads) for deform in FILES}
    runs: dict[str, list[dict[str, float]]] = {deform: [] for deform in FILES}
    for number in range(options.rounds):
        for deform in FILES if number % 2 == 0 else reversed(FILES):
            runs[deform].append(_step("run", paths[deform], threads))
            say(f"round {number + 1}, {deform}: {runs[deform][-1]['seconds']:.2f} s")
    return {
        **head(("onnxruntime", "onnx", "torch", "numpy"), load),
        "side_px": options.side,
        "rounds": options.rounds,
        "threads": options.threads,
        "exports": exports,
        "runs": runs,
    }


# ------------------------------------------------------------------------------------ steps, each its own process
def export_step(side: str, path: str, deform: str, threads: str) -> dict[str, Any]:
    """Write a file; its size and that of the weights."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(int(threads))
    network = importlib.import_module("export.verify").filled("lite")
    importlib.import_module("export.onnx_export").write_birefnet(network, int(side), Path(path), deform)
    weights = sum(4 * parameter.numel() for parameter in network.parameters())
    return {"file MiB": Path(path).stat().st_size / MIB, "weights MiB": weights / MIB}


def run_step(path: str, threads: str) -> dict[str, float]:
    """Open a file and run it on one picture. CPU seconds are of all threads: other work shows less in them."""
    before = _peak_mib()
    session = onnx_model().open_session(Path(path), "cpu", int(threads))
    side = int(session.get_inputs()[0].shape[1])
    picture = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    begun, cpu_begun = time.perf_counter(), time.process_time()
    session.run(None, {"images": picture})
    return {
        "seconds": time.perf_counter() - begun,
        "CPU seconds": time.process_time() - cpu_begun,
        "peak MiB above the empty process": _peak_mib() - before,
        "peak MiB in all": _peak_mib(),
    }


STEPS: dict[str, Any] = {"export": export_step, "run": run_step}


def _step(*step: str) -> dict[str, Any]:
    """What a step says, run in a fresh process with the allocator's settings of the server's model processes."""
    command = [sys.executable, "-m", "benchmarks.birefnet_onnx", "--step", *step]
    done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(step)} ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


# -------------------------------------------------------------------------------------------------- the report
def markdown(report: dict[str, Any]) -> str:
    """The report as a page: medians with their spread, ratios, verdicts, the machine."""
    lines = [
        f"# BiRefNet in ONNX Runtime, {report['date'][:10]}",
        "",
        f"Swin-T, {report['side_px']}×{report['side_px']}, batch 1, {report['threads']} threads, on {sentence(report)}",
        "",
        f"Median (10th to 90th percentile) of {report['rounds']} fresh processes, with the server's session options "
        "(no arena, no memory pattern) and allocator settings.",
        "",
        "| | project's file | DeformConv | ratio | at most |",
        "|---|--:|--:|--:|---|",
    ]
    for name in report["runs"]["grid"][0]:
        ours, theirs = ([run[name] for run in report["runs"][deform]] for deform in FILES)
        ratio = statistics.median(ours) / statistics.median(theirs)
        wanted = f"{TARGETS[name]}: {'met' if ratio <= TARGETS[name] else 'missed'}" if name in TARGETS else ""
        lines.append(f"| {name} | {spread(ours, 2)} | {spread(theirs, 2)} | {ratio:.2f} | {wanted} |")
    sizes = " | ".join(f"{report['exports'][deform]['file MiB']:.0f}" for deform in FILES)
    lines.append(f"| file, MiB (weights: {report['exports']['grid']['weights MiB']:.0f}) | {sizes} | | |")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    doc = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.birefnet_onnx", description=doc)
    add = parser.add_argument
    add("--side", type=int, default=1024, metavar="PX", help="default: %(default)s")
    add("--rounds", type=int, default=3, help="processes for each file (default: %(default)s)")
    add("--threads", type=int, default=min(cores(), 16), help="default: as many as there are cores")
    add("-o", "--output", type=Path, default=Path("bench-output"), metavar="DIR", help="default: bench-output")
    add("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        print(json.dumps(STEPS[options.step[0]](*options.step[1:])))
        return 0
    load = load_before()
    with tempfile.TemporaryDirectory(prefix="cutaway-bench-") as folder:
        report = measure(Path(folder), options, load)
    publish(options.output, "birefnet_onnx", report, markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
