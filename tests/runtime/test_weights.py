"""A missing, damaged or wrong weight file is told in one line before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.checks import RuntimeProblem
from runtime.digest import sha256_of
from runtime.server import WEIGHTS_VARIABLE, ServerOptions
from runtime.weights import (
    BUNDLED,
    CHECKSUMS,
    FREE_DETECTOR,
    INT8_SUFFIX,
    NETWORKS,
    WHOLE_MATTING,
    load_networks,
    profile_folder,
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the bundled weights, to be damaged."""
    return Path(shutil.copytree(ServerOptions().weights_dir, tmp_path / "weights"))


def test_bundled_weights_hold(weights: Path) -> None:
    networks = load_networks(weights)
    assert set(networks) == {*NETWORKS, FREE_DETECTOR, WHOLE_MATTING}
    assert all(len(network.sha256) == 64 for network in networks.values())


def test_a_folder_may_lack_what_is_not_needed(weights: Path) -> None:
    for name in (FREE_DETECTOR, WHOLE_MATTING):
        (weights / f"{name}.onnx").unlink()
    assert set(load_networks(weights)) == set(NETWORKS)


def problem_of(folder: Path) -> str:
    with pytest.raises(RuntimeProblem) as problem:
        load_networks(folder)
    assert "\n" not in str(problem.value)
    return str(problem.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_missing_file(weights: Path, name: str) -> None:
    (weights / f"{name}.onnx").unlink()
    text = problem_of(weights)
    assert f"{name}.onnx is missing" in text
    assert "--weights DIR" in text


def test_damaged_file(weights: Path) -> None:
    path = weights / "birefnet_trt.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "birefnet_trt.onnx is damaged or another one: its SHA-256 is" in problem_of(weights)


def test_truncated_file(weights: Path) -> None:
    path = weights / "yolov8_seg.onnx"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "yolov8_seg.onnx is damaged" in problem_of(weights)


def test_missing_checksums(weights: Path) -> None:
    (weights / "SHA256SUMS").unlink()
    assert "sha256sum *.onnx > SHA256SUMS" in problem_of(weights)


def test_checksums_without_a_line_for_the_file(weights: Path) -> None:
    sums = weights / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "yolov8_seg" not in line))
    assert "has no line for yolov8_seg.onnx" in problem_of(weights)


def test_checksums_of_binary_mode_are_read(weights: Path) -> None:
    sums = weights / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("  ", " *"))
    load_networks(weights)


def test_where_weights_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The option goes before the environment variable, and that before the profile's folder."""
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    assert ServerOptions(profile="lite").weights_dir.parts[-3:] == ("export", "weights", "lite")
    monkeypatch.setenv(WEIGHTS_VARIABLE, "elsewhere")
    assert ServerOptions().weights_dir == Path("elsewhere")
    assert ServerOptions(weights=tmp_path).weights_dir == tmp_path


def test_made_files_go_before_bundled_ones(tmp_path: Path) -> None:
    """A folder counts as made when its checksums, which are written last, are there."""
    made, bundled = tmp_path / "models", tmp_path / "bundled"
    (made / "nano").mkdir(parents=True)
    assert profile_folder("nano", made, bundled) == bundled / "nano"
    (made / "nano" / CHECKSUMS).write_text("")
    assert profile_folder("nano", made, bundled) == made / "nano"
    assert profile_folder("lite", made, bundled) == bundled / "lite"


def test_a_profile_that_was_never_made() -> None:
    """It is said how to make it, not that a file be restored that was never there."""
    text = problem_of(BUNDLED / "never-made")
    assert "make models PROFILE=never-made" in text
    assert "--weights DIR" in text


def test_8_bit_copies_are_taken_where_they_are_asked_for(weights: Path) -> None:
    """Only those that the folder has, and only as its checksums have them."""
    for path in weights.glob(f"*{INT8_SUFFIX}"):
        path.unlink()
    copy = weights / f"birefnet_trt{INT8_SUFFIX}"
    shutil.copyfile(weights / "birefnet_trt.onnx", copy)
    with (weights / CHECKSUMS).open("a") as sums:
        sums.write(f"{sha256_of(copy)}  {copy.name}\n")
    assert load_networks(weights)["birefnet_trt"].path.name == "birefnet_trt.onnx"
    chosen = {name: network.path.name for name, network in load_networks(weights, int8=True).items()}
    assert chosen["birefnet_trt"] == copy.name
    assert chosen["yolov8_seg"] == "yolov8_seg.onnx"
    copy.write_bytes(b"damaged")
    load_networks(weights)
    with pytest.raises(RuntimeProblem, match=r"birefnet_trt\.int8\.onnx is damaged"):
        load_networks(weights, int8=True)
