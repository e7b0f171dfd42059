"""A hosted matte of the foreground → the answer of a Cutaway server: cut-outs, boxes, scores, and a report. What a
server does and hosted models do not is a warning or an error, never silently something else."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cutaway.contract import limits
from cutaway.contract.errors import invalid_option
from cutaway.contract.headers import check_picture
from cutaway.contract.options import CutOptions
from cutaway.drawing import encode_cutout, spread
from cutaway.fallback.answers import Matte
from cutaway.inputs import decode_upright, encode_lossy, open_checked, orientation_of
from cutaway.resilience import Deadline

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

REACH = 0.1  # margin around a person's box for hair and hands, as a share of the box's longer side
SOLID_ALPHA = 240  # from here on less than a sixteenth of a pixel is the background's
CROP_ALPHA = 13  # less than 5 % opaque does not widen a crop, as on the server


class Person(NamedTuple):
    """A person to cut out: `box` in pixels of the upright picture, and the detection's score."""

    id: int
    box: tuple[float, float, float, float]
    score: float = 1.0


class Picture(NamedTuple):
    """A picture, decoded upright in sRGB, with its own transparency (L) or None, the report's facts about the file, and
    the file that is sent: encoded anew without metadata, which may have a place and a time."""

    rgb: PILImage
    alpha: PILImage | None
    facts: dict[str, Any]
    data: bytes
    media_type: str


def prepare(data: bytes, media_type: str | None, bounds: limits.InputLimits = limits.INPUT_LIMITS) -> Picture:
    """Check, decode and encode, losslessly where the file was lossless and the new one is within the limits; InputError
    where it fails a check or cannot be decoded."""
    header = check_picture(data, media_type, limits=bounds)
    image = decode_upright(data, header)
    alpha, rgb = image.getchannel("A") if image.mode == "RGBA" else None, image.convert("RGB")
    with open_checked(data, header) as opened:
        facts = {"format": header.format, "orientation": orientation_of(opened)}
    file, kind = io.BytesIO(), "image/png"
    if header.format in ("png", "bmp"):
        rgb.save(file, "PNG", compress_level=3)
    sent = file.getvalue()
    if not 0 < len(sent) <= limits.INPUT_LIMITS.max_file_bytes:
        sent, kind = encode_lossy(rgb, limits.INPUT_LIMITS).data, "image/jpeg"
    return Picture(rgb, alpha, {"width_px": rgb.width, "height_px": rgb.height, **facts}, sent, kind)


def given_people(options: CutOptions, size_wh: tuple[int, int]) -> list[Person] | None:
    """The given boxes as people, largest first and filtered by `select`; None without boxes. InvalidOption as at the
    server: a box is outside the picture, or `select` has an id without a box."""
    if options.boxes is None:
        return None
    boxes = [tuple(np.clip(box, 0.0, (*size_wh, *size_wh)).tolist()) for box in options.boxes]
    for x1, y1, x2, y2 in boxes:
        if x2 - x1 < 1 or y2 - y1 < 1:
            raise invalid_option("boxes", options.boxes, "boxes of at least 1×1 px within {}×{} px".format(*size_wh))
    boxes.sort(key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
    chosen = range(len(boxes)) if options.select is None else options.select
    if max(chosen) >= len(boxes):
        raise invalid_option("select", list(chosen), f"ids 0 to {len(boxes) - 1}, as many as there are people")
    return [Person(id_, box) for id_, box in enumerate(boxes) if id_ in chosen]


def outputs_of(
    picture: Picture, matte: Matte, options: CutOptions, people: Sequence[Person] | None, deadline: Deadline
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors "images", "boxes" and "scores" of the wire contract, and the report; `people` are those to cut out,
    at least one, or None for the whole foreground."""
    from PIL import Image, ImageChops, ImageFilter

    size_wh, background = picture.rgb.size, options.background
    alpha = Image.fromarray(matte.alpha)
    if picture.alpha is not None:
        alpha = ImageChops.darker(alpha, picture.alpha)
    if options.feather_px:  # a Gaussian whose standard deviation is half of it, as on the server
        alpha = alpha.filter(ImageFilter.GaussianBlur(options.feather_px / 2))
    behind = Image.new("RGB", size_wh, background.colour_rgb) if background.colour_rgb is not None else None
    if background.blur_px is not None:
        behind = picture.rgb.filter(ImageFilter.GaussianBlur(background.blur_px))
    everything = Person(0, (0.0, 0.0, float(size_wh[0]), float(size_wh[1])))
    alone = options.subject == "each"
    chosen = [everything] if people is None else list(people)[: options.max_people if alone else None]
    named = [] if people is None else chosen
    images, cutouts = [], []
    for group in [[person] for person in chosen] if alone else [chosen]:
        deadline.check("composing")
        kept = alpha if people is None else Image.new("L", size_wh)
        for _, box, _ in group if people is not None else []:
            near = _grow(box, round(REACH * max(box[2] - box[0], box[3] - box[1])), size_wh)
            kept.paste(alpha.crop(near), near)
        frame = _grow(group[0].box, options.padding_px, size_wh) if alone else (0, 0, *size_wh)
        file, form = _finish(picture.rgb, kept, behind, frame, options)
        images.append(file)
        left, top, right, bottom = zip(*(person.box for person in group), strict=True)
        cutout = {"id": group[0].id if alone else 0, "people": [person.id for person in group if named]}
        cutout |= {"box": [min(left), min(top), max(right), max(bottom)], "bytes": len(file)}
        cutouts.append(cutout | {"confidence": min(round(person.score, 4) for person in group)} | form)
    # Warnings about what a hosted matte does not do.
    who: dict[str, Any] = {"provider": matte.provider, "model": matte.model, "licence": matte.licence}
    warned = {"HOSTED_MODEL": f"{matte.model} at {matte.provider} made this cut-out, and not your server."}
    if options.subject == "people" and people is None:
        warned["PEOPLE_NOT_CHECKED"] = "What stands out was cut out; nobody checked that these are people."
    if people is not None and len(people) > len(chosen):
        warned["PEOPLE_LEFT_OUT"] = f"{len(people)} people were found; the {len(chosen)} largest were taken."
        who |= {"found": len(people), "max_people": options.max_people}
    pairs = [(a.box, b.box) for a, b in combinations(chosen, 2) if alone]
    if any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in pairs):
        warned["PEOPLE_NOT_SEPARATED"] = "Boxes overlap: a neighbour may be seen in somebody's cut-out."
    same = {"tier": int(limits.Tier.MEDIUM), "details": who}
    report = {
        "picture": picture.facts,
        "subject": options.subject if options.subject != "auto" else "all" if people is None else "people",
        "people": [{"id": p.id, "box": list(p.box), "confidence": round(p.score, 4)} for p in named],
        "cutouts": cutouts,
        "models": {"profile": "", "matte": {"name": matte.model, "licence": matte.licence, "cost": matte.cost}},
        "device": matte.provider,
        "milliseconds": {"matte": round(matte.elapsed_ms, 2)},
        "warnings": [{"code": code, "message": text, **same} for code, text in warned.items()],
    }
    boxes = np.array([person.box for person in chosen], np.float32)
    return {"images": images, "boxes": boxes, "scores": np.array([p.score for p in chosen], np.float32)}, report


def _grow(box: Sequence[float], by_px: int, size_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    x1, y1 = max(0, int(box[0]) - by_px), max(0, int(box[1]) - by_px)
    x2, y2 = min(size_wh[0], -int(-box[2] // 1) + by_px), min(size_wh[1], -int(-box[3] // 1) + by_px)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _finish(
    rgb: PILImage, alpha: PILImage, behind: PILImage | None, frame: tuple[int, int, int, int], options: CutOptions
) -> tuple[bytes, dict[str, Any]]:
    """The encoded cut-out, and the report's entries about its form and size, which only this function decides."""
    shown = alpha.crop(frame).point(lambda value: 255 * (value >= CROP_ALPHA)).getbbox() if options.crop else None
    if shown is not None:
        margin = max(shown[2] - shown[0], shown[3] - shown[1]) * options.crop_margin_percent / 100
        margin_px = max(options.crop_margin_px, round(margin))
        x1, y1 = max(0, shown[0] - margin_px) + frame[0], max(0, shown[1] - margin_px) + frame[1]
        frame = (x1, y1, min(frame[2], frame[0] + shown[2] + margin_px), min(frame[3], frame[1] + shown[3] + margin_px))
    alpha = image = alpha.crop(frame)
    if options.output != "mask":
        image = clean_colours(rgb.crop(frame), alpha) if options.decontaminate else rgb.crop(frame)
        image.putalpha(alpha)
        if behind is not None:
            backdrop = behind.crop(frame)
            backdrop.paste(image, (0, 0), alpha)
            image = backdrop
    file, kind, size = encode_cutout(image, options)
    media_type = "application/zip" if kind == "zip" else f"image/{kind}"
    return file, {"frame": list(frame), "size": list(size), "media_type": media_type}


def clean_colours(image: PILImage, alpha: PILImage) -> PILImage:
    """A picture (RGB) with the colours of the nearest solid pixels where its alpha (L) is soft: those there are mixed
    with the old background's, which shows as a halo on another one."""
    from PIL import Image

    solid = alpha.point(lambda value: 255 if value >= SOLID_ALPHA else 0)
    if solid.getextrema()[1] == 0:
        return image
    seen = image.copy()
    seen.putalpha(solid)
    return Image.composite(image, spread(seen).convert("RGB"), solid)
