"""The output folder: nothing lands on what it must not, a name that shows is whole, and what is done stays done.

1. writing: whole or not at all, never over pictures being read, other results or, unforced, anything;
2. the journal: what is done is skipped; another picture, other options or lost files are told apart;
3. whatever is in the journal, nothing leaves the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cutaway.cli.files import Job
from cutaway.cli.journal import JOURNAL, Journal
from cutaway.cli.output import OutputFolder
from cutaway.cli.writer import Writer

PNG = b"\x89PNG\r\n\x1a\n"
CUT = {"command": "cut"}
FOLDER = Path("out")


def touch(*names: str, data: bytes = b"picture") -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)


def left_over() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*.part"))


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------------------------------------- writing


def test_writes() -> None:
    job = Job(Path("in.jpg"), Path("new/photo.v2"))
    assert job.target(None, "png") == Path("new/photo.v2.png")
    Writer([job], force=False).write({job.target(None, "png"): PNG})
    assert Path("new/photo.v2.png").read_bytes() == PNG
    assert left_over() == []


@pytest.mark.parametrize("links", [True, False])
def test_keeps_files_of_earlier_runs(links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        _without_links(monkeypatch)
    target = Path("photo.png")
    target.write_bytes(b"old")
    careful = Writer([], force=False)
    assert careful.bars(target)
    with pytest.raises(FileExistsError, match=r"photo\.png is there already; --force"):
        careful.write({target: PNG})
    assert target.read_bytes() == b"old"
    careful.write({Path("other.png"): PNG})
    assert Path("other.png").read_bytes() == PNG
    forced = Writer([], force=True)
    assert not forced.bars(target)
    forced.write({target: PNG})
    assert target.read_bytes() == PNG
    assert left_over() == []


@pytest.mark.parametrize("links", [True, False])
def test_what_comes_at_the_last_moment_is_kept_too(links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not links:
        _without_links(monkeypatch)
    first, second = Path("photo-0.png"), Path("photo-1.png")
    with pytest.raises(FileExistsError):
        Writer([], force=False).write({first: PNG, second: PNG}, record=lambda _: touch(str(second), data=b"theirs"))
    assert second.read_bytes() == b"theirs"
    assert not first.exists(), "all or none"
    assert left_over() == []


def test_writes_all_of_a_picture_or_none() -> None:
    touch("photo-1.png")
    with pytest.raises(FileExistsError):
        Writer([], force=False).write({Path("photo-0.png"): PNG, Path("photo-1.png"): PNG})
    assert not Path("photo-0.png").exists()


def test_what_is_half_written_has_no_name_that_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Writer([], force=True).write({Path("photo.png"): PNG}, record=full)
    assert list(Path().iterdir()) == []


def test_never_writes_over_a_picture_that_is_read() -> None:
    """Not even when forced: `cutaway cut *.png -o . --force` would destroy what it was given."""
    touch("photo.png", "other.jpg")
    forced = Writer([Job(Path("photo.png"), Path("photo")), Job(Path("other.jpg"), Path("../x"))], force=True)
    assert forced.bars(Path("photo.png"))
    for replaceable in ((), {Path("photo.png")}):
        with pytest.raises(FileExistsError):
            forced.write({Path("photo.png"): PNG}, replaceable=replaceable)
    assert Path("photo.png").read_bytes() == b"picture"


def test_never_writes_over_what_was_made_of_another_picture() -> None:
    """`photo` with subject 'each' and a picture called `photo-0` want the same name."""
    forced = Writer([], force=True)
    forced.write({Path("photo-0.png"): PNG})
    with pytest.raises(FileExistsError):
        forced.write({Path("photo-0.png"): PNG + b"x"})
    assert Path("photo-0.png").read_bytes() == PNG


def _without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


# ------------------------------------------------------------------------------------------------------ what is done


class Run:
    """One run: jobs, and what stands about them."""

    def __init__(self, *sources: str, options: dict[str, Any] = CUT, each: bool = False, force: bool = False) -> None:
        self.jobs = [Job(Path(source), FOLDER / Path(source).stem) for source in sources]
        self.each = each
        journal = Journal(FOLDER)
        self.output = OutputFolder(self.jobs, journal, options=options, extension="png", numbered=each, force=force)

    def standing(self) -> list[str]:
        return [self.output.standing(job).status for job in self.jobs]

    @property
    def why(self) -> str:
        return self.output.standing(self.jobs[0]).why

    def do(self, number: int = 1, data: bytes = PNG) -> Run:
        """Make everything that is to be done."""
        for job in self.jobs:
            if self.output.standing(job).status == "todo":
                self.output.begin(job)
                names = [job.target(id_ if self.each else None, "png") for id_ in range(number)]
                self.output.finish(job, dict.fromkeys(names, data), {"provider": "triton"})
        return self


def test_what_is_done_is_skipped() -> None:
    touch("a.jpg", "b.jpg")
    assert Run("a.jpg").do().standing() == ["skipped"], "in the same run"
    assert Run("a.jpg", "b.jpg").standing() == ["skipped", "todo"]
    assert Run("a.jpg", force=True).standing() == ["todo"]


def test_a_run_from_elsewhere_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch("a.jpg")
    Run("a.jpg").do()
    journal = Journal(tmp_path / "out")
    job = Job(tmp_path / "a.jpg", tmp_path / "out/a")
    output = OutputFolder([job], journal, options=CUT, extension="png")
    assert output.standing(job).status == "skipped"
    assert journal.stems() == {(tmp_path / "a.jpg").resolve(): tmp_path / "out/a"}
    (tmp_path / "moved").mkdir()
    (tmp_path / "out").rename(tmp_path / "moved/out")
    (tmp_path / "a.jpg").rename(tmp_path / "moved/a.jpg")
    monkeypatch.chdir(tmp_path / "moved")
    assert Run("a.jpg").standing() == ["skipped"], "both moved together"


def test_another_time_alone_is_no_other_picture() -> None:
    touch("a.jpg")
    Run("a.jpg").do()
    os.utime("a.jpg", ns=(1, 1))
    assert Run("a.jpg").standing() == ["skipped"]


@pytest.mark.parametrize("data", [b"another", b"picturE", b"a longer picture"])
def test_another_picture_of_the_same_name_differs(data: bytes) -> None:
    touch("a.jpg")
    Run("a.jpg").do()
    touch("a.jpg", data=data)
    os.utime("a.jpg", ns=(1, 1))
    again = Run("a.jpg")
    assert again.standing() == ["differs"]
    assert again.why == "out/a.png was made of an earlier a.jpg; --force makes it again"
    Run("a.jpg", force=True).do(data=PNG + b"new")
    assert Path("out/a.png").read_bytes() == PNG + b"new"
    assert Run("a.jpg").standing() == ["skipped"]


def test_other_options_differ() -> None:
    touch("a.jpg")
    Run("a.jpg").do()
    green = {"command": "cut", "background": "#00FF00", "boxes": [[1.0, 2.0, 3.0, 4.0]]}
    assert Run("a.jpg", options=green).standing() == ["differs"]
    assert "with other options (the defaults); --force" in Run("a.jpg", options=green).why
    Run("a.jpg", options=green, force=True).do()
    assert Run("a.jpg", options=green).standing() == ["skipped"], "what went through JSON is the same"
    assert "(background #00FF00, boxes [[1.0, 2.0, 3.0, 4.0]])" in Run("a.jpg").why


def test_forms_with_names_of_their_own_stand_side_by_side() -> None:
    touch("a.jpg")
    Run("a.jpg").do()
    each = {"command": "cut", "subject": "each"}
    assert Run("a.jpg", options=each, each=True).do(2).standing() == ["skipped"]
    assert Run("a.jpg").standing() == ["skipped"]
    assert sorted(path.name for path in FOLDER.glob("*.png")) == ["a-0.png", "a-1.png", "a.png"]


def test_what_was_deleted_is_made_again() -> None:
    touch("a.jpg")
    Run("a.jpg", each=True).do(2)
    Path("out/a-1.png").unlink()
    again = Run("a.jpg", each=True)
    assert again.standing() == ["todo"]
    again.do(2, PNG + b"new")
    assert Path("out/a-0.png").read_bytes() == PNG + b"new", "nobody had worked on it"
    assert Run("a.jpg", each=True).standing() == ["skipped"]


def test_what_somebody_worked_on_is_kept() -> None:
    touch("a.jpg")
    Run("a.jpg", each=True).do(2)
    Path("out/a-0.png").write_bytes(b"retouched")
    assert Run("a.jpg", each=True).standing() == ["skipped"]
    Path("out/a-1.png").unlink()
    again = Run("a.jpg", each=True)
    assert again.standing() == ["differs"]
    assert "out/a-0.png was changed since it was made" in again.why
    assert Path("out/a-0.png").read_bytes() == b"retouched"


@pytest.mark.parametrize("size", [0, 3])
def test_what_a_power_cut_left_is_made_again(size: int) -> None:
    touch("a.jpg")
    Run("a.jpg").do()
    made = Path("out/a.png").stat()
    Path("out/a.png").write_bytes(PNG[:size])
    os.utime("out/a.png", ns=(made.st_atime_ns, made.st_mtime_ns))
    assert Run("a.jpg").standing() == ["todo"]
    Run("a.jpg").do()
    assert Path("out/a.png").read_bytes() == PNG


def test_without_a_line_in_the_journal_names_decide() -> None:
    touch("a.jpg")
    touch("out/a.png", data=b"mine")
    run = Run("a.jpg")
    assert run.standing() == ["failed"]
    assert run.why == "out/a.png is there already; --force replaces what earlier runs made"
    Run("a.jpg", force=True).do()
    assert Path("out/a.png").read_bytes() == PNG
    assert Run("a.jpg").standing() == ["skipped"]


def test_another_picture_that_wants_the_same_place() -> None:
    touch("a.jpg", "b/a.jpg", "c/a.jpg")
    touch("b/a.jpg", data=b"another")
    Run("a.jpg").do()
    assert Run("b/a.jpg").standing() == ["failed"]
    assert Run("b/a.jpg").why == "out/a.png is there already, made of a.jpg; --force replaces what earlier runs made"
    assert Run("c/a.jpg").standing() == ["skipped"], "it is the same picture, which was moved"
    Path("out/a.png").unlink()
    assert Run("b/a.jpg").do().standing() == ["skipped"]


def test_a_forced_run_spares_its_own_pictures() -> None:
    touch("out/a.png")
    run = Run("out/a.png", force=True)
    assert run.standing() == ["failed"]
    assert "picture of this very run" in run.why


def test_what_could_not_be_written_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    touch("a.jpg")
    run = Run("a.jpg")
    assert run.standing() == ["todo"]
    with monkeypatch.context() as patched:
        patched.setattr("cutaway.cli.writer._name", _raises(FileExistsError("theirs")))
        with pytest.raises(FileExistsError, match="theirs"):
            run.do()
    assert Run("a.jpg").standing() == ["todo"]
    assert len((Path("out") / JOURNAL).read_text().splitlines()) == 2, "written down, and taken back"


def test_ended_between_the_journal_and_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if killed in that very moment: nothing is tidied up."""
    touch("a.jpg")
    with monkeypatch.context() as patched:
        patched.setattr("cutaway.cli.writer._name", _raises(SystemExit))
        patched.setattr(Journal, "take_back", lambda *_: None)
        with pytest.raises(SystemExit):
            Run("a.jpg").do()
    assert len(Journal(FOLDER)) == 1
    assert Run("a.jpg").do().standing() == ["skipped"]


def _raises(error: BaseException | type[BaseException]) -> Callable[..., None]:
    def function(*_: object) -> None:
        raise error

    return function


# ------------------------------------------------------------------------------------------------ reading the journal


def test_no_journal_is_an_empty_one() -> None:
    assert len(Journal(Path("none"))) == 0
    assert not Path("none").exists(), "looking makes nothing"


def test_a_torn_line_costs_only_itself() -> None:
    touch("a.jpg", "b.jpg", "c.jpg")
    Run("a.jpg", "b.jpg").do()
    path = FOLDER / JOURNAL
    path.write_bytes(path.read_bytes()[:-40])
    assert Run("a.jpg", "b.jpg").standing() == ["skipped", "failed"]
    Run("c.jpg").do()
    assert Run("a.jpg", "c.jpg").standing() == ["skipped", "skipped"], "a new line does not join the torn one"


@pytest.mark.parametrize(
    "change",
    [
        {"stem": "../a"},
        {"stem": "/tmp/a"},
        {"stem": ""},
        {"stem": 5},
        {"outputs": {"../x.png": {"bytes": 1, "mtime_ns": 1}}},
        {"outputs": {"/etc/passwd": {"bytes": 1, "mtime_ns": 1}}},
        {"outputs": {"a\0.png": {"bytes": 1, "mtime_ns": 1}}},
        {"outputs": {"a.png": {"bytes": "many"}}},
        {"outputs": ["a.png"]},
        {"bytes": None},
        {"options": 7},
    ],
)
def test_lines_that_lead_astray_are_passed_over(change: dict[str, Any]) -> None:
    touch("a.jpg")
    Run("a.jpg").do()
    path = FOLDER / JOURNAL
    line = json.loads(path.read_text())
    path.write_text(json.dumps(line | change) + "\n")
    assert len(Journal(FOLDER)) == 0


@pytest.mark.parametrize("text", ["", "\n\n", "null\n", "[]\n", "[" * 100_000, '{"stem": "a"}\n', "\x00\xff\n"])
def test_a_journal_of_nonsense_is_an_empty_one(text: str) -> None:
    touch(f"out/{JOURNAL}", data=text.encode("latin-1"))
    assert len(Journal(FOLDER)) == 0


def test_a_line_without_outputs_takes_an_earlier_one_back() -> None:
    touch("a.jpg")
    Run("a.jpg").do()
    with (FOLDER / JOURNAL).open("a") as file:
        file.write('{"stem": "a", "suffix": ".png", "outputs": {}}\n')
    assert len(Journal(FOLDER)) == 0
