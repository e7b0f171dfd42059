"""A real Prometheus with the project's configuration, which scrapes what a test names."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from ruamel.yaml import YAML

from runtime.checks import free_ports
from tests.conftest import ROOT

FOLDER = ROOT / "deploy" / "monitoring" / "prometheus"
READY_S = 60.0

Series = tuple[dict[str, str], float]
"""The labels and the value of one series."""


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that runs; `http` has its address."""

    http: httpx.Client

    def ask(self, query: str) -> list[Series]:
        """The series that a query returns now, without those whose value is not a number."""
        answer = self.http.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", f"{query}: {answer['error']}"
        found = [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]
        return [(labels, value) for labels, value in found if value == value]


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


@contextmanager
def scraping(targets: Sequence[str], folder: Path) -> Iterator[Prometheus]:
    """Prometheus with the project's configuration but for two things: it scrapes `targets`, and every second.

    Args:
        targets: HOST:PORT of each.
        folder: an empty one, for its files.
    """
    configuration = read(FOLDER / "prometheus.yml")
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(FOLDER / name) for name in configuration["rule_files"]]
    (job,) = configuration["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": list(targets)}]
    file = folder / "prometheus.yml"
    with file.open("w") as stream:
        YAML().dump(configuration, stream)
    (port,) = free_ports("127.0.0.1", 1)
    address = f"127.0.0.1:{port}"
    options = [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}", "--log.level=warn"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", f"--config.file={file}", *options], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=30.0, trust_env=False) as http:
            _wait_ready(http, process, folder / "log")
            yield Prometheus(http)
    finally:
        process.terminate()
        process.wait(30.0)


def _wait_ready(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + READY_S
    while time.monotonic() < give_up_at:
        assert process.poll() is None, log.read_text()
        try:
            if http.get("/-/ready").status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"Prometheus is not ready: {log.read_text()}")
