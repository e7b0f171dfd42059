"""What callers hand over → an encoded file that may be sent.

Checks go in layers: the declared type (a path's extension, or ``media_type``), the magic bytes and the header's
limits (`contract.headers`, microseconds), and on request a full decode. The full decode is off by default: it
costs as much as the server's own, which happens anyway and answers with the same typed error.
"""

from __future__ import annotations

import errno
import io
import mimetypes
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeAlias, Union

from cutaway.contract.errors import CorruptImage, FileTooLarge, ImageBomb, InputError, InvalidFormat
from cutaway.contract.headers import PictureHeader, check_dimensions, check_picture
from cutaway.contract.limits import INPUT_LIMITS, MIB, InputLimits
from cutaway.data_uri import is_data_uri, parse_data_uri

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


class BinaryFile(Protocol):
    """A file opened in binary mode, a ``BytesIO``, an upload: whatever gives bytes when read, and none at its end."""

    def read(self, size: int, /) -> bytes: ...


ImageInput: TypeAlias = Union[
    "str", "os.PathLike[str]", bytes, bytearray, memoryview, BinaryFile, "Image.Image", "NDArray[np.uint8]"
]
"""A path, a data URI, an encoded file's bytes, a binary file object (read from where it stands), a PIL image, or an
array: HWC uint8 [0, 255] with 3 (RGB) or 4 (RGBA) channels."""

BMP_UP_TO_BYTES = 4 * MIB
"""A BMP costs 1 ms where lossless compression costs 50 ms per megapixel; above this size its length weighs more."""

LOSSY_QUALITIES = (95, 90, 85, 75)
"""Of a JPEG or WebP, the first that stays under the limit of bytes; the best of them keeps every pixel's colour."""

MAX_PATH_CHARS = 32_767
"""No system has longer paths; a longer text is something else, and costs a lot to take apart."""

_EXTENSIONS = {".jfif": "image/jpeg", ".webp": "image/webp", ".dib": "image/bmp", ".bmp": "image/bmp"}


class LossyEncodingWarning(UserWarning):
    """A PIL image or array was too large to be sent losslessly and went as a high-quality JPEG or WebP."""


@dataclass(frozen=True)
class EncodedPicture:
    """An encoded file that passed the checks, and what its header says."""

    data: bytes
    header: PictureHeader


def encode(
    image: ImageInput,
    *,
    media_type: str | None = None,
    limits: InputLimits = INPUT_LIMITS,
    verify: bool = False,
) -> EncodedPicture:
    """Read or encode a picture and check it.

    Args:
        image: what to send, see :data:`ImageInput`. Text is a path, or a data URI where it begins with ``data:``; web
            addresses are not fetched, see :class:`cutaway.fetch.Fetcher`. File objects are read to their end, and
            left open. Pixels of PIL images and arrays go as they are: an EXIF orientation of the PIL image is not
            applied, so boxes and cut-outs match ``image.size``.
        media_type: what bytes are declared to be. Where it is not given, the extension of a path or of a file
            object's name declares it, and what a data URI says.
        limits: the bounds.
        verify: decode the picture wholly before sending it, to find damage here rather than at the server.

    Raises:
        OSError: the path or the file object cannot be read.
        TypeError: not one of the kinds of input, or a file object that gives text.
        InputError: see `contract.headers.check_picture`; InvalidFormat also for arrays of another shape or dtype,
            web addresses, and malformed data URIs.

    Warns:
        LossyEncodingWarning: see there.
    """
    declared: str | None = None
    if isinstance(image, str) and is_data_uri(image):
        data, declared = parse_data_uri(image, limits.max_file_bytes)
    elif isinstance(image, (str, os.PathLike)):
        if isinstance(image, str) and image.lstrip()[:8].lower().startswith(("http://", "https://")):
            _refuse_address(limits)
        path = _path(image)
        data, declared = _read(path, limits.max_file_bytes), declared_type(path)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        data = _plain_bytes(image, limits.max_file_bytes)
    elif hasattr(image, "getbands"):  # a PIL image, which is an array too, but only once it is decoded
        return _check_own(_encode_pil(image, limits), limits)
    elif hasattr(image, "__array_interface__"):
        return _check_own(_encode_pil(pil_of_array(image, limits), limits), limits)
    elif callable(getattr(image, "read", None)):
        data, declared = _read_file(image, limits), _name_declares(image)
    else:
        raise TypeError(
            "a picture is a path, a data URI, bytes, a binary file, a PIL image or a numpy array, "
            f"not {type(image).__name__}"
        )
    header = check_picture(data, media_type or declared, limits=limits)
    if verify:
        _decode_fully(data, header)
    return EncodedPicture(data, header)


def declared_type(path: Path) -> str | None:
    """The media type that a path's extension declares, or None where it declares no picture."""
    extension = path.suffix.lower()
    guessed = _EXTENSIONS.get(extension) or mimetypes.guess_type(f"x{extension}")[0]
    return guessed if guessed and guessed.startswith("image/") else None


def _path(name: str | os.PathLike[str]) -> Path:
    length = len(os.fspath(name))
    if length > MAX_PATH_CHARS:
        raise OSError(errno.ENAMETOOLONG, f"a path of {length:,} characters is too long")
    return Path(name)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        file = path.open("rb")
    except ValueError:  # a NUL, or half of a surrogate pair
        raise FileNotFoundError(errno.ENOENT, "no file can have this name", str(path)) from None
    with file:
        data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            size = max(os.fstat(file.fileno()).st_size, len(data))
            raise FileTooLarge(
                f"{path.name} has {size:,} bytes; at most {max_bytes:,} are allowed.",
                details={"size_bytes": size, "max_bytes": max_bytes},
            )
    return data


def _plain_bytes(data: bytes | bytearray | memoryview, max_bytes: int) -> bytes:
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    if size > max_bytes:  # before the copy
        raise FileTooLarge(
            f"The file has {size:,} bytes; at most {max_bytes:,} are allowed.",
            details={"size_bytes": size, "max_bytes": max_bytes},
        )
    return bytes(data)


def _read_file(file: BinaryFile, limits: InputLimits) -> bytes:
    """What is left in a file object. Raw files, sockets and uploads may give less at a time than they are asked for."""
    most = limits.max_file_bytes
    data = bytearray()
    while len(data) <= most:
        try:
            part: Any = file.read(most + 1 - len(data))
        except UnicodeDecodeError:
            part = ""
        if not isinstance(part, (bytes, bytearray, memoryview)):
            _refuse_part(part)
        if not part:
            break
        data += part
    if not data:
        raise InvalidFormat(
            "Nothing is left to read in the file object.",
            details={"supported": list(limits.formats), "received": "an empty file"},
            user_action="If it was read before, go back to its start with seek(0).",
        )
    if len(data) > most:
        raise FileTooLarge(
            f"The file object holds more than {most:,} bytes, which is the most allowed.",
            details={"size_bytes": len(data), "max_bytes": most},
        )
    return bytes(data)


def _refuse_part(part: Any) -> NoReturn:
    if isinstance(part, str):
        raise TypeError("the file object gives text and not bytes: open it with open(path, 'rb')")
    if part is None:
        raise BlockingIOError(errno.EAGAIN, "the file object has nothing to read yet: it must not be non-blocking")
    if hasattr(part, "__await__"):
        if hasattr(part, "close"):
            part.close()  # a coroutine that is dropped would warn
        raise TypeError("the file object's read() has to be awaited: await it, and hand over the bytes")
    raise TypeError(f"the file object's read() gives {type(part).__name__} and not bytes")


def _name_declares(file: Any) -> str | None:
    name = getattr(file, "name", None)
    return declared_type(Path(name)) if isinstance(name, str) else None


def _refuse_address(limits: InputLimits) -> NoReturn:
    raise InvalidFormat(
        "This is a web address, and those are not fetched by themselves.",
        details={"supported": list(limits.formats), "received": "a web address"},
        user_action="Fetch it first, naming the hosts you trust: "
        "cutaway.Fetcher(allow=['images.example.com']).fetch(url).data",
    )


def _decode_fully(data: bytes, header: PictureHeader) -> None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=[header.format.upper()]) as image:
            image.load()
    except Exception as error:  # Pillow's plugins raise whatever a damaged file drives them to
        raise CorruptImage(f"The {header.format.upper()} cannot be decoded.") from error


def pil_of_array(array: Any, limits: InputLimits) -> Image.Image:
    """An array of :data:`ImageInput`'s kind as a PIL image.

    Raises:
        InvalidFormat: another shape or dtype. TooManyPixels and its like: the size.
    """
    import numpy as np
    from PIL import Image

    pixels = np.asarray(array)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        shape = "×".join(map(str, pixels.shape))
        received = f"a {shape} array of {pixels.dtype}"
        raise InvalidFormat(
            f"An array has to be height×width×3 (RGB) or ×4 (RGBA) of uint8; this is {received}.",
            details={"supported": ["HWC uint8 RGB", "HWC uint8 RGBA"], "received": received},
            user_action="Convert it first: values from 0 to 255 as uint8, channels last, colours in the order RGB.",
        )
    height, width = pixels.shape[:2]
    check_dimensions(PictureHeader("png", width, height), limits)  # before the copy
    return Image.fromarray(np.ascontiguousarray(pixels))


def _check_own(data: bytes, limits: InputLimits) -> EncodedPicture:
    return EncodedPicture(data, check_picture(data, limits=limits))


def _encode_pil(image: Any, limits: InputLimits) -> bytes:
    """A losslessly encoded file, unless only a lossy one stays under the limit of bytes."""
    check_dimensions(PictureHeader("png", *image.size), limits)
    try:
        image.load()
        return _encode_plain(_plain_mode(image), limits)
    except (InputError, Warning, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise whatever a damaged file, or its metadata, drives them to
        raise CorruptImage("The PIL image cannot be decoded, or its metadata makes no sense.") from error


def _encode_plain(plain: Any, limits: InputLimits) -> bytes:
    profile = plain.info.get("icc_profile")
    width, height = plain.size
    bmp_bytes = min(BMP_UP_TO_BYTES, limits.max_file_bytes // 2)
    if plain.mode in ("L", "RGB") and not profile and width * height * len(plain.mode) <= bmp_bytes:
        return _save(plain, "BMP")
    if plain.mode == "I;16":
        data = _save(plain, "PNG", compress_level=1, icc_profile=profile)
    else:
        # Faster and smaller than PNG at any level, but it folds flat pictures so far that they count as bombs.
        data = _save(plain, "WEBP", lossless=True, quality=0, method=0, exact=True, icc_profile=profile)
        try:
            check_picture(data, limits=limits)
        except ImageBomb:
            data = _save(plain, "PNG", compress_level=1, icc_profile=profile)
        except FileTooLarge:
            pass
    if len(data) <= limits.max_file_bytes:
        return data
    return _save_lossy(plain, len(data), profile, limits.max_file_bytes)


def _plain_mode(image: Any) -> Any:
    """RGB, RGBA, L or I;16: what the encoders used here keep."""
    mode = image.mode
    if mode in ("RGB", "RGBA") and "transparency" not in image.info:
        return image
    if mode in ("L", "1") and "transparency" not in image.info:
        return image.convert("L")
    if mode in ("I;16", "I;16B", "I;16L"):
        return image.convert("I;16") if mode != "I;16" else image
    if mode == "La":  # which Pillow converts to nothing else
        return image.convert("LA").convert("RGBA")
    if mode in ("LA", "PA", "RGBa", "RGBA") or "transparency" in image.info:
        return image.convert("RGBA")
    if mode not in ("P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"):
        raise InvalidFormat(
            f"A PIL image of mode {mode!r} is not taken.",
            details={"supported": ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"], "received": mode},
            user_action="Convert it first, for example with image.convert('RGB').",
        )
    return _to_rgb(image)


def _to_rgb(image: Any) -> Any:
    """RGB through the image's own profile where it has one that works: it describes the mode that is left."""
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK" and profile:
        from PIL import ImageCms

        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            converted = None
        if converted is not None:
            converted.info.pop("icc_profile", None)
            return converted
    converted = image.convert("RGB")
    if image.mode != "P":
        converted.info.pop("icc_profile", None)
    return converted


def _save_lossy(image: Any, lossless_bytes: int, profile: Any, max_bytes: int) -> bytes:
    """The best JPEG, or WebP where there is alpha, that stays under the limit; the last one where none does."""
    plain = image.point(lambda value: value / 256).convert("L") if image.mode == "I;16" else image
    name = "WebP" if plain.mode == "RGBA" else "JPEG"
    for quality in LOSSY_QUALITIES:
        if name == "WebP":
            data = _save(plain, "WEBP", quality=quality, method=0, icc_profile=profile)
        else:
            subsampling = 0 if quality == LOSSY_QUALITIES[0] else 2
            data = _save(plain, "JPEG", quality=quality, subsampling=subsampling, icc_profile=profile)
        if len(data) <= max_bytes:
            break
    else:
        raise FileTooLarge(
            f"Even as a {name} of quality {quality} the picture has {len(data):,} bytes; at most {max_bytes:,} are "
            "allowed.",
            details={"size_bytes": len(data), "max_bytes": max_bytes},
            user_action="Scale it down first.",
        )
    warnings.warn(
        f"losslessly the picture would have {lossless_bytes:,} bytes, which is over the limit: it is sent as "
        f"{name} of quality {quality} ({len(data):,} bytes)",
        LossyEncodingWarning,
        stacklevel=2,
    )
    return data


def _save(image: Any, pil_format: str, **parameters: Any) -> bytes:
    buffer = io.BytesIO()
    if pil_format != "BMP":
        parameters["exif"] = b""  # pixels go as they are, so no orientation may go with them
    image.save(buffer, pil_format, **parameters)
    return buffer.getvalue()
