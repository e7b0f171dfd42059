"""Soft edges whose alpha is known exactly: strands of hair, fur, lace, motion blur and defocus, drawn onto people.

Every mask at hand is binary or a network's. Here a cut-out person is changed before it is put over a background, so
that the alpha of the result is the truth whatever the mask was: fine shapes are drawn several times larger and
averaged, blur acts on premultiplied colours. A generator of random numbers makes endless shapes; those of
`held_out_shapes` are for measuring.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from export.nano.pictures import Image, load_picture, read_rgb, split_names

Generator = np.random.Generator
Layer = tuple[Image, Image]
"""Colours uint8 RGB [H, W, 3], beyond the edge too, and cover uint8 [H, W]."""

HELD_OUT_SHAPES_SEED = 90_210
"""Training draws from generators seeded by (seed, step) with a small seed, so it never sees these."""
SUPERSAMPLING = 4
SHADES = 3
#: Shares of the kinds.
KINDS = {"hair": 0.4, "fur": 0.2, "lace": 0.12, "motion": 0.13, "defocus": 0.15}
#: Soft pixels grown by this share of the side are the band that is measured.
BAND_SHARE = 0.006


def held_out_shapes(number: int) -> Generator:
    """The generator of the held-out shapes `number`, 0 …; training never draws from it."""
    return np.random.default_rng((HELD_OUT_SHAPES_SEED, number))


def drawn_pictures(data: Path, count: int, first: int) -> Iterator[tuple[Image, Image]]:
    """Held-out heads with edges of the held-out shapes from `first` on, before held-out backgrounds: picture, alpha."""
    faces, places = (data / "train2" / name for name in ("cc0_faces_pseudo", "backgrounds"))
    names, grounds = (split_names(data, f"train2/{each.name}")[1] for each in (faces, places))
    for number in range(count):
        picture = load_picture(faces, names[number % len(names)], False)
        colours, alpha = soft_edges(held_out_shapes(first + number), picture.colours, picture.alpha)
        behind = read_rgb(places / "images" / f"{grounds[number % len(grounds)]}.jpg")
        yield over(cv2.resize(behind, alpha.shape[::-1]), colours, alpha), alpha


def soft_edges(rng: Generator, colours: Image, cover: Image, kind: str | None = None) -> Layer:
    """Give a cut-out person soft edges of one kind, a random one by default.

    Args:
        colours: uint8 RGB [H, W, 3], the person's own colours grown across the edge (`pictures.grow_colours`).
        cover: uint8 [H, W], the person's alpha.
        kind: a key of `KINDS`.

    Returns:
        New colours and alpha: `background + (colours - background) * cover / 255` is the picture. Unchanged where
        there is no edge to draw on.
    """
    if kind is None:
        kind = str(rng.choice(list(KINDS), p=np.array(list(KINDS.values()))))
    mask = (cover >= 128).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return colours, cover
    contour = max(contours, key=len)[:, 0].astype(np.float64)
    inside = ((contour > 1) & (contour < np.array(mask.shape[::-1]) - 2)).all(axis=1)
    if np.count_nonzero(inside) < 40:
        return colours, cover
    return PAINTERS[kind](rng, colours, cover, contour, inside)


def unknown_band(alpha: Image) -> NDArray[np.bool_]:
    """Where alpha is soft, and close to it: bool [H, W], of uint8 [H, W]."""
    soft = ((alpha > 5) & (alpha < 250)).astype(np.uint8)
    side = 2 * max(1, round(BAND_SHARE * max(alpha.shape))) + 1
    return cv2.dilate(soft, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))) > 0


def over(background: Image, colours: Image, cover: Image) -> Image:
    """The layer over a background, uint8 RGB [H, W, 3] each."""
    share = cover[..., None].astype(np.float32) / 255.0
    return np.rint(background + (colours.astype(np.float32) - background) * share).astype(np.uint8)


# -------------------------------------------------------------------------------------------- strands


def _hair(
    rng: Generator, colours: Image, cover: Image, contour: NDArray[np.float64], inside: NDArray[np.bool_]
) -> Layer:
    """Long strands from the upper part of the outline: loose, curled, or combed one way."""
    ys = contour[:, 1]
    top, extent = ys.min(), np.ptp(ys)
    touches_bottom = ys.max() >= cover.shape[0] - 3
    depth = extent * rng.uniform(0.25, 0.6) if touches_bottom else extent * rng.uniform(0.08, 0.2)
    chosen = np.flatnonzero(inside & (ys <= top + depth))
    length = depth * rng.uniform(0.06, 0.4)
    return _strands(rng, colours, cover, contour, chosen, length, int(rng.integers(40, 420)), rng.uniform(0.0, 1.0))


def _fur(
    rng: Generator, colours: Image, cover: Image, contour: NDArray[np.float64], inside: NDArray[np.bool_]
) -> Layer:
    """Short dense strands along a stretch of the outline: fur, wool, stubble of a brush cut."""
    chosen = _stretch(rng, inside)
    length = max(cover.shape) * rng.uniform(0.008, 0.04)
    return _strands(rng, colours, cover, contour, chosen, length, int(rng.integers(1, 4) * len(chosen)), 0.15)


def _strands(
    rng: Generator,
    colours: Image,
    cover: Image,
    contour: NDArray[np.float64],
    chosen: NDArray[np.intp],
    length: float,
    count: int,
    combed: float,
) -> Layer:
    """Tapering curves that start inside the outline; three shades of the colour found at their roots."""
    if not len(chosen) or count < SHADES:
        return colours, cover
    roots = rng.choice(chosen, size=count)
    normals = _normals(contour, cover)[roots]
    common = rng.normal((0.0, 0.6), 1.0)  # a little downwards
    heading = normals + combed * common / np.linalg.norm(common) + rng.normal(0, 0.35, size=(count, 2))
    heading /= np.linalg.norm(heading, axis=1, keepdims=True) + 1e-6
    lengths = length * rng.gamma(3.0, 1 / 3.0, size=(count, 1)).clip(0.2, 2.5)
    curl = rng.normal(0, 0.6, size=(count, 1)) + rng.normal(0, 0.5)
    along = np.linspace(0, 1, 9)
    wave = rng.uniform(0, 0.12) * np.sin(rng.uniform(2, 14) * along + rng.uniform(0, 6.3, size=(count, 1)))
    side = np.stack((-heading[:, 1], heading[:, 0]), axis=1)
    start = contour[roots] - normals * length * 0.15
    lateral = (0.5 * curl * along**2 + wave) * lengths
    paths = start[:, None] + heading[:, None] * (along * lengths)[..., None] + side[:, None] * lateral[..., None]
    paths[..., 1] += rng.uniform(0, 0.5) * (along**2 * lengths)  # weight
    thickness = max(1.0, SUPERSAMPLING * max(cover.shape) / 320 * rng.uniform(0.3, 1.0))
    shades = _shades(rng, colours, contour[chosen], cover)
    result, alpha = colours.astype(np.float32), cover.astype(np.float32) / 255.0
    for number, shade in enumerate(shades):
        share = _drawn(paths[number :: len(shades)], thickness, cover.shape) * rng.uniform(0.75, 1.0)
        total = share + alpha * (1 - share)
        weight = np.divide(share, total, out=np.zeros_like(share), where=total > 0)[..., None]
        result += (shade - result) * weight
        alpha = total
    return np.rint(result).astype(np.uint8), np.rint(alpha * 255.0).astype(np.uint8)


def _drawn(paths: NDArray[np.float64], thickness: float, shape_hw: tuple[int, ...]) -> NDArray[np.float32]:
    """Cover, 0 to 1, of curves [K, P, 2] that get thinner towards their ends; only where they lie is drawn large."""
    share = np.zeros(shape_hw[:2], np.float32)
    limits = np.array(shape_hw[1::-1])
    low = np.floor(paths.min(axis=(0, 1)) - 2).astype(int).clip(0, limits - 1)
    high = np.ceil(paths.max(axis=(0, 1)) + 3).astype(int).clip(low + 1, limits)
    width, height = (int(v) for v in high - low)
    large = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    points = np.rint((paths + 0.5 - low) * SUPERSAMPLING).astype(np.int32)
    thick = max(1, round(thickness))
    cv2.polylines(large, list(points), False, 255, max(1, thick // 2))
    if thick > 1:
        cv2.polylines(large, list(points[:, : points.shape[1] // 2 + 1]), False, 255, thick)
    small = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
    share[low[1] : high[1], low[0] : high[0]] = small / np.float32(255.0)
    return share


def _shades(rng: Generator, colours: Image, points: NDArray[np.float64], cover: Image) -> NDArray[np.float32]:
    """Shades [`SHADES`, 3] of the mean colour along some points; now and then any colour at all."""
    if rng.random() < 0.12:
        mean = rng.uniform(10, 245, size=3)
    else:
        x, y = points.astype(int).T
        mean = colours[y.clip(0, cover.shape[0] - 1), x.clip(0, cover.shape[1] - 1)].reshape(-1, 3).mean(axis=0)
    return np.clip(mean * rng.uniform(0.6, 1.45, size=(SHADES, 1)) + rng.normal(0, 6, size=(SHADES, 3)), 0, 255).astype(
        np.float32
    )


def _normals(contour: NDArray[np.float64], cover: Image) -> NDArray[np.float64]:
    """Unit vectors out of the mask at each point of its outline."""
    smooth = cv2.GaussianBlur(cover, (0, 0), max(2.0, max(cover.shape) / 120)).astype(np.float32)
    x, y = contour.astype(int).T
    slope = np.stack((-cv2.Sobel(smooth, cv2.CV_32F, 1, 0)[y, x], -cv2.Sobel(smooth, cv2.CV_32F, 0, 1)[y, x]), axis=1)
    return slope / (np.linalg.norm(slope, axis=1, keepdims=True) + 1e-6)


def _stretch(rng: Generator, inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Indices of a connected part of the outline, or of all of it, without the picture's borders."""
    count = len(inside)
    part = 1.0 if rng.random() < 0.25 else rng.uniform(0.1, 0.5)
    indices = (int(rng.integers(count)) + np.arange(int(count * part))) % count
    return indices[inside[indices]]


# ----------------------------------------------------------------------------------------------- lace


def _lace(
    rng: Generator, colours: Image, cover: Image, contour: NDArray[np.float64], inside: NDArray[np.bool_]
) -> Layer:
    """A net or a half transparent cloth along a stretch of the outline, outside it and some way into it."""
    chosen = _stretch(rng, inside)
    if not len(chosen):
        return colours, cover
    shade = _shades(rng, colours, contour[chosen], cover)[0]
    side = max(cover.shape)
    zone = np.zeros(cover.shape, np.uint8)
    reach = max(2, round(side * rng.uniform(0.006, 0.03)))
    for x, y in contour[chosen[:: max(1, reach // 3)]].astype(int):
        cv2.circle(zone, (int(x), int(y)), reach, 255, -1)
    box_x, box_y, box_w, box_h = cv2.boundingRect(zone)
    zone_share = cv2.GaussianBlur(zone, (0, 0), 0.7).astype(np.float32) / 255.0
    net = np.zeros(cover.shape, np.float32)
    net[box_y : box_y + box_h, box_x : box_x + box_w] = _net(rng, (box_h, box_w), side) * rng.uniform(0.7, 1.0)
    alpha = cover.astype(np.float32) / 255.0
    woven = np.maximum(net, rng.uniform(0.0, 0.45))
    result = colours.astype(np.float32) + (shade - colours) * zone_share[..., None]
    return (
        np.rint(result).astype(np.uint8),
        np.rint((alpha + (woven - alpha) * zone_share) * 255.0).astype(np.uint8),
    )


def _net(rng: Generator, shape_hw: tuple[int, ...], side: int) -> NDArray[np.float32]:
    """Cover of two sets of parallel threads, drawn large."""
    height, width = shape_hw[:2]
    threads = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    period = side * SUPERSAMPLING * rng.uniform(0.008, 0.03)
    thick = max(1, round(period * rng.uniform(0.15, 0.4)))
    reach = float(np.hypot(*threads.shape))
    turn = rng.uniform(0, np.pi)
    middle = np.array(threads.shape[::-1]) / 2
    for angle in (turn, turn + rng.uniform(0.9, 1.6)):
        along, across = np.array((np.cos(angle), np.sin(angle))), np.array((-np.sin(angle), np.cos(angle)))
        for offset in np.arange(-reach / 2, reach / 2, period):
            ends = [np.rint(middle + across * offset + sign * along * reach).astype(int).tolist() for sign in (-1, 1)]
            cv2.line(threads, ends[0], ends[1], 255, thick)
    return cv2.resize(threads, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0


# ----------------------------------------------------------------------------------------------- blur


def _motion(
    rng: Generator, colours: Image, cover: Image, contour: NDArray[np.float64], inside: NDArray[np.bool_]
) -> Layer:
    """A part of the person has moved in a straight line while the shutter was open."""
    length = max(3, round(max(cover.shape) * rng.uniform(0.015, 0.07)))
    kernel = np.zeros((length, length), np.float32)
    angle = rng.uniform(0, np.pi)
    reach = np.array((np.cos(angle), np.sin(angle))) * (length - 1) / 2
    centre = np.array(((length - 1) / 2, (length - 1) / 2))
    ends = [tuple(int(v) for v in np.rint((centre + sign * reach) * 16)) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, shift=4)
    return _blurred(rng, colours, cover, contour, inside, kernel / kernel.sum())


def _defocus(
    rng: Generator, colours: Image, cover: Image, contour: NDArray[np.float64], inside: NDArray[np.bool_]
) -> Layer:
    """A part of the person, or all of it, lies before or behind the plane of focus."""
    radius = max(cover.shape) * rng.uniform(0.006, 0.03)
    half = int(np.ceil(radius))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    return _blurred(rng, colours, cover, contour, inside, kernel / kernel.sum())


def _blurred(
    rng: Generator,
    colours: Image,
    cover: Image,
    contour: NDArray[np.float64],
    inside: NDArray[np.bool_],
    kernel: NDArray[np.float32],
) -> Layer:
    """Premultiplied colours and alpha filtered alike, within a soft disc about a point of the outline or everywhere."""
    alpha = cover.astype(np.float32) / 255.0
    layer = np.dstack((colours * alpha[..., None], alpha)).astype(np.float32)
    soft = cv2.filter2D(layer, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    if rng.random() < 0.7:
        x, y = contour[rng.choice(np.flatnonzero(inside))]
        rows, columns = np.mgrid[0 : cover.shape[0], 0 : cover.shape[1]]
        radius = max(cover.shape) * rng.uniform(0.12, 0.4)
        share = np.clip(1.6 - 1.6 * np.hypot(columns - x, rows - y) / radius, 0, 1).astype(np.float32)[..., None]
        soft = layer + (soft - layer) * share
    mixed = soft[..., 3:]
    result = np.where(mixed > 1 / 512, soft[..., :3] / np.maximum(mixed, 1 / 512), colours)
    return np.rint(result.clip(0, 255)).astype(np.uint8), np.rint(mixed[..., 0].clip(0, 1) * 255.0).astype(np.uint8)


PAINTERS: dict[str, Callable[[Generator, Image, Image, NDArray[np.float64], NDArray[np.bool_]], Layer]] = {
    "hair": _hair,
    "fur": _fur,
    "lace": _lace,
    "motion": _motion,
    "defocus": _defocus,
}
