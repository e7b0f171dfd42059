"""What is shown and told of a deployment is there: a real Prometheus scrapes a server under load.

GPU metrics come from a peer that says Triton's own names, since no GPU is needed to run this; that the names are
Triton's is read from the program. The hosted model is the peer that the SDK's tests have, behind its true API.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cutaway
import httpx
import promql_parser
import pytest
from cutaway.contract.errors import CutawayError, RateLimitExceeded, RequestCancelled, ServiceError

import gateway.metrics
from runtime.checks import check_machine
from runtime.compose import STREAM
from runtime.server import Server, ServerOptions
from tests.client.hosted.peers import Peer, ReplicateScript, Reply, picture
from tests.conftest import ROOT
from tests.integration.kserve import asking
from tests.operations.prometheus import FOLDER, Prometheus, read, scraping
from tests.runtime.leftovers import wait_for
from tests.service.services import REMOVE, data_uri

DASHBOARD = ROOT / "deploy" / "monitoring" / "grafana" / "cutaway.json"
RULES = [
    rule
    for name in ("recording.yml", "alerts.yml")
    for group in read(FOLDER / name)["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
GPU_METRICS = {
    "nv_gpu_utilization": 0.5,
    "nv_gpu_memory_total_bytes": 16e9,
    "nv_gpu_memory_used_bytes": 6e9,
}
COMPARED = {"==", "!=", ">", "<", ">=", "<=", "and", "or", "unless"}
LIMIT_S = 60.0
BURST = 12

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")) and not os.environ.get("CI"),  # CI installs it
    reason="Prometheus is not installed: apt install prometheus",
)


# ---- files ------------------------------------------------------------------------------------------------------


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


@needs_prometheus
def test_configuration_and_rules_are_valid() -> None:
    checked = promtool("check", "config", FOLDER / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_prometheus
@pytest.mark.parametrize(
    ("given", "wrong"),
    [("", ""), ("> 0.02", "> 0.2"), ("CANCELLED", "CANCELED"), ("0.08 +", "8 +"), ("for: 1m #", "for: 0s #")],
)
def test_alerts_fire_and_rest(given: str, wrong: str, tmp_path: Path) -> None:
    """And the tests of the rules notice a wrong one."""
    for file in FOLDER.iterdir():
        text = file.read_text()
        (tmp_path / file.name).write_text(text if "test" in file.name else text.replace(given, wrong))
    tested = promtool("test", "rules", tmp_path / "alerts_test.yml")
    assert (tested.returncode == 0) is (given == wrong), tested.stdout + tested.stderr


def test_each_alert_has_a_runbook_and_tests_of_firing_and_resting() -> None:
    titles = [panel["title"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    asked = [each for test in read(FOLDER / "alerts_test.yml")["tests"] for each in test["promql_expr_test"]]
    for name, alert in ALERTS.items():
        assert len(alert["annotations"]["runbook"].split()) >= 40, name
        for panel in re.findall(r'"([A-Z][^"]+)"', alert["annotations"]["runbook"]):
            assert any(title.startswith(panel) for title in titles), panel
        assert alert["annotations"]["summary"]
        assert alert["labels"]["severity"] in ("critical", "warning")
        about = [each for each in asked if f'"{name}"' in each["expr"]]
        assert {bool(each["exp_samples"]) for each in about} == {True, False}, name


def test_errors_that_count_are_those_that_callers_are_not_to_blame_for() -> None:
    def below(kind: type[CutawayError]) -> set[str]:
        return {kind.code}.union(*map(below, kind.__subclasses__()))

    wanted = below(ServiceError) - {RateLimitExceeded.code, RequestCancelled.code}
    (found,) = {
        frozenset(codes.split("|")) - {"CANCELLED"}
        for rule in RULES
        for codes in re.findall(r'code=~"([A-Z_|]+)"', rule["expr"])
    }
    assert found == wanted == set(gateway.metrics.CODES) - {"OK"}
    pipeline = (ROOT / "model_repository" / "ensemble_pipeline" / "1" / "metrics.py").read_text()
    assert f"CODES = {gateway.metrics.CODES}".replace("'", '"') in pipeline


def test_the_dashboard_is_what_its_code_makes(tmp_path: Path) -> None:
    made = tmp_path / "cutaway.json"
    code = f"import runpy; made = runpy.run_path({str(DASHBOARD.parents[1] / 'dashboard.py')!r}); "
    code += f"open({str(made)!r}, 'w').write(made['build']())"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert made.read_text() == DASHBOARD.read_text(), "run python deploy/monitoring/dashboard.py"


def test_metrics_of_gpus_are_those_of_triton() -> None:
    (library,) = check_machine().libraries.glob("libtritonserver*.so")
    program = library.read_bytes()
    # The compiler keeps some long names in pieces of 16 bytes.
    assert {name for name in GPU_METRICS if name[:16].encode() in program} == set(GPU_METRICS)
    used = set(re.findall(r"\bnv_gpu_\w+", DASHBOARD.read_text() + json.dumps(RULES)))
    assert used == set(GPU_METRICS)


# ---- a server under load ----------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A server that was under load, the Prometheus that scrapes it, and what callers got."""

    prometheus: Prometheus
    outcomes: Counter[str]
    """Of pictures that reached the pipeline, by code."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, samples: list[Path]) -> Iterator[Watched]:
    script = ReplicateScript(file=Reply(body=picture(size_wh=(640, 384)), headers={"Content-Type": "image/png"}))
    labelled = "\n".join(f'{name}{{gpu_uuid="GPU-1"}} {value}' for name, value in GPU_METRICS.items())
    folder, patched = tmp_path_factory.mktemp("watched"), pytest.MonkeyPatch()
    with (
        Peer(script) as replicate,
        Peer(lambda _: Reply(body=labelled.encode() + b"\n")) as gpu,
        patched.context() as given,
    ):
        script.base = replicate.base_url
        given.setenv("REPLICATE_API_TOKEN", "r8_secret")
        options = ["--hosted", f"replicate={replicate.base_url}", "--max-requests-per-caller", "4"]
        options += ["--free-per-minute", "20", "--free-per-second", "1000"]
        server = Server(
            ServerOptions(
                cache_dir=folder / "runtime", canary_interval_s=2.0, service_port=0, gateway_options=tuple(options)
            ),
            say=print,
        )
        with server:
            targets = [server.metrics_url.split("/")[2], f"127.0.0.1:{gpu.port}"]
            (folder / "prometheus").mkdir()
            with scraping(targets, folder / "prometheus") as prometheus:
                # An increase is one from what was scraped before.
                assert wait_for(lambda: prometheus.ask("cutaway_gateway_requests_total"))
                yield Watched(prometheus, load(server, samples))


def load(server: Server, samples: list[Path]) -> Counter[str]:
    """All that can be asked of a server, good and bad; the codes of what reached the pipeline."""
    outcomes: Counter[str] = Counter()
    photograph = samples[0].read_bytes()
    with cutaway.Client(server.grpc_url) as client:
        client.cut(photograph)
        client.detect(photograph)
        outcomes["OK"] += 2
    with asking(server, "http") as ask:
        outcomes.update(ask(b"no picture").code for _ in range(3))
        outcomes.update([ask(photograph[:2000]).code])
        outcomes["OK"] += not ask(photograph).code

    def cut(_: int) -> str:
        with asking(server, "grpc") as ask:
            return ask(photograph).code or "OK"

    with ThreadPoolExecutor(BURST) as pool:  # more than one address may have
        found = Counter(pool.map(cut, range(BURST)))
    assert found["OVERLOADED"] > 0, found
    outcomes["OK"] += found["OK"]

    with cutaway.Stream(server.grpc_url, timeout_s=LIMIT_S) as stream:
        for _ in range(3):
            stream.submit(photograph)
            stream.latest(timeout_s=LIMIT_S)
    outcomes.update(load_service(server.service_url, photograph))

    (stub, *_) = [stub for stub in server._launcher.stubs if stub.model == STREAM]  # type: ignore[union-attr]
    os.kill(stub.pid, 9)
    assert wait_for(lambda: server.reloads == 1)
    return outcomes


def load_service(url: str, photograph: bytes) -> list[str]:
    """The HTTP service's part, up to the caller's limit of requests a minute; codes of what reached the pipeline."""
    with httpx.Client(base_url=url, timeout=LIMIT_S, trust_env=False) as http:

        def post(path: str, data: bytes) -> httpx.Response:
            return http.post(path, files={"image": ("photo.jpg", data, "image/jpeg")})

        assert post(REMOVE, photograph).status_code == 200
        assert post(REMOVE, b"no picture").status_code == 400
        larger = http.post("/api/ai/hd-image", json={"image": data_uri(picture(), "image/png"), "scale": 4}).json()
        assert larger.get("provider") == "replicate", larger
        jobs = [post(f"{REMOVE}-async", data).json()["check_url"] for data in (photograph, photograph[:2000])]

        def states() -> list[str]:
            return [http.get(job).json()["status"] for job in jobs]

        assert wait_for(lambda: states() == ["completed", "failed"]), states()
        assert [http.get("/api/video/status/none").status_code for _ in range(25)][-1] == 429
    return ["OK", "OK", "CORRUPT_IMAGE"]  # a form, a job, and a job of half a picture


def texts(expression: str) -> list[str]:
    """An expression's operands where it compares or joins, for a comparison returns nothing while all is well."""

    def parts(node: Any) -> Iterator[str]:
        if isinstance(node, promql_parser.ParenExpr):
            yield from parts(node.expr)
        elif isinstance(node, promql_parser.BinaryExpr) and str(node.op) in COMPARED:
            yield from parts(node.lhs)
            yield from parts(node.rhs)
        elif isinstance(node, promql_parser.Call) and node.func.name == "absent":
            yield from parts(node.args[0])
        elif not isinstance(node, promql_parser.NumberLiteral):
            yield node.prettify()

    return list(parts(promql_parser.parse(expression)))


def dashboard_queries() -> list[tuple[str, str]]:
    """Expression and legend."""
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    found = [(target["expr"], target["legendFormat"]) for panel in panels for target in panel["targets"]]
    return [(expression.replace("$__rate_interval", "1m"), legend) for expression, legend in found]


@needs_prometheus
def test_every_query_returns_something(watched: Watched) -> None:
    """Those of the dashboard, and what the rules record, compare and join."""
    legends = dict(dashboard_queries())
    queries = [*legends, *(rule["record"] for rule in RULES if "record" in rule)]
    queries += [text for rule in RULES for text in texts(rule["expr"])]
    assert len(set(queries)) > 60
    missing, give_up_at = set(queries), time.monotonic() + LIMIT_S
    while missing and time.monotonic() < give_up_at:  # a rate needs two scrapes, what is recorded one more second
        missing = {query for query in missing if not watched.prometheus.ask(query)}
        time.sleep(0.5 * bool(missing))
    assert not missing, "\n".join(sorted(missing))
    for query, legend in legends.items():
        named = set(re.findall(r"\{\{(\w+)\}\}", legend))
        assert any(named <= set(labels) for labels, _ in watched.prometheus.ask(query)), query  # a label may be empty
    assert watched.prometheus.ask("no_such_metric") == []


@needs_prometheus
def test_figures_are_what_callers_got(watched: Watched) -> None:
    """Health checks, one every two seconds, are in none of them."""
    ask = watched.prometheus.ask

    def outcomes() -> dict[str, float]:
        return {labels["code"]: value for labels, value in ask("sum by (code) (cutaway_requests_total) > 0")}

    wanted = {
        f"sum(pipeline_requests_total) == {watched.outcomes.total()}",
        'cutaway_jobs_finished_total{status="completed"} == 1',
        'cutaway_jobs_finished_total{status="failed"} == 1',
        "sum(cutaway_jobs_finished_total) == 2",
        "sum(cutaway_jobs) == 0",
        'cutaway_calls_total{operation="upscale", provider="replicate", code="OK"} == 1',
        f'cutaway_restarts_total{{part="{STREAM}"}} == 1',
        'cutaway_gateway_shed_total{bound="per_minute"} >= 5',
        'cutaway_gateway_shed_total{bound="caller"} >= 1',
        "cutaway:errors:rate5m > 0",  # though all of these came at once, and never again
        'cutaway_canaries_total{part="matting", outcome="healthy"} >= 1',
        'sum(cutaway_gateway_requests_total{model="stream_pipeline", code="OK"}) >= 3',
        'cutaway:matting_target:seconds{instance=~".*"} == 2',
    }
    # Each is as late as its own scrape, rule or count: one that is right stays so, but they get there one by one.
    assert wait_for(lambda: all(map(ask, wanted))), [each for each in wanted if not ask(each)]
    assert outcomes() == watched.outcomes
