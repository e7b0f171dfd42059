"""How the command reaches servers, and what it tells of them: tokens, headers, TLS, several of them, health, models."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
from cutaway import async_client, call
from cutaway.cli import codes
from cutaway.contract import limits
from PIL import Image

from tests.client import peers as tcp
from tests.client.commanding import command, read_jsonl, run
from tests.client.hosted.peers import Peer, Received
from tests.client.own_server import DOWN, OwnServer, _over_http, own_server
from tests.client.tls_front import server_context, tls_front
from tests.integration import picture_files as make

SECRET = "s3cr3t-t0k3n"
ONCE = ("--retries", "0")


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (codes.URL_VARIABLE, codes.TOKEN_VARIABLE, codes.API_KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name in ("a.jpg", "b.jpg"):
        Path(name).write_bytes(make.jpeg())


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Received]]:
    """What a server that serves receives."""
    server = OwnServer(lambda _: None)
    with Peer(lambda received: _over_http(server, received)) as peer:
        monkeypatch.setenv(codes.URL_VARIABLE, peer.base_url)
        yield peer.received


def dead() -> str:
    return f"http://127.0.0.1:{tcp.dead_port()}"


# --------------------------------------------------------------------------------------------------------- showing


def test_variables_are_those_of_the_client() -> None:
    assert (codes.TOKEN_VARIABLE, codes.API_KEY_VARIABLE) == (call.TOKEN_VARIABLE, call.API_KEY_VARIABLE)


def test_tokens(listening: list[Received], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(codes.TOKEN_VARIABLE, SECRET)
    monkeypatch.setenv(codes.API_KEY_VARIABLE, "key")
    assert run("detect", "a.jpg") == codes.OK
    assert listening[0].headers["authorization"] == f"Bearer {SECRET}"
    assert listening[0].headers["x-api-key"] == "key"
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "grpcs://localhost", "--ca-file", "none.pem"], "No such file or directory: none.pem"),
        (["--ca-file", "a.jpg", "--url", "http://localhost"], "is reached without TLS"),
        (["--url", "localhost"], "grpc://host:8001"),
        (["--timeout-s", "0"], "x>0"),
        (["--timeout-s", "nan"], "above 0"),
        (["--retries", "-1"], "x>=0"),
    ],
)
def test_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cut", "a.jpg", *arguments) == codes.USAGE
    said = capsys.readouterr().err
    assert words in said
    assert said.startswith("Usage: cutaway cut [OPTIONS] IMAGE...\n"), "short enough to see what follows"


def test_tls_with_an_authority_of_ones_own(listening: list[Received], monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    authority = trustme.CA()
    authority.cert_pem.write_to_path("ca.pem")
    port = urlsplit(os.environ[codes.URL_VARIABLE]).port
    assert port is not None
    with tls_front(server_context(authority), port) as secure:
        url = f"https://localhost:{secure}"
        assert run("cut", "a.jpg", "--url", url, *ONCE) == codes.UNAVAILABLE, "its authority is not a public one"
        assert listening == []
        assert run("cut", "a.jpg", "--url", url, "--ca-file", "ca.pem") == codes.OK


# --------------------------------------------------------------------------------------------------- several of them


def test_one_of_several_serves(capsys: pytest.CaptureFixture[str]) -> None:
    with own_server("http") as own:
        assert run("cut", "a.jpg", "b.jpg", "--url", dead(), "--url", own.url) == codes.OK
        assert run("cut", "a.jpg", "-o", "more", "--url", f"{dead()}, {own.url}") == codes.OK
    assert "2 of 2 pictures done" in capsys.readouterr().err


def test_the_cache_spares_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    with own_server("http") as own:
        assert run("cut", "a.jpg", "--url", own.url, "--cache", "kept") == codes.OK
        own.script = lambda _: DOWN
        assert run("cut", "a.jpg", "--url", own.url, "--cache", "kept", "-o", "again", "--json") == codes.OK
        assert len(own.asked) == 1
    (form,) = read_jsonl(capsys.readouterr().out.splitlines()[-1])
    assert (form["from_cache"], form["requests"]) == (True, 0)


def test_a_cache_that_cannot_work_is_told_once() -> None:
    Path("kept").write_text("a file, where a folder belongs")
    with own_server("http") as own:
        ended = command("cut", "a.jpg", "b.jpg", "--cache", "kept", url=own.url)
    assert ended.returncode == codes.OK
    said = ended.stderr.splitlines()
    assert said[0].startswith(f"the cache in {Path('kept').resolve()} cannot be used: ")
    assert said[1:] == ["2 of 2 pictures done"]


def test_a_cache_on_a_full_disk_is_told() -> None:
    with own_server("http") as own:
        # No file may grow beyond 1024 bytes: enough for a cut-out, not for an answer with its report.
        cut = f"{sys.executable} -m cutaway cut a.jpg b.jpg --url {own.url} --cache kept"
        ended = subprocess.run(
            ["bash", "-c", f"ulimit -f 1; {cut}"], capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == codes.OK, ended.stderr
    assert ended.stderr.count("kept cannot be used: ") == 1
    assert ended.stderr.endswith("2 of 2 pictures done\n")


@pytest.mark.parametrize("value", ["abc", "0", "-1", "nan"])
def test_a_ratio_that_makes_no_sense(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(codes.RATIO_VARIABLE, value)
    assert run("cut", "a.jpg", "--url", dead()) == codes.USAGE
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("Error: ")
    assert codes.RATIO_VARIABLE in said or "max_decompression_ratio has to be above 0" in said


# -------------------------------------------------------------------------------------------------- health and models


@pytest.mark.triton
def test_health_of_several(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("health", "--url", server.grpc_url, "--url", server.http_url) == codes.OK
    shown = capsys.readouterr()
    assert shown.out.count("a picture came back in ") == 2
    assert shown.err == ""
    nobody = dead()
    assert run("health", "--url", server.grpc_url, "--url", nobody, *ONCE) == codes.UNAVAILABLE, "one does not"
    shown = capsys.readouterr()
    assert f"{server.grpc_url}: a picture came back in " in shown.out
    assert f"{nobody}: UNAVAILABLE: " in shown.err
    assert run("health", "--json", "--url", server.grpc_url, "--url", nobody, *ONCE) == codes.UNAVAILABLE
    forms = read_jsonl(capsys.readouterr().out)
    assert [(form["url"], form["ok"]) for form in forms] == [(server.grpc_url, True), (nobody, False)]
    assert forms[0]["profile"] == "nano"
    assert forms[1]["error"]["code"] == "UNAVAILABLE"


@pytest.mark.triton
def test_models(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--url", server.grpc_url) == codes.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ensemble_pipeline", "1", "READY"]
    nobody = dead()
    assert run("models", "--json", "--url", server.http_url, "--url", nobody, *ONCE) == codes.UNAVAILABLE
    shown = capsys.readouterr()
    first, second = read_jsonl(shown.out)
    models = {model["name"]: model for model in first["models"]}
    assert set(models) == set(async_client.MODELS)
    assert {"name": "boxes", "datatype": "FP32", "shape": [-1, 4]} in models["ensemble_pipeline"]["outputs"]
    assert (second["models"], second["error"]["code"]) == ([], "UNAVAILABLE")
    assert f"{nobody}: UNAVAILABLE" in shown.err


# --------------------------------------------------------------------------------------------------------- composite


@pytest.mark.triton
def test_composite(server: Any, samples: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    portrait = str(samples[0])
    url = ("--url", server.grpc_url)
    Image.linear_gradient("L").resize((300, 200)).convert("RGB").save("beach.png")
    assert run("composite", portrait, "--onto", "beach.png", "--match-colour", "0.5", "-o", "x.jpg", *url) == codes.OK
    with Image.open("x.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (300, 200))
    placed = ["composite", portrait, "--onto", "#336699", "--place", "bottom", "--scale", "0.5", *url]
    assert run(*placed, "--json") == codes.OK
    (form,) = read_jsonl(capsys.readouterr().out.splitlines()[-1])
    (output,) = form["outputs"]
    with Image.open(samples[0]) as picture, Image.open(output["path"]) as image:
        assert image.size == picture.size
        assert image.getpixel((0, 0)) == (0x33, 0x66, 0x99)
    _, y1, _, y2 = output["frames"][0]
    assert (y2 - y1) / output["height_px"] == pytest.approx(0.5, abs=0.01)
    assert y2 == output["height_px"]
    assert run("composite", portrait, "--onto", "blur:5", "--quality", "50", "-o", "x.webp", *url) == codes.OK
    with Image.open("x.webp") as image:
        assert image.format == "WEBP"
    assert run(*placed) == codes.OK
    assert "1 skipped, there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option '--onto'"),
        (["--onto", "none.jpg"], "No such file or directory: none.jpg"),
        (["--onto", "#12"], "#RRGGBB"),
        (["--onto", "blur:0"], "px from 1 to 100"),
        (["--onto", "bad.png"], "INVALID_FORMAT"),
        (["--onto", "#123456", "--match-colour", "0.5"], "a picture as --onto"),
        (["--onto", "b.jpg", "--match-colour", "2"], "0<=x<=1"),
        (["--onto", "b.jpg", "--place", "nowhere"], "is not one of"),
        (["--onto", "b.jpg", "--scale", "9"], "0.01<=x<=4"),
        (["--onto", "b.jpg", "--quality", "101"], "1<=x<=100"),
        (["--onto", "transparent", "-o", "x.jpg"], "a JPEG cannot be transparent"),
        (["--onto", "b.jpg", "--background", "#000000"], "No such option"),
    ],
)
def test_usage_of_composite(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is sent."""
    Path("bad.png").write_bytes(b"%PDF-1.7")
    assert run("composite", "a.jpg", "--url", dead(), *arguments) == codes.USAGE
    assert words in capsys.readouterr().err


def test_bounds_in_the_help_are_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    def words_of(command: str) -> str:
        assert run(command, "--help") == codes.OK
        return " ".join(capsys.readouterr().out.split())

    cut, upscale = words_of("cut"), words_of("upscale")
    assert f"in flight at once. [default: {limits.CUT_MANY_JOBS}; x>=1]" in cut
    timeouts = f"[default: {limits.PROCESSING_TIMEOUT_S:g}, with --fallback {limits.FALLBACK_TIMEOUT_S:g}]"
    assert timeouts in cut
    assert f"[default: {limits.RETRIES}]" in cut
    bounds = limits.UPSCALE_LIMITS
    assert f"{bounds.max_long_side_px}×{bounds.max_short_side_px}" in upscale
    least, most = limits.COMPOSITE_SCALE
    assert f"{least}<=x<={most}" in words_of("composite")
