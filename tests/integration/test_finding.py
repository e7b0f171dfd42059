"""People whom one look at the whole picture does not find, with the bundled networks behind a real server.

1. Turned by a quarter or a half: found, in the picture's own frame, with a warning.
2. Small in large pictures: found.
3. Nobody there, subject auto: whatever the picture shows, and the report says so.
4. More than twenty people: all of them in the joint cut-out.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tests.integration.kserve import Answer, asking

pytestmark = pytest.mark.triton


def cut(server: Any, image: Image.Image, **options: Any) -> Answer:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    with asking(server, "grpc") as ask:
        return ask(file.getvalue(), options)


def alpha_of(answer: Answer) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(answer.outputs["images"][0])).getchannel("A"))


def meadow(width: int, height: int) -> Image.Image:
    """Something large with nobody in it: green noise below, a pale sky above."""
    rows = np.linspace(0, 1, height)[:, None, None]
    colours = np.where(rows < 0.4, (190, 205, 225), (90, 125, 60))
    noise = np.random.default_rng(4).integers(-12, 12, (height // 8, width // 8, 1), np.int16)
    grain = np.kron(noise[..., 0], np.ones((8, 8), np.int16))[..., None]
    grain = np.pad(grain, ((0, height - grain.shape[0]), (0, width - grain.shape[1]), (0, 0)), mode="edge")
    return Image.fromarray(np.clip(colours + grain, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))


@pytest.fixture(scope="module")
def astronaut(samples: list[Path]) -> Image.Image:
    return Image.open(next(path for path in samples if path.stem == "astronaut")).convert("RGB")


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_people_are_found(server: Any, astronaut: Image.Image, degrees: int) -> None:
    upright = alpha_of(cut(server, astronaut)) >= 128
    answer = cut(server, astronaut.rotate(-degrees, expand=True))
    assert answer.status == "", answer
    turned = np.asarray(Image.fromarray(alpha_of(answer)).rotate(degrees, expand=True)) >= 128
    assert (turned & upright).sum() / (turned | upright).sum() > 0.85
    (warning,) = (each for each in answer.outputs["report"]["warnings"] if each["code"] == "PEOPLE_TURNED")
    assert warning["details"] == {"degrees": degrees}


@pytest.mark.parametrize("size_wh", [(7000, 1500), (7000, 4200)])
def test_small_people_in_large_pictures_are_found(
    server: Any, astronaut: Image.Image, size_wh: tuple[int, int]
) -> None:
    person = astronaut.crop((100, 0, 450, 512)).resize((205, 300))
    canvas = meadow(*size_wh)
    at = (size_wh[0] - 1300, size_wh[1] - 700)
    canvas.paste(person, at)
    answer = cut(server, canvas)
    assert answer.status == "", answer
    boxes = answer.outputs["boxes"]
    centres = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2 - at[0], (boxes[:, 1] + boxes[:, 3]) / 2 - at[1]], axis=1)
    assert ((centres > 0) & (centres < (205, 300))).all(axis=1).any(), boxes
    alpha = alpha_of(answer)
    assert alpha.shape == size_wh[::-1]
    assert (alpha[at[1] : at[1] + 300, at[0] : at[0] + 205] >= 128).mean() > 0.3


def test_auto_cuts_a_thing_where_nobody_is(server: Any, astronaut: Image.Image) -> None:
    thing = Image.new("RGB", (640, 480), (245, 245, 245))
    ImageDraw.Draw(thing).rounded_rectangle((220, 140, 420, 380), 40, (30, 60, 160))
    answer = cut(server, thing, subject="auto")
    assert answer.status == "", answer
    assert (answer.outputs["report"]["subject"], answer.outputs["report"]["people"]) == ("all", [])
    people = cut(server, astronaut, subject="auto").outputs["report"]
    assert people["subject"] == "people"
    assert len(people["people"]) >= 1


def test_everybody_is_in_the_joint_cut_out(server: Any, astronaut: Image.Image) -> None:
    person = astronaut.crop((100, 0, 450, 512)).resize((130, 190))
    canvas = Image.new("RGB", (5 * 190 + 40, 5 * 220 + 40), (150, 160, 150))
    for index in range(25):
        canvas.paste(person, (40 + 190 * (index % 5), 40 + 220 * (index // 5)))
    answer = cut(server, canvas)
    found = len(answer.outputs["report"]["people"])
    assert found > 20, "the default of max_people is 20"
    alpha = alpha_of(answer) >= 128
    covered = sum(
        alpha[40 + 220 * (index // 5) :, 40 + 190 * (index % 5) :][:190, :130].mean() > 0.3 for index in range(25)
    )
    assert covered >= found - 1
    each = cut(server, canvas, subject="each").outputs
    assert len(each["images"]) == 20
    assert "PEOPLE_LEFT_OUT" in {warning["code"] for warning in each["report"]["warnings"]}
