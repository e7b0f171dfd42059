"""Bulk jobs beside the networks alone and Triton, by the number of workers, and killed in the middle.

Throughput is compared by CPU seconds: where cores are the bottleneck it is their number divided by the CPU seconds of a
picture, whatever else the machine does, while the seconds that pass depend on that. The report goes into
bench-output/bulk.md, .json and .png.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cutaway
import pyarrow.parquet

from benchmarks.bulk_floor import floor_ms
from benchmarks.bulk_report import DRIVER, LEDGER, WORKER, draw, markdown
from benchmarks.machine import head, load_before, run, say
from runtime.compose import CHECKOUT
from runtime.demo import MORE_SAMPLES, SAMPLES, find_pictures
from runtime.devices import cores
from runtime.procfs import all_stats, own_bytes
from runtime.server import Server, ServerOptions

PACKAGES = ("ray", "pyarrow", "onnxruntime", "nvidia-pytriton", "numpy")
TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_S = 0.3
SERIAL = (10, 3000)
FULL_SHARE = {"RAY_worker_niceness": "0"}  # by default Ray's workers wait for whatever else the machine does


def use_of(pid: int) -> dict[int, tuple[str, float, int]]:
    """Of a process and all below it: what it is, CPU seconds so far, and memory in bytes."""
    parents = {each.pid: each.parent for each in all_stats()}
    members, layer = {pid}, {pid}
    while layer := {child for child, parent in parents.items() if parent in layer} - members:
        members |= layer
    found = {}
    for member in members:
        with suppress(OSError):
            words = Path(f"/proc/{member}/cmdline").read_bytes().decode(errors="replace")
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            kind = DRIVER if member == pid else next((name for name in (WORKER, LEDGER) if name in words), "others")
            found[member] = kind, (int(fields[11]) + int(fields[12])) / TICKS, own_bytes(member)
    return found


def start(source: Path, output: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bulk", str(source), "-o", str(output), "--workers", str(workers)]
    with output.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, cwd=CHECKOUT, env=os.environ | FULL_SHARE, stdout=log, stderr=log)


def job(source: Path, output: Path, workers: int) -> dict[str, Any]:
    """A whole job: CPU milliseconds of a picture, the workers' memory, and both rates without the start of workers."""
    before, there = len(rows(output)), len(written(output))
    process, seen, levels = start(source, output, workers), dict[int, tuple[str, float, int]](), list[float]()
    steady: list[tuple[int, float, float]] = []  # files written, CPU seconds of workers, seconds passed
    while process.poll() is None:
        now, files = use_of(process.pid), len(written(output)) - there
        seen |= now
        if files:
            spent_s = sum(seconds for kind, seconds, _ in seen.values() if kind == WORKER)
            steady.append((files, spent_s, time.monotonic()))
        levels.append(sum(memory for kind, _, memory in now.values() if kind == WORKER) / 1e6)
        time.sleep(SAMPLE_S)
    said = output.with_suffix(".log").read_text()
    rate = re.search(r"([\d.]+) pictures per second", said)
    assert rate and process.returncode in (0, 1), said
    spent, count = dict.fromkeys((WORKER, LEDGER, DRIVER, "others"), 0.0), len(rows(output)) - before
    for kind, seconds, _ in seen.values():
        spent[kind] += seconds * 1000 / count
    report = {"workers": workers, "pictures": count, "per_second": float(rate[1]), "cpu_ms": spent}
    report["workers_mb"] = [max(levels[len(levels) * at // 4 : len(levels) * (at + 1) // 4]) for at in range(4)]
    if steady:  # a worker starts late or ends early, and Ray starts another one then: seconds of CPU time each
        most = steady[-1][0]
        first, last = (next(each for each in steady if each[0] >= least) for least in (most / 3, most * 0.8))
        cut, spent_s, passed_s = (after - before for before, after in zip(first, last, strict=True))
        report |= {"steady_ms": spent_s * 1000 / cut, "steady_per_second": cut / passed_s}
    return report


def rows(output: Path) -> list[dict[str, Any]]:
    parts = (output / "_cutaway" / "manifest").glob("*.parquet")
    return [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]


def written(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.rglob("*.png")}


def triton(files: Sequence[Path]) -> dict[str, Any]:
    """The same pictures through a server and the SDK's `cut_many`: the use of Triton, its models, the gate and this."""
    with Server(ServerOptions(canary_interval_s=3600.0), say=say) as server, cutaway.Client(server.grpc_url) as client:
        list(client.cut_many(files[:10], subject="auto"))
        before, begun = use_of(os.getpid()), time.monotonic()
        answered = sum(each.ok for each in client.cut_many(files, subject="auto"))
        seconds, after = time.monotonic() - begun, use_of(os.getpid())
    spent_s = sum(each[1] - before.get(pid, ("", 0.0, 0))[1] for pid, each in after.items())
    return {"pictures": answered, "per_second": answered / seconds, "cpu_ms": spent_s / answered * 1000}


def serial_ms(folder: Path) -> dict[str, float]:
    """CPU milliseconds of a picture in the processes of which a job has one: by lists of pictures that do not exist."""
    spent: list[dict[str, float]] = []
    for count in SERIAL:
        names = [f"{folder}/none/{number}.jpg" for number in range(count)]
        pyarrow.parquet.write_table(pyarrow.table({"path": names}), folder / f"{count}.parquet")
        each = job(folder / f"{count}.parquet", folder / f"list-{count}", cores())["cpu_ms"]
        spent.append({kind: ms * count for kind, ms in each.items()})
    few, many = spent  # the difference is without the start of Ray
    return {kind: (many[kind] - few[kind]) / (SERIAL[1] - SERIAL[0]) for kind in (DRIVER, LEDGER)}


def deaths(source: Path, output: Path, workers: int, count: int) -> dict[str, Any]:
    """A worker killed at a quarter, the whole job at a half, and begun again."""
    process = start(source, output, workers)
    for share, end in ((4, False), (2, True)):
        while len(written(output)) < count // share:
            assert process.poll() is None, output.with_suffix(".log").read_text()
            time.sleep(0.5)
        victims = [pid for pid, (kind, _, _) in use_of(process.pid).items() if kind == WORKER]
        os.kill(process.pid if end else victims[0], signal.SIGKILL)
    process.wait()
    before = written(output)
    again = job(source, output, workers)
    after, found = written(output), rows(output)
    names = [name for row in found for name in row["outputs"]]
    counts = {
        "files when the job was killed": len(before),
        "files written twice": sum(after.get(path) != at for path, at in before.items()),
        "pictures missing": count - len({row["path"] for row in found}),
        "rows too many": len(found) - count,
        "files without a row": len(after) - len(names),
        "pictures failed": sum(row["code"] != "OK" for row in found),
    }
    return {"again": again, "counts": counts}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    load = load_before()
    found = find_pictures(options.pictures or [SAMPLES, MORE_SAMPLES])
    with tempfile.TemporaryDirectory(prefix="cutaway-bench-") as folder:
        whole, part = Path(folder, "whole"), Path(folder, "part")
        for place, count in ((whole, options.count), (part, options.compared)):
            place.mkdir()
            for number in range(count):
                shutil.copy(found[number % len(found)], place / f"{number:06}.jpg")
        files, jobs = sorted(part.iterdir()), []
        say("the networks alone")
        floors = [floor_ms(part)]
        for number, workers in enumerate(options.workers):
            say(f"{len(files)} pictures, workers: {workers}; then the networks alone again")
            found_job = job(part, Path(folder, f"out-{number}"), workers)
            floors.append(floor_ms(part))  # before and after, since machines slow down and recover within minutes
            jobs.append(found_job | {"floor_ms": sum(floors[-2:]) / 2})
        say("Triton")
        served = triton(files)
        say(f"lists of {SERIAL} names")
        serial = serial_ms(Path(folder))
        say(f"{options.count} pictures, and deaths")
        killed = deaths(whole, Path(folder, "out"), cores(), options.count)
    report = {
        "floor_ms": sum(floors) / len(floors),
        "jobs": jobs,
        "triton": served,
        "deaths": killed,
        "serial_ms": serial,
    }
    draw(report, options.output / "bulk.png")
    return {**head(PACKAGES, load), **report, "load_after": round(os.getloadavg()[0], 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("pictures", nargs="*", type=Path, help="pictures or folders (default: samples/), repeated under other names")
    add("--count", type=int, default=2000, help="pictures of the job that is killed")
    add("--compared", type=int, default=400, help="pictures of each job that is compared")
    add("--workers", type=int, nargs="+", default=[1, 2, 3, 4], help="how many, one job after the other; may repeat")
    add("-o", "--output", type=Path, default=Path("bench-output"), metavar="DIR", help="default: bench-output")
    given = parser.parse_args(arguments)
    return run(given.output, "bulk", lambda: measure(given), markdown)


if __name__ == "__main__":
    sys.exit(main())
