"""The gate as a process: ``python -m gateway --triton-http HOST:PORT …``.

It prints its ports as one line of JSON when it listens; SIGTERM and SIGINT drain it, and a second one ends it at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time

from gateway.service.keys import new_key
from gateway.service.settings import TIERS_PER_MINUTE, ServiceSettings
from gateway.settings import Settings, add_options, read_options

LOG_INTERVAL_S = 1.0


class _Sparse(logging.Filter):
    """The same message once a second: strangers do not fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, kind = time.monotonic(), f"{record.filename}:{record.lineno}"
        due = now - self._last.get(kind, 0.0) >= LOG_INTERVAL_S
        if due:
            self._last[kind] = now
        return due


async def _serve(settings: Settings, service: ServiceSettings) -> None:
    from gateway.serving import Gate

    loop, stop, force = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (force if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    gate = await Gate.start(settings, service)
    print(json.dumps(gate.ports), flush=True)
    await stop.wait()
    draining = asyncio.create_task(gate.stop())
    forced = asyncio.create_task(force.wait())
    await asyncio.wait((draining, forced), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        os._exit(0)
    forced.cancel()


def _print_key(tier: str, name: str) -> int:
    if tier not in TIERS_PER_MINUTE:
        print(f"error: tiers are {', '.join(TIERS_PER_MINUTE)}", file=sys.stderr)
        return 2
    key, lines = new_key(tier, name)
    print(f"The key, which is not stored anywhere: {key}\n\nIts lines for the file of --keys:\n{lines}")
    return 0


def main() -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it has a line for each connection that strangers break
    if len(sys.argv) == 4 and sys.argv[1] == "--new-key":
        return _print_key(*sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m gateway", description="What stands in front of Triton.")
    add_options(parser, "the gate", Settings)
    add_options(parser, "the HTTP service", ServiceSettings)
    given = parser.parse_args()
    given.redis_url = given.redis_url or os.environ.get("CUTAWAY_REDIS_URL", "")  # which may hold a password
    handler = logging.StreamHandler()
    handler.addFilter(_Sparse())
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s", handlers=[handler]
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        asyncio.run(_serve(read_options(Settings, given), read_options(ServiceSettings, given)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
