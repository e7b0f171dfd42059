"""Random light, colour and damage. All images are uint8 RGB [H, W, 3]."""

import cv2
import numpy as np

from export.nano.pictures import Image

Generator = np.random.Generator


def random_tone(rng: Generator, image: Image, share: float, darken: float = 0.0) -> Image:
    """With probability `share` change gamma, contrast, brightness and colour; with `darken` dim strongly."""
    dim = rng.random() < darken
    if not dim and rng.random() >= share:
        return image
    levels = np.arange(256, dtype=np.float32) / 255.0
    gamma = float(np.exp(rng.normal(0.0, 0.25)))
    gain = rng.uniform(0.25, 0.55) if dim else rng.uniform(0.75, 1.25)
    lift = rng.uniform(-0.08, 0.08)
    balance = np.exp(rng.normal(0.0, 0.07, size=3))
    pivot = 0.5 * gain if dim else 0.5
    curve = (levels**gamma - 0.5) * gain + pivot + lift
    table = np.rint(np.clip(curve[:, None] * balance, 0, 1) * 255.0).astype(np.uint8)
    result = cv2.LUT(image, table[None])
    if rng.random() < 0.4:
        gray = cv2.cvtColor(cv2.cvtColor(result, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        keep = rng.uniform(0.3, 1.3)
        result = cv2.addWeighted(result, keep, gray, 1.0 - keep, 0.0)
    return result


def match_tone(rng: Generator, colours: Image, cover: Image, scene: Image) -> Image:
    """Move a person's mean colour towards the scene's, so that colour alone does not give them away."""
    inside = cv2.mean(colours, cover)[:3]
    outside = cv2.mean(scene)[:3]
    shift = (np.array(outside) - np.array(inside)) * rng.uniform(0.4, 1.0)
    return np.clip(colours.astype(np.float32) + shift.astype(np.float32), 0, 255).astype(np.uint8)


def degrade(rng: Generator, image: Image) -> Image:
    """Blur, loss of resolution, noise, grey and JPEG, each in some samples only."""
    size_px = image.shape[0]
    if rng.random() < 0.12:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.8) * size_px / 384)
    if rng.random() < 0.12:
        small = int(size_px * rng.uniform(0.3, 0.8))
        shrunk = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        image = cv2.resize(shrunk, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.15:
        noise = rng.normal(0.0, rng.uniform(2, 12), size=(size_px, size_px, rng.choice((1, 3))))
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.06:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.4:
        quality = int(rng.integers(25, 90))
        data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return image
