"""Results: cut-outs, boxes, scores and the report, validated against one another."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from cutaway.contract.headers import PictureHeader, picture_format, read_header
from cutaway.inputs import declared_type, open_checked
from cutaway.report import Box, CutoutEntry, Frame, Notice, Report, parse_report
from cutaway.transports.base import Tensor
from cutaway.transports.failures import malformed

if TYPE_CHECKING:
    from cutaway.fallback.chain import Tried

DETECTION_OUTPUTS = ("boxes", "scores", "report")
CUT_OUTPUTS = ("images", *DETECTION_OUTPUTS)
_SUFFIXES = {"png": (".png",), "webp": (".webp",), "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"), "zip": (".zip",)}
_LAYERS = ("color.jpg", "alpha.png")


class EncodedResult:
    """A result with an encoded file, which a notebook shows."""

    data: bytes
    media_type: str

    def _file(self) -> tuple[bytes, str]:
        return self.data, self.media_type.removeprefix("image/")

    @property
    def extension(self) -> str:
        """The file's extension: ".png", ".jpg", ".webp" or ".zip"."""
        return _SUFFIXES[self._file()[1]][0]

    def pil(self) -> Image:
        """The picture: RGBA, RGB where it is opaque, L for a mask; a ZIP's layers put together; or InferenceError."""
        try:
            image, *alphas = (open_checked(part, read_header(part)) for part in _parts(*self._file()))
            image.load()
            for alpha in alphas:
                image.putalpha(alpha)
        except Exception as error:  # Pillow's plugins raise many exceptions on damaged files
            raise malformed("a picture cannot be decoded") from error
        return image

    def numpy(self) -> NDArray[np.uint8]:
        """The picture as an array: HWC uint8 [0, 255], RGBA or RGB; HW for a mask."""
        image = self.pil()
        return np.array(image if image.mode in ("RGB", "RGBA", "L") else image.convert("RGB"), dtype=np.uint8)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
        """Write the file; ValueError where the extension is another format's, FileExistsError without `overwrite`."""
        path, (data, form) = Path(path), self._file()
        if path.suffix.lower() not in _SUFFIXES[form]:
            raise ValueError(f"the picture is {form.upper()}: name it {path.stem}{self.extension}, not {path.name}")
        with path.open("wb" if overwrite else "xb") as file:
            file.write(data)
        return path

    def _repr_png_(self) -> bytes | None:
        data, form = self._file()
        return data if form == "png" else self.pil()._repr_png_()


def _parts(data: bytes, form: str) -> list[bytes]:
    """The pictures of a file: itself, or the colours and the alpha of a ZIP, which are stored as they are."""
    if form != "zip":
        return [data]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [archive.getinfo(name) for name in _LAYERS]
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):  # else it may be a bomb
            raise malformed("the layers of a cut-out are compressed")
        return [archive.read(entry) for entry in entries]


@dataclass(frozen=True)
class Cutout(EncodedResult):
    """One cut-out: the person's id for subject "each" (0 is the largest), else 0; the ids of all `people` in it; the
    `box` around them and the `frame` that it covers (paste it there), x1, y1, x2, y2 in pixels of the upright picture;
    the least certain one's confidence; the encoded file: "png", "webp", "jpeg", or "zip" of color.jpg and alpha.png."""

    id: int
    people: tuple[int, ...]
    box: Box
    score: float
    frame: Frame
    image: bytes = field(repr=False)
    format: Literal["png", "webp", "jpeg", "zip"]

    def _file(self) -> tuple[bytes, str]:
        return self.image, self.format


@dataclass(frozen=True)
class Origin:
    """The origin of an answer: the `provider` ("triton", or the hosted "huggingface", "replicate", "space"), the id in
    the server's log, milliseconds from call to answer, the tier (1 for your own server, 2 to 4 for hosted models), the
    own server's `url`, the tiers that were `tried` before, and the `requests` to own servers, retries included."""

    provider: str
    request_id: str = ""
    elapsed_ms: float = 0.0
    tier: int = 1
    url: str = ""
    tried: tuple[Tried, ...] = ()
    requests: int = 1
    from_cache: bool = False


def _of_origin(name: str) -> Any:
    return property(attrgetter(f"origin.{name}"))


class _Served:
    """An answer with its origin's attributes."""

    origin: Origin
    provider: str = _of_origin("provider")
    request_id: str = _of_origin("request_id")
    elapsed_ms: float = _of_origin("elapsed_ms")
    tier: int = _of_origin("tier")
    tried: tuple[Tried, ...] = _of_origin("tried")
    requests: int = _of_origin("requests")
    from_cache: bool = _of_origin("from_cache")


@dataclass(frozen=True, eq=False)
class Detection(_Served):
    """The people that were detected, largest first: `boxes` (N, 4) float32, x1, y1, x2, y2 in pixels of the upright
    picture, `scores` (N,) float32, the detector's confidence, 0 to 1, the server's report, and the answer's origin,
    whose attributes are this object's, too."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    report: Report
    origin: Origin

    @property
    def timings_ms(self) -> Mapping[str, float]:
        return self.report.timings_ms

    @property
    def warnings(self) -> tuple[Notice, ...]:
        return self.report.warnings

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, eq=False)
class CutResult(Detection):
    """The cut-outs of one picture: one with everybody for subject "people" and "all", one per person for "each"; boxes
    and scores are the detected people's, see :class:`Detection`."""

    cutouts: tuple[Cutout, ...]

    @property
    def images(self) -> list[bytes]:
        """The encoded files of the cut-outs."""
        return [cutout.image for cutout in self.cutouts]

    def __len__(self) -> int:
        return len(self.cutouts)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> list[Path]:
        """Write the cut-outs and return their paths; errors are those of :meth:`Cutout.save`.

        Args:
            path: a file (with a picture's extension: "cutout.png", several become "cutout-0.png", "cutout-1.png", …,
                numbered by id) or a folder, which is created if needed ("cutouts/cutout.png").
            overwrite: whether existing files are replaced.
        """
        path = Path(path)
        if path.is_dir() or not (declared_type(path) or path.suffix.lower() == ".zip"):
            path.mkdir(parents=True, exist_ok=True)
            path /= f"cutout{self.cutouts[0].extension}"
        if len(self.cutouts) == 1:
            return [self.cutouts[0].save(path, overwrite=overwrite)]
        names = [path.with_name(f"{path.stem}-{cutout.id}{path.suffix}") for cutout in self.cutouts]
        return [cutout.save(name, overwrite=overwrite) for cutout, name in zip(self.cutouts, names, strict=True)]

    def _repr_png_(self) -> bytes | None:
        return self.cutouts[0]._repr_png_() if self.cutouts else None


@dataclass(frozen=True, eq=False)
class UpscaleResult(EncodedResult, _Served):
    """An enlarged picture: the file as the provider sent it, the upscaling model, and in words the licence of its
    weights and what a picture costs."""

    data: bytes = field(repr=False)
    media_type: str
    width_px: int
    height_px: int
    model: str
    licence: str
    cost: str
    origin: Origin


def read_detection(outputs: Mapping[str, Tensor], origin: Origin, sent: PictureHeader | None = None) -> Detection:
    """Build a detection from a server's outputs; see :func:`read_cut`."""
    return Detection(*_detected(outputs, sent), origin)


def read_cut(outputs: Mapping[str, Tensor], origin: Origin, sent: PictureHeader | None = None) -> CutResult:
    """A result from a server's outputs, or InferenceError. Cut-outs' headers are held against the report, whose picture
    may not be larger than the one `sent`, before anything is decoded."""
    boxes, scores, report = _detected(outputs, sent)
    images = outputs.get("images")
    if not isinstance(images, list) or not images or len(images) != len(report.cutouts):
        raise malformed("it does not hold the cut-outs of which its report tells")
    return CutResult(boxes, scores, report, origin, tuple(map(_cutout, report.cutouts, images)))


def _detected(outputs: Mapping[str, Tensor], sent: PictureHeader | None) -> tuple[Any, Any, Report]:
    boxes, scores, raw = (cast("Any", outputs.get(name)) for name in DETECTION_OUTPUTS)
    if not isinstance(raw, list) or len(raw) != 1:
        raise malformed("it holds no report")
    for found in (boxes, scores):
        if not isinstance(found, np.ndarray) or found.dtype != np.float32 or not np.isfinite(found).all():
            raise malformed("it holds no boxes or scores, or some that are not finite")
    if scores.ndim != 1 or boxes.shape != (len(scores), 4):
        raise malformed("its boxes and scores do not fit together")
    report = parse_report(raw[0])
    if sent is not None:
        reported, was_sent = sorted((report.width_px, report.height_px)), sorted((sent.width_px, sent.height_px))
        if reported[0] > was_sent[0] or reported[1] > was_sent[1]:
            raise malformed("its report is of a larger picture")
    return boxes, scores, report


def _cutout(entry: CutoutEntry, image: bytes) -> Cutout:
    form: Any = "zip" if image.startswith(b"PK\x03\x04") else picture_format(image)
    if form not in ("png", "webp", "jpeg", "zip"):
        raise malformed("a cut-out is neither PNG, WebP, JPEG nor ZIP")
    if entry.file_bytes != len(image):
        raise malformed("a cut-out has another length than its report says")
    try:
        headers = [read_header(part) for part in _parts(image, form)]
    except Exception as error:  # a damaged ZIP raises many
        raise malformed("a cut-out's header makes no sense") from error
    x1, y1, x2, y2 = entry.frame
    size = entry.size or (x2 - x1, y2 - y1)
    if any((header.width_px, header.height_px) != size for header in headers):
        raise malformed("a cut-out has another size than its frame")
    return Cutout(entry.id, entry.people, entry.box, entry.score, entry.frame, image, form)
