"""A hosted matte made into the answer that a Cutaway server gives: cut-outs, boxes, scores, and a report.

Hosted models see one upright picture and give one matte of whatever stands out in it. What cannot be had that way is
said in a warning, or refused: never silently something else.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cutaway import limits
from cutaway.decode import own_alpha, to_srgb
from cutaway.errors import CorruptImage, NoPersonDetected
from cutaway.headers import check_picture
from cutaway.options import Background, CutOptions
from cutaway.providers.answers import Matte
from cutaway.providers.foreground import clean_colours

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

Box = tuple[float, float, float, float]
Frame = tuple[int, int, int, int]

SENT_QUALITY = 95
REACH = 0.1
"""How far beyond their box a person's hair and hands are looked for, as a share of the box's longer side."""


HARMLESS = frozenset(
    [
        "jfif",
        "jfif_version",
        "jfif_unit",
        "jfif_density",
        "dpi",
        "progressive",
        "progression",
        "adobe",
        "adobe_transform",
        "gamma",
        "srgb",
        "chromaticity",
        "interlace",
        "aspect",
        "background",
        "loop",
        "timestamp",
        "duration",
    ]
)
"""What a file may tell beside its pixels and still be sent as it is; anything else is left out by encoding it anew."""


@dataclass(frozen=True)
class Person:
    """Somebody to cut out: `box` in pixels of the upright picture, `confidence` 0 to 1."""

    id: int
    box: Box
    confidence: float


@dataclass(frozen=True)
class Sendable:
    """A picture as it is cut, and as it is sent.

    Attributes:
        rgb: (H, W, 3) uint8, upright, in sRGB.
        alpha: (H, W) uint8, its own transparency, or None.
        orientation: the EXIF orientation that was applied, 1 to 8.
        format: of the file that came in.
        data: what is sent: upright and without metadata, which may tell a place and a time and is nobody's business.
        media_type: what `data` is.
    """

    rgb: NDArray[np.uint8] = field(repr=False)
    alpha: NDArray[np.uint8] | None = field(repr=False)
    orientation: int
    format: str
    data: bytes = field(repr=False)
    media_type: str

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.rgb.shape[1], self.rgb.shape[0]


def sendable(data: bytes, media_type: str | None = None, *, input_limits: limits.InputLimits | None = None) -> Sendable:
    """Check, decode and put a picture upright, and leave out of what is sent all that is not the picture.

    Raises:
        InputError: it is refused by its header; CorruptImage where it cannot be decoded.
    """
    from PIL import Image, ImageOps

    header = check_picture(data, media_type, limits=input_limits or limits.INPUT_LIMITS)
    try:
        with Image.open(io.BytesIO(data), formats=[header.format.upper()]) as image:
            orientation = image.getexif().get(0x0112, 1)
            orientation = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
            plain_file = header.format in ("jpeg", "png", "webp") and set(image.info) <= HARMLESS
            upright = ImageOps.exif_transpose(image)
            upright.load()
        own = own_alpha(upright)
        rgb = to_srgb(upright)
    except Exception as error:  # Pillow's plugins raise whatever a damaged file drives them to
        raise CorruptImage(f"The {header.format.upper()} cannot be decoded.") from error
    plain_file = plain_file and orientation == 1 and own is None
    sent, sent_type = (data, header.media_type) if plain_file else _encoded(rgb, header.format)
    return Sendable(np.asarray(rgb), own, orientation, header.format, sent, sent_type)


def _encoded(rgb: PILImage, source_format: str) -> tuple[bytes, str]:
    """Losslessly where the file was lossless and that stays within the limits of a file."""
    plain = rgb.copy()
    plain.info.clear()
    buffer = io.BytesIO()
    if source_format in ("png", "bmp"):
        plain.save(buffer, "PNG", compress_level=3)
        if buffer.tell() <= limits.INPUT_LIMITS.max_file_bytes:
            return buffer.getvalue(), "image/png"
        buffer = io.BytesIO()
    plain.save(buffer, "JPEG", quality=SENT_QUALITY, subsampling=0)
    return buffer.getvalue(), "image/jpeg"


# ------------------------------------------------------------------------------------------------ the answer


def people_of(outputs: dict[str, Any], report: dict[str, Any], options: CutOptions) -> list[Person]:
    """The people of a server's detection answer.

    Raises:
        NoPersonDetected: there are none.
    """
    entries = report.get("people")
    ids = [entry["id"] for entry in entries] if isinstance(entries, list) else []
    found = [
        Person(id_, (float(box[0]), float(box[1]), float(box[2]), float(box[3])), float(score))
        for id_, box, score in zip(ids, outputs["boxes"], outputs["scores"], strict=False)
    ]
    if not found:
        raise NoPersonDetected(
            "Nobody was found in the picture.", details={"min_confidence": options.min_confidence, "tips": []}
        )
    return found


def given_people(options: CutOptions, size_wh: tuple[int, int]) -> list[Person]:
    """The boxes of the options as people, largest first, as the server numbers them."""
    width, height = size_wh
    clipped = [
        (min(max(box[0], 0.0), width), min(max(box[1], 0.0), height), min(box[2], width), min(box[3], height))
        for box in options.boxes or ()
    ]
    inside = [box for box in clipped if box[2] - box[0] >= 1 and box[3] - box[1] >= 1]
    inside.sort(key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))
    chosen = [Person(place, box, 1.0) for place, box in enumerate(inside)]
    return [person for person in chosen if options.select is None or person.id in options.select]


def outputs_of(
    picture: Sendable, matte: Matte, options: CutOptions, people: Sequence[Person] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors "images", "boxes" and "scores" of the wire contract, and the report that goes with them.

    Args:
        people: who is cut out; None for whatever stands out in the picture.
    """
    alpha = matte.alpha if picture.alpha is None else np.minimum(matte.alpha, picture.alpha)
    alpha = _feathered(alpha, options.feather_px)
    width, height = picture.size_wh
    whole = (0, 0, width, height)
    chosen = list(people or ())[: options.max_people]
    cutouts: list[dict[str, Any]] = []
    images: list[bytes] = []
    groups = [[person] for person in chosen] if options.subject == "each" else [chosen]
    for group in groups:
        alone = options.subject == "each"
        frame = _grown(group[0].box, options.padding_px, whole) if alone else whole
        part = alpha if not group else _kept_near(alpha, group, whole)
        image = _encode(_rendered(picture, part, frame, options), options.output)
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


def _rendered(picture: Sendable, alpha: NDArray[np.uint8], frame: Frame, options: CutOptions) -> NDArray[np.uint8]:
    """(h, w) for a mask, (h, w, 3) before a background, (h, w, 4) transparent; all uint8."""
    x1, y1, x2, y2 = frame
    part = alpha[y1:y2, x1:x2]
    if options.output == "mask":
        return part
    own = picture.rgb[y1:y2, x1:x2]
    colours = clean_colours(own, part) if options.decontaminate else own
    if options.background.transparent:
        return np.dstack([colours, part])
    behind = _behind(picture.rgb, options.background)[y1:y2, x1:x2]
    weight = part[..., None].astype(np.float32) / 255
    mixed: NDArray[np.uint8] = np.rint(colours * weight + behind * (1 - weight)).astype(np.uint8)
    return mixed


def _behind(rgb: NDArray[np.uint8], background: Background) -> NDArray[np.uint8]:
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


def _kept_near(alpha: NDArray[np.uint8], group: Sequence[Person], whole: Frame) -> NDArray[np.uint8]:
    """The alpha in and a little around the people's boxes, and nothing elsewhere."""
    kept = np.zeros_like(alpha)
    for person in group:
        reach = round(REACH * max(person.box[2] - person.box[0], person.box[3] - person.box[1]))
        x1, y1, x2, y2 = _grown(person.box, reach, whole)
        kept[y1:y2, x1:x2] = alpha[y1:y2, x1:x2]
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


def _encode(pixels: NDArray[np.uint8], output: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if output == "webp":
        image.save(buffer, "WEBP", quality=90, method=2)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
