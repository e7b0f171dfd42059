"""BiRefNet's ONNX file against the one with ONNX's own DeformConv: time, memory, batches (`make bench-onnx`).

Both are made of the same network here and run in ONNX Runtime as the server runs them: its session's options and its
allocator's settings. Every run has a process of its own, the two files take turns, and memory is the process's
highest (VmHWM): above what it had before the file was opened, and in all. Weights are those of the rule of
`python -m export verify`, random, with offsets over whole pixels; what is measured does not depend on them. Then the
project's file answers a batch of four and the same four pictures alone. Needs torch (`make test-export` installs it).

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
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import head, load_before, publish, say, sentence
from runtime.devices import cores
from runtime.process import ALLOCATOR

MIB = 2**20
FILES = ("grid", "native")
"""The project's file, and DeformConv's."""
BATCH = 4
TARGETS = {
    "seconds": 0.8,
    "peak MiB above the empty process": 0.6,
    "peak MiB in all": 0.6,
    "gap": 1.0,
}
"""At most: seconds and memory of the project's file as a share of the other's; grey levels between a picture in a batch
and alone."""


def measure(folder: Path, options: argparse.Namespace, load: float) -> dict[str, Any]:
    """All figures, as JSON values; the files are written into `folder` and each is deleted when it is done with."""
    side, threads = str(options.side), str(options.threads)
    exports = {}
    for deform in FILES:
        say(f"exporting with deform={deform}")
        exports[deform] = _step("export", side, str(folder / f"{deform}.onnx"), deform, threads)
    runs: dict[str, list[dict[str, Any]]] = {deform: [] for deform in FILES}
    for number in range(options.rounds):
        for deform in FILES if number % 2 == 0 else reversed(FILES):
            run = _step("run", str(folder / f"{deform}.onnx"), str(options.repeats), threads)
            runs[deform].append(run)
            seconds = statistics.median(run["seconds"])
            say(f"round {number + 1}, {deform}: {seconds:.2f} s, peak {run['peak_bytes'] / MIB:.0f} MiB")
    (folder / "native.onnx").unlink()
    batch = _step("batch", str(folder / "grid.onnx"), threads)
    say(f"a batch of {BATCH} against singles: largest difference {batch['largest']}")
    (folder / "grid.onnx").unlink()
    return {
        **head(("onnxruntime", "onnx", "torch", "numpy"), load),
        "side_px": options.side,
        "rounds": options.rounds,
        "threads": options.threads,
        "exports": exports,
        "runs": runs,
        "batch": batch,
    }


# ------------------------------------------------------------------------------------ steps, each its own process


def export_step(side: str, path: str, deform: str, threads: str) -> dict[str, Any]:
    """Write a file; its size, how long it took and the process's highest memory."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(int(threads))
    network = importlib.import_module("export.verify").filled("lite")
    begun = time.perf_counter()
    importlib.import_module("export.onnx_export").write_birefnet(network, int(side), Path(path), deform)
    return {
        "seconds": time.perf_counter() - begun,
        "peak_bytes": _memory_bytes("VmHWM"),
        "file_bytes": Path(path).stat().st_size,
        "weights_bytes": sum(4 * parameter.numel() for parameter in network.parameters()),
    }


def run_step(path: str, repeats: str, threads: str) -> dict[str, Any]:
    """Open a file and run it on one picture: once to warm up where there are more runs than one, then as often as said.

    Seconds are wall time, `cpu_seconds` those of all threads: other work on the machine shows less in them.
    """
    before_bytes = _memory_bytes("VmHWM")
    session = _open(path, threads)
    loaded_bytes = _memory_bytes("VmHWM")
    pictures = _pictures(session, 1)
    seconds, cpu_seconds, peaks_bytes = [], [], []
    for _ in range(int(repeats) + (int(repeats) > 1)):
        begun, cpu_begun = time.perf_counter(), time.process_time()
        session.run(None, {"images": pictures})
        seconds.append(time.perf_counter() - begun)
        cpu_seconds.append(time.process_time() - cpu_begun)
        peaks_bytes.append(_memory_bytes("VmHWM"))
    kept = slice(len(seconds) - int(repeats), None)
    return {
        "seconds": seconds[kept],
        "cpu_seconds": cpu_seconds[kept],
        "before_bytes": before_bytes,
        "loaded_bytes": loaded_bytes,
        "peak_bytes": peaks_bytes[0],
        "peak_of_all_runs_bytes": peaks_bytes[-1],
    }


def batch_step(path: str, threads: str) -> dict[str, Any]:
    """The largest difference between the pictures of a batch and the same pictures alone, in grey levels."""
    session = _open(path, threads)
    pictures = _pictures(session, BATCH)
    alone = [session.run(None, {"images": pictures[i : i + 1]})[0] for i in range(BATCH)]
    begun = time.perf_counter()
    together = session.run(None, {"images": pictures})[0]
    gap = np.abs(together.astype(int) - np.concatenate(alone).astype(int))
    return {
        "seconds": time.perf_counter() - begun,
        "largest": int(gap.max()),
        "differing": float((gap > 0).mean()),
        "peak_bytes": _memory_bytes("VmHWM"),
    }


STEPS: dict[str, Any] = {"export": export_step, "run": run_step, "batch": batch_step}


def _step(*step: str) -> dict[str, Any]:
    """What a step says, run in a fresh process with the allocator's settings of the server's model processes."""
    command = [sys.executable, "-m", "benchmarks.birefnet_onnx", "--step", *step]
    done = subprocess.run(command, env={**os.environ, **ALLOCATOR}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(step)} ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _open(path: str, threads: str) -> Any:
    """A session with the options of the server's own."""
    # The server's module speaks to Triton through this one, which exists inside Triton alone.
    sys.modules.setdefault("triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    open_session: Any = importlib.import_module("runtime.onnx_model.model").open_session
    return open_session(Path(path), "cpu", int(threads))


def _pictures(session: Any, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Waves of different lengths with noise, uint8 [count, side, side, 3]."""
    side = int(session.get_inputs()[0].shape[1])
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    pictures = np.empty((count, side, side, 3), np.uint8)
    for picture in pictures:
        for channel in range(3):
            across, down = rng.uniform(5, 60, 2)
            waves = 128 + 90 * np.sin(across * x + down * y) + rng.normal(0, 8, (side, side))
            picture[..., channel] = np.clip(waves, 0, 255)
    return pictures


def _memory_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


# -------------------------------------------------------------------------------------------------- the report


def figures(runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """One value for each run, by name: seconds, MiB."""
    return {
        "seconds": [statistics.median(run["seconds"]) for run in runs],
        "CPU seconds": [statistics.median(run["cpu_seconds"]) for run in runs],
        "peak MiB above the empty process": [(run["peak_bytes"] - run["before_bytes"]) / MIB for run in runs],
        "peak MiB in all": [run["peak_bytes"] / MIB for run in runs],
        "peak MiB in all, after further runs": [run["peak_of_all_runs_bytes"] / MIB for run in runs],
        "of it when the file is open": [run["loaded_bytes"] / MIB for run in runs],
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: medians with their spread, ratios, verdicts, the machine."""
    batch = report["batch"]
    ours, theirs = figures(report["runs"]["grid"]), figures(report["runs"]["native"])
    side = report["side_px"]
    lines = [
        f"# BiRefNet in ONNX Runtime, {report['date'][:10]}",
        "",
        f"Swin-T, {side}×{side}, batch 1, {report['threads']} threads, {report['rounds']} rounds, on "
        f"{sentence(report)}",
        "",
        "Median of the rounds (lowest–highest); each run in a fresh process, with the server's session options (no "
        "arena, no memory pattern) and allocator settings. Peaks are of the first run; "
        "further runs find a heap with gaps.",
        "",
        "| | project's file | DeformConv | ratio | |",
        "|---|--:|--:|--:|---|",
    ]
    for name in ours:
        ratio = statistics.median(ours[name]) / statistics.median(theirs[name])
        verdict = _verdict(ratio, TARGETS[name]) if name in TARGETS else ""
        lines.append(f"| {name} | {_spread(ours[name])} | {_spread(theirs[name])} | {ratio:.2f} | {verdict} |")
    sizes = {deform: export["file_bytes"] / MIB for deform, export in report["exports"].items()}
    weights = report["exports"]["grid"]["weights_bytes"] / MIB
    lines += [f"| file, MiB (weights: {weights:.0f}) | {sizes['grid']:.0f} | {sizes['native']:.0f} | | |", ""]
    lines.append(
        f"- A batch of {BATCH} against {BATCH} singles: largest difference {batch['largest']} of 255, in "
        f"{batch['differing']:.1e} of the pixels; {_verdict(batch['largest'], TARGETS['gap'])}."
    )
    return "\n".join([*lines, ""])


def _verdict(value: float, target: float) -> str:
    return f"at most {target:g} is wanted: {'met' if value <= target else 'missed'}"


def _spread(values: Sequence[float]) -> str:
    digits = 2 if max(values) < 100 else 0
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main(arguments: Sequence[str] | None = None) -> int:
    doc = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.birefnet_onnx", description=doc)
    add = parser.add_argument
    add("--side", type=int, default=1024, metavar="PX", help="default: %(default)s")
    add("--rounds", type=int, default=3, help="processes for each file (default: %(default)s)")
    add("--repeats", type=int, default=2, help="timed runs in each process (default: %(default)s)")
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
