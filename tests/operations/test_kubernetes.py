"""deploy/kubernetes: every overlay renders, keeps to schemas and a policy, and agrees with itself and with the code."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from runtime.checks import MIB, SHM_BYTES_PER_PROCESS
from runtime.compose import PIPELINE, SOURCE, STREAM, STREAM_INSTANCES, read_config
from runtime.gate import KILL_MARGIN_S as GATE_MARGIN_S
from runtime.process import EXIT_TIMEOUT_S, KILL_MARGIN_S
from runtime.server import ServerOptions
from runtime.weights import FREE_DETECTOR, NETWORKS, WHOLE_MATTING
from tests.conftest import ROOT
from tests.docker.parts import final_stage, reckoned, script, services
from tests.operations.manifests import (
    KUBERNETES,
    MADE_BY,
    OVERLAYS,
    TOOLS,
    Object,
    as_pods,
    matches,
    mib,
    of_kind,
    one,
    rendered,
    templates,
    tool,
    with_component,
)

pytestmark = pytest.mark.skipif(not (TOOLS / ".installed").exists(), reason=f"needs {MADE_BY}")

ALL = (*OVERLAYS, "plans")
CUSTOM = ("PodMonitor", "ScaledObject", "ServingRuntime", "InferenceService")
overlay = pytest.mark.parametrize("name", ALL)
COMPOSE = services()


@pytest.fixture(scope="module")
def keda(tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    return with_component("gpu", "components/keda", tmp_path_factory.mktemp("keda"))


def written(objects: list[Object], path: Path) -> Path:
    with path.open("w") as file:
        YAML().dump_all(objects, file)
    return path


# ------------------------------------------------------------------------------------------------ schemas


def judged(objects: list[Object], folder: Path) -> str:
    """What kubernetes-validate has to say, "" for nothing."""
    path = written(objects, folder / "objects.yaml")
    done = subprocess.run([tool("kubernetes-validate"), "--strict", str(path)], capture_output=True, text=True)
    said = "\n".join(line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("INFO"))
    assert bool(done.returncode) == ("ERROR" in said), said
    return said


def test_native_objects_keep_to_kubernetes_schemas(tmp_path: Path) -> None:
    objects = [each for name in ALL for each in rendered(name) + as_pods(rendered(name)) if each["kind"] not in CUSTOM]
    assert {"Deployment", "Job", "HorizontalPodAutoscaler", "Pod"} <= {each["kind"] for each in objects}
    assert judged(objects, tmp_path) == ""
    broken = json.loads(json.dumps(one(objects, "Pod")))
    broken["spec"]["containers"][0]["readinesProbe"] = {}
    assert "readinesProbe" in judged([broken], tmp_path)


@pytest.mark.skipif(shutil.which("node") is None or not (TOOLS / "node_modules").exists(), reason="needs npm")
def test_monitors_and_scaled_objects_keep_to_their_definitions(keda: list[Object]) -> None:
    objects = [one(rendered(name), "PodMonitor") for name in OVERLAYS] + [one(keda, "ScaledObject")]
    broken = json.loads(json.dumps(objects[-1]))
    broken["spec"]["triggers"] = "none"
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", (ROOT / "tests/operations/crds/validate.mjs").read_text()],
        cwd=TOOLS,
        input="".join(json.dumps(each) + "\n" for each in [*objects, broken]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["", "", "", "", "data/spec/triggers must be array"]


def test_kserve_objects_have_kserve_fields() -> None:
    """By the models of KServe's own package; what is Kubernetes' in them is judged as a Pod above."""
    for each in rendered("kserve"):
        if each["kind"] in ("ServingRuntime", "InferenceService"):
            version = each["apiVersion"].rpartition("/")[2]
            kind = version[0].upper() + version[1:] + each["kind"]
            assert list(strangers(each["spec"], f"{kind}Spec", "spec")) == []
            wrong = {**each["spec"], "predictr": {}}
            assert list(strangers(wrong, f"{kind}Spec", "spec")) == ["spec.predictr"]
            assert each["apiVersion"].startswith("serving.kserve.io/")


def strangers(value: Any, kind: str, where: str) -> Iterator[str]:
    """Fields that KServe's model does not have, and values of another kind than it says."""
    if inner := re.fullmatch(r"list\[(\w+)\]", kind):
        assert isinstance(value, list), where
        for number, each in enumerate(value):
            yield from strangers(each, inner[1], f"{where}[{number}]")
    elif (model := kserve_model(kind)) is not None:
        names = {written: name for name, written in model.attribute_map.items()}
        for name, each in value.items():
            if name not in names:
                yield f"{where}.{name}"
            else:
                yield from strangers(each, model.openapi_types[names[name]], f"{where}.{name}")
    elif kind in ("str", "int", "bool") and type(value).__name__ != kind:
        yield f"{where}: {value!r} is no {kind}"


def kserve_model(kind: str) -> Any:
    """A class of the package `kserve`, whose own import would want servers; None for what is Kubernetes'."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()
    name = re.sub(r"v_?(\d)_?(alpha|beta)_?(\d)", r"v\1\2\3", name)
    (path,) = TOOLS.glob("lib/python3*/site-packages/kserve/models")
    if not (path / f"{name}.py").exists():
        return None
    for stub in ("kserve", "kserve.configuration"):
        module = sys.modules.setdefault(stub, types.ModuleType(stub))
        module.Configuration = object  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location(f"kserve_models_{name}", path / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return getattr(found, kind)


# ------------------------------------------------------------------------------------------------ policy


def test_each_finding_of_checkov_is_answered(keda: list[Object], tmp_path: Path) -> None:
    """What it finds without the list of exceptions is exactly that list, in which each has its reason."""
    for name in ALL:
        written(rendered(name) + as_pods(rendered(name)), tmp_path / f"{name}.yaml")
    written(keda, tmp_path / "keda.yaml")
    loose = one(rendered("cpu"), "Deployment", "cutaway-server")
    loose = {**loose, "metadata": {**loose["metadata"], "name": "loose", "namespace": "default"}}
    written([loose], tmp_path / "loose.yaml")
    config = KUBERNETES / "checkov.yaml"
    settings = YAML(typ="safe").load(config.read_text())
    done = subprocess.run(
        [
            tool("checkov"),
            "--directory",
            ".",
            "--framework",
            *settings["framework"],
            "--skip-download",
            "--output=json",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    results = json.loads(done.stdout)["results"]
    assert len(results["passed_checks"]) > 500
    found: dict[str, set[str]] = {}
    for each in results["failed_checks"]:
        found.setdefault(each["resource"], set()).add(each["check_id"])
    assert "CKV_K8S_21" in found.pop("Deployment.default.loose")  # it does look
    assert set().union(*found.values()) == set(settings["skip-check"])
    listed = config.read_text().partition("skip-check:")[2].strip().splitlines()
    assert all(re.fullmatch(r"\s*- CKV\w+ # .{20,}", line) for line in listed)


@overlay
def test_pods_are_closed_up(name: str) -> None:
    for maker, template in templates(rendered(name)):
        pod, (container,) = template["spec"], template["spec"]["containers"]
        context = pod["securityContext"] | container["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] >= 10000, maker
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["fsGroup"] == context["runAsUser"]
        limits = container["resources"]["limits"]
        assert {"cpu", "memory"} <= limits.keys()
        assert limits["memory"] == container["resources"]["requests"]["memory"] or maker == "cutaway-plans"
        assert limits.get("nvidia.com/gpu", "1") == "1"
    assert not of_kind(rendered(name), "Secret")
    assert one(rendered(name), "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


# ------------------------------------------------------------------------------------------------ agreement


@overlay
def test_names_labels_and_ports_agree(name: str) -> None:
    objects = rendered(name)
    pods = {maker: template["metadata"]["labels"] for maker, template in templates(objects)}
    ports = {maker: _ports(template) for maker, template in templates(objects)}
    for each in of_kind(objects, "Deployment"):
        assert matches(each["spec"]["selector"], pods[each["metadata"]["name"]])
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        for each in of_kind(objects, kind):
            spec = each["spec"]
            selector = (
                {"matchLabels": spec["selector"]}
                if kind == "Service"
                else spec.get("selector", spec.get("podSelector"))
            )
            chosen = [maker for maker, labels in pods.items() if matches(selector, labels)]
            assert chosen, f"{kind} {each['metadata']['name']} selects nothing"
            wanted = [port["targetPort"] for port in spec.get("ports", [])] if kind == "Service" else []
            wanted += [port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]]
            wanted += [end["port"] for end in spec.get("podMetricsEndpoints", [])]
            for maker in chosen:
                assert set(wanted) <= ports[maker].keys(), f"{kind} {each['metadata']['name']}"
            assert len(chosen) == 1 or kind == "PodMonitor" or each["metadata"]["name"] == "deny"
    for maker, template in templates(objects):
        (container,) = template["spec"]["containers"]
        for mount in container["volumeMounts"]:
            assert mount["name"] in {each["name"] for each in template["spec"]["volumes"]}, maker
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = container.get(kind, {}).get("httpGet")
            assert get is None or get["port"] in {*ports[maker], *ports[maker].values()}
        for constraint in template["spec"].get("topologySpreadConstraints", []):
            assert matches(constraint["labelSelector"], template["metadata"]["labels"])


def _ports(template: Object) -> dict[str, int]:
    (container,) = template["spec"]["containers"]
    return {each["name"]: each["containerPort"] for each in container.get("ports", [])}


def test_what_a_pod_refers_to_is_there_or_is_told() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    for name in ALL:
        claims = {
            each["metadata"]["name"] for each in of_kind(rendered(name) + rendered("plans"), "PersistentVolumeClaim")
        }
        maps = {each["metadata"]["name"] for each in of_kind(rendered(name), "ConfigMap")}
        for maker, template in templates(rendered(name)):
            text = json.dumps(template)
            assert set(re.findall(r'"claimName": "([^"]+)"', text)) <= claims, maker
            assert set(re.findall(r'"configMapRef": {"name": "([^"]+)"', text)) <= maps, maker
            secrets = {*re.findall(r'"secretName": "([^"]+)"', text)}
            secrets |= {*re.findall(r'"secret(?:Key)?Ref": {[^}]*"name": "([^"]+)"', text)}
            assert all(f"`{secret}`" in page or f" {secret} " in page for secret in secrets), secrets


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_only_gateways_and_prometheus_reach_servers(name: str) -> None:
    objects = rendered(name)
    deny = one(objects, "NetworkPolicy", "deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    server = one(objects, "NetworkPolicy", "cutaway-server")["spec"]
    assert server["egress"] == []
    peers = {port["port"]: rule["from"] for rule in server["ingress"] for port in rule["ports"]}
    gateway = [{"podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}}]
    monitoring = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert peers == {"http": gateway, "grpc": gateway, "metrics": monitoring}
    policy = one(objects, "NetworkPolicy", "cutaway-gateway")["spec"]
    peers = {port["port"]: rule.get("from") for rule in policy["ingress"] for port in rule["ports"]}
    assert [port for port, who in peers.items() if who is None] == ["service"]
    assert peers["metrics"] == monitoring
    rules = [(json.dumps(rule["to"]), {port["port"] for port in rule["ports"]}) for rule in policy["egress"]]
    for component, service in (("server", "cutaway-server"), ("redis", "cutaway-redis")):
        (allowed,) = [ports for to, ports in rules if f'"{component}"' in to]
        assert allowed == {port["port"] for port in one(objects, "Service", service)["spec"]["ports"]}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_gateways_find_servers_and_redis(name: str) -> None:
    objects = rendered(name)
    _, template = next(pair for pair in templates(objects) if pair[0] == "cutaway-gateway")
    (container,) = template["spec"]["containers"]
    given = one(objects, "ConfigMap", container["envFrom"][0]["configMapRef"]["name"])["data"]
    server = one(objects, "Service", given["CUTAWAY_SERVER"])["spec"]
    assert server["clusterIP"] == "None", "behind one address a gateway keeps to one server"
    assert [port["port"] for port in server["ports"]] == [8000, 8001]
    servers = next(each["data"] for each in of_kind(objects, "ConfigMap") if "server" in each["metadata"]["name"])
    assert "--connection-age-s=" in servers["CUTAWAY_GATEWAY_OPTIONS"], "new servers would never be found"
    redis = next(each["value"] for each in container["env"] if each["name"] == "CUTAWAY_REDIS_URL")
    host, port = redis.rpartition("@")[2].split(":")
    assert int(port) in [each["port"] for each in one(objects, "Service", host)["spec"]["ports"]]
    assert "--keys-required" in given["CUTAWAY_GATEWAY_OPTIONS"]
    keys = next(each["mountPath"] for each in container["volumeMounts"] if each["name"] == "keys")
    assert f"--keys={keys}/keys.toml" in given["CUTAWAY_GATEWAY_OPTIONS"]


def test_settings_are_read_by_what_is_started() -> None:
    server = "".join((ROOT / "docker" / name).read_text() for name in ("serve.py", "serve_cpu.sh"))
    readers = {"cutaway-server": server, "cutaway-gateway": (ROOT / "docker" / "gateway.sh").read_text()}
    for name in ("cpu", "gpu"):
        for each in of_kind(rendered(name), "ConfigMap"):
            reader = readers[re.sub(r"-[a-z0-9]+$", "", each["metadata"]["name"])]
            assert all(setting in reader for setting in each["data"]), each["data"]


@overlay
def test_images_and_commands_are_those_of_compose(name: str) -> None:
    files = {"cutaway-cpu": "cpu", "cutaway-gpu": "gpu"}
    for maker, template in templates(rendered(name)):
        (container,) = template["spec"]["containers"]
        image, _, tag = container["image"].rpartition(":")
        if image == "valkey/valkey":
            assert container["image"] == COMPOSE["redis"]["image"]
            assert container["args"][: len(COMPOSE["redis"]["command"])] == COMPOSE["redis"]["command"]
            continue
        copied = [one.text for one in final_stage(ROOT / "docker" / f"Dockerfile.{files[image]}") if one.name == "COPY"]
        assert re.match(r"\d+\.\d+", tag)
        commands = [container.get("command", []), *(container.get(f"{kind}Probe", {}).get("exec", {}).get("command", [])
                    for kind in ("startup", "readiness"))]  # fmt: skip
        for command in filter(None, commands):
            assert any(f"docker/{Path(command[-1]).name}" in text for text in copied), f"{maker}: {command}"
        mounts = {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")}
        service = {"cutaway-gateway": "gateway", "cutaway-plans": "export"}.get(
            maker, "server" if "gpu" in image else "cpu"
        )
        wanted = {each.partition(":")[0] for each in COMPOSE[service]["tmpfs"]}
        assert wanted <= mounts, f"{maker} cannot write to {wanted - mounts}"
        if service in ("server", "cpu", "export"):
            assert "/dev/shm" in mounts
        models = [each for each in container["volumeMounts"] if each["mountPath"] == "/opt/cutaway/models"]
        assert [each.get("readOnly", False) for each in models] == (
            {"server": [True], "export": [False]}.get(service, [])
        )


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("name", OVERLAYS)
def test_shared_memory_and_memory_are_reckoned(name: str) -> None:
    template = dict(templates(rendered(name)))["cutaway" if name == "kserve" else "cutaway-server"]
    (container,) = template["spec"]["containers"]
    limits = container["resources"]["limits"]
    if name == "cpu":
        networks = len([*NETWORKS, FREE_DETECTOR, WHOLE_MATTING])
        processes = int(limits["cpu"]) + STREAM_INSTANCES + networks
    else:
        processes = sum(
            group.count for each in (PIPELINE, STREAM) for group in read_config(SOURCE / each).instance_group
        )
    shm = next(each["emptyDir"] for each in template["spec"]["volumes"] if each["name"] == "shm")
    assert shm["medium"] == "Memory"
    assert mib(shm["sizeLimit"]) * MIB == 2 * processes * SHM_BYTES_PER_PROCESS
    folder = "gpu" if name == "kserve" else name
    told = (KUBERNETES / "overlays" / folder / "server.yaml").read_text()
    parts, found, total = reckoned(told)
    assert found == total <= mib(limits["memory"]) < 1.1 * total
    assert f"shared memory {mib(shm['sizeLimit'])}" in parts


@pytest.mark.parametrize("name", OVERLAYS)
def test_probes_and_the_end_have_time(name: str) -> None:
    timeout_s = script("healthcheck").TIMEOUT_S
    start_timeout_s = next(each.default for each in dataclasses.fields(ServerOptions) if each.name == "start_timeout_s")
    for maker, template in templates(rendered(name)):
        if maker == "cutaway-redis":
            continue
        (container,) = template["spec"]["containers"]
        startup, readiness, liveness = (container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness"))
        assert startup["exec"] == readiness["exec"] == {"command": ["python3", "/opt/cutaway/docker/healthcheck.py"]}
        assert startup["timeoutSeconds"] > 3 * timeout_s, "detection and both kinds of matting"
        assert startup["periodSeconds"] * startup["failureThreshold"] > 1.5 * start_timeout_s
        assert liveness["httpGet"]["path"] == "/v2/health/live", "a canary would end who is overloaded"
        notice_s = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
        gate_s = EXIT_TIMEOUT_S + KILL_MARGIN_S
        needed_s = notice_s + (
            gate_s if maker == "cutaway-gateway" else gate_s + GATE_MARGIN_S + EXIT_TIMEOUT_S + KILL_MARGIN_S
        )
        assert needed_s + 5 <= template["spec"]["terminationGracePeriodSeconds"], maker


def test_scaling_has_one_controller_and_the_same_bounds(keda: list[Object]) -> None:
    hpa, scaled = one(rendered("gpu"), "HorizontalPodAutoscaler")["spec"], one(keda, "ScaledObject")["spec"]
    assert not of_kind(keda, "HorizontalPodAutoscaler")
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (scaled["minReplicaCount"], scaled["maxReplicaCount"])
    assert hpa["behavior"] == scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    predictor = one(rendered("kserve"), "InferenceService")["spec"]["predictor"]
    external = [each["external"] for each in predictor["autoScaling"]["metrics"]]
    assert [each["metric"]["query"] for each in external] == [each["metadata"]["query"] for each in scaled["triggers"]]
    values = [each["pods"]["target"]["averageValue"] for each in hpa["metrics"]]
    assert values == [each["metadata"]["threshold"] for each in scaled["triggers"]]
    assert values == [each["target"]["averageValue"] for each in external]
    adapter = YAML(typ="safe").load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert [each["name"]["as"] for each in adapter] == [each["pods"]["metric"]["name"] for each in hpa["metrics"]]
    namespace = one(rendered("gpu"), "Namespace")["metadata"]["name"]
    assert all(f'namespace="{namespace}"' in each["metadata"]["query"] for each in scaled["triggers"])
