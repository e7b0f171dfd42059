"""CPU milliseconds of a picture in the networks alone, for `benchmarks.bulk`: the bound of what workers can do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cutaway.contract.errors import InputError
from cutaway.contract.options import parse_options

from bulk.job import SURROUNDINGS
from bulk.networks import Arrays, Images, Networks, models
from runtime.compose import CHECKOUT
from runtime.devices import cores

WARM_UP = 5


def floor_ms(folder: Path) -> float:
    """Of a folder's pictures, by as many processes at once as there are cores, which share caches as workers do."""
    command = [sys.executable, "-m", "benchmarks.bulk_floor", str(folder)]
    environment = os.environ | SURROUNDINGS["env_vars"] | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(cores())
    ]
    said = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started), said
    return sum(map(float, said)) / len(said)


def measure(files: Sequence[Path]) -> float:
    """Of one process: the calls that the pipeline makes of the networks, on one thread, and nothing else."""
    from pipeline.run import run as cut  # bulk has made it importable

    networks, spent_s = Networks("nano", None, "cpu", threads=1), 0.0

    def timed(name: str, images: Images) -> Arrays:
        nonlocal spent_s
        begun = time.thread_time()
        answer = networks.run(name, images)
        spent_s += time.thread_time() - begun
        return answer

    for number, file in enumerate([*files[:WARM_UP], *files]):
        spent_s *= number != WARM_UP
        with suppress(InputError):
            cut(file.read_bytes(), parse_options({"subject": "auto"}), models(timed, networks.facts()))
    return spent_s / len(files) * 1000


if __name__ == "__main__":
    print(measure(sorted(Path(sys.argv[1]).iterdir())))
