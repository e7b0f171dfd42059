"""Training samples: what is held out, what masks lose and keep, and where distractors stand."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from export.nano.compose import SampleMaker, Window, within_cuts
from export.nano.distractors import add_distractors
from export.nano.pictures import HELD_OUT, PictureBank, load_bank, split_names, without_small_holes

SIZE_WH = (90, 120)


def write_picture(folder: Path, name: str, mask: np.ndarray | None) -> None:
    """A noisy picture and its mask."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(name)).integers(0, 256, (SIZE_WH[1], SIZE_WH[0], 3)).astype(np.uint8)
    cv2.imwrite(str(folder / "images" / f"{name}.jpg"), noise)
    if mask is not None:
        (folder / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "masks" / f"{name}.png"), mask)


def head() -> np.ndarray:
    """Head and shoulders with a soft edge, cut off by the lower border."""
    mask = np.zeros(SIZE_WH[::-1], np.uint8)
    cv2.circle(mask, (45, 45), 18, 255, -1)
    cv2.rectangle(mask, (15, 75), (75, 119), 255, -1)
    cv2.rectangle(mask, (40, 60), (50, 80), 255, -1)
    mask[45:50, 63:70] = 60
    return mask


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six pictures in each folder; of backgrounds, two of each of twelve places."""
    for folder in HELD_OUT:
        names = [f"n{number:02}" for number in range(HELD_OUT[folder] + 6)]
        if folder == "train2/backgrounds":
            names = [f"ph_place{number}_{side}" for number in range(12) for side in ("posx", "negz")]
        if folder == "train2/cc0_faces_pseudo":
            names.append("pilots")
        for name in names:
            write_picture(tmp_path / folder, name, None if "backgrounds" in folder else head())
    return tmp_path


def test_held_out_pictures_are_never_trained_on(data: Path) -> None:
    """By a fixed rule: a number of pictures, whole places, and the group that samples show."""
    for folder, number in HELD_OUT.items():
        training, held_out = split_names(data, folder)
        assert not set(training) & set(held_out)
        assert split_names(data, folder) == (training, held_out)
        places = {name.rpartition("_")[0] if "backgrounds" in folder else name for name in held_out}
        assert number - 1 <= len(places - {"pilots"}) <= number
        assert not places & {name.rpartition("_")[0] for name in training}
    assert "pilots" in split_names(data, "train2/cc0_faces_pseudo")[1]
    with pytest.raises(FileNotFoundError, match="no pictures"):
        split_names(data / "elsewhere", "train/ccp")


@pytest.fixture
def bank(data: Path) -> PictureBank:
    return load_bank(data, limit=2)


def test_a_teachers_alpha_stays_soft(bank: PictureBank) -> None:
    """Binary masks are softened within a band; a teacher's keep what they say."""
    assert bank.heads[0].alpha[47, 69] == 60
    assert bank.ccp[0].alpha[47, 69] == 0
    assert bank.heads[0].cut == (False, False, False, True)


def test_samples_are_made_from_their_seed(bank: PictureBank) -> None:
    """Each kind of sample has pictures and alpha of the size asked for, the same for the same seed."""
    maker = SampleMaker(bank)
    for kind in ("ccp", "head", "pasted", "coco", "background"):
        first, again = (maker.sample(np.random.default_rng(7), 96, {kind: 1.0}) for _ in range(2))
        assert first[0].shape == (96, 96, 3)
        assert first[1].shape == (96, 96)
        assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
        assert first[1].any() == (kind != "background")


def test_pasted_heads_end_at_the_border(bank: PictureBank) -> None:
    """A window that reaches below a picture would show a person sawn off in mid-air."""
    picture = bank.heads[0]
    window = within_cuts(Window(-20, -20, 110, 160), picture)
    assert (window.x0, window.y0, window.x1, window.y1) == (-20, -20, 110, SIZE_WH[1])


def test_only_small_enclosed_holes_are_filled() -> None:
    mask = np.full((200, 200), 255, np.uint8)
    mask[:, :20] = 0
    mask[50:55, 50:55] = 0  # a fault of the mask
    mask[100:130, 100:130] = 0  # between arm and body
    mask[90:93, 197:] = 0  # open towards the border
    filled = without_small_holes(mask)
    assert filled[52, 52] == 255
    assert not filled[110, 110]
    assert not filled[91, 199]
    assert not filled[:, :20].any()


def test_cloth_stands_behind_the_head(bank: PictureBank) -> None:
    """Asked for a place, the first piece covers it mostly, which it seldom does by chance."""
    empty = np.full((96, 96, 3), 128, np.uint8)

    def changed(near: tuple[float, float] | None) -> float:
        hits = [
            (add_distractors(np.random.default_rng(seed), empty, bank.ccp, near) != 128)[16:24, 44:52].mean()
            for seed in range(60)
        ]
        return float(np.mean(hits))

    assert changed((0.5, 0.2)) > changed(None) + 0.2
