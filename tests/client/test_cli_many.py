"""Many pictures: several at once, told as they complete, gone on with where a run stopped, and ended when it must be.

1. jobs: as many in flight as was said; one failure does not end the rest;
2. a server that is gone, or fails again and again, ends the run with exit code 3;
3. going on: what is done is skipped, whatever came between; JSON says the same;
4. signals: what is in flight is cancelled, what is done is kept;
5. standard input and output.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cutaway.cli import codes
from cutaway.contract import limits
from cutaway.contract.errors import InferenceError, NoPersonDetected, Overloaded, ProcessingTimeout

from tests.client.answers import PNG
from tests.client.commanding import command, lines_of, read_jsonl, run, started
from tests.client.own_server import DOWN, Asked, OwnServer, failing, own_server
from tests.integration import picture_files as make

ONCE = ("--retries", "0")


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (codes.URL_VARIABLE, codes.RATIO_VARIABLE, codes.TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnServer]:
    with own_server("http") as server:
        monkeypatch.setenv(codes.URL_VARIABLE, server.url)
        yield server


def pictures(number: int, folder: str = "in") -> None:
    Path(folder).mkdir(exist_ok=True)
    for index in range(number):
        Path(folder, f"{index:02}.jpg").write_bytes(make.jpeg())


# ------------------------------------------------------------------------------------------------------------ jobs


def test_so_many_are_in_flight_as_was_said(own: OwnServer) -> None:
    pictures(9)
    together, most = threading.Barrier(3, timeout=30), 0
    flying, lock = 0, threading.Lock()

    def script(_: Asked) -> None:
        nonlocal flying, most
        with lock:
            flying += 1
            most = max(most, flying)
        together.wait()  # nobody is answered before three are there
        with lock:
            flying -= 1

    own.script = script
    assert run("cut", "in", "--jobs", "3", "--timeout-s", "60") == codes.OK
    assert most == 3
    assert len(list(Path("cutouts").glob("*.png"))) == 9


def test_written_as_they_complete(own: OwnServer) -> None:
    pictures(2)
    first = threading.Lock()
    seen = []

    def script(_: Asked) -> None:
        if first.acquire(blocking=False):
            # This picture is answered when the cut-out of the other one lies there.
            until = time.monotonic() + 30
            while not (found := list(Path("cutouts").glob("*.png"))) and time.monotonic() < until:
                time.sleep(0.01)
            seen.extend(found)

    own.script = script
    assert run("cut", "in", "--jobs", "2", "--timeout-s", "60") == codes.OK
    assert len(seen) == 1


def test_one_failure_does_not_end_the_rest(own: OwnServer, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(3)
    Path("in/broken.jpg").write_bytes(make.jpeg()[:100])
    Path("in/no.jpg").write_bytes(b"%PDF-1.7")
    assert run("cut", "in") == codes.FAILED
    shown = capsys.readouterr()
    assert "in/no.jpg: INVALID_FORMAT: This is a PDF" in shown.err
    assert "3 of 5 pictures done; 2 failed" in shown.err


@pytest.mark.parametrize("number", ["0", "-1", "many", "1.5"])
def test_jobs_make_sense(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(1)
    assert run("cut", "in", "--jobs", number) == codes.USAGE
    assert "--jobs" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- when to stop


def gone(shown: str) -> tuple[int, int]:
    """How many failed, and how many were not tried."""
    found = re.search(r"(\d+) failed; (\d+) not tried", shown)
    assert found, shown
    return int(found[1]), int(found[2])


def test_a_server_that_is_gone_ends_the_run(own: OwnServer, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(30)
    own.script = lambda _: DOWN if len(own.asked) > 3 else None
    assert run("cut", "in", "--jobs", "2", *ONCE) == codes.UNAVAILABLE
    shown = capsys.readouterr().err
    assert "stopped: the server is not there; the same command goes on from here" in shown
    failed, left = gone(shown)
    assert failed <= 4, "those in flight, and no more"
    assert left == 30 - 3 - failed
    own.script = lambda _: None
    assert run("cut", "in") == codes.OK
    assert "27 of 30 pictures done; 3 skipped, there already" in capsys.readouterr().err


@pytest.mark.parametrize("error", [InferenceError("It broke."), Overloaded("Full."), ProcessingTimeout("Slow.")])
def test_a_server_that_fails_again_and_again_ends_the_run(
    error: Exception, own: OwnServer, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(40)
    own.script = lambda _: failing(error)  # type: ignore[arg-type]
    assert run("cut", "in", "--jobs", "2", *ONCE) == codes.UNAVAILABLE
    shown = capsys.readouterr().err
    assert "the server failed 10 times in a row" in shown
    assert limits.RUN_GIVE_UP_FAILURES <= gone(shown)[0] <= limits.RUN_GIVE_UP_FAILURES + 4


def test_failures_among_successes_do_not(own: OwnServer) -> None:
    pictures(40)
    own.script = lambda _: failing(InferenceError("It broke.")) if len(own.asked) % 3 else None
    assert run("cut", "in", "--jobs", "1", *ONCE) == codes.FAILED
    assert len(list(Path("cutouts").glob("*.png"))) == 40 // 3


def test_pictures_of_nobody_are_no_fault_of_the_server(own: OwnServer) -> None:
    pictures(40)
    own.script = lambda _: failing(NoPersonDetected("Nobody."))
    assert run("cut", "in", "--jobs", "1") == codes.FAILED
    assert len(own.asked) == 40


def test_repeats_are_as_many_as_was_said(own: OwnServer) -> None:
    pictures(1)
    own.script = lambda _: failing(Overloaded("Full.")) if len(own.asked) < 4 else None
    assert run("cut", "in", "--retries", "1") == codes.FAILED
    assert len(own.asked) == 2


# --------------------------------------------------------------------------------------------------------- going on


def test_json_tells_of_every_picture(own: OwnServer, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(2)
    assert run("cut", "in/00.jpg", "--quiet") == codes.OK
    Path("bad.jpg").write_bytes(b"%PDF-1.7")
    assert run("cut", "in", "bad.jpg", "none.jpg", "--json") == codes.USAGE
    assert run("cut", "in", "bad.jpg", "--json") == codes.FAILED
    shown = capsys.readouterr()
    forms = {form["source"]: form for form in read_jsonl(shown.out)}
    assert {source: form["status"] for source, form in forms.items()} == {
        "in/00.jpg": "skipped",
        "in/01.jpg": "done",
        "bad.jpg": "failed",
    }
    done = forms["in/01.jpg"]
    assert done["outputs"] == [
        {
            "path": "cutouts/01.png",
            "id": 0,
            "people": [0],
            "box": [40.0, 24.0, 120.0, 72.0],
            "score": 0.9,
            "frame": [5, 10, 95, 70],
            "bytes": len(PNG),
        }
    ]
    assert (done["provider"], done["tier"], done["requests"], done["from_cache"]) == ("triton", 1, 1, False)
    assert done["profile"] == "nano"
    assert done["timings_ms"]["total"] == 100
    assert done["elapsed_ms"] > 0
    assert done["request_id"] == own.asked[-1].request_id
    assert forms["in/00.jpg"]["outputs"] == [{"path": "cutouts/00.png"}]
    assert forms["bad.jpg"]["error"]["code"] == "INVALID_FORMAT"
    assert "1 of 3 pictures done; 1 skipped, there already; 1 failed" in shown.err, "words go to standard error"
    assert run("cut", "in/00.jpg", "-o", "cutouts/00.png", "--json") == codes.FAILED
    (form,) = read_jsonl(capsys.readouterr().out)
    assert form["error"]["code"] == "FILE_ERROR"
    assert "cutouts/00.png is there already" in form["error"]["message"]


def test_what_is_there_is_skipped_unless_it_is_to_be_made_anew(
    own: OwnServer, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(2)
    assert run("cut", "in", "--subject", "each", "--quiet") == codes.OK
    Path("cutouts/00-0.png").write_bytes(b"retouched")
    assert run("cut", "in", "--subject", "each") == codes.OK
    assert capsys.readouterr().err == "0 of 2 pictures done; 2 skipped, there already\n"
    assert len(own.asked) == 2, "nothing was sent again"
    assert Path("cutouts/00-0.png").read_bytes() == b"retouched"
    assert run("cut", "in", "--subject", "each", "--select", "0,1") == codes.OK, "one of them is there"
    assert "2 skipped, there already" in capsys.readouterr().err
    assert run("cut", "in") == codes.OK, "in another form, under names of their own"
    assert "2 of 2 pictures done" in capsys.readouterr().err
    assert run("cut", "in", "--subject", "each", "--overwrite") == codes.OK
    assert Path("cutouts/00-0.png").read_bytes() == PNG


def test_pictures_of_the_run_are_never_written_over(own: OwnServer, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.png").write_bytes(make.saved(make.picture(90, 60), "PNG"))
    before = Path("a.png").read_bytes()
    assert run("cut", "a.png", "-o", ".", "--overwrite") == codes.FAILED
    assert (
        "a.png is there already; --overwrite replaces it, unless it is a picture of this very run"
        in capsys.readouterr().err
    )
    assert Path("a.png").read_bytes() == before


def test_a_folder_is_not_searched_and_written_to(own: OwnServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run would cut the first one's results."""
    pictures(1)
    assert run("cut", "in", "-o", "in") == codes.USAGE
    assert "in is searched for pictures: name another folder" in capsys.readouterr().err


def test_a_file_instead_of_a_folder(own: OwnServer, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(2)
    assert run("cut", "in/00.jpg", "-o", "new/cut.png") == codes.OK
    assert Path("new/cut.png").read_bytes() == PNG
    assert sorted(path.name for path in Path("new").iterdir()) == ["cut.png"]
    assert run("cut", "in/00.jpg", "-o", "new/cut.png") == codes.FAILED
    assert "new/cut.png is there already; --overwrite" in capsys.readouterr().err
    assert run("cut", "in/00.jpg", "-o", "new/cut.png", "--overwrite") == codes.OK
    for arguments, words in (
        (["in", "-o", "cut.png"], "-o cut.png takes one picture, and 2 are named"),
        (["in/00.jpg", "-o", "cut.bmp"], "name it cut.png"),
        (["in/00.jpg", "-o", "cut.png", "--output", "webp"], "name it cut.webp"),
    ):
        assert run("cut", *arguments) == codes.USAGE
        assert words in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("scheme", "number", "code"),
    [
        ("grpc", signal.SIGINT, codes.INTERRUPTED),
        ("http", signal.SIGINT, codes.INTERRUPTED),
    ],
)
def test_what_is_done_is_kept(
    scheme: str, number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(6)
    over, third = threading.Event(), threading.Event()

    def script(_: Asked) -> None:
        if len(server.asked) > 2:
            third.set()
            over.wait(30)

    with own_server(scheme, script) as server:
        with started("cut", "in", "--jobs", "1", url=server.url) as process:
            assert third.wait(30)
            process.send_signal(number)
            out, said = process.communicate(timeout=20)
        over.set()
        assert process.returncode == code, said
        assert lines_of(out) == ["in/00.jpg → cutouts/00.png", "in/01.jpg → cutouts/01.png"]
        # When its poller is closed, gRPC once in a hundred times logs a line of its own, whatever its verbosity.
        said = re.sub(r"^E\d{4} .*\n", "", said)
        assert said == "interrupted\n2 of 6 pictures done; 4 not tried\n"
        assert sorted(path.name for path in Path("cutouts").iterdir()) == ["00.png", "01.png"]
        server.script = lambda _: None
        assert run("cut", "in", "--url", server.url) == codes.OK
    assert "4 of 6 pictures done; 2 skipped" in capsys.readouterr().err


def test_killed_without_a_warning(own: OwnServer, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(6)
    over, fourth = threading.Event(), threading.Event()

    def script(_: Asked) -> None:
        if len(own.asked) > 3:
            fourth.set()
            over.wait(30)

    own.script = script
    with started("cut", "in", "--jobs", "1", url=own.url) as process:
        assert fourth.wait(30)
        process.kill()
    over.set()
    own.script = lambda _: None
    assert run("cut", "in") == codes.OK
    assert re.search(r"[34] of 6 pictures done; [23] skipped, there already", capsys.readouterr().err)
    assert {path.read_bytes() for path in Path("cutouts").glob("*.png")} == {PNG}


# ------------------------------------------------------------------------------------------ standard input and output


def test_through_a_pipe(own: OwnServer) -> None:
    shell = f"{sys.executable} -m cutaway cut - -o - > cut.png"
    ended = subprocess.run(shell, shell=True, input=make.jpeg(), capture_output=True, timeout=60)
    assert ended.returncode == codes.OK, ended.stderr
    assert Path("cut.png").read_bytes() == PNG
    assert ended.stderr.startswith("stdin → standard output (1 person, ".encode())
    assert sorted(path.name for path in Path().iterdir()) == ["cut.png"]


def test_standard_input_into_a_folder(own: OwnServer) -> None:
    ended = command("cut", "-", stdin=make.jpeg(), url=own.url)
    assert ended.returncode == codes.OK, ended.stderr
    assert Path("cutouts/stdin.png").read_bytes() == PNG
    assert command("detect", "-", stdin=make.jpeg(), url=own.url).stdout.startswith("stdin: 100×80, 1 person")


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "INVALID_FORMAT"), (b"\xff\xd8" + bytes(limits.INPUT_LIMITS.max_file_bytes), "TOO_LARGE")]
)
def test_standard_input_of_nonsense(data: bytes, words: str, own: OwnServer) -> None:
    ended = command("cut", "-", "-o", "-", "--no-fit", stdin=data, url=own.url)
    assert (ended.returncode, ended.stdout) == (codes.FAILED, "")
    assert words in ended.stderr
    assert own.asked == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-", "in/00.jpg"], "name no others beside it"),
        (["in", "-o", "-"], "-o - takes one picture, and 2 are named"),
        (["in/00.jpg", "-o", "-", "--json"], "both want standard output"),
    ],
)
def test_usage_of_streams(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(2)
    assert run("cut", *arguments) == codes.USAGE
    assert words in capsys.readouterr().err


def test_a_terminal_gets_no_picture(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(1)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("cut", "in", "-o", "-") == codes.USAGE
    assert "print a picture to the terminal" in capsys.readouterr().err
