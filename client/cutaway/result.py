"""Results: cut-outs, boxes, scores and the report, validated against one another."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cutaway.contract.errors import InputError
from cutaway.contract.headers import PictureHeader, picture_format, read_header
from cutaway.decode import open_checked
from cutaway.report import Box, CutoutEntry, Frame, Notice, Report, parse_report
from cutaway.transports.base import Tensor
from cutaway.transports.failures import malformed

if TYPE_CHECKING:
    import os

    from PIL import Image

    from cutaway.fallback.chain import Tried

DETECTION_OUTPUTS = ("boxes", "scores", "report")
CUT_OUTPUTS = ("images", *DETECTION_OUTPUTS)

PICTURE_SUFFIXES = (
    *(".png", ".webp", ".jpg", ".jpeg", ".jfif", ".gif", ".bmp"),
    *(".tif", ".tiff", ".avif", ".heic", ".psd", ".svg", ".pdf"),
)
"""Extensions that make a path a file's and not a folder's; only PNG and WebP can be written."""

_SUFFIXES = {"png": (".png",), "webp": (".webp",), "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif")}


class EncodedResult:
    """A result with an encoded file: as a PIL image, as an array, saved, shown in a notebook."""

    data: bytes
    media_type: str

    def _file(self) -> tuple[bytes, str]:
        return self.data, self.media_type.removeprefix("image/")

    @property
    def extension(self) -> str:
        """The file's extension: ".png", ".jpg" or ".webp"."""
        return _SUFFIXES[self._file()[1]][0]

    def pil(self) -> Image.Image:
        """The picture as a PIL image: RGBA, RGB where it is opaque, L for a mask.

        Raises:
            InferenceError: it cannot be decoded.
        """
        data = self._file()[0]
        try:
            image = open_checked(data, read_header(data))
            image.load()
        except Exception as error:  # Pillow's plugins raise many exceptions on damaged files
            raise malformed("a picture cannot be decoded") from error
        return image

    def numpy(self) -> NDArray[np.uint8]:
        """The picture as an array: HWC uint8 [0, 255], RGBA or RGB; HW for a mask."""
        image = self.pil()
        return np.array(image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB"), dtype=np.uint8)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
        """Write the encoded file as it is.

        Raises:
            ValueError: the name has the extension of another format.
            FileExistsError: the file exists and `overwrite` is False.
        """
        path, (data, form) = Path(path), self._file()
        if path.suffix.lower() not in _SUFFIXES[form]:
            raise ValueError(f"the picture is {form.upper()}: name it {path.stem}{self.extension}, not {path.name}")
        with path.open("wb" if overwrite else "xb") as file:
            file.write(data)
        return path

    def _repr_png_(self) -> bytes:
        """For notebooks."""
        data, form = self._file()
        if form == "png":
            return data
        buffer = io.BytesIO()
        self.pil().save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


@dataclass(frozen=True)
class Cutout(EncodedResult):
    """One cut-out. Boxes and frames are in pixels of the upright picture.

    Attributes:
        id: the person's id for subject "each" (0 is the largest), else 0.
        people: ids of the people in it; none for subject "all".
        box: x1, y1, x2, y2 around all detections in it.
        score: the confidence of the least certain person in it, 0 to 1.
        frame: x1, y1, x2, y2 of the rectangle that this cut-out covers: paste it at the first two to put it back.
        image: the encoded file.
        format: "png" or "webp".
    """

    id: int
    people: tuple[int, ...]
    box: Box
    score: float
    frame: Frame
    image: bytes = field(repr=False)
    format: Literal["png", "webp"]

    def _file(self) -> tuple[bytes, str]:
        return self.image, self.format


@dataclass(frozen=True)
class Origin:
    """The origin of an answer.

    Attributes:
        provider: the one that served it: "triton", or the hosted "huggingface", "replicate" or "space".
        request_id: the id under which the server logged the request.
        elapsed_ms: milliseconds from the call to the answer.
        tier: 1 for your own server, 2 to 4 for hosted models.
        url: the server that answered; "" for hosted models.
        tried: the tiers that failed before, in order.
        requests: requests to your own servers, retries included.
        from_cache: whether the answer came from the cache, without a request.
    """

    provider: str
    request_id: str
    elapsed_ms: float
    tier: int = 1
    url: str = ""
    tried: tuple[Tried, ...] = ()
    requests: int = 1
    from_cache: bool = False


class _Served:
    """An answer with its origin's attributes."""

    origin: Origin

    @property
    def provider(self) -> str:
        return self.origin.provider

    @property
    def tier(self) -> int:
        return self.origin.tier

    @property
    def tried(self) -> tuple[Tried, ...]:
        return self.origin.tried

    @property
    def request_id(self) -> str:
        return self.origin.request_id

    @property
    def elapsed_ms(self) -> float:
        return self.origin.elapsed_ms


@dataclass(frozen=True, eq=False)
class Detection(_Served):
    """The people that were detected.

    Attributes:
        boxes: (N, 4) float32, x1, y1, x2, y2 in pixels of the upright picture, largest person first.
        scores: (N,) float32, the detector's confidence, 0 to 1.
        report: the server's report.
        origin: who served it; its attributes are this object's, too.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    report: Report
    origin: Origin

    @property
    def requests(self) -> int:
        return self.origin.requests

    @property
    def from_cache(self) -> bool:
        return self.origin.from_cache

    @property
    def timings_ms(self) -> Mapping[str, float]:
        """The server's milliseconds per stage."""
        return self.report.timings_ms

    @property
    def warnings(self) -> tuple[Notice, ...]:
        return self.report.warnings

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, eq=False)
class CutResult(Detection):
    """The cut-outs of one picture; boxes and scores are the detected people's, see :class:`Detection`.

    Attributes:
        cutouts: one with everybody for subject "people" and "all", one per person for "each".
    """

    cutouts: tuple[Cutout, ...]

    @property
    def images(self) -> list[bytes]:
        """The encoded files of the cut-outs."""
        return [cutout.image for cutout in self.cutouts]

    def __len__(self) -> int:
        return len(self.cutouts)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> list[Path]:
        """Write the cut-outs.

        Args:
            path: a file ("cutout.png"; several become "cutout-0.png", "cutout-1.png", …, numbered by id) or a
                folder, which is created if needed ("cutouts/cutout.png" or "cutouts/cutout-0.png", …). A path
                with a picture's extension is a file, every other one a folder.
            overwrite: whether existing files are replaced.

        Returns:
            The files written.

        Raises:
            ValueError: the path has the extension of another format than the cut-outs'.
            FileExistsError: a file exists and `overwrite` is False.
        """
        path = Path(path)
        if path.is_dir() or path.suffix.lower() not in PICTURE_SUFFIXES:
            path.mkdir(parents=True, exist_ok=True)
            path /= f"cutout.{self.cutouts[0].format}"
        if len(self.cutouts) == 1:
            return [self.cutouts[0].save(path, overwrite=overwrite)]
        return [
            cutout.save(path.with_name(f"{path.stem}-{cutout.id}{path.suffix}"), overwrite=overwrite)
            for cutout in self.cutouts
        ]

    def _repr_png_(self) -> bytes | None:
        return self.cutouts[0]._repr_png_() if self.cutouts else None


@dataclass(frozen=True, eq=False)
class UpscaleResult(EncodedResult, _Served):
    """An enlarged picture.

    Attributes:
        data: the encoded file as the provider sent it.
        media_type: its type, such as "image/png".
        width_px: its width.
        height_px: its height.
        model: the upscaling model.
        licence: of the model's weights, in words.
        cost: what a picture costs, in words.
        origin: who served it.
    """

    data: bytes = field(repr=False)
    media_type: str
    width_px: int
    height_px: int
    model: str
    licence: str
    cost: str
    origin: Origin


def read_detection(outputs: Mapping[str, Tensor], origin: Origin, sent: PictureHeader | None = None) -> Detection:
    """Build a detection from a server's outputs; see :func:`read_cut`.

    Raises:
        InferenceError: outputs are missing or contradict one another.
    """
    return Detection(*_detected(outputs, sent), origin)


def read_cut(outputs: Mapping[str, Tensor], origin: Origin, sent: PictureHeader | None = None) -> CutResult:
    """Build a result from a server's outputs. Cut-outs are checked against the report by their headers, so that none
    larger than its frame is decoded.

    Args:
        sent: the header of the picture that was sent, than which the report's may not be larger.

    Raises:
        InferenceError: outputs are missing or contradict one another.
    """
    boxes, scores, report = _detected(outputs, sent)
    images = outputs.get("images")
    if not isinstance(images, list):
        raise malformed("it holds no cut-outs")
    if not images or len(images) != len(report.cutouts):
        raise malformed(f"it holds {len(images)} cut-outs and its report tells of {len(report.cutouts)}")
    cutouts = tuple(_cutout(entry, image) for entry, image in zip(report.cutouts, images, strict=True))
    return CutResult(boxes, scores, report, origin, cutouts)


def _detected(
    outputs: Mapping[str, Tensor], sent: PictureHeader | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], Report]:
    raw = outputs.get("report")
    if not isinstance(raw, list) or len(raw) != 1:
        raise malformed("it holds no report")
    boxes, scores = _floats(outputs.get("boxes")), _floats(outputs.get("scores"))
    if scores.ndim != 1 or boxes.shape != (len(scores), 4):
        raise malformed("its boxes and scores do not fit together")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise malformed("its boxes or scores are not finite")
    report = parse_report(raw[0])
    if sent is not None:
        sides = zip(sorted((report.width_px, report.height_px)), sorted((sent.width_px, sent.height_px)), strict=True)
        if any(reported > was_sent for reported, was_sent in sides):
            raise malformed("its report is of a larger picture")
    return boxes, scores, report


def _floats(found: Tensor | None) -> NDArray[np.float32]:
    if not isinstance(found, np.ndarray) or found.dtype != np.float32:
        raise malformed("it holds no boxes or scores")
    return found.astype(np.float32, copy=False)


def _cutout(entry: CutoutEntry, image: bytes) -> Cutout:
    found = picture_format(image)
    if found not in ("png", "webp"):
        raise malformed("a cut-out is neither PNG nor WebP")
    if entry.file_bytes != len(image):
        raise malformed("a cut-out has another length than its report says")
    x1, y1, x2, y2 = entry.frame
    try:
        header = read_header(image)
    except InputError as error:
        raise malformed("a cut-out's header makes no sense") from error
    if (header.width_px, header.height_px) != (x2 - x1, y2 - y1):
        raise malformed("a cut-out has another size than its frame")
    return Cutout(
        entry.id, entry.people, entry.box, entry.score, entry.frame, image, "png" if found == "png" else "webp"
    )
