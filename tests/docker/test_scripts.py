"""What the containers start: settings into command lines, the health check, the supervision. No Docker needed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc

from runtime import checks
from runtime.__main__ import _parser
from runtime.checks import RuntimeProblem, check_machine, free_ports
from runtime.compose import PIPELINE, Composed, read_config
from runtime.digest import sha256_of
from runtime.gpus import Gpu, Host
from runtime.health import Answer, HealthStatus, Probe
from runtime.process import _environment, stubs_of
from tests.docker.parts import ROOT, script
from tests.plan_records import a_record
from tests.runtime.leftovers import wait_for

serve, healthcheck, export = script("serve"), script("healthcheck"), script("export")
KEY = "a-key-of-these-tests"
START_S = 120.0


# ------------------------------------------------------------------------------------------------ settings


def test_triton_knows_every_flag() -> None:
    settings = serve.Settings.read({"CUTAWAY_TRACES_URL": "http://collector:4318/v1/traces"})
    repository = Path("repository")
    files = check_machine()
    shown = subprocess.run(
        [files.server, "--help"], env=_environment(files), capture_output=True, text=True, check=False
    )
    known = set(re.findall(r"^\s+(--[a-z-]+)", shown.stdout + shown.stderr, re.MULTILINE))
    flags = {argument.split("=")[0] for argument in serve.command(settings, repository)[1:]}
    assert "--trace-config" in flags
    assert flags <= known


def test_settings_are_read_and_empty_ones_are_none() -> None:
    settings = serve.Settings.read({"CUTAWAY_EXIT_TIMEOUT_S": "5", "CUTAWAY_LOG_VERBOSE": "", "CUTAWAY_ADMIN_KEY": KEY})
    assert (settings.exit_timeout_s, settings.verbose, settings.key) == (5, 0, KEY)
    assert settings.profile == "general"
    assert serve.Settings.read({"CUTAWAY_PROFILE": "lite-2k"}).profile == "lite-2k"
    command = serve.command(settings, Path("/tmp/repository"))
    assert "--exit-timeout-secs=5" in command
    assert "--model-repository=/tmp/repository" in command
    assert not any(argument.startswith("--trace-config") for argument in command)


def test_a_key_that_nobody_gave_is_another_each_time() -> None:
    keys = {serve.Settings.read({"CUTAWAY_ADMIN_KEY": ""}).key for _ in range(3)}
    assert len(keys) == 3 and all(len(key) == 32 for key in keys)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUTAWAY_ADMIN_KEY", "short"),
        ("CUTAWAY_ADMIN_KEY", "sixteen-letters,and:more=bad"),
        ("CUTAWAY_EXIT_TIMEOUT_S", "0"),
        ("CUTAWAY_EXIT_TIMEOUT_S", "30s"),
        ("CUTAWAY_LOG_VERBOSE", "5"),
        ("CUTAWAY_PROFILE", "genral"),
        ("CUTAWAY_PROFILE", "../general"),
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


def test_the_warning_on_shared_memory_knows_the_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is free lies between the need of 1024 px and that of 2048 px."""
    settings = dataclasses.replace(serve.Settings.read({}), tritonserver=Path("/bin/false"))
    free = checks.shm_bytes_per_process(1024) * 6
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(free, 0, free))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for side_px, warned in ((1024, False), (2048, True)):
            assert serve.run(settings, Composed(tmp_path, side_px, 6)) == 1
            said = capsys.readouterr().err
            assert ("CUTAWAY_SHM_SIZE" in said) == warned, said
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


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
        "CUTAWAY_LOG_VERBOSE": "1",
        "CUTAWAY_TRACES_URL": "http://collector:4318/v1/traces",
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
    assert options.traces_url == (values["CUTAWAY_TRACES_URL"] if named else "")


# -------------------------------------------------------------------------------------------- health check


@dataclass
class Server:
    """Answers a probe as told."""

    status: HealthStatus
    counts: list[int | None]

    def finished(self) -> int | None:
        return self.counts.pop(0)

    def canary(self, _timeout_s: float) -> Answer:
        return Answer(self.status, "")


@pytest.mark.parametrize(
    ("status", "counts", "well"),
    [
        (HealthStatus.HEALTHY, [3], True),
        (HealthStatus.OVERLOADED, [3], True),
        (HealthStatus.FAILED, [3], False),
        (HealthStatus.TIMEOUT, [3, 3], False),
        (HealthStatus.TIMEOUT, [3, 4], True),
        (HealthStatus.TIMEOUT, [None], False),
        (HealthStatus.TIMEOUT, [3, None], False),
    ],
)
def test_health_is_a_picture_or_progress(status: HealthStatus, counts: list[int | None], well: bool) -> None:
    assert healthcheck.healthy(Server(status, counts))[0] is well


# ----------------------------------------------------------------------- the GPU image's command, on the bundled Triton


@dataclass
class Running:
    settings: Any
    triton: subprocess.Popen[bytes]

    @property
    def probe(self) -> Probe:
        return Probe("127.0.0.1", self.settings.http_port)

    def wait_ready(self) -> None:
        waiting = threading.Event()
        for _ in range(int(START_S / 0.1)):
            if self.probe.ready():
                return
            assert self.triton.poll() is None, "Triton ended while starting"
            waiting.wait(0.1)
        raise AssertionError("Triton did not come up")

    def status(self, path: str, **headers: str) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{self.settings.http_port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def kill(self, model: str) -> None:
        """Kill the process of a model."""
        for stub in stubs_of(self.triton.pid):
            if stub.model == model:
                os.kill(stub.pid, signal.SIGKILL)
                return
        raise AssertionError(f"{model} has no process")

    def supervise(self, canary_interval_s: float, stopping: threading.Event, outcome: list[int]) -> threading.Thread:
        """Supervise in a thread that adds the exit status to `outcome`."""

        def run() -> None:
            options = {"grace_period_s": 1.0, "canary_interval_s": canary_interval_s}
            outcome.append(serve.supervise(self.triton, self.probe, stopping, **options))

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano repository and a backend folder, as runtime/ writes them."""
    from runtime.runs import open_run

    folder = tmp_path_factory.mktemp("docker")
    command = ["-m", "runtime", "compose", "--device", "cpu", "--instances", "1", str(folder / "repository")]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    run = open_run(folder / "cache")
    run.link_backend(check_machine())
    (folder / "backends").symlink_to(run.backends)
    return folder


@pytest.fixture
def running(composed: Path) -> Iterator[Running]:
    """A Triton with the command line of the GPU image, but for the addresses, the models and the backend's folder."""
    files = check_machine()
    ports = free_ports("127.0.0.1", 3)
    settings = serve.Settings("nano", KEY, 5, 0, "", "127.0.0.1", *ports, files.server)
    command = [*serve.command(settings, composed / "repository"), f"--backend-directory={composed / 'backends'}"]
    with (composed / "log").open("wb") as log:
        triton = subprocess.Popen(command, env=_environment(files), stdout=log, stderr=log, start_new_session=True)
    server = Running(settings, triton)
    try:
        server.wait_ready()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(triton.pid, signal.SIGKILL)
        triton.wait()


@pytest.mark.triton
def test_closed_endpoints_open_with_the_key(running: Running) -> None:
    closed = (
        "/v2/models/ensemble_pipeline/config",
        "/v2/systemsharedmemory/status",
        "/v2/logging",
        "/v2/trace/setting",
    )
    for path in closed:
        assert running.status(path) == 403, path
        assert running.status(path, **{serve.KEY_HEADER: "not-the-key-at-all"}) == 403, path
        assert running.status(path, **{serve.KEY_HEADER: KEY}) == 200, path
    for path in ("/v2/health/ready", "/v2/models/ensemble_pipeline", "/v2/models/ensemble_pipeline/stats"):
        assert running.status(path) == 200, path
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.settings.grpc_port}") as client:
        for ask in (client.get_model_repository_index, client.get_system_shared_memory_status):
            with pytest.raises(tritonclient.grpc.InferenceServerException, match="restricted"):
                ask()
            ask(headers={f"triton-grpc-protocol-{serve.KEY_HEADER}": KEY})


@pytest.mark.triton
def test_the_canary_notices_a_dead_pipeline_though_triton_says_ready(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(running.settings.http_port)
    assert healthcheck.main([port]) == 0
    running.kill(PIPELINE)
    assert running.probe.ready(), "this Triton notices by itself; the health check could be simpler"
    assert healthcheck.main([port]) == 1
    stopping, outcome = threading.Event(), list[int]()
    watcher = running.supervise(1.0, stopping, outcome)
    watcher.join(60)
    stopping.set()
    assert outcome == [1]
    assert running.triton.poll() is not None
    assert "is not healthy" in capsys.readouterr().err


@pytest.mark.triton
def test_a_process_that_dies_is_noticed_without_a_canary(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    stopping, outcome = threading.Event(), list[int]()
    watcher = running.supervise(3600.0, stopping, outcome)
    assert wait_for(lambda: "the models are loaded" in capsys.readouterr().err)
    running.kill("birefnet_trt")
    watcher.join(60)
    stopping.set()
    assert outcome == [1]
    assert "the process of birefnet_trt (" in capsys.readouterr().err


@pytest.mark.triton
def test_the_end_that_was_asked_for_is_no_failure(running: Running) -> None:
    stopping = threading.Event()
    stopping.set()
    running.triton.terminate()
    assert serve.supervise(running.triton, running.probe, stopping, grace_period_s=30.0) == 0
    assert running.triton.returncode == 0


def test_an_end_that_nobody_asked_for_is_a_failure() -> None:
    for status, told in ((3, 3), (0, 1)):
        gone = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"])
        assert serve.supervise(gone, Probe("127.0.0.1", 9), threading.Event(), grace_period_s=1.0) == told
