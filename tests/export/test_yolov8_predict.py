"""YOLOv8-seg against Ultralytics: the same network in five sizes, and on photographs the same people."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pipeline.decode import decode
from safetensors.torch import save_file

from export import detector_agreement
from export.__main__ import main
from export.detector_agreement import Found, Ours, compare, detect, open_detector, predict
from export.networks.yolov8 import SCALES, YoloV8
from export.verify_detector import export, read_pictures
from export.weights_io import load_safetensors, load_ultralytics, read_checkpoint
from tests.export.detectors import BUNDLED, make

CHECKOUT = Path(__file__).resolve().parents[2]
EVALUATION = CHECKOUT.parent / "shared" / "people" / "eval"
#: One person, three, and six who overlap; two of the pictures are resized by unequal amounts across and down.
SCENES = ("portrait_street/images/10.jpg", "portrait_street/images/107.jpg", "pedestrians/images/FudanPed00007.jpg")

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in detector_agreement.PACKAGES),
    reason="Ultralytics is not installed; `make test-export` installs it",
)

Pictures = dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take several times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def photographs() -> Pictures:
    return read_pictures(CHECKOUT / "samples")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, photographs: Pictures) -> Path:
    """What `tests.export.detectors.make` makes, for all sizes."""
    folder = tmp_path_factory.mktemp("ultralytics")
    make(folder, photographs, "mlx")
    return folder


@pytest.mark.parametrize("scale", SCALES)
def test_network_is_that_of_ultralytics(models: Path, scale: str) -> None:
    """Their network takes this one's state dict, name by name, and gives the same boxes, scores and masks."""
    network = YoloV8(scale).eval()
    network.load_state_dict(torch.load(models / f"{scale}.state"), strict=True)
    with np.load(models / f"{scale}.npz") as theirs, torch.no_grad():
        ours = network(torch.from_numpy(np.load(models / "inputs.npy")))
        found, prototypes = torch.from_numpy(theirs["found"]).transpose(1, 2), theirs["prototypes"]
    centres, sizes, scores, coefficients = found.split((2, 2, 80, 32), dim=2)
    corners = torch.cat((centres - sizes / 2, centres + sizes / 2), dim=2)
    assert scores.std() > 1e-4
    assert coefficients.std() > 0.1
    torch.testing.assert_close(ours.boxes, corners, atol=2e-3, rtol=1e-5)
    torch.testing.assert_close(ours.class_scores, scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.coefficients, coefficients, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.prototypes, torch.from_numpy(prototypes), atol=1e-4, rtol=1e-4)


def test_checkpoint_as_ultralytics_saves_it(models: Path, tmp_path: Path) -> None:
    """A pickled model of half-precision weights is read without Ultralytics; by way of safetensors, too."""
    stored = read_checkpoint(models / "n.pt")
    assert type(stored["model"]).__module__ == "stand_in.ultralytics.nn.tasks"
    state, wanted = load_ultralytics(models / "n.pt"), torch.load(models / "n.state")
    assert state.keys() == wanted.keys()
    for name, value in state.items():
        assert torch.equal(value, wanted[name].half().float() if value.is_floating_point() else wanted[name])
    assert any(not torch.equal(value, wanted[name]) for name, value in state.items())
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
        tmp_path / "n.safetensors",
    )
    again = load_safetensors(tmp_path / "n.safetensors")
    YoloV8("n").load_state_dict(again, strict=True)
    assert all(torch.equal(value, again[name]) for name, value in state.items())


def test_averaged_weights_go_first(models: Path) -> None:
    """A training's checkpoint holds two models; predictions are made with the average, there and here."""
    averaged, plain = load_ultralytics(models / "ema.pt"), load_ultralytics(models / "n.pt")
    assert averaged.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in averaged.items())


def test_trained_n_finds_the_same_people(
    models: Path, photographs: Pictures, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundled weights by way of Ultralytics' file: the same people, to rounding, and the same pixels of masks."""
    pictures = dict(photographs)
    for name in SCENES:
        if (EVALUATION / name).is_file():
            pictures[f"scene-{Path(name).name}"] = decode((EVALUATION / name).read_bytes()).rgb
    for name, picture in pictures.items():
        Image.fromarray(picture).save((tmp_path / name).with_suffix(".png"))
    status = main(["verify-detector", "--weights", str(models / "n.pt"), "--pictures", str(tmp_path), "--threads", "1"])
    said = capsys.readouterr().out
    assert status == 0, said
    found = [int(number) for number in re.findall(r"^\S+\.png +(\d+) people  boxes .* ok$", said, re.MULTILINE)]
    assert found == [1, 1, 1, 3, 6][: len(pictures)]
    (differing,) = re.findall(r"^masks in the letterbox: (\d+) of \d{6,} px differ$", said, re.MULTILINE)
    assert int(differing) <= 3


def test_seeded_s_finds_the_same_people(models: Path, photographs: Pictures) -> None:
    """No trained weights of this size are at hand; seeded ones find dozens, of whom many are suppressed.

    And more candidates than leave the graph: those who score above its last one are as without the cut.
    """
    export(models / "s.pt", models / "s.onnx")
    detector = open_detector(models / "s.onnx")
    expected = predict(models / "s.pt", list(photographs.values()), 0.05)
    results = [
        compare(detect(detector, picture, 0.05), found)
        for picture, found in zip(photographs.values(), expected, strict=True)
    ]
    for result in results:
        # The masks of untrained weights are spots smaller than a pixel, so they are compared in the letterbox alone.
        assert result._replace(aside_pixels=0).agrees, result
        assert result.people >= 10
    assert sum(each.people for each in results) >= 100
    assert any(each.cut_off >= 20 for each in results)


@pytest.fixture(scope="module")
def agreeing(photographs: Pictures) -> tuple[Ours, Found]:
    """Our people in a photograph, and the same as if Ultralytics had found them."""
    ours = detect(open_detector(BUNDLED), photographs["astronaut.jpg"], 0.25)
    masks = detector_agreement.square_masks(ours), detector_agreement.picture_masks(ours)
    return ours, Found(ours.detections.boxes, ours.detections.scores, *masks)


def test_differences_are_told(agreeing: tuple[Ours, Found]) -> None:
    """Whatever is not rounding fails: a box, a score, somebody too many, a mask elsewhere."""
    ours, same = agreeing
    assert compare(ours, same).agrees
    nobody = Found(*(field[:0] for field in same))
    others = {
        "box": same._replace(boxes=same.boxes + np.float32(0.1)),
        "score": same._replace(scores=same.scores - np.float32(1e-3)),
        "people": nobody,
        "masks in the letterbox": same._replace(square_masks=np.roll(same.square_masks, 1, axis=2)),
        "masks in the picture": same._replace(masks=np.roll(same.masks, 3, axis=2)),
        "nothing": same._replace(boxes=same.boxes * np.nan),
    }
    for what, other in others.items():
        assert not compare(ours, other).agrees, what


def test_command(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1 for a graph of other weights: these are rounded to half precision, the bundled ones are not."""
    assert main(["verify-detector", "--weights", str(models / "n.pt"), "--onnx", str(BUNDLED), "--threads", "1"]) == 1
    said = capsys.readouterr().out
    assert "FAILED" in said
    assert "2 pictures, 2 people from a score of 0.25 on" in said


def test_command_says_what_is_amiss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "not.pt"
    assert main(["verify-detector", "--weights", str(weights)]) == 2
    assert f"no file {weights}" in capsys.readouterr().err
    weights.write_bytes(b"no archive")
    assert main(["verify-detector", "--weights", str(weights)]) == 2
    assert "not a readable PyTorch archive" in capsys.readouterr().err
    torch.save({"model": None}, weights)
    assert main(["verify-detector", "--weights", str(weights)]) == 2
    assert "holds no model" in capsys.readouterr().err
    assert main(["verify-detector", "--weights", str(weights), "--pictures", str(tmp_path)]) == 2
    assert "has no pictures" in capsys.readouterr().err
    monkeypatch.setattr(detector_agreement, "PACKAGES", ("ultralytics_that_is_not_there",))
    assert main(["verify-detector", "--weights", str(weights)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("export: ultralytics_that_is_not_there not installed; run: ")
    assert "--no-deps --require-hashes -r requirements/oracle.txt" in error
