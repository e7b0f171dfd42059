"""The command's files: every picture named is found once, and each has a place of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from cutaway.cli.files import find_pictures, plan


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"picture")


def found(*names: str) -> list[str]:
    return [str(relative) for _, relative in find_pictures(names)]


def stems(pictures: list[tuple[Path, Path]]) -> list[str]:
    return [str(job.stem) for job in plan(pictures, Path("out"))]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --------------------------------------------------------------------------------------------------------- finding


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "notes.txt", "in/b.PNG", "in/deep/c.webp", "in/readme.md", "other/d.bmp")
    assert found("a.jpg") == ["a.jpg"]
    assert found("notes.txt") == ["notes.txt"], "a file that is named is tried"
    assert found("in") == ["b.PNG", "deep/c.webp"]
    assert found("*/*.bmp") == ["d.bmp"]
    assert found("**/*.webp") == ["c.webp"]
    assert found("a.jpg", "./a.jpg", "*.jpg") == ["a.jpg"], "once, however often it is named"


def test_cutouts_of_earlier_runs_are_no_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/out/a.png")
    for folder, kept in (("in/out", ["a.jpg"]), ("in", ["a.jpg", "out/a.png"]), ("elsewhere", ["a.jpg", "out/a.png"])):
        assert [str(relative) for _, relative in find_pictures(["in"], Path(folder))] == kept
    assert [str(relative) for _, relative in find_pictures(["in/out/a.png"], Path("in/out"))] == ["a.png"]


def test_names_with_brackets_are_no_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "photo[1].jpg")
    assert found("photo[1].jpg") == ["photo[1].jpg"]


@pytest.mark.parametrize("name", ["none.jpg", "*.gif", "empty"])
def test_names_of_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no picture"):
        find_pictures([name])


# -------------------------------------------------------------------------------------------------------- planning


def test_folders_are_kept_and_no_two_places_are_the_same(tmp_path: Path) -> None:
    touch(tmp_path, "a/photo.jpg", "a/photo.png", "b/photo.jpg", "b/PHOTO.webp", "b/deep/photo.jpg", "photo_2.jpg")
    pictures = find_pictures(["a", "b", "photo_2.jpg"])
    places = stems(pictures)
    assert places == ["out/photo", "out/photo_2", "out/PHOTO_3", "out/deep/photo", "out/photo_4", "out/photo_2_2"]
    assert len({place.casefold() for place in places}) == len(places)


def test_pictures_of_earlier_runs_keep_their_places(tmp_path: Path) -> None:
    touch(tmp_path, "a/photo.bmp", "a/photo.jpg", "b/photo.jpg")
    known = {(tmp_path / "a/photo.jpg").resolve(): Path("out/photo")}
    jobs = plan(find_pictures(["a", "b"]), Path("out"), known)
    places = {job.source.as_posix(): job.stem.as_posix() for job in jobs}
    assert places == {"a/photo.bmp": "out/photo_2", "a/photo.jpg": "out/photo", "b/photo.jpg": "out/photo_3"}


def test_what_earlier_runs_made_is_no_picture_where_it_lies_among_them(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.jpg", "in/a.png")
    made = {(tmp_path / "in/a.png").resolve()}
    assert [str(relative) for _, relative in find_pictures(["in"], Path("in"), made)] == ["a.jpg"]
    assert [str(relative) for _, relative in find_pictures(["in/*"], Path("in"), made)] == ["a.jpg"]
    assert [str(relative) for _, relative in find_pictures(["in/a.png"], Path("in"), made)] == ["a.png"], "it is named"
