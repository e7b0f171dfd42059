"""A job on Ray: started on this machine or on a cluster, run, and ended."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

# Before Ray is imported: nothing is reported to anybody.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pyarrow as pa
import ray
import ray.data

from bulk.networks import Networks
from bulk.worker import Ledger, Settings, Worker
from runtime.process import ALLOCATOR

MOST_IN_A_BLOCK = 64
"""Pictures of one block, which is a part of the manifest. What a killed worker had done of its block is done again."""
BLOCKS_PER_WORKER = 8
"""At least, where there are pictures enough: workers that end together, and progress that is seen."""
CALLS_AT_ONCE = 64
"""Workers that one actor of networks serves: eight batches of the largest size."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Ray's shared memory on this machine. Names, and with shared networks 5 MB of each picture under way, are all that is
in it; by default Ray takes a third of the memory."""
SURROUNDINGS = {"env_vars": ALLOCATOR | {"MALLOC_ARENA_MAX": "1"}}
"""Of workers: memory is kept for the next picture, as in the server's processes, and in a single heap. Ray has more
threads than that, and heaps of several would be given back and cleared anew all the time, and grow with their gaps."""
NO_PROGRESS_S = 4 * 3600.0
"""Without a finished block for so long a job fails, in Ray Data after half an hour: a large network on a CPU takes a
minute for a picture."""


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[tuple[int, int]]:
    """A Ray of our own on loopback, without a dashboard, which ends with the block; or a cluster's.

    Args:
        address: of the cluster, "auto" on one of its nodes; None for a Ray of our own.
        cpus: how many processes of one thread ours has place for.

    Returns:
        How many CPUs and GPUs there are.
    """
    with ExitStack() as stack:
        if address is None:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="cutaway-bulk-", ignore_cleanup_errors=True)
            )
            # Ray would write a token into the home folder, and keep it.
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            given: dict[str, Any] = {"address": "local", "num_cpus": cpus, "_temp_dir": folder}
            given |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            ray.init(**given, _node_ip_address="127.0.0.1", logging_level="warning")
        else:
            ray.init(address=address, logging_level="warning")
        stack.callback(ray.shutdown)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; Ray has set a handler of its own
        found = ray.cluster_resources()
        yield int(found.get("CPU", 0)), int(found.get("GPU", 0))


def blocks(names: Sequence[str], workers: int) -> list[pa.Table]:
    """The names in blocks, in order."""
    size = max(1, min(MOST_IN_A_BLOCK, len(names) // (workers * BLOCKS_PER_WORKER)))
    return [pa.table({"path": names[at : at + size]}) for at in range(0, len(names), size)]


def run(settings: Settings, names: Sequence[str], workers: int, shared: int, tally: Counter[str]) -> None:
    """Cut pictures out, on the Ray that this process is connected to.

    Args:
        workers: processes that cut out.
        shared: actors with the networks for all workers, on a GPU each unless the device is the CPU; 0 gives each
            worker its own.
        tally: how many pictures had which code; counted up.

    Raises:
        ray.exceptions.RayError, JobStopped, …: the job cannot go on.
    """
    gpus = 0 if settings.device == "cpu" else 1
    again: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    ledger = ray.remote(Ledger).options(**again).remote()
    actor = ray.remote(Networks).options(
        **again, num_gpus=gpus, max_concurrency=CALLS_AT_ONCE, runtime_env=SURROUNDINGS
    )
    given = settings.profile, settings.weights, settings.device, settings.threads, True
    actors = [actor.remote(*given) for _ in range(shared)]
    ray.get([each.facts.remote() for each in actors])
    near = [(ray.get(each.node.remote()), each) for each in actors]

    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = NO_PROGRESS_S
    dataset = ray.data.from_arrow(blocks(names, workers)).map_batches(
        Worker,
        fn_constructor_args=(settings, ledger, near),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1 if shared else settings.threads,
        runtime_env=SURROUNDINGS,
    )
    for done in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        tally.update(done.column("code").to_pylist())
