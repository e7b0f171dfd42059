"""The command's files: each picture is found once and has a place of its own, and what is written is whole.

1. finding pictures, and a place for each;
2. writing: each file whole or not at all, never over pictures of the run or, unless told to, over anything.
"""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from cutaway.cli.files import Job, plan, write

PNG = b"\x89PNG\r\n\x1a\n"


def touch(*names: str, data: bytes = b"picture") -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(data)


def found(*names: str, to: str = "out") -> list[str]:
    return [str(job.stem.relative_to(to)) for job in plan(names, Path(to))]


def hidden() -> list[str]:
    return sorted(path.name for path in Path().rglob(".*"))


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --------------------------------------------------------------------------------------------------------- finding


def test_files_and_folders() -> None:
    touch("a.jpg", "notes.txt", "in/b.PNG", "in/deep/c.webp", "in/readme.md", "other/d.bmp")
    assert found("a.jpg") == ["a"]
    assert found("notes.txt") == ["notes"], "a file that is named is tried"
    assert found("in") == ["b", "deep/c"]
    assert found("a.jpg", "./a.jpg") == ["a"], "once, however often it is named"


def test_cutouts_of_earlier_runs_are_no_pictures() -> None:
    touch("in/a.jpg", "in/out/a.png")
    assert found("in", to="in/out") == ["a"]
    assert found("in", to="elsewhere") == ["a", "out/a"]
    assert found("in/out/a.png", to="in/out") == ["a"], "it is named"
    assert [str(job.source) for job in plan(["in"])] == ["in/a.jpg", "in/out/a.png"], "where nothing is made"


def test_names_with_brackets_are_no_patterns() -> None:
    touch("photo[1].jpg")
    assert found("photo[1].jpg") == ["photo[1]"]


@pytest.mark.parametrize("name", ["none.jpg", "*.gif", "empty"])
def test_names_of_nothing(name: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(click.UsageError, match="there is no picture"):
        plan([name])


def test_folders_are_kept_and_no_two_places_are_the_same() -> None:
    touch("a/photo.jpg", "a/photo.png", "b/photo.jpg", "b/PHOTO.webp", "b/deep/photo.jpg", "photo_2.jpg")
    places = found("a", "b", "photo_2.jpg")
    assert places == ["photo", "photo_2", "PHOTO_3", "deep/photo", "photo_4", "photo_2_2"]
    assert len({place.casefold() for place in places}) == len(places)


# ---------------------------------------------------------------------------------------------------------- writing


def test_writes() -> None:
    job = Job(Path("in.jpg"), Path("new/photo.v2"))
    assert job.target(None, "png") == Path("new/photo.v2.png")
    assert job.target(3, "png") == Path("new/photo.v2-3.png")
    write({job.target(None, "png"): PNG}, overwrite=False, sources=())
    assert Path("new/photo.v2.png").read_bytes() == PNG
    assert hidden() == []


def test_keeps_files_of_earlier_runs() -> None:
    target = Path("photo.png")
    target.write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"photo\.png is there already; --overwrite"):
        write({target: PNG}, overwrite=False, sources=())
    assert target.read_bytes() == b"old"
    write({target: PNG}, overwrite=True, sources=())
    assert target.read_bytes() == PNG


def test_nothing_is_written_where_a_file_of_the_picture_exists() -> None:
    touch("photo-1.png")
    with pytest.raises(FileExistsError):
        write({Path("photo-0.png"): PNG, Path("photo-1.png"): PNG}, overwrite=False, sources=())
    assert not Path("photo-0.png").exists()


def test_what_is_half_written_has_no_name_that_shows() -> None:
    Path("photo.png").mkdir()
    with pytest.raises(OSError, match=r"directory"):
        write({Path("photo.png"): PNG}, overwrite=True, sources=())
    assert hidden() == [], "and is removed"


def test_never_writes_over_a_picture_that_is_read() -> None:
    """Not even when told to: `cutaway cut *.png -o . --overwrite` would destroy what it was given."""
    touch("photo.png")
    with pytest.raises(FileExistsError):
        write({Path("photo.png"): PNG}, overwrite=True, sources={Path("photo.png").resolve()})
    assert Path("photo.png").read_bytes() == b"picture"
