"""Makes compositing.jpg, the sheet of docs/client/compositing.md: `python docs/images/compositing.py [URL [FILE]]`.

People from samples/, through a real server; the evening at the sea is drawn here.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cutaway
import numpy as np
from cutaway.composite import Placement
from PIL import Image, ImageDraw, ImageOps

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
HEIGHT = 360
GAP = 8


def evening(width: int = 600, height: int = 400) -> Image.Image:
    """Low sun over a sea, and sand before it."""
    rng = np.random.default_rng(11)
    y, x = np.mgrid[0:height, 0:width] / height
    horizon, shore = 0.52, 0.8
    far = np.clip(y / horizon, 0, 1)[..., None]
    sky = (1 - far) * (92, 122, 176) + far * (255, 186, 120)
    glow = np.exp(-(((x - 1.05) ** 2 + (y - 0.43) ** 2) / 0.02))[..., None]
    sky = sky + glow * (90, 80, 60)
    ripples = rng.normal(0, 1, (height, 1)) + rng.normal(0, 1, (height, width))
    depth = np.clip((y - horizon) / (shore - horizon), 0, 1)[..., None]
    sea = (1 - depth) * (205, 150, 120) + depth * (58, 84, 104) + 4 * depth * ripples[..., None]
    sea = sea + np.exp(-((x - 1.05) ** 2) / 0.01)[..., None] * (1 - 0.6 * depth) * (60, 45, 25)
    sand = (188, 150, 112) + 8 * rng.normal(0, 1, (height, width, 1)) - 60 * np.clip(y - shore, 0, 1)[..., None]
    picture = np.where((y < horizon)[..., None], sky, np.where((y < shore)[..., None], sea, sand))
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((405, 157, 435, 187), fill=(255, 244, 214))
    return image


def sheet(url: str) -> Image.Image:
    """Six pictures in two rows."""
    photo, sea = SAMPLES / "admiral.jpg", evening()
    mirrored = ImageOps.mirror(Image.open(photo))
    with cutaway.Client(url) as client:
        first = [
            Image.open(photo),
            client.composite(photo, "#2F7F86").pil(),
            client.composite(photo, "blur:14").pil(),
        ]
        second = [
            client.composite(photo, sea).pil(),
            client.composite(photo, sea, match_colour=1).pil(),
            client.composite(mirrored, sea, place=Placement(anchor="bottom-left", scale=0.75), match_colour=1).pil(),
        ]
    return _joined([_row(first), _row(second)])


def _row(pictures: list[Image.Image]) -> Image.Image:
    scaled = [each.convert("RGB").resize((round(each.width * HEIGHT / each.height), HEIGHT)) for each in pictures]
    row = Image.new("RGB", (sum(each.width + GAP for each in scaled) - GAP, HEIGHT), "white")
    left = 0
    for each in scaled:
        row.paste(each, (left, 0))
        left += each.width + GAP
    return row


def _joined(rows: list[Image.Image]) -> Image.Image:
    width = max(row.width for row in rows)
    joined = Image.new("RGB", (width, sum(row.height + GAP for row in rows) - GAP), "white")
    for number, row in enumerate(rows):
        joined.paste(row, ((width - row.width) // 2, number * (HEIGHT + GAP)))
    return joined


if __name__ == "__main__":
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_suffix(".jpg")
    sheet(*sys.argv[1:2] or ("grpc://localhost:8001",)).save(target, quality=85)
