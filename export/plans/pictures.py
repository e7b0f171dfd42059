"""What the comparison shows to a plan: photographs, cut as the pipeline cuts them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export import ExportError

CHECKOUT = Path(__file__).resolve().parents[2]
SAMPLES = CHECKOUT / "samples"
PIPELINE = CHECKOUT / "model_repository" / "ensemble_pipeline" / "1"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

VIEWS = 8
"""Fewest pictures, so that a full batch has no two alike and mixed-up batch-mates show."""
MOST = 24
"""Most pictures: float32 on the CPU takes its time for each."""
COLLAGES = ((4, 8), (10, 8))
"""Squares of small people: as many columns of cells, and as many views in them, spread out. At most 8 views, so that
their candidates are fewer than the 300 which the detector gives: what fell off the end would be chance."""
MIN_CONFIDENCE = 0.25

Detector = Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]
"""uint8 [N, 640, 640, 3] → the outputs of `yolov8_seg` by name."""


class PicturesMissing(ExportError):
    """There is nothing to compare on.

    samples has no pictures (.jpg, .jpeg, .png, .webp, .bmp); name a folder that has: --pictures DIR
    """


class Pictures(NamedTuple):
    """What the two networks see of the same views of photographs.

    squares: letterboxed, for the detector, and collages of them: uint8 [N + len(COLLAGES), 640, 640, 3].
    crops: the largest person of each view with context, or the whole view: uint8 [N, side, side, 3].
    names: the file of each view.
    """

    squares: NDArray[np.uint8]
    crops: NDArray[np.uint8]
    names: list[str]


def import_pipeline() -> None:
    """Make the modules of `pipeline` and `cutaway` importable, as they are where the server imports them."""
    for folder in (CHECKOUT / "client", PIPELINE):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


def find_pictures(folder: Path, most: int = MOST) -> list[Path]:
    """Up to `most` picture files of a folder, by name.

    Raises:
        PicturesMissing: see there.
    """
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise PicturesMissing(
            f"{folder} has no pictures ({', '.join(SUFFIXES)}); name a folder that has: --pictures DIR"
        )
    return found[:most]


def take_pictures(files: list[Path], detector: Detector, side_px: int) -> Pictures:
    """At least `VIEWS` views of the files as the pipeline would feed them.

    Args:
        files: encoded pictures.
        detector: finds the people; the float32 network, so that every plan of it sees the same crops.
        side_px: side of the matting network's input.

    Raises:
        PicturesMissing: a file cannot be read.
    """
    import_pipeline()
    from cutaway.contract.errors import InputError
    from pipeline.crop import crop_rect
    from pipeline.decode import decode
    from pipeline.detect import read_detections
    from pipeline.geometry import whole
    from pipeline.letterbox import letterbox
    from pipeline.matte import matte_crops
    from pipeline.people import rank

    squares: list[NDArray[np.uint8]] = []
    crops: list[NDArray[np.uint8]] = []
    names = []

    def keep(cut: NDArray[np.uint8]) -> NDArray[np.uint8]:
        crops.extend(cut)
        return np.zeros(cut.shape[:3], np.uint8)

    try:
        decoded = [(path.name, decode(path.read_bytes()).rgb) for path in files]
    except (InputError, OSError) as error:
        raise PicturesMissing(f"a picture for the comparison cannot be read: {error}") from None
    for name, rgb in _views(decoded):
        square, placement = letterbox(rgb)
        outputs = {key: values[0] for key, values in detector(square[None]).items()}
        people = rank(read_detections(outputs, placement, MIN_CONFIDENCE))
        frame = whole(rgb.shape[1], rgb.shape[0])
        matte_crops(rgb, [crop_rect(people[0].box, frame) if people else frame], keep, side_px)
        squares.append(square)
        names.append(name)
    collages = [_collage(squares, columns, count) for columns, count in COLLAGES]
    return Pictures(np.stack(squares + collages), np.stack(crops), names)


def _collage(squares: list[NDArray[np.uint8]], columns: int, count: int) -> NDArray[np.uint8]:
    """Some of the squares, shrunk into cells of a grey one."""
    import cv2

    collage = np.full_like(squares[0], 114)
    side_px = len(collage) // columns
    for place, square in enumerate(squares[:count]):
        row, column = divmod(place * columns**2 // count, columns)
        top, left = row * side_px, column * side_px
        small = cv2.resize(square, (side_px, side_px), interpolation=cv2.INTER_AREA)
        collage[top : top + side_px, left : left + side_px] = small
    return collage


def _views(pictures: list[tuple[str, NDArray[np.uint8]]]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The pictures; where they are few their mirror images too, then ever tighter cuts from both."""
    count, margin = 0, 0
    while True:
        for mirrored in (False, True):
            for name, rgb in pictures:
                height, width = rgb.shape[:2]
                view = rgb[
                    height * margin // 16 : height - height * margin // 16,
                    width * margin // 16 : width - width * margin // 16,
                ]
                yield name, np.ascontiguousarray(view[:, ::-1] if mirrored else view)
                count += 1
            if count >= VIEWS:
                return
        margin = min(margin + 2, 6)
