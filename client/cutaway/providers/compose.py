"""A hosted matte made into the answer that a Cutaway server gives: cut-outs, boxes, scores, and a report.

Hosted models see one upright picture and give one matte of whatever stands out in it. What cannot be had that way is
said in a warning, or refused: never silently something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutaway.contract import limits
from cutaway.contract.options import Background, CutOptions
from cutaway.providers.answers import Matte
from cutaway.providers.apart import Check, unchecked
from cutaway.providers.foreground import bands, clean_colours
from cutaway.providers.people import Box, Person
from cutaway.providers.sending import CheckedFile, Sendable

Frame = tuple[int, int, int, int]

REACH = 0.1
"""How far beyond their box a person's hair and hands are looked for, as a share of the box's longer side."""


def outputs_of(
    picture: Sendable, matte: Matte, options: CutOptions, people: Sequence[Person] | None, check: Check = unchecked
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors "images", "boxes" and "scores" of the wire contract, and the report that goes with them.

    Args:
        people: who is cut out, somebody at least; None for whatever stands out in the picture.
    """
    alpha = matte.alpha if picture.alpha is None else np.minimum(matte.alpha, picture.alpha)
    alpha = _feathered(alpha, options.feather_px)
    behind = None if options.output == "mask" else _behind(picture.rgb, options.background)
    check()
    width, height = picture.size_wh
    whole = (0, 0, width, height)
    chosen = list(people or ())[: options.max_people]
    cutouts: list[dict[str, Any]] = []
    images: list[bytes] = []
    groups = [[person] for person in chosen] if options.subject == "each" else [chosen]
    for group in groups:
        alone = options.subject == "each"
        frame = _grown(group[0].box, options.padding_px, whole) if alone else whole
        part = _cropped(alpha, frame) if people is None else _kept_near(alpha, group, frame, whole)
        before = None if behind is None else _cropped(behind, frame)
        pixels = _rendered(_cropped(picture.rgb, frame), part, before, options, check)
        image = _encode(pixels, options.output, check)
        images.append(image)
        cutouts.append(
            {
                "id": group[0].id if alone else 0,
                "people": [person.id for person in group],
                "box": list(_around(group)) if group else [float(side) for side in whole],
                "confidence": min((round(person.confidence, 4) for person in group), default=1.0),
                "frame": list(frame),
                "size": [frame[2] - frame[0], frame[3] - frame[1]],
                "media_type": "image/webp" if options.output == "webp" else "image/png",
                "bytes": len(image),
            }
        )
    report = {
        "picture": {
            "width_px": width,
            "height_px": height,
            "format": picture.format,
            "orientation": picture.orientation,
        },
        "people": [{"id": p.id, "box": list(p.box), "confidence": round(p.confidence, 4)} for p in chosen],
        "cutouts": cutouts,
        "models": {"profile": "", "matte": {"name": matte.model, "licence": matte.licence, "cost": matte.cost}},
        "device": matte.provider,
        "milliseconds": {"matte": round(matte.elapsed_ms, 2)},
        "warnings": _warnings(matte, options, people, chosen),
    }
    boxes = [person.box for person in chosen] if people is not None else [tuple(map(float, whole))]
    scores = [person.confidence for person in chosen] if people is not None else [1.0]
    return {
        "images": images,
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "scores": np.array(scores, np.float32),
    }, report


def _warnings(
    matte: Matte, options: CutOptions, people: Sequence[Person] | None, chosen: Sequence[Person]
) -> list[dict[str, Any]]:
    def warning(code: str, message: str, **details: Any) -> dict[str, Any]:
        return {"code": code, "message": message, "tier": int(limits.Tier.MEDIUM), "details": details}

    found = [
        warning(
            "HOSTED_MODEL",
            f"{matte.model} at {matte.provider} made this cut-out, and not your server.",
            provider=matte.provider,
            model=matte.model,
            licence=matte.licence,
        )
    ]
    if options.subject == "people" and people is None:
        found.append(
            warning(
                "PEOPLE_NOT_CHECKED",
                "The hosted model cut out what stands out in the picture; nobody checked that these are people.",
            )
        )
    if people is not None and len(people) > len(chosen):
        found.append(
            warning(
                "PEOPLE_LEFT_OUT",
                f"{len(people)} people were found; the {len(chosen)} largest were taken.",
                found=len(people),
                max_people=options.max_people,
            )
        )
    if options.subject == "each" and _any_overlap([person.box for person in chosen]):
        found.append(warning("PEOPLE_NOT_SEPARATED", "Boxes overlap: a neighbour may be seen in somebody's cut-out."))
    return found


def _rendered(
    own: NDArray[np.uint8],
    alpha: NDArray[np.uint8],
    behind: NDArray[np.uint8] | None,
    options: CutOptions,
    check: Check,
) -> NDArray[np.uint8]:
    """(h, w) for a mask, (h, w, 3) before a background, (h, w, 4) transparent; all uint8."""
    if options.output == "mask":
        return alpha
    height, width = alpha.shape
    colours = clean_colours(own, alpha, check) if options.decontaminate else own
    pixels = np.empty((height, width, 4 if behind is None else 3), np.uint8)
    for rows in bands(height, width, check):
        if behind is None:
            pixels[rows, :, :3] = colours[rows]
            pixels[rows, :, 3] = alpha[rows]
        else:
            weight = alpha[rows, :, None].astype(np.float32) / 255
            pixels[rows] = np.rint(colours[rows] * weight + behind[rows] * (1 - weight)).astype(np.uint8)
    return pixels


def _behind(rgb: NDArray[np.uint8], background: Background) -> NDArray[np.uint8] | None:
    """(H, W, 3) uint8, what the whole picture is put before; None where that is nothing."""
    if background.transparent:
        return None
    if background.colour_rgb is not None:
        return np.broadcast_to(np.array(background.colour_rgb, np.uint8), rgb.shape)
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(background.blur_px or 0)))


def _feathered(alpha: NDArray[np.uint8], feather_px: int) -> NDArray[np.uint8]:
    """Softened with a Gaussian whose standard deviation is half of `feather_px`, as the server does."""
    if feather_px == 0:
        return alpha
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(alpha).filter(ImageFilter.GaussianBlur(feather_px / 2)))


def _cropped(pixels: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    x1, y1, x2, y2 = frame
    return pixels[y1:y2, x1:x2]


def _kept_near(alpha: NDArray[np.uint8], group: Sequence[Person], frame: Frame, whole: Frame) -> NDArray[np.uint8]:
    """Within the frame, the alpha in and a little around the people's boxes, and nothing elsewhere."""
    x1, y1, x2, y2 = frame
    kept = np.zeros((y2 - y1, x2 - x1), np.uint8)
    for person in group:
        reach = round(REACH * max(person.box[2] - person.box[0], person.box[3] - person.box[1]))
        near = _grown(person.box, reach, whole)
        left, top, right, bottom = max(near[0], x1), max(near[1], y1), min(near[2], x2), min(near[3], y2)
        kept[top - y1 : bottom - y1, left - x1 : right - x1] = alpha[top:bottom, left:right]
    return kept


def _grown(box: Box, by_px: int, whole: Frame) -> Frame:
    x1, y1 = max(whole[0], int(box[0]) - by_px), max(whole[1], int(box[1]) - by_px)
    x2, y2 = min(whole[2], -int(-box[2] // 1) + by_px), min(whole[3], -int(-box[3] // 1) + by_px)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _around(group: Sequence[Person]) -> Box:
    x1, y1, x2, y2 = zip(*(person.box for person in group), strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _any_overlap(boxes: Sequence[Box]) -> bool:
    return any(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        for place, a in enumerate(boxes)
        for b in boxes[:place]
    )


def _encode(pixels: NDArray[np.uint8], output: str, check: Check) -> bytes:
    from PIL import Image

    file = CheckedFile(check)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if output == "webp":
        image.save(file, "WEBP", quality=90, method=2)
    else:
        image.save(file, "PNG", compress_level=1)
    return file.getvalue()
