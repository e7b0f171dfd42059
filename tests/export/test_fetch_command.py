"""`python -m export fetch`, as typed: what it prints, its exit status, the environment, a disk that fills up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from export.__main__ import main
from export.catalog import load_catalog
from tests.export.fetching import (
    COMMIT,
    MIB,
    REPOSITORY,
    TOKEN,
    archive,
    digest,
    files_in,
    safetensors,
)
from tests.export.loopback_hub import LoopbackHub, Reply, breaks_after
from tests.export.test_catalog import SMALL

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A catalogue of one profile that the hub has; the detector's digest is known."""
    text = SMALL.replace("owner/name", REPOSITORY)
    path = tmp_path / "catalog.toml"
    path.write_text(text.replace("0" * 64, digest(archive())))
    return path


def arguments(tmp_path: Path, table: Path, *more: str) -> list[str]:
    fixed = ["--catalog", str(table), "--output", str(tmp_path / "weights")]
    return ["fetch", "lite", *fixed, *more]


def test_a_profile_from_a_mirror(
    hub: LoopbackHub, tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The catalogue has `owner/assets`, release v1.
    assert main(arguments(tmp_path, table, "--mirror", hub.url + "/")) == 0
    assert files_in(tmp_path / "weights") == {"birefnet-lite.safetensors", "yolov8n-seg.pt"}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    sums = tmp_path / "weights" / "SHA256SUMS"
    assert lines[0].startswith(f"birefnet-lite.safetensors: first seen, pinned in {sums};")
    assert "birefnet-lite.safetensors: 3 MiB from 127.0.0.1, SHA-256" in lines[1]
    assert lines[1].endswith(", MIT")
    assert lines[2].endswith(", AGPL-3.0")
    assert main(arguments(tmp_path, table, "--mirror", hub.url)) == 0
    assert capsys.readouterr().out.count("already there, SHA-256") == 2


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGINGFACE_TOKEN"])
def test_a_token_of_the_environment_opens_a_gated_repository_and_never_shows(
    hub: LoopbackHub,
    tmp_path: Path,
    table: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    hub.repositories[REPOSITORY].gated = True
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv(name, f" {TOKEN}\n")
    assert main(arguments(tmp_path, table)) == 2
    captured = capsys.readouterr()
    assert "is gated, and the account of your token has no access" in captured.err
    hub.repositories[REPOSITORY].allowed = (TOKEN,)
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "yolov8n-seg.pt").write_bytes(archive())
    assert main(arguments(tmp_path, table, "--from", str(stick))) == 2  # the matting network is not on the stick
    errors = capsys.readouterr()
    # Into the folder goes the detector first, so that GitHub need not be asked.
    (tmp_path / "weights" / "yolov8n-seg.pt").write_bytes(archive())
    assert main(arguments(tmp_path, table)) == 0
    shown = captured.out + captured.err + errors.out + errors.err + "".join(capsys.readouterr())
    assert "birefnet-lite.safetensors: 3 MiB" in shown
    assert TOKEN not in shown


def test_a_mirror_gets_no_token(hub: LoopbackHub, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(arguments(tmp_path, table, "--mirror", hub.url)) == 0
    assert hub.hub.received
    assert all("authorization" not in each.headers for each in hub.hub.received + hub.cdn.received)


def one_line(captured: pytest.CaptureFixture[str]) -> str:
    text = captured.readouterr().err
    assert text.startswith("export: ")
    assert text.count("\n") == 1, text
    return text


def test_errors_are_one_line_and_exit_status_2(
    hub: LoopbackHub, tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[REPOSITORY].gated = True
    assert main(arguments(tmp_path, table, "--mirror", hub.url)) == 2
    assert f"is gated; accept its licence at {hub.url}/{REPOSITORY}" in one_line(capsys)
    assert main(["fetch", "genral"]) == 2
    assert "no profile 'genral'; there are: nano, lite" in one_line(capsys)
    assert main(arguments(tmp_path, table, "--mirror", "http://example.org")) == 2
    assert "--mirror must be an https:// address" in one_line(capsys)
    monkeypatch.setenv("HF_ENDPOINT", "http://example.org")
    assert main(arguments(tmp_path, table)) == 2
    assert "HF_ENDPOINT must be an https:// address" in one_line(capsys)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # which is read at import
    assert main(arguments(tmp_path, table)) == 2
    assert "HF_HUB_OFFLINE forbids the network; unset it, or take the files from a folder" in one_line(capsys)


def test_weights_of_the_shipped_catalogue_are_held_to_its_digests(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub on loopback has the right names, but not the released bytes."""
    lite = load_catalog().profile("lite").matte
    hub.repositories[str(lite.repository)] = hub.repositories[REPOSITORY]
    hub.repositories[REPOSITORY].branches[str(lite.revision)] = "a" * 40
    command = ["fetch", "lite", "--output", str(tmp_path / "w")]
    assert main([*command, "--mirror", hub.url]) == 2
    assert "has another model.safetensors of ZhengPeng7/BiRefNet_lite than was pinned" in one_line(capsys)


def test_offline_from_a_folder_that_another_machine_filled(
    hub: LoopbackHub, tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(arguments(tmp_path, table, "--mirror", hub.url)) == 0
    asked = len(hub.hub.received)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    there = tmp_path / "there"
    command = ["fetch", "lite", "--catalog", str(table), "--output", str(there)]
    assert main([*command, "--from", str(tmp_path / "weights")]) == 0
    assert (there / "birefnet-lite.safetensors").read_bytes() == safetensors()
    assert (there / "yolov8n-seg.pt").read_bytes() == archive()
    assert len(hub.hub.received) == asked


def test_the_bundled_profile_needs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["fetch", "nano", "--output", str(tmp_path / "weights")]) == 0
    assert capsys.readouterr().out == "nano is bundled in export/weights/nano: nothing to fetch\n"
    assert not (tmp_path / "weights").exists()


def test_another_detector(hub: LoopbackHub, tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, table, "--mirror", hub.url, "--detector", "x")) == 2
    assert "no detector of size 'x' in the catalogue" in one_line(capsys)
    assert main(arguments(tmp_path, table, "--mirror", hub.url, "--detector", "n")) == 0


def test_a_disk_that_fills_up_in_the_middle(hub: LoopbackHub, tmp_path: Path, table: Path) -> None:
    """A limit on the size of files stands in for the disk: the kernel refuses the write that goes beyond."""
    command = [sys.executable, "-m", "export", *arguments(tmp_path, table, "--mirror", hub.url)]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "client")))
    limited = subprocess.run(
        ["sh", "-c", f'ulimit -f {2 * MIB // 512}; exec "$@"', "sh", *command],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert limited.returncode == 2, limited.stderr
    assert limited.stderr == (
        f"export: the disk of {tmp_path / 'weights'} is full; what was fetched is kept: free some room and run it "
        "again, or choose another folder: --output DIR\n"
    )
    (part,) = files_in(tmp_path / "weights")
    assert part.endswith(".part")
    assert (tmp_path / "weights" / part).stat().st_size == 2 * MIB
    assert main(arguments(tmp_path, table, "--mirror", hub.url)) == 0
    assert [each.headers.get("range") for each in hub.cdn.received][1] == f"bytes={2 * MIB}-"
    assert (tmp_path / "weights" / "birefnet-lite.safetensors").read_bytes() == safetensors()


def test_stopped_by_hand(hub: LoopbackHub, tmp_path: Path, table: Path) -> None:
    """Ctrl-C while the file is on its way: one line, no traceback, and the next run goes on from there."""
    on_its_way, let_go = threading.Event(), threading.Event()

    def hangs(reply: Reply) -> Reply:
        on_its_way.set()
        let_go.wait(30)
        return reply

    # More than the 10 MB that are gathered before they are written.
    large = safetensors(14 * MIB)
    hub.repositories[REPOSITORY].files[COMMIT] = {"model.safetensors": large}
    hub.faults += [breaks_after(12 * MIB), hangs]
    running = subprocess.Popen(
        [sys.executable, "-m", "export", *arguments(tmp_path, table, "--mirror", hub.url)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "client")))},
        stderr=subprocess.PIPE,
        text=True,
    )
    with running:
        try:
            assert on_its_way.wait(30)
            running.send_signal(signal.SIGINT)
            _, errors = running.communicate(timeout=30)
        finally:
            let_go.set()
            running.kill()
    assert (running.returncode, errors) == (130, "export: stopped; run it again to go on from here\n")
    (part,) = files_in(tmp_path / "weights")
    assert (tmp_path / "weights" / part).stat().st_size == 10 * MIB
    assert main(arguments(tmp_path, table, "--mirror", hub.url)) == 0
    assert hub.cdn.received[2].headers["range"] == f"bytes={10 * MIB}-"
    assert (tmp_path / "weights" / "birefnet-lite.safetensors").read_bytes() == large
