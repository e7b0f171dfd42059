"""The CPU overlay's containers run as their manifests say, and one of two servers ends under load without a loss.

Two servers, a gateway and Redis, by pods.py. What Kubernetes itself does is not tried: there was no cluster.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tests.operations.manifests import KUBERNETES, MADE_BY, TOOLS, Object, one, rendered, with_component
from tests.operations.pods import LIMIT_S, NAMESPACE, Node, Pod, wanting

WANTING = wanting()
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not (TOOLS / ".installed").exists(), reason=f"needs {MADE_BY}"),
    pytest.mark.skipif(bool(WANTING), reason=f"needs {WANTING}"),
]

SERVERS = ("10.77.0.11", "10.77.0.12")
REDIS, GATEWAY = "10.77.0.9", "10.77.0.20"

ASK = """
import json, sys, httpx
method, url, headers, form = json.loads(sys.argv[1])
files = {"image": open(form, "rb")} if form else None
answer = httpx.request(method, url, headers=headers, files=files, timeout=60, trust_env=False)
print(json.dumps([answer.status_code, answer.text if form is None else len(answer.content)]))
"""

LOAD = """
import json, sys, threading, time
from collections import Counter
from pathlib import Path
import cutaway
urls, picture, stop = json.loads(sys.argv[1]), Path(sys.argv[2]).read_bytes(), Path(sys.argv[3])
outcomes = Counter()

def send(url):
    with cutaway.Client(url, retry=cutaway.RetryPolicy(retries=0)) as client:
        while not stop.exists():
            try:
                client.cut(picture, timeout_s=60)
                outcomes["OK"] += 1
            except cutaway.CutawayError as error:
                outcomes[f"{type(error).__name__}: {error}"] += 1
                time.sleep(0.1)

threads = [threading.Thread(target=send, args=(url,)) for url in urls]
[each.start() for each in threads]
[each.join() for each in threads]
print(json.dumps(outcomes))
"""

READINESS = """
import json, sys, time, httpx
seen, end = [], time.monotonic() + 120
while time.monotonic() < end and seen[-1:] != ["gone"]:
    try:
        now = httpx.get(sys.argv[1], timeout=10, trust_env=False).status_code
    except httpx.ConnectError:
        now = "gone"
    except httpx.TransportError:  # a connection that is closed meanwhile
        now = None
    if now is not None and seen[-1:] != [now]:
        seen.append(now)
        print(now, flush=True) if len(seen) == 1 else None
    time.sleep(0.02)
print(json.dumps(seen))
"""


@dataclass
class Cluster:
    """What runs, and a key for the HTTP service."""

    node: Node
    servers: list[Pod]
    gateway: Pod
    key: str

    def probe(self, deployment: str, kind: str) -> Object:
        spec = one(self.node.objects, "Deployment", deployment)["spec"]["template"]["spec"]
        found: Object = spec["containers"][0][f"{kind}Probe"]
        return found

    def ask(self, method: str, url: str, form: Path | None = None, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.node.ask(ASK, json.dumps([method, url, named, str(form) if form else None]))

    def load(self, stop: Path, picture: Path, *urls: str) -> subprocess.Popen[str]:
        """Requests from a thread for each URL, one after the other, none of them sent again, until `stop` is there."""
        return self.node.run(LOAD, json.dumps(urls), str(picture), str(stop))

    def served(self, server: str) -> float:
        _, text = self.ask("GET", f"http://{server}:8002/metrics")
        found = re.search(r'^nv_inference_request_success\{model="ensemble_pipeline".* (\S+)$', text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = subprocess.run(
        [sys.executable, "-m", "gateway", "--new-key", "pro", "tester"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'client'}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    key = made.splitlines()[0].rpartition(" ")[2]
    given = {
        "cutaway-redis": {"password": secrets.token_hex(16)},
        "cutaway-keys": {"keys.toml": made.partition("--keys:\n")[2]},
    }
    node = Node(tmp_path_factory.mktemp("node"), rendered("cpu"), given)
    try:
        node.resolve(cutaway_server=SERVERS, cutaway_redis=[REDIS])
        redis = node.start("cutaway-redis", "redis", 9)
        small = {"CUTAWAY_INSTANCES": "1", "CUTAWAY_THREADS": "1"}  # there are two cores for both
        servers = [node.start("cutaway-server", f"server{number}", 10 + number, **small) for number in (1, 2)]
        running = Cluster(node, servers, servers[0], key)
        startup = running.probe("cutaway-server", "startup")
        node.wait(lambda: all(pod.passes(startup) for pod in servers), "the servers are not ready")
        running.gateway = node.start("cutaway-gateway", "gateway", 20)
        gateway_startup = running.probe("cutaway-gateway", "startup")
        node.wait(lambda: running.gateway.passes(gateway_startup), "the gateway is not ready")
        ping = [
            word.replace("valkey", "redis") for word in running.probe("cutaway-redis", "readiness")["exec"]["command"]
        ]
        assert redis.exec(*ping).stdout == "PONG\n"
        yield running
    finally:
        node.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory, samples: list[Path]) -> Path:
    """A sample, small: the cores are few."""
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "small.jpg"
    image = Image.open(samples[0]).convert("RGB")
    image.thumbnail((320, 320))
    image.save(path, quality=90)
    return path


def test_who_they_are_and_where_they_write(cluster: Cluster) -> None:
    for pod in (*cluster.servers, cluster.gateway):
        assert pod.exec("id", "-u").stdout.strip() == "10001"
        refused = [path for path in ("/opt/cutaway", "/etc", "/root", "/") if pod.exec("touch", f"{path}/x").returncode]
        assert refused == ["/opt/cutaway", "/etc", "/root", "/"]
        assert pod.exec("grep", "CapEff", "/proc/1/status").stdout.split() == ["CapEff:", "0" * 16]


def test_liveness_is_the_gates(cluster: Cluster) -> None:
    """By the pod's address, as a kubelet asks; port by the container's name of it."""
    for deployment, address in (("cutaway-server", SERVERS[0]), ("cutaway-gateway", GATEWAY)):
        get = cluster.probe(deployment, "liveness")["httpGet"]
        assert get["port"] == "http"
        assert cluster.ask("GET", f"http://{address}:8000{get['path']}")[0] == 200


def test_the_service_wants_a_key_and_its_own_name(cluster: Cluster, picture: Path) -> None:
    url = f"http://{GATEWAY}:55433/api/background-removal/remove"
    assert cluster.ask("POST", url, picture)[0] == 401
    for host, status in ((f"cutaway-gateway.{NAMESPACE}.svc", 200), (GATEWAY, 200), ("rebound.example", 403)):
        assert cluster.ask("POST", url, picture, X_API_Key=cluster.key, Host=host)[0] == status
    task = cluster.ask("POST", url.replace("/remove", "/remove-async"), picture, X_API_Key=cluster.key)
    assert task[0] == 202  # Redis took it, by its password


def test_all_servers_are_asked_in_turn(cluster: Cluster, picture: Path, tmp_path: Path) -> None:
    before = [cluster.served(each) for each in SERVERS]
    load = cluster.load(tmp_path / "stop", picture, f"grpc://{GATEWAY}:8001", f"http://{GATEWAY}:8000")
    cluster.node.wait(
        lambda: all(cluster.served(each) > old + 3 for each, old in zip(SERVERS, before, strict=True)),
        "one is not asked",
    )
    (tmp_path / "stop").touch()
    said, _ = load.communicate(timeout=LIMIT_S)
    assert json.loads(said).keys() == {"OK"}


def test_overloaded_is_alive_and_ready(cluster: Cluster, picture: Path, tmp_path: Path) -> None:
    """More wait than the queue has places for: callers are refused, and both probes pass."""
    load = cluster.load(tmp_path / "stop", picture, *[f"http://{SERVERS[0]}:8000"] * 16)
    pending = r'nv_inference_pending_request_count\{model="ensemble_pipeline".* ([1-9]\d*)$'
    metrics = f"http://{SERVERS[0]}:8002/metrics"
    cluster.node.wait(lambda: re.search(pending, cluster.ask("GET", metrics)[1], re.MULTILINE), "nobody waits")
    for _ in range(3):
        assert cluster.servers[0].passes(cluster.probe("cutaway-server", "readiness"))
        assert cluster.ask("GET", f"http://{SERVERS[0]}:8000/v2/health/live")[0] == 200
    (tmp_path / "stop").touch()
    said, _ = load.communicate(timeout=LIMIT_S)
    outcomes = json.loads(said)
    assert "OK" in outcomes and any("Overloaded" in each for each in outcomes), outcomes


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus")
def test_queries_have_values(cluster: Cluster, picture: Path, tmp_path: Path) -> None:
    """What KEDA, KServe and prometheus-adapter ask, asked of a real Prometheus that scrapes both servers under load."""
    scaled = with_component("cpu", "components/keda", tmp_path)
    queries = [each["metadata"]["query"] for each in one(scaled, "ScaledObject")["spec"]["triggers"]]
    for rule in YAML(typ="safe").load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]:
        queries.append(rule["seriesQuery"])
        filled = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
        queries.append(filled.replace("<<.LabelMatchers>>", f'namespace="{NAMESPACE}"'))
    targets = [
        {"targets": [f"{address}:8002"], "labels": {"namespace": NAMESPACE, "pod": f"server{number}"}}
        for number, address in enumerate(SERVERS)
    ]
    endpoint = one(cluster.node.objects, "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    scrape = {"job_name": "pods", "scrape_interval": "1s", "metrics_path": endpoint["path"], "static_configs": targets}
    (tmp_path / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))
    command = ["ip", "netns", "exec", cluster.node.name, "prometheus", "--web.listen-address=127.0.0.1:9090"]
    files = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    prometheus = subprocess.Popen([*command, *files], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    load = cluster.load(tmp_path / "stop", picture, *[f"grpc://{GATEWAY}:8001"] * 6)
    try:
        values = dict.fromkeys(queries, 0.0)

        def all_have() -> bool:
            for query in queries:
                status, text = _query(cluster, query)
                found = json.loads(text)["data"]["result"] if status == 200 else []
                values[query] = max(values[query], sum(float(each["value"][1]) for each in found))
            return all(values.values())

        cluster.node.wait(all_have, f"no values: {values}")
    finally:
        (tmp_path / "stop").touch()
        prometheus.terminate()
        prometheus.wait(LIMIT_S)
        load.communicate(timeout=LIMIT_S)


def _query(cluster: Cluster, query: str) -> Any:
    from urllib.parse import quote

    try:
        return cluster.ask("GET", f"http://127.0.0.1:9090/api/v1/query?query={quote(query)}")
    except json.JSONDecodeError:  # it does not listen yet
        return 0, ""


def test_a_server_ends_under_load_and_nothing_is_lost(cluster: Cluster, picture: Path, tmp_path: Path) -> None:
    """SIGTERM without preStop, which is harder: the gateway is connected to the server, and nothing is sent again by
    callers. Readiness goes off first, all requests are answered, and the process ends well."""
    ending = cluster.servers[0]
    urls = [f"grpc://{GATEWAY}:8001"] * 3 + [f"http://{GATEWAY}:8000"] * 3
    load = cluster.load(tmp_path / "stop", picture, *urls)
    readiness = cluster.node.run(READINESS, f"http://{SERVERS[0]}:8000/v2/health/ready")
    assert readiness.stdout is not None
    assert readiness.stdout.readline() == "200\n"
    before = cluster.served(SERVERS[0])
    cluster.node.wait(lambda: cluster.served(SERVERS[0]) > before + 3, "it is not asked")
    ending.terminate()
    assert ending.process.wait(LIMIT_S) == 0, ending.log.read_text()
    cluster.node.pods.remove(ending)
    subprocess.run(["ip", "netns", "del", ending.namespace], check=False)
    before = cluster.served(SERVERS[1])
    cluster.node.wait(lambda: cluster.served(SERVERS[1]) > before + 3, "the other one is not asked")
    (tmp_path / "stop").touch()
    said, _ = load.communicate(timeout=LIMIT_S)
    seen = json.loads(readiness.communicate(timeout=LIMIT_S)[0].splitlines()[-1])
    assert seen == [200, 503, "gone"], seen
    outcomes = json.loads(said)
    print(f"requests while one of two servers ended: {outcomes}")
    assert outcomes.keys() == {"OK"}, outcomes
