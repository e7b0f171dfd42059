"""What the containers start: settings into command lines, the health check, the supervision. No Docker needed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from runtime.__main__ import _parser
from runtime.checks import RuntimeProblem, check_machine
from runtime.compose import PIPELINE, Composed, compose, read_config
from runtime.devices import Device, Plan
from runtime.digest import sha256_of
from runtime.gpus import Gpu, Host
from runtime.launcher import Program
from runtime.process import Addresses, Sockets, bundled_environment, triton_arguments
from runtime.runs import open_run
from runtime.schedule import schedule_arguments
from runtime.weights import load_networks, profile_folder
from tests.docker.parts import ROOT, script
from tests.plan_records import a_record
from tests.runtime.leftovers import assert_nothing_left, wait_for

serve, healthcheck, export = script("serve"), script("healthcheck"), script("export")


# ------------------------------------------------------------------------------------------------ settings


def test_triton_knows_every_flag(tmp_path: Path) -> None:
    files, run = check_machine(), open_run(tmp_path)
    shown = subprocess.run(
        [files.server, "--help"], env=bundled_environment(files), capture_output=True, text=True, check=False
    )
    known = set(re.findall(r"^\s+(--[a-z-]+)", shown.stdout + shown.stderr, re.MULTILINE))
    for listen in (Sockets(tmp_path), Addresses("127.0.0.1", 1, 2, 3)):
        given = triton_arguments(run, listen, verbose=1, exit_timeout_s=5, traces_url="http://collector:4318/v1/traces")
        given += schedule_arguments("limited")
        flags = {argument.split("=")[0] for argument in given}
        assert "--trace-config" in flags
        assert flags <= known
        assert "--exit-timeout-secs=5" in given
    run.close()


def test_settings_are_read_and_empty_ones_are_none() -> None:
    given = {"CUTAWAY_EXIT_TIMEOUT_S": "5", "CUTAWAY_LOG_VERBOSE": "", "CUTAWAY_DIRECT": "", "CUTAWAY_HOSTS": "a.b c.d"}
    settings = serve.Settings.read(given)
    assert (settings.exit_timeout_s, settings.verbose, settings.direct) == (5, 0, False)
    assert (settings.profile, settings.hosts, settings.origins) == ("general", ("a.b", "c.d"), ())
    assert serve.Settings.read({"CUTAWAY_PROFILE": "lite-2k", "CUTAWAY_DIRECT": "1"}).direct


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUTAWAY_EXIT_TIMEOUT_S", "0"),
        ("CUTAWAY_EXIT_TIMEOUT_S", "30s"),
        ("CUTAWAY_LOG_VERBOSE", "5"),
        ("CUTAWAY_PROFILE", "genral"),
        ("CUTAWAY_PROFILE", "../general"),
        ("CUTAWAY_INSTANCES", "31"),
        ("CUTAWAY_NETWORK_INSTANCES", "-1"),
        ("CUTAWAY_GPUS", "0,1"),
        ("CUTAWAY_SCHEDULE", "two"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(RuntimeProblem, match=f"^{name} "):
        serve.Settings.read({name: value})


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Profiles' folders with plans of `lite`, as they are built on an L4; the plans are a header and noise."""
    folder = tmp_path / "models" / "lite"
    folder.mkdir(parents=True)
    for name, side_px in (("birefnet_trt", 768), ("yolov8_seg", 640)):
        plan = folder / f"{name}.plan"
        plan.write_bytes(b"ftrt" + bytes(20) + bytes((10, 13, 3, 9)) + name.encode())
        a_record(name, plan_sha256=sha256_of(plan), side_px=side_px, parity={"passed": True}).write(
            folder / f"{name}.plan.json"
        )
    return folder.parent


L4 = Host("10.13.3.9", "13.0", (Gpu("NVIDIA L4", "8.9"),))


def test_the_repository_is_composed_of_the_plans_that_fit(models: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(serve.Settings.read({"CUTAWAY_PROFILE": "lite"}), models=models)
    composed = serve.compose_repository(settings, L4, tmp_path / "repository")
    assert (composed.matte_side_px, composed.processes) == (768, 6)
    config = read_config(composed.folder / "birefnet_trt")
    assert config.platform == "tensorrt_plan" and list(config.input[0].dims) == [768, 768, 3]
    assert (composed.folder / "birefnet_trt" / "1" / "model.plan").resolve() == models / "lite" / "birefnet_trt.plan"
    pipeline = read_config(composed.folder / PIPELINE)
    assert pipeline.parameters["profile"].string_value == "lite"


def test_instances_gpus_and_the_schedule_are_settings(models: Path, tmp_path: Path) -> None:
    """The second GPU, for which the plans were not built, is left out."""
    two = dataclasses.replace(L4, gpus=(*L4.gpus, Gpu("NVIDIA T4", "7.5"), *L4.gpus))
    given = {"INSTANCES": "8", "NETWORK_INSTANCES": "2", "GPUS": "0 2", "SCHEDULE": "limited", "PROFILE": "lite"}
    settings = serve.Settings.read({f"CUTAWAY_{name}": value for name, value in given.items()})
    settings = dataclasses.replace(settings, models=models)
    composed = serve.compose_repository(settings, two.of(settings.gpus), tmp_path / "repository")
    assert composed.processes == 8 + 2
    for name, resource in (("yolov8_seg", "detection"), ("birefnet_trt", "matting")):
        (group,) = read_config(composed.folder / name).instance_group
        assert (group.count, list(group.gpus)) == (2, [0, 2])
        assert [(each.name, each.count) for each in group.rate_limiter.resources] == [(resource, 1)]
    report = read_config(composed.folder / PIPELINE).parameters["device"].string_value
    assert report == "tensorrt 10.13.3.9 (NVIDIA L4 + NVIDIA L4)"
    with pytest.raises(RuntimeProblem, match="no GPU 3 here: the numbers are 0 to 2"):
        two.of((0, 3))


@pytest.mark.parametrize(
    ("host", "profile", "said"),
    [
        (L4, "general", "general has no TensorRT plan of .*docker compose run --rm export general$"),
        (Host("10.14.1.48", "13.0", L4.gpus), "lite", "this machine has 10.14.1.48.*run --rm export lite$"),
        (Host("10.13.3.9", "13.0", (Gpu("NVIDIA T4", "7.5"),)), "lite", "the NVIDIA T4 here has 7.5"),
        (Host(problem="there is no NVIDIA driver"), "lite", "cannot be served here: there is no NVIDIA driver$"),
    ],
)
def test_plans_that_do_not_fit_are_not_served(
    models: Path, tmp_path: Path, host: Host, profile: str, said: str
) -> None:
    settings = dataclasses.replace(serve.Settings.read({"CUTAWAY_PROFILE": profile}), models=models)
    with pytest.raises(RuntimeProblem, match=said) as problem:
        serve.compose_repository(settings, host, tmp_path / "repository")
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "repository").exists()


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything; for a while this process is nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("hidden", [".", "yolov8_seg.plan", "birefnet_trt.plan.json"])
def test_plans_of_another_user_are_one_line_that_names_the_setting(models: Path, tmp_path: Path, hidden: str) -> None:
    settings = dataclasses.replace(serve.Settings.read({"CUTAWAY_PROFILE": "lite"}), models=models)
    (models / "lite" / hidden).chmod(0)
    try:
        with without_privileges(), pytest.raises(RuntimeProblem, match=r"cannot be read by user .*CUTAWAY_UID") as told:
            serve.compose_repository(settings, L4, tmp_path / "repository")
    finally:
        (models / "lite" / hidden).chmod(0o700)
    assert "\n" not in str(told.value)


def test_a_profile_alone_means_all_of_it() -> None:
    """tests/export holds the command line against `python -m export`, which needs more packages."""
    given = export.arguments(["general", "--detector", "x"])
    assert (given[0], given[-3:]) == ("models", ["general", "--detector", "x"])
    assert export.arguments(["verify", "--reference", "x"]) == ["verify", "--reference", "x"]
    assert export.arguments([]) == ["--help"]


@pytest.mark.parametrize("command", ["models", "fetch", "onnx"])
def test_weights_go_where_the_container_can_write(command: str) -> None:
    """The checkout in the image, where they go by themselves, is read-only. Who names a place gets it."""
    place = "--output" if command == "fetch" else "--weights"
    given = export.arguments([command, "general", place, "mine"])
    assert given[given.index(place) + 1] == "/var/cache/cutaway/weights"
    assert given.index(place) < len(given) - 2 and given[-3:] == ["general", place, "mine"]


def test_an_empty_setting_of_the_network_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As docker-compose.yml passes those that the host does not have."""
    empty = dict.fromkeys(export.NETWORK, "")
    assert export.environment({**empty, "HOME": ""}) == {"HOME": "", "PYTHONPATH": export.PACKAGES}
    chosen = {"HF_TOKEN": "a-token", "https_proxy": "http://proxy:3128"}
    assert export.environment({**empty, **chosen}) == {**chosen, "PYTHONPATH": export.PACKAGES}
    assert capsys.readouterr().err == ""


def test_certificates_that_are_not_in_the_container_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python would trust nobody at all, and say only that a certificate is not trusted."""
    file = tmp_path / "own.pem"
    assert "SSL_CERT_FILE" not in export.environment({"SSL_CERT_FILE": str(file)})
    assert f"-v FILE:{file}:ro" in capsys.readouterr().err
    file.touch()
    assert export.environment({"SSL_CERT_FILE": str(file)})["SSL_CERT_FILE"] == str(file)


@pytest.mark.parametrize("named", [False, True])
def test_settings_of_the_cpu_server_are_arguments_that_it_knows(tmp_path: Path, named: bool) -> None:
    told = tmp_path / "python"
    told.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    told.chmod(0o755)
    values = {
        "CUTAWAY_PROFILE": "lite",
        "CUTAWAY_INSTANCES": "3",
        "CUTAWAY_THREADS": "2",
        "CUTAWAY_QUEUE_SIZE": "5",
        "CUTAWAY_SCHEDULE": "limited",
        "CUTAWAY_LOG_VERBOSE": "1",
        "CUTAWAY_TRACES_URL": "http://collector:4318/v1/traces",
        "CUTAWAY_DIRECT": "1",
        "CUTAWAY_HOSTS": "*",
        "CUTAWAY_ORIGINS": "https://a.example https://b.example",
    }
    environment = {name: value if named else "" for name, value in values.items()}
    said = subprocess.run(
        [ROOT / "docker" / "serve_cpu.sh"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert said[:2] == ["-m", "runtime"]
    options = _parser().parse_args(said[2:])
    assert (options.address, options.device, str(options.cache_dir)) == ("0.0.0.0", "cpu", "/var/cache/cutaway")
    chosen = (options.profile, options.instances, options.threads, options.queue_size, options.verbose)
    assert chosen == (("lite", 3, 2, 5, 1) if named else ("nano", None, None, None, 0))
    assert options.schedule == ("limited" if named else "free")
    assert options.traces_url == (values["CUTAWAY_TRACES_URL"] if named else "")
    assert (options.direct, options.hosts) == ((True, ["*"]) if named else (False, []))
    assert options.origins == (["https://a.example", "https://b.example"] if named else [])


# -------------------------------------------------------------------------------------------- health check


@pytest.mark.parametrize(
    ("status", "body", "well"),
    [(200, b"{}", True), (503, b'{"error": "Exceeds maximum queue size"}', True), (500, b'{"error": "x"}', False)],
)
def test_health_is_a_picture_or_a_full_queue(status: int, body: bytes, well: bool) -> None:
    class Peer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Peer) as peer:
        threading.Thread(target=peer.serve_forever, daemon=True).start()
        assert (healthcheck.main([str(peer.server_port)]) == 0) is well
        peer.shutdown()


def test_nobody_there_is_no_health() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert healthcheck.main([str(port)]) == 1


# ----------------------------------------------------------------------- the GPU image's command, on the bundled Triton


class Bundled(serve.PlanServer):  # type: ignore[misc,name-defined]
    """The GPU image's server with the bundled Triton and its networks in place of NVIDIA's and the plans."""

    def _prepare(self) -> tuple[Program, Composed]:
        run = self._run = open_run(self.options.cache_dir)
        files = check_machine()
        run.link_backend(files)
        composed = compose(
            run.repository,
            profile="nano",
            networks=load_networks(profile_folder("nano")),
            device=Device("cpu", "cpu"),
            plan=Plan(1, 2),
        )
        arguments = (f"--backend-directory={run.backends}",)
        return Program(files.server, arguments, bundled_environment(files), self.settings.exit_timeout_s), composed


@pytest.mark.triton
def test_the_server_of_plans_is_supervised_behind_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = serve.Settings(
        "general", 5, address="127.0.0.1", http_port=0, grpc_port=0, metrics_port=0, service_port=0
    )
    with Bundled(settings, tmp_path / "cache", serve.say) as server:
        port = server.http_address.rpartition(":")[2]
        assert healthcheck.main([port]) == 0
        for path in (
            "v2/models/ensemble_pipeline/config",
            "v2/logging",
            "v2/models/birefnet_trt/config",
            "v2/repository/index",
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{server.http_url}/{path}", timeout=30)
            assert refused.value.code in (403, 404, 405), path
            refused.value.close()
        reloads = server.reloads
        victim = next(stub for stub in server.process.stubs() if stub.model == "birefnet_trt")
        os.kill(victim.pid, signal.SIGKILL)
        assert wait_for(lambda: server.reloads == reloads + 1)
        assert healthcheck.main([port]) == 0
    assert "the process of birefnet_trt (" in capsys.readouterr().err
    assert_nothing_left(tmp_path / "cache")


def test_a_server_that_cannot_start_ends_the_container(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(serve, "compose_repository", lambda *_: (_ for _ in ()).throw(RuntimeProblem("no plan")))
    settings = serve.Settings("lite", http_port=0, grpc_port=0, metrics_port=0, service_port=0)
    monkeypatch.setattr(serve.Settings, "read", lambda _: settings)
    try:
        assert serve.main() == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "error: no plan" in capsys.readouterr().err
