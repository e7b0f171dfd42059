"""The command's files: every picture named is found once, and no cut-out ever lands on anything it must not."""

from __future__ import annotations

from pathlib import Path

import pytest
from cutaway.files import Job, Writer, find_pictures, plan
from cutaway.result import Cutout

PNG = b"\x89PNG\r\n\x1a\n"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"picture")


def found(*names: str) -> list[str]:
    return [str(relative) for _, relative in find_pictures(names)]


def stems(pictures: list[tuple[Path, Path]]) -> list[str]:
    return [str(job.stem) for job in plan(pictures, Path("out"))]


def cutout(id_: int = 0, image: bytes = PNG) -> Cutout:
    return Cutout(id_, (id_,), (0, 0, 1, 1), 1.0, (0, 0, 1, 1), image, "png")


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


# --------------------------------------------------------------------------------------------------------- writing


def writer(*jobs: Job, force: bool = False, numbered: bool = False) -> Writer:
    return Writer(jobs, force=force, extension="png", numbered=numbered)


def test_writes(tmp_path: Path) -> None:
    job = Job(Path("in.jpg"), Path("new/photo.v2"))
    assert writer(job).write(job, [cutout()]) == [Path("new/photo.v2.png")]
    assert Path("new/photo.v2.png").read_bytes() == PNG


def test_numbers_by_id(tmp_path: Path) -> None:
    job = Job(Path("in.jpg"), Path("photo"))
    targets = writer(job, numbered=True).write(job, [cutout(0), cutout(3)])
    assert targets == [Path("photo-0.png"), Path("photo-3.png")]


@pytest.mark.parametrize("numbered", [False, True])
def test_keeps_files_of_earlier_runs(numbered: bool, tmp_path: Path) -> None:
    job = Job(Path("in.jpg"), Path("photo"))
    target = Path("photo-0.png" if numbered else "photo.png")
    target.write_bytes(b"old")
    careful = writer(job, numbered=numbered)
    assert careful.in_the_way(job) == target
    with pytest.raises(FileExistsError):
        careful.write(job, [cutout()])
    assert target.read_bytes() == b"old"
    forced = writer(job, numbered=numbered, force=True)
    assert forced.in_the_way(job) is None
    forced.write(job, [cutout()])
    assert target.read_bytes() == PNG


def test_writes_all_cutouts_of_a_picture_or_none(tmp_path: Path) -> None:
    job = Job(Path("in.jpg"), Path("photo"))
    touch(tmp_path, "photo-1.png")
    with pytest.raises(FileExistsError):
        writer(job, numbered=True).write(job, [cutout(0), cutout(1)])
    assert not Path("photo-0.png").exists()


def test_never_writes_over_a_picture_that_is_read(tmp_path: Path) -> None:
    """Not even when forced: `cutaway cut *.png -o . --force` would destroy what it was given."""
    touch(tmp_path, "photo.png", "other.jpg")
    first, second = Job(Path("photo.png"), Path("photo")), Job(Path("other.jpg"), Path("../x"))
    forced = writer(first, second, force=True)
    assert forced.in_the_way(first) == Path("photo.png")
    with pytest.raises(FileExistsError):
        forced.write(first, [cutout()])
    assert Path("photo.png").read_bytes() == b"picture"


def test_never_writes_over_another_pictures_cutout(tmp_path: Path) -> None:
    """`photo` with subject 'each' and a picture called `photo-0` want the same name."""
    one, other = Job(Path("a.jpg"), Path("photo")), Job(Path("b.jpg"), Path("photo-0"))
    forced = writer(one, other, force=True, numbered=True)
    forced.write(one, [cutout(0)])
    plain = Job(Path("c.jpg"), Path("photo-0"))
    assert forced.write(plain, [cutout(0)]) == [Path("photo-0-0.png")]
    with pytest.raises(FileExistsError):
        forced.write(one, [cutout(0, PNG + b"x")])
    assert Path("photo-0.png").read_bytes() == PNG
