"""The bytes of an answer, estimated before anything is rendered."""

from __future__ import annotations

from collections.abc import Sequence

from cutaway.contract.errors import InvalidOption
from cutaway.contract.limits import MIB
from cutaway.contract.options import CutOptions

from pipeline.geometry import Rect, enclosing
from pipeline.people import Person
from pipeline.report import Cutout

ANSWER_MAX_BYTES = 144 * MIB
"""An answer's files together: one cut-out of the largest picture that does not compress at all has 132 MiB. A
pipeline's process holds an answer four times while it hands it on, and Triton keeps as much shared memory for good."""
BYTES_PER_PIXEL = {"png": 2.0, "webp": 0.5, "jpeg": 1.0, "layers": 1.0, "mask": 0.25}
"""Of a detailed photograph without a transparent pixel: PNGs of the samples have 1.6 to 1.9, WebPs 0.2, JPEGs 0.3, at
quality 100 0.9. Noise has twice as much; what has been produced counts as it is."""


def check_expected(groups: Sequence[Sequence[Person]], options: CutOptions, frame: Rect) -> None:
    """Refuse several cut-outs whose files would be too large together; a single one never is.

    Args:
        groups: the people of each cut-out.
        options: with `crop` sizes are only known with the alphas, so that nothing is refused here.
        frame: the picture.

    Raises:
        InvalidOption: the details have the estimate.
    """
    if len(groups) < 2 or options.crop:
        return
    frames = [enclosing(person.box).grown(options.padding_px).within(frame) for (person,) in groups]
    _check(sum(_expected_bytes(each, options) for each in frames))


def check_produced(cutouts: Sequence[Cutout], frame: Rect | None = None, options: CutOptions | None = None) -> None:
    """Refuse an answer by its files so far, and by the estimate of the one that is rendered next, if there are others.

    Raises:
        InvalidOption: the details have the estimate.
    """
    produced = sum(len(cutout.data) for cutout in cutouts)
    expected = _expected_bytes(frame, options) if frame is not None and options is not None and cutouts else 0
    _check(produced + expected)


def _expected_bytes(frame: Rect, options: CutOptions) -> int:
    scale = min(1.0, (options.max_side_px or max(frame.width, frame.height)) / max(frame.width, frame.height))
    return round(frame.width * frame.height * scale**2 * BYTES_PER_PIXEL[options.output])


def _check(answer_bytes: int) -> None:
    if answer_bytes > ANSWER_MAX_BYTES:
        raise InvalidOption(
            f"The cut-outs would have about {answer_bytes // MIB} MiB together, and an answer has at most "
            f"{ANSWER_MAX_BYTES // MIB} MiB.",
            user_action="Ask for fewer boxes or people, for crop or a smaller max_side_px, or for output layers, webp "
            "or jpeg.",
            details={
                "name": "subject",
                "value": "each",
                "allowed": f"cut-outs of at most {ANSWER_MAX_BYTES // MIB} MiB together",
                "answer_bytes": answer_bytes,
                "max_bytes": ANSWER_MAX_BYTES,
            },
        )
