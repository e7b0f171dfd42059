"""The page about the command says what the command does: subcommands, fields, exit codes and numbers are compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cutaway.cli import codes, command
from cutaway.cli.files import EXTENSIONS, FORMS
from cutaway.contract import limits

from tests.client.commanding import read_jsonl, run
from tests.client.own_server import own_server
from tests.integration import picture_files as make

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "client" / "command-line.md").read_text()
WORDS = " ".join(PAGE.split())


def first_cells(head: str) -> list[str]:
    """The first column of the table that begins like this."""
    table = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [line.split("|")[1].strip() for line in table]


def test_subcommands() -> None:
    assert [re.findall(r"`cutaway (\w+)", cell)[0] for cell in first_cells("| subcommand |")] == list(command.commands)


def test_exit_codes() -> None:
    every = (codes.OK, codes.FAILED, codes.USAGE, codes.UNAVAILABLE, codes.INTERRUPTED)
    assert [int(cell) for cell in first_cells("| exit code |")] == list(every)


def test_fields_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").write_bytes(make.jpeg())
    Path("b.jpg").write_bytes(b"no")
    with own_server("http") as own:
        assert run("cut", "a.jpg", "b.jpg", "--json", "--url", own.url) == codes.FAILED
    forms = read_jsonl(capsys.readouterr().out)
    described = {name for cell in first_cells("| field of `cut --json` |") for name in re.findall(r"`(\w+)`", cell)}
    assert described == {name for form in forms for name in form}
    (output,) = next(form["outputs"] for form in forms if form["status"] == "done")
    error = next(form["error"] for form in forms if form["status"] == "failed")
    for row, fields in (("`outputs`", output), ("`error`", error)):
        line = next(line for line in PAGE.splitlines() if line.startswith(f"| {row}"))
        assert all(f"`{name}`" in line for name in fields), line


def test_numbers_and_names() -> None:
    for words in (
        f"`--jobs` pictures are in flight at once, {limits.CUT_MANY_JOBS} by default",
        f"so do {limits.RUN_GIVE_UP_FAILURES} failures of the server in a row",
        f"`{limits.DEFAULT_URL}` if neither does",
        *(f"`${name}`" for name in (codes.URL_VARIABLE, codes.TOKEN_VARIABLE, codes.API_KEY_VARIABLE)),
    ):
        assert words in WORDS, words
    assert {".jpg", ".png", ".webp", ".bmp"} <= set(EXTENSIONS)


def test_every_form_of_output_has_an_extension() -> None:
    assert {*limits.OPTIONS["output"].choices, *limits.COMPOSITE_OUTPUTS} <= set(FORMS)
