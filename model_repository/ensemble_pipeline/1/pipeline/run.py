"""The pipeline for one picture, with the two models as callables."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cutaway.contract.errors import ProcessingTimeout
from cutaway.contract.options import CutOptions
from numpy.typing import NDArray

from pipeline import composite, report
from pipeline.answer_size import check_expected, check_produced
from pipeline.crop import crop_rect
from pipeline.decode import Picture, decode
from pipeline.detect import Detections
from pipeline.encode import encode
from pipeline.foreground import clean_colours
from pipeline.layers import Layer, people_layer, whole_picture
from pipeline.look import Detector, look, people_share
from pipeline.matte import Matter, different_crops, matte_crops
from pipeline.notices import Notice
from pipeline.pace import Pace, in_time
from pipeline.people import Person, choose, from_boxes, nobody, rank
from pipeline.pixels import Pixels
from pipeline.shape import cropped, scaled
from pipeline.tuning import PEOPLE_SHARE


@dataclass(frozen=True)
class Models:
    """The two networks, and their description for the report.

    Attributes:
        detector: finds people.
        matter: mattes crops.
        matte_side_px: S, the side of the matting network's square input.
        description: profile, names and versions, for the report.
        device: the device that they run on, for the report.
        tensorrt: whether they are TensorRT plans, for the report.
        pace: how fast the matting network is.
        whole: the same for whole pictures, where another network mattes these unless they show people.
    """

    detector: Detector
    matter: Matter
    matte_side_px: int
    description: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    tensorrt: bool = False
    pace: Pace = field(default_factory=Pace)
    whole: Models | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        images: encoded cut-outs; none where the output was not requested.
        boxes: (N, 4) float32, the chosen people in pixels of the upright picture; the whole frame for 'all'.
        scores: (N,) float32.
        report: JSON values, see `pipeline.report`.
    """

    images: list[bytes]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    report: dict[str, Any]


def run(
    data: bytes,
    options: CutOptions,
    models: Models,
    *,
    wants_images: bool = True,
    max_decompression_ratio: float | None = None,
    proceed: Callable[[], None] = lambda: None,
    remaining_s: Callable[[], float] = lambda: math.inf,
) -> Answer:
    """Cut a picture out.

    Args:
        data: the encoded file.
        options: checked options.
        models: the two networks.
        wants_images: without it nothing is matted, and a picture without people is no error.
        max_decompression_ratio: replaces the table's limit.
        proceed: called before each call of a network, person and cut-out; raises to end the request.
        remaining_s: seconds until the deadline, when `proceed` was called last.

    Raises:
        InputError: the picture or an option is invalid, or the answer would be too large.
        ProcessingTimeout: what is left to do cannot be in time.
    """
    watch = report.Stopwatch()
    with watch.stage("decode"):
        picture = decode(data, max_decompression_ratio=max_decompression_ratio)
    notices = list(picture.notices)

    def detector(images: NDArray[np.uint8]) -> Mapping[str, NDArray[Any]]:
        proceed()
        return models.detector(images)

    def check_time(needed_s: float) -> None:
        proceed()
        if needed_s > remaining_s():
            models.pace.doubt()
            raise ProcessingTimeout(
                f"The mattes need about {needed_s:.1f} s more, which is past the deadline.",
                details={"elapsed_seconds": round(time.perf_counter() - watch.started, 1)},
            )

    everybody: list[Person] = []
    people: list[Person] = []
    detections: Detections | None = None
    quarter_turns = 0
    whole = models.whole
    if options.subject == "all" and whole is not None:
        with watch.stage("detect"):
            if people_share(picture.rgb, detector, options.min_confidence) >= PEOPLE_SHARE:
                whole = None
        proceed()
    elif options.subject != "all":
        with watch.stage("detect"):
            sighting = look(picture.rgb, detector, options.min_confidence, turn=options.boxes is None)
            detections, quarter_turns = sighting.detections, sighting.quarter_turns
            if options.boxes is None:
                everybody = rank(detections)
            else:
                everybody = from_boxes(options.boxes, detections, picture.frame)
            if options.subject == "auto":
                options = replace(options, subject="people" if everybody or options.select else "all")
                detections = detections if options.subject == "people" else None
            if detections is not None:
                if wants_images and not everybody:
                    raise nobody(options)
                people, about_people = choose(everybody, options)
                notices += [*sighting.notices, *about_people]

    if detections is None:
        models = whole or models
    cutouts: list[report.Cutout] = []
    if wants_images:
        groups = _groups(options.subject, people)
        check_expected(groups, options, picture.frame)
        rects = {person.id: crop_rect(person.box, picture.frame, len(everybody) == 1) for person in people}
        with watch.stage("matte"):
            wanted = [picture.frame] if detections is None else list(rects.values())
            matter = in_time(models.matter, models.pace, different_crops(wanted), check_time)
            mattes = matte_crops(picture.rgb, wanted, matter, models.matte_side_px, quarter_turns)
        for group in groups:
            proceed()
            begun = time.perf_counter()
            with watch.stage("refine"):
                if detections is None:
                    layer = whole_picture(picture.rgb, mattes[picture.frame], picture.frame, options.feather_px)
                else:
                    padding_px = options.padding_px if options.subject == "each" else None
                    layer = people_layer(
                        picture.rgb,
                        group,
                        everybody,
                        mattes,
                        rects,
                        detections,
                        picture.frame,
                        options.feather_px,
                        padding_px,
                        proceed,
                    )
                if options.crop:
                    margins = options.crop_margin_px, options.crop_margin_percent
                    layer = replace(layer, frame=cropped(layer.alpha, layer.region, layer.frame, *margins))
                check_produced(cutouts, layer.frame, options)
                pixels = _render(picture, layer, options)
            with watch.stage("encode"):
                pixels = scaled(pixels, options.max_side_px)
                encoded = encode(pixels, options.output, options.quality, picture.density_dpi)
            cutout = report.Cutout(
                group[0].id if options.subject == "each" else 0,
                tuple(person.id for person in group),
                layer.box,
                min((person.confidence for person in group), default=1.0),
                layer.frame,
                (pixels.width, pixels.height),
                encoded,
                (time.perf_counter() - begun) * 1000,
            )
            cutouts.append(cutout)
            if not layer.alpha.any():
                notices.append(Notice("EMPTY_CUTOUT", "Nothing was found to cut out.", {"id": cutout.id}))
        check_produced(cutouts)
        proceed()

    if detections is None:
        boxes, scores = [tuple(map(float, picture.frame.as_list()))], [1.0]
    else:
        boxes, scores = [person.box for person in people], [person.confidence for person in people]
    return Answer(
        [cutout.data for cutout in cutouts],
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        report.build(
            picture,
            options.subject,
            people,
            cutouts,
            options.output,
            models.description,
            models.device,
            models.tensorrt,
            watch.milliseconds(),
            notices,
        ),
    )


def _groups(subject: str, people: list[Person]) -> list[list[Person]]:
    """The people of each cut-out; one empty group for subject 'all'."""
    return [[person] for person in people] if subject == "each" else [people]


def _render(picture: Picture, layer: Layer, options: CutOptions) -> Pixels:
    """The cut-out: grey for a mask, RGB with a background, RGBA without."""
    region, frame, alpha = layer.region, layer.frame, layer.alpha
    if picture.alpha is not None:
        # The minimum: transparent pixels stay transparent, and cutting a cut-out again changes nothing.
        alpha = np.minimum(alpha, picture.alpha[region.slices])
    if options.output == "mask":
        return Pixels.of(composite.spread(alpha, region, frame))
    colours = clean_colours(picture.rgb[region.slices], alpha, options.decontaminate)
    if picture.own_rgb is not None and picture.alpha is not None:
        colours = _with_own(colours, alpha, picture.own_rgb[region.slices], picture.alpha[region.slices])
    background = options.background
    if background.transparent:
        return composite.on_nothing(colours, alpha, region, frame)
    if background.colour_rgb is not None:
        behind = composite.plain(background.colour_rgb, frame)
    else:
        behind = Pixels.of(composite.blurred(picture.rgb, alpha, region, frame, background.blur_px or 0))
    return composite.on_background(colours, alpha, region, frame, behind)


def _with_own(
    colours: Pixels, alpha: NDArray[np.uint8], own_rgb: NDArray[np.uint8], own_alpha: NDArray[np.uint8]
) -> Pixels:
    """Colours, replaced by the input's own where it was transparent already; all (h, w[, 3])."""

    def rows(part: slice) -> NDArray[np.uint8]:
        result = colours.rows(part)
        known = (own_alpha[part] < 255) & (alpha[part] > 0)
        np.copyto(result, own_rgb[part], where=known[..., None])
        return result

    return Pixels(colours.height, colours.width, 3, rows)
