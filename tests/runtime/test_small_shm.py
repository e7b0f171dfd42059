"""A small /dev/shm, as in containers: one process that takes nearly all of it does not stop the others for good.

Before, ten small files that made the pipelines' regions grow stopped every stream while health was green.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.leftovers import GONE_S

pytestmark = pytest.mark.triton

ROOT = Path(__file__).resolve().parents[2]
SIZE_MIB = 400
UNSHARE = [["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]]
MOUNT = f"mount -t tmpfs -o size={SIZE_MIB}m tmpfs /dev/shm && exec"

INSIDE = """
import json, os, sys, time
from pathlib import Path

import cutaway

from runtime.checks import free_shm_bytes
from runtime.health import HealthStatus
from runtime.procfs import regions_of
from runtime.server import Server, ServerOptions

said, left, limit = [], int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
with Server(ServerOptions(cache_dir=Path(sys.argv[1]), instances=2), say=said.append) as server:
    victim = next(stub for stub in server.process.stubs() if stub.model == "ensemble_pipeline")
    (region, *_) = regions_of(victim.pid, server._run.shm_prefix)
    before = free_shm_bytes()
    with region.open("r+b") as file:
        os.posix_fallocate(file.fileno(), region.stat().st_size, before - left)
    full = free_shm_bytes()
    while server.reloads + server.restarts == 0 and time.monotonic() < limit:
        time.sleep(0.1)
    while free_shm_bytes() < before // 2 and time.monotonic() < limit:
        time.sleep(0.1)
    stream = server.probe.stream(30.0)
    with cutaway.Client(server.grpc_url) as client:
        cutouts = len(client.cut(Path("samples/astronaut.jpg")).cutouts)
    print(json.dumps({
        "before": before, "full": full, "after": free_shm_bytes(), "stream": stream.status.name, "cutouts": cutouts,
        "reloads": server.reloads, "restarts": server.restarts, "said": said,
    }))
"""


def in_small_shm() -> list[str]:
    """The beginning of a command line that runs the rest with a small /dev/shm of its own."""
    for words in UNSHARE:
        command = [*words, "sh", "-c", f'{MOUNT} "$@"', "sh"]
        if (
            shutil.which(words[0])
            and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
        ):
            return command
    pytest.skip("this user may not mount a file system of its own")


@pytest.mark.parametrize(("left_mib", "restarts"), [(100, 0), (2, 1)], ids=["nearly full", "full"])
def test_a_region_that_takes_nearly_all_comes_back(tmp_path: Path, left_mib: int, restarts: int) -> None:
    arguments = [str(tmp_path / "cache"), str(left_mib * 2**20), str(2 * GONE_S)]
    command = [*in_small_shm(), sys.executable, "-c", INSIDE, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=4 * GONE_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["full"] <= left_mib * 2**20
    assert found["after"] > found["before"] // 2
    assert (found["stream"], found["cutouts"]) == ("HEALTHY", 1)
    assert found["restarts"] == restarts, found["said"]
    assert any("MiB of /dev/shm, of " in line for line in found["said"]), found["said"]
