"""The project beside what one would use instead, with the same network on the same pictures (`make bench`).

Four things take turns within each round, in an order that changes from round to round: the networks' own time in this
process (the floor), this project's server over gRPC and HTTP, `rembg s`, and a service as one writes it first. Each is
asked by one client and by eight, each of which waits for its answer before it asks again, with photographs of 0.3 to 12
megapixels; all servers run all the time, and only the one that is measured has work. Every answer's alpha is compared
with the network's own beforehand, so that nobody is measured on a broken path.

The report goes into bench-output/side-by-side.md, .json and .png.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from benchmarks.contenders import PEERS, Contender, ours, peer
from benchmarks.floor import STAGES, Floor
from benchmarks.machine import head, load_before, run, say
from benchmarks.pipeline import PACKAGES
from benchmarks.side_by_side_report import draw, markdown
from runtime.checks import RuntimeProblem
from runtime.compose import CHECKOUT
from runtime.demo import SAMPLES, find_pictures
from runtime.devices import cores, has_vnni, plan
from runtime.server import Server, ServerOptions
from runtime.weights import WHOLE_MATTING, load_networks

SIZES_MP = (0.3, 1.0, 4.0, 12.0)
CLIENTS = (1, 8)
PEERS_PYTHON = CHECKOUT / ".venv-bench" / "bin" / "python"
PEER_PACKAGES = ("rembg", "fastapi", "uvicorn", "onnxruntime", "pillow", "numpy")
JPEG_QUALITY = 90
NOISE = 6.0  # standard deviation of brightness (0 to 255), as of a camera: enlarged samples compress far too well
PAUSE_S = 0.1  # between two measurements: threads of the one before have gone to sleep by then
ALPHA_TOLERANCE = {"all": 4.0, "people": 40.0}
"""Mean difference from the network's own alpha (0 to 255) that shows a broken path. People are matted from crops, and
what is not theirs goes (a flag, say), so theirs is meant to differ."""


@dataclass(frozen=True)
class Work:
    """Photographs of one size: JPEG files, for each the RGBA cut-out (H, W, 4) uint8 that has to be written, and how
    many answers each client waits for in a round."""

    megapixels: float
    pictures: list[bytes]
    cutouts: list[NDArray[np.uint8]]
    asks: int


@dataclass
class Run:
    """What was measured of one contender, size and number of clients, one entry per round: latency of every request,
    and answers per second."""

    latencies_ms: list[list[float]] = field(default_factory=list)
    per_second: list[list[float]] = field(default_factory=list)


Runs = dict[tuple[float, int, str], Run]  # by megapixels, clients and contender
Floors = dict[float, dict[str, list[list[float]]]]  # milliseconds by megapixels and stage, a list for each round


def _without_whole_matting(options: argparse.Namespace) -> Path:
    """A copy of the weights without the network that only whole pictures use: peers matte these with the other one."""
    given = ServerOptions(profile=options.profile, weights=options.weights).weights_dir
    ignored = shutil.ignore_patterns(f"{WHOLE_MATTING}.onnx")
    return Path(shutil.copytree(given, options.output / "weights", ignore=ignored, dirs_exist_ok=True))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, as JSON values.

    Raises:
        RuntimeProblem: something does not start, or does not do what it is measured for.
    """
    load = load_before()
    layout = plan(cores(), options.instances, options.threads)
    server_options = ServerOptions(
        profile=options.profile,
        weights=_without_whole_matting(options),
        instances=options.instances,
        threads=options.threads,
        device="cpu",
        # The server's own small pictures would come in between.
        canary_interval_s=3600.0,
    )
    checked = load_networks(server_options.weights_dir, int8=has_vnni())
    networks = {name: network.path for name, network in checked.items()}
    peer_versions = _peer_versions(options.peers_python)
    options.output.mkdir(parents=True, exist_ok=True)
    floor = Floor(networks, layout.threads)
    with ExitStack() as stack:
        server = stack.enter_context(Server(server_options, say=say))
        contenders = stack.enter_context(ours(server))
        for each in PEERS:
            started = peer(*each, options.peers_python, networks["birefnet_trt"], options.output)
            contenders.append(stack.enter_context(started))
        works = [_work(size, find_pictures(options.pictures or [SAMPLES]), contenders[0]) for size in options.sizes]
        differences = [_check(contender, work, floor) for work in works for contender in contenders]
        runs, floors = _rounds(contenders, works, floor, options)
    return {
        **head(PACKAGES, load),
        "peer_versions": peer_versions,
        "profile": options.profile,
        "instances": layout.instances,
        "threads": layout.threads,
        "rounds": options.rounds,
        "contenders": [{"name": contender.name, "does": contender.does} for contender in contenders],
        "pictures": [
            {
                "megapixels": work.megapixels,
                "sizes_px": [[cutout.shape[1], cutout.shape[0]] for cutout in work.cutouts],
                "jpeg_bytes": [len(picture) for picture in work.pictures],
            }
            for work in works
        ],
        "alpha_differences": differences,
        "floor_ms": [{"megapixels": size, "stages": stages} for size, stages in floors.items()],
        "runs": [
            {"megapixels": size, "clients": clients, "contender": name, **vars(run)}
            for (size, clients, name), run in runs.items()
        ],
    }


# ------------------------------------------------------------------------------------------------------ pictures
def photograph(path: Path, megapixels: float) -> bytes:
    """A picture scaled to a size, with noise, as a JPEG."""
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file).convert("RGB")
    scale = (megapixels * 1e6 / (upright.width * upright.height)) ** 0.5
    scaled = upright.resize((round(upright.width * scale), round(upright.height * scale)), Image.Resampling.LANCZOS)
    noise = np.random.default_rng(7).normal(0.0, NOISE, (scaled.height, scaled.width, 1))
    pixels = np.clip(np.asarray(scaled) + noise, 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()


def _work(megapixels: float, paths: Sequence[Path], contender: Contender) -> Work:
    pictures = [photograph(path, megapixels) for path in paths]
    cutouts = [_rgba(contender.cut(picture)) for picture in pictures]
    # Large pictures take longer, and say as much in fewer requests.
    return Work(megapixels, pictures, cutouts, asks=3 if megapixels < 2 else 2)


def _rgba(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as file:
        if file.format != "PNG" or file.mode != "RGBA":
            raise RuntimeProblem(f"a transparent PNG was expected; {file.format} {file.mode} came")
        return np.asarray(file)


def _check(contender: Contender, work: Work, floor: Floor) -> dict[str, Any]:
    """How far a contender's alpha is from the network's own, in the mean over the pictures of a size."""
    differences = []
    for picture in work.pictures:
        truth = floor.alpha(picture)
        alpha = np.ascontiguousarray(_rgba(contender.cut(picture))[..., 3])
        if alpha.shape != truth.shape:
            raise RuntimeProblem(f"{contender.name} answered with another size: {alpha.shape} and not {truth.shape}")
        differences.append(float(cv2.absdiff(alpha, truth).mean()))
    worst = max(differences)
    tolerance = ALPHA_TOLERANCE["people" if contender.name.endswith("people") else "all"]
    if worst > tolerance:
        raise RuntimeProblem(
            f"{contender.name}'s alpha differs by {worst:.1f} of 255 from the network's: more than {tolerance:g}"
        )
    return {"contender": contender.name, "megapixels": work.megapixels, "mean_of_255": round(worst, 3)}


# ----------------------------------------------------------------------------------------------------- measuring
def _rounds(
    contenders: Sequence[Contender], works: Sequence[Work], floor: Floor, options: argparse.Namespace
) -> tuple[Runs, Floors]:
    clients: Sequence[int] = options.clients
    runs: Runs = {
        (work.megapixels, count, contender.name): Run()
        for work in works
        for count in clients
        for contender in contenders
    }
    floors: Floors = {work.megapixels: {stage: [] for stage in STAGES} for work in works}
    for contender in contenders:
        volley(contender.cut, works[0].pictures, max(clients), 1)
    for number in range(options.rounds):
        begun = time.monotonic()
        for work in works:
            for count in clients:
                steps: list[Callable[[], None]] = [
                    lambda contender=contender, work=work, count=count: _ask(  # type: ignore[misc]
                        contender, work, count, runs[work.megapixels, count, contender.name]
                    )
                    for contender in contenders
                ]
                if count == min(clients):
                    steps.append(lambda work=work: _floor(floor, work, floors[work.megapixels]))  # type: ignore[misc]
                for step in in_turn(steps, number):
                    step()
                    time.sleep(PAUSE_S)
        say(f"round {number + 1} of {options.rounds} took {time.monotonic() - begun:.0f} s")
    return runs, floors


def in_turn(steps: Sequence[Callable[[], None]], number: int) -> list[Callable[[], None]]:
    """The steps of a round: each round begins with another one, and every other round goes backwards."""
    start = number // 2 % len(steps)
    turned = [*steps[start:], *steps[:start]]
    return turned[::-1] if number % 2 else turned


def _ask(contender: Contender, work: Work, clients: int, run: Run) -> None:
    asks = work.asks if clients > 1 else max(len(work.pictures), work.asks)
    latencies_ms, wall_s = volley(contender.cut, work.pictures, clients, asks)
    run.latencies_ms.append(latencies_ms)
    run.per_second.append([len(latencies_ms) / wall_s])


def _floor(floor: Floor, work: Work, times: dict[str, list[list[float]]]) -> None:
    for stages in times.values():
        stages.append([])
    for _ in range(2):
        for picture, cutout in zip(work.pictures, work.cutouts, strict=True):
            for stage, ms in floor.run(picture, cutout).items():
                times[stage][-1].append(ms)


def volley(
    cut: Callable[[bytes], bytes], pictures: Sequence[bytes], clients: int, asks: int
) -> tuple[list[float], float]:
    """Let so many clients ask at once, each again as soon as it has its answer.

    Returns:
        The milliseconds of each request, and the seconds from the first question to the last answer.

    Raises:
        Exception: the first that a request raised.
    """
    latencies_ms: list[float] = []
    start = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        start.wait()
        for ask in range(asks):
            begun = time.perf_counter()
            cut(pictures[(number + ask) % len(pictures)])
            latencies_ms.append((time.perf_counter() - begun) * 1000)

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(client, number) for number in range(clients)]
        start.wait()
        begun = time.perf_counter()
        for future in futures:
            future.result()
        return latencies_ms, time.perf_counter() - begun


def _peer_versions(python: Path) -> dict[str, str]:
    """Versions of the packages in the environment of the others."""
    script = (
        "import importlib.metadata as m, json, platform, sys; "
        "print(json.dumps({'python': platform.python_version()} | {name: m.version(name) for name in sys.argv[1:]}))"
    )
    try:
        answer = subprocess.run([str(python), "-c", script, *PEER_PACKAGES], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise RuntimeProblem(f"{python} is no environment with rembg; make bench creates it") from None
    found: dict[str, str] = json.loads(answer.stdout)
    own = importlib.metadata.version("onnxruntime")
    if found["onnxruntime"] != own:
        raise RuntimeProblem(f"the others run on ONNX Runtime {found['onnxruntime']}, this project on {own}")
    return found


def _parser() -> argparse.ArgumentParser:
    doc = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description=doc)
    add = parser.add_argument
    add("pictures", nargs="*", type=Path, help="pictures or folders (default: samples/)")
    add("--profile", default="nano", help="the model pair (default: nano)")
    add("--weights", type=Path, metavar="DIR", help="as of python -m runtime serve")
    add("--rounds", type=int, default=5, help="(default: 5)")
    add("--sizes", type=float, nargs="+", default=SIZES_MP, metavar="MEGAPIXELS", help="(default: 0.3 1 4 12)")
    add("--clients", type=int, nargs="+", default=CLIENTS, metavar="N", help="(default: 1 8)")
    add("--instances", type=int, help="pipelines of the server (default: by cores)")
    add("--threads", type=int, help="of one network's run, in the server and the floor (default: by cores)")
    add("--peers-python", type=Path, default=PEERS_PYTHON, metavar="FILE", help="Python of the others' environment")
    add("-o", "--output", type=Path, default=Path("bench-output"), metavar="DIR", help="default: bench-output")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)

    def page(report: dict[str, Any]) -> str:
        draw(report, options.output / "side-by-side.png")
        return markdown(report)

    return run(options.output, "side-by-side", lambda: measure(options), page)


if __name__ == "__main__":
    raise SystemExit(main())
