"""Running the command: inside this process, and as a process of its own; and servers that answer it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cutaway import cli
from cutaway.cli.codes import URL_VARIABLE

from tests.client import peers
from tests.client.answers import PNG, REPORT, wire_outputs

ONE = {**REPORT, "people": REPORT["people"][:1], "cutouts": REPORT["cutouts"][:1], "warnings": []}


def run(*arguments: str) -> int:
    """The command's exit code, whether it returns it or leaves early."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        for name in ("cutaway", "cutaway.cache"):
            logging.getLogger(name).setLevel(logging.NOTSET)


def command(
    *arguments: str, url: str = "grpc://127.0.0.1:1", encoding: str = "utf-8", stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "cutaway", *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        env={**os.environ, URL_VARIABLE: url, "PYTHONIOENCODING": encoding},
    )
    out, err = (stream.decode("utf-8", "surrogateescape") for stream in (ended.stdout, ended.stderr))
    return subprocess.CompletedProcess(ended.args, ended.returncode, out, err)


@contextmanager
def started(*arguments: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process to be signalled; it is killed at the end if it still runs."""
    # A shell starts what it runs in the background with SIGINT ignored, and its children inherit that; of a handler
    # they inherit nothing. A `preexec_fn` would fork, and beside the threads of gRPC's servers a fork can hang.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "cutaway", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, URL_VARIABLE: url},
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def one_cutout() -> peers.Handler:
    """Gives every picture one cut-out of the same person."""
    described, raw = wire_outputs(ONE, [PNG])
    described[1]["shape"], described[2]["shape"] = [1, 4], [1]
    boxes, scores = described[1]["parameters"], described[2]["parameters"]
    start = described[0]["parameters"]["binary_data_size"]
    raw = raw[: start + 16] + raw[start + 32 : start + 36] + raw[start + 40 :]
    boxes["binary_data_size"], scores["binary_data_size"] = 16, 4
    return peers.kserve_answer(described, raw)


@contextmanager
def answering(handler: peers.Handler | None = None) -> Iterator[str]:
    """The address of a server that answers like this, or with one cut-out."""
    with peers.tcp_peer(handler or one_cutout()) as port:
        yield f"http://127.0.0.1:{port}"


def lines_of(text: str) -> list[str]:
    """Lines up to their figures, sorted: several pictures are done at once."""
    return sorted(line.partition(" (")[0] for line in text.splitlines())


def read_jsonl(text: str) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in text.splitlines()]
