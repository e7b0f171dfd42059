"""The gate as a process: ``python -m gateway --triton-http HOST:PORT …``.

It prints its ports as one line of JSON when it listens; SIGTERM and SIGINT drain it, and a second one ends it at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time

from gateway.settings import Settings, parse

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


async def _serve(settings: Settings) -> None:
    from gateway.serving import Gate

    loop, stop, force = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (force if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    gate = await Gate.start(settings)
    print(json.dumps({name: gate.ports[name] for name in ("http", "grpc", "metrics")}), flush=True)
    await stop.wait()
    draining = asyncio.create_task(gate.stop())
    forced = asyncio.create_task(force.wait())
    await asyncio.wait((draining, forced), return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        os._exit(0)
    forced.cancel()


def main() -> int:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it has a line for each connection that strangers break
    settings = parse()
    handler = logging.StreamHandler()
    handler.addFilter(_Sparse())
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s", handlers=[handler]
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        asyncio.run(_serve(settings))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
