"""`make demo`: any pictures in, cut-outs and one sheet out; a checkout in any path, a container with little.

What cannot be cut is a line, and the server is gone afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from runtime.checks import RuntimeProblem
from runtime.demo import find_pictures, run_demo
from runtime.server import ServerOptions
from runtime.sheet import COLUMNS, MAX_ROWS, Row, draw_sheet
from tests.runtime.conftest import ROOT
from tests.runtime.leftovers import assert_nothing_left

DEMO = [sys.executable, "-m", "runtime", "demo", "samples/astronaut.jpg"]


@pytest.mark.triton
def test_demo(tmp_path: Path, samples: list[Path]) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with Image.open(samples[0]) as original:
        turned = original.rotate(90, expand=True)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned clockwise when it is looked at
    turned.save(pictures / "turned.jpg", exif=exif)
    Image.new("RGB", (200, 100), "white").save(pictures / "nobody.png")
    (pictures / "broken.jpg").write_bytes(samples[0].read_bytes()[:20_000])
    (pictures / "notes.txt").write_text("no picture")
    lines: list[str] = []
    output = tmp_path / "output"
    options = ServerOptions(cache_dir=tmp_path / "cache")
    run_demo(options, pictures=[pictures, samples[1]], output=output, say=lines.append)

    assert sorted(path.name for path in output.iterdir()) == [
        "astronaut-green.png",
        "astronaut-people.png",
        "astronaut-person-0.png",
        "before-after.png",
        "nobody-green.png",
        "nobody-object.png",
        "turned-green.png",
        "turned-people.png",
        "turned-person-0.png",
    ]
    with Image.open(output / "turned-people.png") as people, Image.open(samples[0]) as original:
        assert people.mode == "RGBA"
        assert people.size == original.size
    assert any("nobody.png: no people in" in line for line in lines)
    assert any("broken.jpg: CORRUPT_IMAGE" in line for line in lines)
    assert f"8 cut-outs in {output}/" in lines[-1]
    assert_nothing_left(tmp_path / "cache")


@pytest.mark.triton
def test_a_checkout_in_any_path(tmp_path: Path) -> None:
    """Space, bracket, apostrophe, a letter beyond ASCII, and what a shell takes for more than a letter."""
    checkout = tmp_path / "photos & [cut-outs] of d'Été; $HOME"
    checkout.mkdir()
    for name in ("runtime", "gateway", "client", "model_repository", "samples", "models", "export/weights/nano"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        DEMO,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout / "client"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "3 cut-outs in demo-output/" in done.stdout
    assert (checkout / "demo-output" / "astronaut-people.png").is_file()
    assert (checkout / ".cache" / "runtime" / "servers").is_dir()
    assert not list(tmp_path.glob("cutaway-*"))


@pytest.mark.triton
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small /dev/shm")
def test_a_container_with_little(tmp_path: Path) -> None:
    """64 MiB of shared memory, a home folder that cannot be written, neither a compiler nor git."""
    home = tmp_path / "home"
    home.mkdir()
    script = (
        'mount -t tmpfs -o size=64m tmpfs /dev/shm && mount -t tmpfs -o ro tmpfs "$HOME" || exit 77\n'
        'PATH="$1"; shift; exec "$@" -o "$OUTPUT"'
    )
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sh").symlink_to("/bin/sh")
    (tools / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(tools), *DEMO, f"--cache-dir={tmp_path / 'cache'}"],
        cwd=ROOT,
        env={**os.environ, "HOME": str(home), "OUTPUT": str(tmp_path / "output")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this container may not mount")
    assert done.returncode == 0, done.stderr
    assert "warning: /dev/shm has 6" in done.stdout
    assert "3 cut-outs in " in done.stdout


def test_sheet(tmp_path: Path) -> None:
    """One row per picture, wide and high ones side by side."""
    sizes = [(800, 200), (200, 800), (64, 64)]
    rows = [
        Row(
            f"{width}.jpg",
            "facts",
            Image.new("RGB", (width, height), "red"),
            Image.new("RGBA", (width, height)),
            Image.new("RGB", (width, height), "lime"),
        )
        for width, height in sizes
    ]
    draw_sheet(rows[:1], tmp_path / "one.png", subtitle="profile nano on cpu")
    draw_sheet(rows, tmp_path / "three.png", subtitle="profile nano on cpu")
    draw_sheet(rows * MAX_ROWS, tmp_path / "many.png", subtitle="profile nano on cpu")
    sheets = {}
    for name in ("one", "three", "many"):
        with Image.open(tmp_path / f"{name}.png") as sheet:
            sheet.load()
            sheets[name] = sheet
    assert sheets["one"].height < sheets["three"].height < sheets["many"].height
    assert sheets["many"].height < sheets["three"].height / 3 * (MAX_ROWS + 1)
    colours = {colour for _, colour in sheets["one"].getcolors(1 << 24) or []}
    assert {(255, 0, 0), (0, 0, 0), (0, 255, 0)} <= colours
    assert len(COLUMNS) == 5


def test_pictures_are_found(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.webp", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_pictures([tmp_path])] == ["a.webp", "b.JPG"]
    assert find_pictures([tmp_path / "c.txt"]) == [tmp_path / "c.txt"]


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(RuntimeProblem, match="there is no picture in"):
        find_pictures([tmp_path])
    with pytest.raises(RuntimeProblem, match="is not there"):
        find_pictures([tmp_path / "nowhere"])


def test_output_that_cannot_be(tmp_path: Path, samples: list[Path]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeProblem, match="cannot make the folder"):
        run_demo(ServerOptions(), pictures=samples, output=tmp_path / "file" / "output", say=print)
