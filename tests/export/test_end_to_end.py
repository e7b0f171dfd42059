"""From a hub to a served picture: fetch, ONNX, a real Triton, and the matte that comes back is PyTorch's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cutaway import Client

from export.__main__ import main
from export.onnx_export import example_pictures
from runtime.server import Server, ServerOptions
from runtime.weights import BUNDLED, load_networks, read_checksums
from tests.export.fetching import filled
from tests.export.loopback_hub import loopback_hub
from tests.export.small_lite import CATALOG, SIDE_PX, arguments, as_published, publish

pytestmark = pytest.mark.usefixtures("client_of_the_hub")

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "astronaut.jpg"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, client_of_the_hub: object) -> Path:
    """The profile's folder, made by one command from what a hub on loopback has."""
    place = tmp_path_factory.mktemp("lite")
    with loopback_hub() as hub:
        publish(filled(hub))
        assert main(["models", "lite", *arguments(hub, place), "--no-plan"]) == 0
    return place / "models" / "lite"


@pytest.fixture(scope="module")
def server(made: Path) -> Iterator[Server]:
    with Server(ServerOptions(profile="lite", weights=made, instances=1)) as running:
        yield running


def alphas_as_published(pictures: np.ndarray) -> np.ndarray:
    """What the network of the paper says of RGB pictures, uint8 [N, S, S, 3]: alpha in grey levels, float [N, S, S]."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (MEAN, DEVIATION))
    with torch.inference_mode():
        logits = as_published()((images - mean) / deviation)
    return (logits.squeeze(1).sigmoid() * 255).numpy()


def test_the_card_says_what_the_files_are(made: Path) -> None:
    """Weights and their digest, licence, side, and how far the graphs are from PyTorch."""
    card = json.loads((made / "profile.json").read_text())
    matte: dict[str, Any] = card["models"]["birefnet_trt"]
    pinned = read_checksums(made.parents[1] / "weights")
    assert matte["weights_sha256"] == pinned["birefnet-lite.safetensors"]
    assert (card["profile"], matte["licence"], matte["side_px"], matte["network"]) == ("lite", "MIT", SIDE_PX, "lite")
    assert {(each["output"], each["batch"]) for each in matte["against_pytorch"]} == {("alphas", 1), ("alphas", 3)}
    assert all(each["largest"] <= 1 for each in matte["against_pytorch"])


def test_the_folder_is_whole(made: Path) -> None:
    """Its graphs with their checksums, no more; each keeps the contract and needs standard operators alone.

    The bundled detector brings its form for streams along.
    """
    graphs = {"yolov8_seg_free.onnx"} | {
        f"{model}{kind}.onnx" for model in ("birefnet_trt", "yolov8_seg") for kind in ("", ".fp16")
    }
    assert {each.name for each in made.iterdir()} == graphs | {"SHA256SUMS", "profile.json", ".writing"}
    assert set(load_networks(made)) == {"birefnet_trt", "yolov8_seg", "yolov8_seg_free"}
    for name in graphs:
        model = onnx.load(made / name)
        assert {entry.domain for entry in model.opset_import} == {""}
        assert {node.domain for node in model.graph.node} == {""}


def test_the_bundled_profile_is_whole_where_it_is_made_again(tmp_path: Path) -> None:
    """Its folder is served in place of the bundled one, so streams would be slower without the free detector."""
    given = ["--models", tmp_path / "models", "--weights", tmp_path / "weights"]
    assert main(["models", "nano", *map(str, given), "--no-plan"]) == 0
    made, bundled = load_networks(tmp_path / "models" / "nano"), load_networks(BUNDLED / "nano")
    assert {name: each.sha256 for name, each in made.items()} == {name: each.sha256 for name, each in bundled.items()}


def test_tensorrt_that_does_not_load_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its bindings look for a library that is not there; nothing is begun."""
    package = tmp_path / "tensorrt_bindings"
    package.mkdir()
    (package / "__init__.py").write_text('import ctypes\nctypes.CDLL("libnvinfer_that_is_not_here.so.10")\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("export.models.BINDINGS", ("tensorrt_bindings",))
    given = ["--models", str(tmp_path / "models"), "--weights", str(tmp_path)]
    assert main(["models", "nano", *given]) == 2
    said = capsys.readouterr().err
    assert "TensorRT's package tensorrt_bindings is installed and does not load (libnvinfer_that_is_not_here" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_what_is_served_is_what_was_published(server: Server) -> None:
    """Triton's mattes of pictures that came together are those of the network in the paper's form, alone."""
    import tritonclient.grpc as grpc

    pictures = example_pictures(2, SIDE_PX, seed=5)
    with grpc.InferenceServerClient(server.triton_grpc_address) as client:
        images = grpc.InferInput("images", list(pictures.shape), "UINT8")
        images.set_data_from_numpy(pictures)
        served = client.infer("birefnet_trt", [images]).as_numpy("alphas")
    assert served.dtype == np.uint8
    wanted = np.concatenate([alphas_as_published(each[np.newaxis]) for each in pictures])
    assert wanted.std() > 5, "the weights of the rule give a flat matte, which would prove nothing"
    # Half a grey level is lost by rounding to uint8.
    assert np.abs(served.astype(np.float64) - wanted).max() <= 1.0


def test_a_picture_is_cut_with_it(server: Server) -> None:
    """The answer's report names the profile and the side."""
    with Client(server.grpc_url) as client:
        result = client.cut(SAMPLE, subject="all")
    assert result.report.profile == "lite"
    assert result.report.models["matte"]["side_px"] == SIDE_PX
    assert result.images[0].startswith(b"\x89PNG")


def test_making_again_replaces_nothing_before_all_is_well(made: Path, tmp_path: Path) -> None:
    """With other weights in the folder than were pinned, the command says so and leaves the files as they are."""
    place = made.parents[1]
    (tmp_path / "birefnet-lite.safetensors").write_bytes(b"not the weights")
    before = {each.name: each.stat().st_mtime_ns for each in made.glob("*.onnx")}
    (place / "catalog.toml").write_text(CATALOG)
    given = ["--catalog", place / "catalog.toml", "--models", place / "models"]
    assert main(["onnx", "lite", *map(str, given), "--weights", str(tmp_path)]) == 2
    assert {each.name: each.stat().st_mtime_ns for each in made.glob("*.onnx")} == before
    assert not list(made.glob(".making*"))


def test_weights_that_were_not_fetched(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command names the one that fetches them."""
    place = made.parents[1]
    given = ["--catalog", place / "catalog.toml", "--models", tmp_path / "models", "--weights", tmp_path]
    assert main(["onnx", "lite", *map(str, given)]) == 2
    assert "python -m export fetch lite" in capsys.readouterr().err
