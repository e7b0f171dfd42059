"""docker-compose.yml keeps to its schema, its settings are explained, and its services are closed up and sized."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gateway.service.settings import ServiceSettings
from runtime.checks import MIB, SHM_BYTES_PER_PROCESS, shm_bytes_per_process
from runtime.compose import PIPELINE, SOURCE, STREAM, STREAM_INSTANCES, read_config
from runtime.devices import MAX_INSTANCES
from runtime.keeper import FILES_MAX
from runtime.process import KILL_MARGIN_S
from runtime.weights import FREE_DETECTOR, NETWORKS, WHOLE_MATTING
from tests.docker.parts import COMPOSE, ROOT, VARIABLE, bytes_of, final_stage, reckoned, script, seconds, services

EXAMPLE = ROOT / ".env.example"
MONITORING = ROOT / "deploy" / "monitoring"
SERVICES = services()
SERVERS = ("server", "cpu")
OWN_USERS = {"prometheus": "65534:65534"}
"""Those of images whose volumes belong to them."""
SHM_FACTOR = 2
"""Twice what one process may need, since regions grow in steps and are not given back."""


def settings() -> dict[str, str]:
    """The settings of .env.example."""
    return dict(re.findall(r"^(\w+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE))


def check_schema(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_keeps_to_the_compose_schema(tmp_path: Path) -> None:
    checked = check_schema(COMPOSE)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(COMPOSE.read_text().replace("read_only: true", "readonly: true"))
    assert check_schema(wrong).returncode == 1


def test_every_setting_is_explained_with_its_default() -> None:
    used: dict[str, set[str]] = {}
    for name, default in VARIABLE.findall(COMPOSE.read_text()):
        used.setdefault(name, set()).add(default)
    assert {name: {value} for name, value in settings().items()} == used


def test_the_page_on_deploying_lists_every_setting() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    table = page.split("## Settings")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(settings())
    assert set(re.findall(r"`(CUTAWAY_\w+)`", page)) <= set(settings())


def test_what_fetching_needs_reaches_the_export_service() -> None:
    """And is what docker/export.py takes out again where it is empty."""
    names = script("export").NETWORK
    given = services({name: f"{name} of the host" for name in names})["export"]["environment"]
    assert {name: given[name] for name in names} == {name: f"{name} of the host" for name in names}
    assert set(given) == {*names, "HOME", "XDG_CACHE_HOME"}


def test_every_setting_has_words_before_it() -> None:
    explained = False
    for line in EXAMPLE.read_text().splitlines():
        if line.startswith("#"):
            explained = not line.startswith("# ----")
        elif not line:
            explained = False
        else:
            assert explained, f"{line} is not explained"


def test_every_setting_in_a_container_is_read_there() -> None:
    pipeline = (SOURCE / PIPELINE / "1" / "model.py").read_text()
    readers = {
        "server": (ROOT / "docker" / "serve.py").read_text(),
        "cpu": (ROOT / "docker" / "serve_cpu.sh").read_text(),
        "gateway": (ROOT / "docker" / "gateway.sh").read_text(),
    }
    service_settings = (ROOT / "gateway" / "service" / "settings.py").read_text()
    for service, reader in readers.items():
        for name in SERVICES[service]["environment"]:
            assert name in reader + pipeline + service_settings, f"{service} sets {name}, which nothing reads"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_closed_up_and_its_log_is_rotated(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == OWN_USERS.get(name, "1000:1000")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_published_on_loopback_and_reads_its_models_only(name: str) -> None:
    service = SERVICES[name]
    assert [port.split(":")[0] for port in service["ports"]] == ["127.0.0.1"] * 4
    assert [volume.rsplit(":", 1)[1] for volume in service["volumes"]] == ["ro"]


def test_plans_are_built_in_the_image_that_serves_them() -> None:
    server, export = SERVICES["server"], SERVICES["export"]
    for key in ("image", "build", "deploy"):
        assert export[key] == server[key], key
    assert export["volumes"][0] == server["volumes"][0].removesuffix(":ro")


def test_only_the_gpu_server_starts_by_itself() -> None:
    assert {name: service.get("profiles") for name, service in SERVICES.items()} == {
        "server": None,
        "export": ["export"],
        "cpu": ["cpu"],
        "load": ["load"],
        "gateway": ["gateways"],
        "redis": ["gateways"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_watches_is_pinned_and_bounded_and_on_loopback(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
    assert [port.split(":")[0] for port in service["ports"]] == ["127.0.0.1"]
    assert bytes_of(service["mem_limit"]) <= 768 * MIB
    assert service["pids_limit"] <= 256
    assert service["healthcheck"]["test"]
    folders = [volume.split(":") for volume in service["volumes"] if volume.startswith("./")]
    assert folders
    assert all((ROOT / folder[0]).exists() and folder[-1] == "ro" for folder in folders)


def test_prometheus_looks_for_the_services_that_have_metrics() -> None:
    (job,) = YAML(typ="safe").load((MONITORING / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (looked_for,) = job["dns_sd_configs"]
    assert set(looked_for["names"]) == {*SERVERS, "gateway"}
    assert SERVICES["server"]["ports"][2].endswith(f":{looked_for['port']}")
    assert SERVICES["prometheus"]["command"][0] == "--config.file=/etc/prometheus/prometheus.yml"


def test_grafana_has_no_administrator_and_the_prometheus_that_its_dashboard_names() -> None:
    given = SERVICES["grafana"]["environment"]
    assert given["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert given["GF_AUTH_BASIC_ENABLED"] == "false"
    assert given["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not any("PASSWORD" in name for name in given)
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = YAML(typ="safe").load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    named = set(re.findall(r'"uid": "([^"]+)"', (MONITORING / "grafana" / "cutaway.json").read_text())) - {"cutaway"}
    assert named == {source["uid"]}
    (provider,) = YAML(typ="safe").load((provisioning / "dashboards" / "cutaway.yml").read_text())["providers"]
    assert any(f":{provider['options']['path']}/" in volume for volume in SERVICES["grafana"]["volumes"])


def test_shared_memory_is_reckoned_from_the_processes() -> None:
    pipelines = sum(group.count for name in (PIPELINE, STREAM) for group in read_config(SOURCE / name).instance_group)
    each = SHM_FACTOR * SHM_BYTES_PER_PROCESS
    assert bytes_of(SERVICES["server"]["shm_size"]) == pipelines * each
    assert (
        bytes_of(SERVICES["cpu"]["shm_size"])
        == (MAX_INSTANCES + STREAM_INSTANCES + len([*NETWORKS, FREE_DETECTOR, WHOLE_MATTING])) * each
    )
    example = EXAMPLE.read_text()
    assert f"({pipelines})" in example, ".env.example names another number of instances"
    large = SHM_FACTOR * shm_bytes_per_process(2048)
    assert f"need {large // MIB} MiB for each: {pipelines * large // MIB}m." in example.replace("\n# ", " ")


@pytest.mark.parametrize("name", SERVERS)
def test_memory_and_processes_are_bounded_by_reckoning(name: str) -> None:
    """The sum stands beside the bound, part by part; it holds all, and shared memory counts."""
    service = SERVICES[name]
    text = COMPOSE.read_text().partition(f"\n  {name}:\n")[2].partition("mem_limit")[0]
    parts, found, total = reckoned(text)
    assert found == total
    assert found * MIB <= bytes_of(service["mem_limit"]) < 1.1 * found * MIB
    assert f"shared memory {bytes_of(service['shm_size']) // MIB}" in parts
    assert service["pids_limit"] >= 1024
    assert service["ulimits"]["nofile"]["hard"] == FILES_MAX


def test_docker_waits_for_pictures_under_way() -> None:
    exit_timeout_s = float(SERVICES["server"]["environment"]["CUTAWAY_EXIT_TIMEOUT_S"])
    for name in SERVERS:
        assert seconds(SERVICES[name]["stop_grace_period"]) >= exit_timeout_s + 2 * KILL_MARGIN_S
    drain = re.search(r"--drain-timeout-s (\d+)", (ROOT / "docker" / "gateway.sh").read_text())
    assert drain
    assert seconds(SERVICES["gateway"]["stop_grace_period"]) > float(drain[1]) > ServiceSettings.job_timeout_s


@pytest.mark.parametrize("name", SERVERS)
def test_health_is_the_canary_and_has_time_for_it(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][-1] == "/opt/cutaway/docker/healthcheck.py"
    assert seconds(check["timeout"]) > 2 * script("healthcheck").TIMEOUT_S
    own = next(one for one in final_stage(ROOT / SERVICES[name]["build"]["dockerfile"]) if one.name == "HEALTHCHECK")
    assert check["test"][-1] in own.text, "the image itself has another health check"


def test_settings_reach_the_services() -> None:
    chosen = {"CUTAWAY_BIND": "0.0.0.0", "CUTAWAY_HTTP_PORT": "9000", "CUTAWAY_SHM_SIZE": "1024m"}
    server = services(chosen)["server"]
    assert server["ports"][0] == "0.0.0.0:9000:8000"
    assert server["shm_size"] == "1024m"
