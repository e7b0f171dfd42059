"""A caller's picture → an encoded file whose header passed the checks (`contract.headers`, microseconds); damage inside
is found by the server, with the same typed error."""

from __future__ import annotations

import base64
import errno
import io
import mimetypes
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from cutaway.contract import png
from cutaway.contract.errors import CorruptImage, FileTooLarge, ImageBomb, InputError, InvalidFormat
from cutaway.contract.headers import PictureHeader, check_dimensions, check_picture, check_size, declared_agrees
from cutaway.contract.limits import INPUT_LIMITS, MEDIA_TYPES, MIB, InputLimits, Tier
from cutaway.report import Notice


class BinaryFile(Protocol):
    """A file opened in binary mode, a ``BytesIO``, an upload: its `read` returns bytes, and none at the end."""

    def read(self, size: int, /) -> bytes: ...


ImageInput: TypeAlias = Union[
    str, "os.PathLike[str]", bytes, bytearray, memoryview, BinaryFile, Image.Image, NDArray[np.uint8]
]
"""A path, a data URI, an encoded file's bytes, a binary file object (read from its position), a PIL image, or an
array: HWC uint8 [0, 255] with 3 (RGB) or 4 (RGBA) channels."""

BMP_UP_TO_BYTES = 4 * MIB  # 1 ms, where lossless compression takes 50 ms per megapixel; above, its length weighs more
LOSSY_QUALITIES = (95, 90, 85, 75)  # the first that stays under the limit; the best keeps every pixel's colour
_EXTENSIONS = {".jfif": "image/jpeg", ".webp": "image/webp", ".dib": "image/bmp", ".bmp": "image/bmp"}
_URI_HEAD_CHARS = 1000  # of a data URI, before its data

# EXIF orientation → the transposition that undoes it, as `PIL.Image.Transpose` numbers them.
_TURNS: dict[int, Any] = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


class LossyEncodingWarning(UserWarning):
    """A PIL image or array was too large to be sent losslessly and was sent as a high-quality JPEG or WebP."""


@dataclass(frozen=True)
class EncodedPicture:
    """An encoded file that passed the checks, its header, and warnings for the result."""

    data: bytes
    header: PictureHeader
    warnings: tuple[Notice, ...] = ()


def encode(
    image: ImageInput,
    *,
    media_type: str | None = None,
    limits: InputLimits = INPUT_LIMITS,
    verify: bool = False,
    strict: bool = False,
) -> EncodedPicture:
    """Read or encode a picture and check it.

    Args:
        image: see :data:`ImageInput`. Text is a path, or a data URI where it begins with ``data:``. File objects are
            left open. A PIL image is turned by its EXIF orientation, as files are.
        media_type: what bytes are declared to be; else a path's or file's extension or the data URI declares it.
        verify: decode the picture wholly, to find damage.
        strict: a declared type that disagrees with the bytes is an error and not the warning MEDIA_TYPE_MISMATCH.

    Raises:
        OSError, TypeError: it cannot be read, or is none of the kinds of input.
        InputError: see `contract.headers.check_picture`; InvalidFormat also for other arrays and web addresses.
    """
    if is_pixels(image):
        return _encode_pil(pil_of(image, limits), limits)
    data, declared = read_encoded(image, limits.max_file_bytes)
    declared = media_type or declared
    header = check_picture(data, declared if strict else None, limits=limits)
    if verify:
        with damage_is_corrupt(header.format.upper()), open_checked(data, header) as opened:
            opened.load()
    if declared_agrees(header.format, declared):
        return EncodedPicture(data, header)
    details = {"declared": str(declared)[:100], "received": MEDIA_TYPES[header.format]}
    message = f"The file is declared as {details['declared']!r} and is {details['received']}; its bytes were believed."
    return EncodedPicture(data, header, (Notice("MEDIA_TYPE_MISMATCH", message, Tier.LOW, details),))


def decode_input(image: ImageInput, limits: InputLimits = INPUT_LIMITS) -> Image.Image:
    """Any kind of input as :func:`cutaway.decode.decode_upright` gives it; raises as :func:`encode` does."""
    if is_pixels(image):
        with damage_is_corrupt("PIL image"):
            return to_srgb(pil_of(image, limits))
    picture = encode(image, limits=limits)
    return decode_upright(picture.data, picture.header)


def is_pixels(image: object) -> bool:
    """Whether it is a PIL image or an array, and not an encoded file."""
    return hasattr(image, "getbands") or hasattr(image, "__array_interface__")


def declared_type(path: Path) -> str | None:
    """The media type that a path's extension declares, or None where it declares no picture."""
    extension = path.suffix.lower()
    guessed = _EXTENSIONS.get(extension) or mimetypes.guess_type(f"x{extension}")[0]
    return guessed if guessed and guessed.startswith("image/") else None


def read_encoded(image: Any, max_bytes: int) -> tuple[bytes, str | None]:
    """The bytes of an input that is an encoded file, and the media type that its name or data URI declares."""
    match image:
        case bytes() | bytearray() | memoryview():
            check_size(memoryview(image).nbytes, max_bytes)  # before the copy
            return bytes(image), None
        case str() if image[:5].lower() == "data:":
            return read_data_uri(image, max_bytes)
        case str() if image.lstrip()[:8].lower().startswith(("http://", "https://")):
            advice = "Download it: client.cut(httpx.get(url).content). The documentation has a recipe."
            raise _refused("This is a web address, which is not downloaded by itself.", "a web address", advice)
        case str() | os.PathLike():
            try:
                file = open(image, "rb")  # noqa: PTH123, SIM115 (a Path of ten megabytes costs a gigabyte)
            except ValueError:  # a NUL, or half of a surrogate pair
                raise FileNotFoundError(errno.ENOENT, "no file can have this name") from None
            with file:
                data = file.read(max_bytes + 1)
                if len(data) > max_bytes:
                    check_size(max(os.fstat(file.fileno()).st_size, len(data)), max_bytes, f"file {Path(image).name}")
            return data, declared_type(Path(image))
    if not callable(getattr(image, "read", None)):
        kinds = "a path, a data URI, bytes, a binary file, a PIL image or a numpy array"
        raise TypeError(f"a picture is {kinds}, not {type(image).__name__}")
    name = getattr(image, "name", None)
    return _read_file(image, max_bytes), declared_type(Path(name)) if isinstance(name, str) else None


def _read_file(file: Any, max_bytes: int) -> bytes:
    """The rest of a file object; raw files, sockets and uploads may return fewer bytes than requested at a time."""
    data = bytearray()
    while len(data) <= max_bytes:
        part: Any = "" if isinstance(file, io.TextIOBase) else file.read(max_bytes + 1 - len(data))
        if not isinstance(part, (bytes, bytearray, memoryview)):
            if hasattr(part, "__await__") and hasattr(part, "close"):
                part.close()  # a coroutine that is not awaited warns
            advice = "open it with open(path, 'rb'); where its read() is a coroutine, await it and hand over the bytes"
            raise TypeError(f"the file object gives {type(part).__name__} and not bytes: {advice}")
        if not part:
            break
        data += part
    if not data:
        advice = "If it was read before, go back to its start with seek(0)."
        raise _refused("Nothing is left to read in the file object.", "an empty file", advice)
    check_size(min(len(data), max_bytes + 1), max_bytes, "file object")
    return bytes(data)


def read_data_uri(uri: str, max_bytes: int) -> tuple[bytes, str | None]:
    """The bytes and the declared media type of a data URI in base64; white space and missing ``=`` at its end are
    forgiven, as browsers do. Its size is worked out before anything is decoded."""
    comma = uri.find(",", 0, _URI_HEAD_CHARS)
    media_type, *parameters = (part.strip().lower() for part in uri[5 : max(comma, 5)].split(";"))
    if parameters[-1:] == ["base64"]:
        ignored = sum(uri.count(each, comma) for each in " \t\r\n\f=")
        check_size((len(uri) - comma - 1 - ignored) * 3 // 4, max_bytes, "data URI")
        with suppress(ValueError):
            data = uri[comma + 1 :].encode("ascii").translate(None, b" \t\r\n\f")
            return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True), media_type or None
    advice = "Write it as data:image/png;base64,… or hand over the bytes themselves."
    raise _refused("The data URI is malformed, or not in base64.", "a malformed data URI", advice)


def _refused(message: str, received: str, advice: str, *supported: str) -> InvalidFormat:
    details = {"supported": list(supported or INPUT_LIMITS.formats), "received": received}
    return InvalidFormat(message, details=details, user_action=advice)


def pil_of(image: Any, limits: InputLimits) -> Image.Image:
    """A PIL image, loaded and upright, or an array of :data:`ImageInput`'s kind as one."""
    if not hasattr(image, "getbands"):
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
            received = f"a {'×'.join(map(str, pixels.shape))} array of {pixels.dtype}"
            message = f"An array has to be height×width×3 (RGB) or ×4 (RGBA) of uint8; this is {received}."
            advice = "Convert it first: values from 0 to 255 as uint8, channels last, in the order RGB."
            raise _refused(message, received, advice, "HWC uint8 RGB", "HWC uint8 RGBA")
        check_dimensions(PictureHeader("png", pixels.shape[1], pixels.shape[0]), limits)  # before the copy
        return Image.fromarray(np.ascontiguousarray(pixels))
    check_dimensions(PictureHeader("png", *image.size), limits)
    if image.mode in ("F", "I"):
        supported = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16")
        message = f"A PIL image of mode {image.mode!r} is not taken."
        raise _refused(message, image.mode, "Convert it first: image.convert('RGB').", *supported)
    with damage_is_corrupt("PIL image"):
        image.load()
        return turn_upright(image)


def _encode_pil(image: Image.Image, limits: InputLimits) -> EncodedPicture:
    """A losslessly encoded file, unless only a lossy one stays under the limit of bytes."""
    with damage_is_corrupt("PIL image"):
        if image.mode == "1":
            image = image.convert("L")
        elif image.mode.startswith("I;16"):
            image = image.convert("I;16")
        elif image.mode not in ("RGB", "RGBA", "L") or "transparency" in image.info:
            image = to_srgb(image)
        profile, n_bytes = image.info.get("icc_profile"), image.width * image.height * len(image.mode)
        ways: list[tuple[str, dict[str, Any]]] = [("PNG", {"compress_level": 1})]
        if image.mode in ("L", "RGB") and not profile and n_bytes <= min(BMP_UP_TO_BYTES, limits.max_file_bytes // 2):
            ways = [("BMP", {})]
        elif image.mode != "I;16" and not (image.mode == "L" and profile):  # WebP has no grey for a grey profile
            # Faster and smaller than PNG at any level, but it folds flat pictures so far that they count as bombs.
            ways.insert(0, ("WEBP", {"lossless": True, "quality": 0, "method": 0, "exact": True}))
        for pil_format, parameters in ways:
            with suppress(ImageBomb, FileTooLarge):
                data = _save(image, pil_format, **parameters)
                return EncodedPicture(data, check_picture(data, limits=limits))
        picture = encode_lossy(image, limits)
    message = f"the picture is over the limit of bytes losslessly and is sent as a {picture.header.format.upper()}"
    warnings.warn(message, LossyEncodingWarning, stacklevel=3)
    return picture


def encode_lossy(image: Image.Image, limits: InputLimits) -> EncodedPicture:
    """The best JPEG, or WebP where there is alpha, that stays under the limit of bytes; else FileTooLarge."""
    if image.mode == "I;16":
        image = image.point(lambda value: value / 256).convert("L")
    for quality in LOSSY_QUALITIES:
        if image.mode == "RGBA":
            data = _save(image, "WEBP", quality=quality, method=0)
        else:
            data = _save(image, "JPEG", quality=quality, subsampling=0 if quality == LOSSY_QUALITIES[0] else 2)
        if len(data) <= limits.max_file_bytes:
            return EncodedPicture(data, check_picture(data, limits=limits))
    message = f"Even at quality {quality} it has {len(data):,} bytes; at most {limits.max_file_bytes:,} are allowed."
    details = {"size_bytes": len(data), "max_bytes": limits.max_file_bytes}
    raise FileTooLarge(message, details=details, user_action="Scale it down first.")


def _save(image: Image.Image, pil_format: str, **parameters: Any) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()  # without an orientation, since the pixels are upright
    dpi = image.info.get("dpi") or (0, 0)  # Pillow's own default for BMP, 96, would be made up
    if all(isinstance(each, (int, float)) and 1 <= each <= 10_000 for each in dpi):
        exif[0x011A], exif[0x011B], exif[0x0128] = float(dpi[0]), float(dpi[1]), 2
        parameters["dpi"] = tuple(map(float, dpi))
    elif pil_format == "BMP":
        parameters["dpi"] = (0, 0)
    if pil_format != "BMP":
        parameters |= {"exif": exif.tobytes() if len(exif) else b"", "icc_profile": image.info.get("icc_profile")}
    image.save(buffer, pil_format, **parameters)
    return buffer.getvalue()


@contextmanager
def damage_is_corrupt(what: str) -> Iterator[None]:
    """CorruptImage for the many exceptions that Pillow's plugins raise on damaged files or metadata."""
    try:
        yield
    except (InputError, Warning, MemoryError):
        raise
    except Exception as error:
        raise CorruptImage(f"The {what} cannot be decoded.") from error


def open_checked(data: bytes, header: PictureHeader) -> Image.Image:
    """Open a file whose header passed the checks; CorruptImage where the decoder finds another size. `Image.open` would
    also apply Pillow's own bound, a global below `limits.FIT_LIMITS`: the format's reader is called directly."""
    Image.preinit()
    if header.format.upper() not in Image.OPEN:
        Image.init()
    if header.format == "png":
        data = png.readable(data)[0]
    if header.end_bytes is not None:
        data = data[: header.end_bytes] + b"\xff\xd9"
    image: Image.Image = Image.OPEN[header.format.upper()][0](io.BytesIO(data), "")
    if image.size != (header.width_px, header.height_px):
        raise CorruptImage("The file's headers disagree about its size.")
    return image


def decode_upright(data: bytes, header: PictureHeader) -> Image.Image:
    """RGB, or RGBA where the picture is transparent somewhere; upright by its EXIF orientation, in sRGB; or
    CorruptImage."""
    with damage_is_corrupt(header.format.upper()), open_checked(data, header) as image:
        image.load()
        return to_srgb(turn_upright(image))


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is no valid one. XMP's is ignored, as by browsers and the server."""
    exif = Image.Exif()
    try:
        if image.info.get("exif"):
            exif.load(image.info["exif"])
        elif not {"xmp", "XML:com.adobe.xmp"} & set(image.info):
            exif = image.getexif()
        found = exif.get(0x0112, 1)
    except Exception:  # a damaged EXIF block is ignored
        return 1
    return found if found in _TURNS else 1


def turn_upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; the same object where it is upright."""
    turn = _TURNS.get(orientation_of(image))
    return image if turn is None else image.transpose(turn)


def to_srgb(image: Image.Image) -> Image.Image:
    """A copy in sRGB without metadata: RGB, or RGBA where the picture is transparent somewhere."""
    profile, alpha, found = image.info.get("icc_profile"), None, None
    if image.mode.startswith("I"):
        values = np.asarray(image.convert("I"), dtype=np.int64)
        image = Image.fromarray((np.clip(values, 0, 65535) // 257).astype(np.uint8))
    elif image.mode in ("LA", "La"):  # grey stays apart, since a grey profile applies to nothing else
        image = image.convert("LA")
        alpha, image = image.getchannel("A"), image.getchannel("L")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        alpha, image = image.getchannel("A"), image.convert("RGB")
    elif image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
                image = image.convert("RGB")
            found = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # an invalid profile says nothing
    rgb = found or image.convert("RGB")
    if alpha is not None and rgb.width and rgb.height and alpha.getextrema() != (255, 255):
        rgb.putalpha(alpha)
    rgb.info.clear()
    return rgb
