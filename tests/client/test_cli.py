"""The command: its options are the table's, its words are readable, and its exit code and summary tell what failed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from cutaway import NoPersonDetected, __version__
from cutaway.cli import codes, options
from cutaway.contract.limits import OPTIONS, Option
from PIL import Image

from tests.client import commanding, peers
from tests.client.answers import PNG, wire_outputs
from tests.client.commanding import ONE, command, lines_of, read_jsonl, run, started
from tests.client.hosted.peers import Peer, Reply
from tests.integration import picture_files as make

AUTO = {name: row.default for name, row in options.AUTO.items()}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (codes.URL_VARIABLE, codes.RATIO_VARIABLE, codes.TOKEN_VARIABLE, codes.API_KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name in ("a.jpg", "b.jpg", "in/a.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(make.jpeg())


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A peer that gives every picture one cut-out of the same person."""
    with commanding.answering() as url:
        monkeypatch.setenv(codes.URL_VARIABLE, url)
        yield


# ------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_in_the_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cut", "--help") == codes.OK
    words = " ".join(capsys.readouterr().out.split())
    option = OPTIONS[name]
    assert f"--{name.replace('_', '-')}" in words
    assert option.help in words
    if option.kind in ("int", "float"):
        assert re.search(rf"{option.minimum:g}(\.0)?<=x<={option.maximum:g}", words)
    elif option.kind not in ("bool", "choice"):
        assert option.allowed in words
    default = options.AUTO.get(name, option).default
    if default is not None and not isinstance(default, bool):
        assert f"default: {default}" in words


async def _smoothness(_: click.Context, smoothness: int) -> int:
    return smoothness


def test_a_new_row_of_the_table_is_an_option_by_itself() -> None:
    row = Option("smoothness", "int", 3, "how smooth", minimum=1, maximum=9)
    command = options.command(*options.table(["smoothness"], {"smoothness": row}))(_smoothness)
    assert command.main(["--smoothness", "7"], standalone_mode=False) == 7
    with pytest.raises(click.UsageError, match="1<=x<=9"):
        command.main(["--smoothness", "10"], standalone_mode=False)


@pytest.mark.parametrize("command", ["cut", "detect", "health"])
def test_exit_codes_are_in_the_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == codes.OK
    shown = capsys.readouterr().out
    for code in (codes.OK, codes.FAILED, codes.USAGE, codes.UNAVAILABLE, codes.INTERRUPTED):
        assert re.search(rf"^  {code} ", shown, re.MULTILINE)
    assert codes.URL_VARIABLE in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == codes.OK
    assert capsys.readouterr().out == f"cutaway {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["paint"], "No such command 'paint'"),
        (["cut"], "IMAGE"),
        (["cut", "https://example.com/a.jpg"], "https://example.com/a.jpg is no file: curl -L -o photo.jpg"),
        (["cut", "none.jpg"], "there is no picture 'none.jpg'"),
        (["cut", "a.jpg", "--feather-px", "51"], "0<=x<=50"),
        (["cut", "a.jpg", "--padding-px", "many"], "is not a valid integer range"),
        (["cut", "a.jpg", "--subject", "cats"], "'cats' is not one of 'people', 'each', "),
        (["cut", "a.jpg", "--background", "green"], "#RRGGBB"),
        (["cut", "a.jpg", "--select", "first"], "a list of ids"),
        (["cut", "a.jpg", "--subject", "all", "--select", "0"], "use one of them"),
        (["cut", "a.jpg", "--url", "localhost"], "grpc://host:8001"),
        (["cut", "a.jpg", "--timeout-s", "0"], "x>0"),
        (["detect", "a.jpg", "--boxes", "1,2,3"], "boxes"),
        (["detect", "a.jpg", "--output", "png"], "No such option"),
    ],
)
def test_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == codes.USAGE
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.startswith("Usage: cutaway")
    assert shown.out == ""


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        (["--select", "0,2"], {"select": "[0,2]"}),
        (["--select", "[1]"], {"select": "[1]"}),
        (["--boxes", "1,2,3,4;5,6,7.5,8"], {"boxes": "[[1,2,3,4],[5,6,7.5,8]]"}),
        (["--no-decontaminate", "--feather-px", "3"], {"decontaminate": False, "feather_px": 3}),
        ([], {}),
    ],
)
def test_what_is_typed_is_what_is_sent(typed: list[str], sent: dict[str, Any]) -> None:
    """Defaults are not, but for the subject: they are the server's to choose."""
    with Peer(lambda _: Reply(503)) as peer:
        assert run("cut", "a.jpg", *typed, "--url", peer.base_url, "--retries", "0") == codes.UNAVAILABLE
        (received,) = peer.received
    form = json.loads(received.body[: int(received.headers["inference-header-content-length"])])
    assert {name: value for name, value in form["parameters"].items() if name in OPTIONS} == AUTO | sent


# -------------------------------------------------------------------------------------------------------------- cut


def test_cuts(answering: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cut", "a.jpg", "in", "b.jpg", "-o", "out") == codes.OK
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["a.png", "a_2.png", "b.png"]
    assert Path("out/a.png").read_bytes() == PNG
    shown = capsys.readouterr()
    assert lines_of(shown.out) == ["a.jpg → out/a.png", "b.jpg → out/b.png", "in/a.jpg → out/a_2.png"]
    assert re.search(r"\(1 person, \d+ ms\)", shown.out)
    assert shown.err.strip() == "3 of 3 pictures done"


def test_cuts_into_cutouts_without_being_told(answering: None) -> None:
    assert run("cut", "a.jpg", "--subject", "each") == codes.OK
    assert Path("cutouts/a-0.png").exists()


def test_what_is_too_large_goes_as_a_smaller_copy(answering: None, capsys: pytest.CaptureFixture[str]) -> None:
    Image.radial_gradient("L").resize((8160, 6144)).save("large.jpg", quality=30)
    assert run("cut", "large.jpg", "--no-fit") == codes.FAILED
    assert re.search(r"large\.jpg: (TOO_MANY_PIXELS|RESOLUTION_TOO_LARGE|IMAGE_BOMB): ", capsys.readouterr().err)
    with Peer(lambda _: Reply(503)) as peer:
        assert run("cut", "large.jpg", "--url", peer.base_url, "--retries", "0") == codes.UNAVAILABLE
        assert len(peer.received) == 1, "it was sent"


def test_quiet_says_nothing(answering: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cut", "a.jpg", "--quiet") == codes.OK
    assert capsys.readouterr() == ("", "")


def test_keeps_what_is_there(answering: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"mine")
    assert run("cut", "a.jpg", "b.jpg", "-o", "out") == codes.OK
    assert Path("out/a.png").read_bytes() == b"mine"
    assert Path("out/b.png").exists()
    assert "1 of 2 pictures done; 1 skipped, there already" in capsys.readouterr().err
    assert run("cut", "a.jpg", "-o", "out", "--overwrite") == codes.OK
    assert Path("out/a.png").read_bytes() == PNG


def test_one_failure_does_not_end_the_rest(answering: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.png").write_bytes(b"%PDF-1.7")
    assert run("cut", "bad.png", "a.jpg", "--quiet") == codes.FAILED
    shown = capsys.readouterr()
    assert "bad.png: INVALID_FORMAT: This is a PDF" in shown.err
    assert "Send a JPEG, PNG, WebP or BMP file" in shown.err, "it says what to do"
    assert "1 of 2 pictures done; 1 failed" in shown.err
    assert Path("cutouts/a.png").exists()


def test_warnings_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with peers.tcp_peer(peers.kserve_answer(*wire_outputs())) as port:
        assert run("cut", "a.jpg", "--subject", "each", "--url", f"http://127.0.0.1:{port}") == codes.OK
    shown = capsys.readouterr().out
    assert "cutouts/a-0.png, cutouts/a-2.png (2 people" in shown
    assert "warning: Unsure. (LOW_CONFIDENCE)" in shown


def test_a_server_that_is_gone_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"grpc://127.0.0.1:{peers.dead_port()}"
    for number in range(20):
        Path(f"in/{number}.jpg").write_bytes(make.jpeg())
    assert run("cut", "in", "--jobs", "2", "--retries", "0", "--url", url) == codes.UNAVAILABLE
    shown = capsys.readouterr()
    assert ".jpg: UNAVAILABLE:" in shown.err
    assert "stopped: the server is not there; the same command goes on from here" in shown.err
    failed, left = map(int, re.findall(r"0 of 21 pictures done; (\d+) failed; (\d+) not tried", shown.err)[0])
    assert failed + left == 21
    assert failed <= 4, "those in flight, and no more"
    assert not Path("cutouts").exists()


def test_a_refusal_of_the_server_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    form = NoPersonDetected("Nobody was found in the picture.").to_json()
    with peers.tcp_peer(peers.http_answer(400, json.dumps({"error": form}).encode())) as port:
        assert run("cut", "a.jpg", "--url", f"http://127.0.0.1:{port}") == codes.FAILED
    assert "a.jpg: NO_PERSON_DETECTED: Nobody was found in the picture. Use a picture" in capsys.readouterr().err


def test_servers_and_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    form = NoPersonDetected("\x1b]0;owned\x07 \x1b[2Jnobody").to_json()
    Path("\x1b[31mred.jpg").write_bytes(make.jpeg())
    with peers.tcp_peer(peers.http_answer(400, json.dumps({"error": form}).encode())) as port:
        assert run("cut", "\x1b[31mred.jpg", "--url", f"http://127.0.0.1:{port}") == codes.FAILED
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "\x07" not in shown.err


def test_an_unreadable_place_is_one_line(answering: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("in the way")
    assert run("cut", "a.jpg", "-o", "file/out") == codes.USAGE
    assert "Error: file/out cannot be a folder: file is a file" in capsys.readouterr().err
    Path("out").mkdir()
    Path("out/in").write_text("in the way")
    assert run("cut", "in/a.jpg", "a.jpg", "in", "-o", "out") == codes.OK
    Path("in/in").mkdir()
    Path("in/in/a.jpg").write_bytes(make.jpeg())
    assert run("cut", "in", "-o", "out") == codes.FAILED
    assert re.search(r"^in/in/a\.jpg: (Not a directory|File exists): ", capsys.readouterr().err, re.MULTILINE)


# ------------------------------------------------------------------------------------------------- detect and health


def test_detect_prints_a_table(answering: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("detect", "a.jpg") == codes.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a.jpg: 100×80, 1 person"
    assert lines[1].split() == ["id", "score", "x1", "y1", "x2", "y2"]
    assert lines[2].split() == ["0", "0.900", "1.5", "2.0", "90.0", "70.0"]


def test_detect_prints_json(answering: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("detect", "a.jpg", "--json") == codes.OK
    form = json.loads(capsys.readouterr().out)
    assert form.pop("request_id")
    assert form == {"source": "a.jpg", "status": "done", "outputs": [], **ONE}


def test_every_line_of_json_has_outputs(answering: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.png").write_bytes(b"no")
    Path("out").mkdir()
    Path("out/b.png").write_bytes(b"mine")
    assert run("cut", "a.jpg", "b.jpg", "bad.png", "-o", "out", "--json") == codes.FAILED
    forms = {form["source"]: form for form in read_jsonl(capsys.readouterr().out)}
    assert {source: len(form["outputs"]) for source, form in forms.items()} == {"a.jpg": 1, "b.jpg": 1, "bad.png": 0}


@pytest.mark.parametrize(("name", "code"), [("bad.png", codes.FAILED), ("a.jpg", codes.UNAVAILABLE)])
def test_detect_fails(name: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.png").write_bytes(b"no")
    assert run("detect", name, "--url", f"http://127.0.0.1:{peers.dead_port()}") == code
    shown = capsys.readouterr()
    assert shown.err.startswith(f"{name}: ")
    assert shown.out == ""


def test_health_of_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{peers.dead_port()}"
    assert run("health", "--url", url) == codes.UNAVAILABLE
    shown = capsys.readouterr()
    assert shown.err.startswith(f"{url}: UNAVAILABLE: ")
    assert shown.out == ""
    assert run("health", "--url", url, "--json") == codes.UNAVAILABLE
    form = json.loads(capsys.readouterr().out)
    assert form["ok"] is False
    assert form["error"]["code"] == "UNAVAILABLE"


# -------------------------------------------------------------------------------------------- as a process, for real


def test_no_traceback_whatever_is_missing() -> None:
    for arguments in (["cut", "a.jpg"], ["detect", "none"], ["health"], ["cut", "none"]):
        ended = command(*arguments)
        assert ended.returncode in (codes.FAILED, codes.USAGE, codes.UNAVAILABLE)
        assert "Traceback" not in ended.stderr
        assert ended.stderr


def test_as_a_module() -> None:
    ended = subprocess.run([sys.executable, "-m", "cutaway", "--version"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (codes.OK, f"cutaway {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cutaway co", {"composite"}),
        ("cutaway cut --subj", {"--subject"}),
        ("cutaway cut --subject ", set(OPTIONS["subject"].choices)),
        ("cutaway composite --place bottom-", {"bottom-left", "bottom-right"}),
    ],
)
def test_a_shell_completes(words: str, expected: set[str]) -> None:
    asked = {"_CUTAWAY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    ended = subprocess.run(
        [sys.executable, "-m", "cutaway"], capture_output=True, text=True, timeout=60, env={**os.environ, **asked}
    )
    assert (ended.returncode, ended.stderr) == (codes.OK, "")
    assert {line.rpartition(",")[2] for line in ended.stdout.splitlines()} == expected


def test_an_ended_reader_is_no_failure_to_tell() -> None:
    shell = f"{sys.executable} -m cutaway --help | head -1"
    ended = subprocess.run(shell, shell=True, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in ended.stderr
    assert "BrokenPipe" not in ended.stderr


def test_a_terminal_without_arrows(answering: None) -> None:
    ended = command("cut", "a.jpg", url=os.environ[codes.URL_VARIABLE], encoding="ascii")
    assert ended.returncode == codes.OK, ended.stderr
    assert ended.stdout.startswith("a.jpg ? cutouts/a.png")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_interrupted(scheme: str) -> None:
    arrived = threading.Event()

    def waiting(connection: socket.socket, over: threading.Event) -> None:
        arrived.set()
        over.wait(30)

    with peers.tcp_peer(waiting) as port, started("cut", "a.jpg", url=f"{scheme}://127.0.0.1:{port}") as process:
        assert arrived.wait(30)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=10)
    assert process.returncode == codes.INTERRUPTED
    assert said == "interrupted\n0 of 1 picture done; 1 not tried\n"
    assert "Traceback" not in said


@pytest.mark.triton
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_whole_way(server: Any, samples: list[Path], scheme: str) -> None:
    url = server.grpc_url if scheme == "grpc" else server.http_url
    Path("folder").mkdir()
    for sample in samples:
        shutil.copy(sample, "folder")
    folder = "folder"
    cut = command("cut", folder, "-o", "out", "--background", "#00FF00", url=url)
    assert cut.returncode == codes.OK, cut.stderr
    assert sorted(path.stem for path in Path("out").glob("*.png")) == [sample.stem for sample in samples]
    for sample in samples:
        with Image.open(sample) as picture, Image.open(Path("out", f"{sample.stem}.png")) as result:
            assert result.size == picture.size
    again = command("cut", folder, "-o", "out", "--background", "#00ff00", url=url)
    assert (again.returncode, again.stdout) == (codes.OK, "")
    assert again.stderr == f"0 of {len(samples)} pictures done; {len(samples)} skipped, there already\n"
    assert command("cut", folder, "-o", "out", "--overwrite", "--subject", "each", url=url).returncode == codes.OK
    detect = command("detect", str(samples[0]), "--json", url=url)
    assert json.loads(detect.stdout)["people"][0]["confidence"] > 0.5
    health = command("health", url=url)
    assert health.returncode == codes.OK, health.stderr
    assert "came back in" in health.stdout


@pytest.mark.triton
def test_options_reach_the_server(server: Any, samples: list[Path]) -> None:
    options = ["--boxes", "20,20,300,400;100,50,500,590", "--subject", "each", "--output", "mask"]
    cut = command("cut", str(samples[0]), *options, url=server.http_url)
    assert cut.returncode == codes.OK, cut.stderr
    masks = sorted(Path("cutouts").glob("*.png"))
    assert [mask.name for mask in masks] == [f"{samples[0].stem}-0.png", f"{samples[0].stem}-1.png"]
    with Image.open(masks[0]) as mask:
        assert mask.mode == "L"
