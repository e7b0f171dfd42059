"""The pipeline's own stages without its networks, in this checkout and in another one (`python -m benchmarks.stages`).

    git worktree add ../before COMMIT
    python -m benchmarks.stages --against ../before

Each checkout's pipeline runs in a process of its own; the two take turns, and which of them comes first alternates. The
networks answer each picture once and their answers are kept, so that nothing but the pipeline's own work is timed. CPU
time is given beside the time that passed: it says something even where the machine has other work. The answers of both
are compared byte by byte. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import load_before, machine, sentence, versions
from benchmarks.side_by_side import photograph
from benchmarks.spread import Figure, figure, ratio
from runtime.compose import CHECKOUT
from runtime.demo import SAMPLES, find_pictures
from runtime.process import ALLOCATOR
from runtime.server import ServerOptions

SIZES_MP = (1.0, 12.0)
SUBJECTS = ("people", "all")
ROUNDS = 15
OPENCV_THREADS = 2
"""As in the pipeline."""
OWN_STAGES = ("decode", "refine", "encode")
PACKAGES = ("numpy", "opencv-python-headless", "pillow", "isal")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.answer:
        _answer(options.answer)
        return 0
    load, warning = load_before()
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    checkouts = [CHECKOUT, *([options.against] if options.against else [])]
    with ExitStack() as stack:
        sides = [stack.enter_context(_Side(checkout)) for checkout in checkouts]
        print("\n".join(_table(sides, options.sizes, options.rounds)))
    print(f"\n{sentence({'machine': machine(load), 'versions': versions(PACKAGES)})}")
    return 0


def _table(sides: Sequence[_Side], sizes: Sequence[float], rounds: int) -> list[str]:
    stages = [*OWN_STAGES, "total", "CPU"]
    lines = [
        f"Milliseconds, medians of {rounds} rounds with intervals; after ÷ before within the rounds.",
        "",
        f"| picture | subject | which | {' | '.join(stages)} | answers |",
        f"|---|---|---|{'--:|' * len(stages)}---|",
    ]
    for megapixels in sizes:
        for path in find_pictures([SAMPLES]):
            picture = photograph(path, megapixels)
            for subject in SUBJECTS:
                times: list[dict[str, list[list[float]]]] = [{stage: [] for stage in stages} for _ in sides]
                digests, sizes_bytes = [""] * len(sides), [0] * len(sides)
                for number in range(-1, rounds):
                    for which in (range(len(sides)), reversed(range(len(sides))))[number % 2]:
                        taken = sides[which].run(picture, subject)
                        digests[which], sizes_bytes[which] = taken["digest"], taken["bytes"]
                        if number >= 0:
                            for stage in stages:
                                times[which][stage].append([taken[stage]])
                bigger = sizes_bytes[0] / sizes_bytes[-1]
                same = "identical" if len(set(digests)) == 1 else f"differ; {bigger:.3f} of the bytes"
                head = f"{path.stem}, {megapixels:g} MP | {subject}"
                names = ("after", "before") if len(sides) > 1 else ("",)
                for name, each in reversed(list(zip(names, times, strict=True))):
                    lines.append(f"| {head} | {name} | {' | '.join(_ms(figure(each[s])) for s in stages)} | |")
                if len(sides) > 1:
                    ratios = (ratio(times[0][stage], times[1][stage]) for stage in stages)
                    lines.append(f"| {head} | ratio | {' | '.join(map(_ratio, ratios))} | {same} |")
    return lines


class _Side:
    """The pipeline of a checkout, in a process of its own that is set up as the server's are."""

    def __init__(self, checkout: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stages", "--answer", str(checkout.resolve())],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.terminate()
        self._process.wait()

    def run(self, picture: bytes, subject: str) -> dict[str, Any]:
        """Milliseconds of each stage, and a digest of the answer and its bytes."""
        ask, answer = self._process.stdin, self._process.stdout
        assert ask is not None and answer is not None
        ask.write(f"{subject} {len(picture)}\n".encode() + picture)
        ask.flush()
        line = answer.readline()
        if not line:
            raise RuntimeError("the pipeline's process ended")
        taken: dict[str, Any] = json.loads(line)
        return taken


def _answer(checkout: Path) -> None:
    """Run a checkout's pipeline on what comes in, until nothing comes any more."""
    for folder in (checkout / "model_repository" / "ensemble_pipeline" / "1", checkout / "client"):
        sys.path.insert(0, str(folder))
    import cv2
    from cutaway.contract.options import parse_options
    from pipeline.run import Models, run

    cv2.setNumThreads(OPENCV_THREADS)
    networks = _Networks(ServerOptions().weights_dir)
    models = Models(networks.detect, networks.matte, networks.side)
    asked: IO[bytes] = sys.stdin.buffer
    while line := asked.readline():
        subject, length = line.decode().split()
        picture = asked.read(int(length))
        networks.seconds = networks.cpu_seconds = 0.0
        cpu, begun = time.process_time(), time.perf_counter()
        answer = run(picture, parse_options({"subject": subject}), models)
        total, cpu = time.perf_counter() - begun - networks.seconds, time.process_time() - cpu - networks.cpu_seconds
        stages = answer.report["milliseconds"]
        digest = hashlib.sha256(b"".join(answer.images)).hexdigest()
        taken = {stage: stages[stage] for stage in OWN_STAGES}
        size = sum(map(len, answer.images))
        said = {**taken, "total": total * 1000, "CPU": cpu * 1000, "digest": digest, "bytes": size}
        print(json.dumps(said), flush=True)


class _Networks:
    """Both networks, which run once for each input; the time that they and looking answers up take is noted."""

    def __init__(self, weights: Path) -> None:
        import onnxruntime as ort

        self._sessions = {
            name: ort.InferenceSession(weights / f"{name}.onnx", providers=["CPUExecutionProvider"])
            for name in ("yolov8_seg", "birefnet_trt")
        }
        self.side = int(self._sessions["birefnet_trt"].get_inputs()[0].shape[1])
        self._known: dict[tuple[str, bytes], dict[str, NDArray[Any]]] = {}
        self.seconds = self.cpu_seconds = 0.0

    def detect(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        return self._run("yolov8_seg", images)

    def matte(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self._run("birefnet_trt", images)["alphas"]

    def _run(self, name: str, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        cpu, begun = time.process_time(), time.perf_counter()
        key = name, hashlib.sha256(images.data).digest()
        if key not in self._known:
            session = self._sessions[name]
            outputs = session.run(None, {"images": images})
            self._known[key] = dict(zip((output.name for output in session.get_outputs()), outputs, strict=True))
        self.seconds += time.perf_counter() - begun
        self.cpu_seconds += time.process_time() - cpu
        return self._known[key]


def _ms(value: Figure) -> str:
    return f"{value.value:.1f} ({value.low:.1f}–{value.high:.1f})"


def _ratio(value: Figure) -> str:
    return f"{value.value:.2f} ({value.low:.2f}–{value.high:.2f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout, which is called before")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"(default: {ROUNDS})")
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=SIZES_MP, metavar="MEGAPIXELS", help="(default: 1 12)"
    )
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
