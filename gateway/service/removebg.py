"""``/v1.0``: the API of remove.bg, for clients that speak it already."""

from __future__ import annotations

import asyncio
import base64
import io
import zipfile
from typing import Any

from cutaway import CutResult
from cutaway.contract.errors import InvalidFormat
from cutaway.contract.headers import read_header
from cutaway.inputs import open_checked
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image, ImageOps
from starlette.datastructures import UploadFile

from gateway.service.errors import CORS_HEADERS, ServiceProblem
from gateway.service.layout import (
    PNG_MAX_MP,
    SIZES_MP,
    Box,
    Layout,
    arrange,
    invalid,
    parse_colour,
    parse_margins,
    parse_position,
    parse_roi,
    parse_scale,
)
from gateway.service.state import Admitted, Known, ServiceState, State, quota_headers
from gateway.service.uploads import read_base64, read_upload

router = APIRouter(prefix="/v1.0", tags=["remove.bg"])

TYPES = ("auto", "person", "product", "car", "animal", "graphic", "transportation")
TYPE_LEVELS = ("1", "2", "latest", "none")
FORMATS = ("auto", "png", "jpg", "webp", "zip")
SOURCES = ("image_file", "image_file_b64", "image_url")
BACKGROUNDS = ("bg_color", "bg_image_url", "bg_image_file")
IGNORED = ("add_shadow", "shadow_type", "shadow_opacity")
BOOLEANS = ("true", "false", "1", "0", "")
JPEG_QUALITY = 92
MEDIA = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "zip": "application/zip"}

_FIELDS = {
    **{name: {"type": "string"} for name in ("image_file_b64", "image_url", "roi", "crop_margin", "scale", "position")},
    **{name: {"type": "string"} for name in ("bg_color", "bg_image_url", "crop", "semitransparency", "add_shadow")},
    "size": {"type": "string", "enum": list(SIZES_MP)},
    "type": {"type": "string", "enum": list(TYPES)},
    "type_level": {"type": "string", "enum": list(TYPE_LEVELS)},
    "format": {"type": "string", "enum": list(FORMATS)},
    "channels": {"type": "string", "enum": ["rgba", "alpha"]},
}
_FILES = {name: {"type": "string", "format": "binary"} for name in ("image_file", "bg_image_file")}
_ERRORS = {
    "description": "What is wrong.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["errors"],
                "properties": {
                    "errors": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["title"],
                            "properties": {name: {"type": "string"} for name in ("title", "code", "detail")},
                        },
                    }
                },
            }
        }
    },
}
FAILURES: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 402, 403, 413, 429, 500, 503, 504), _ERRORS)
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "properties": _FIELDS | _FILES}},
        "application/x-www-form-urlencoded": {"schema": {"type": "object", "properties": _FIELDS}},
        "application/json": {"schema": {"type": "object", "properties": _FIELDS}},
    },
}
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture, or with `Accept: application/json` as base64.",
        "content": dict.fromkeys(MEDIA.values(), _PICTURE) | {"application/json": {"schema": {"type": "object"}}},
    }
}


@router.post("/removebg", openapi_extra={"requestBody": _BODY}, responses=_ANSWERS | FAILURES, response_class=Response)
async def removebg(request: Request, state: ServiceState, caller: Admitted) -> Response:
    """Remove the background of a picture, with remove.bg's parameters."""
    given = await _parameters(request)
    data = await _source(state, given)
    background = await _background(state, given)
    wanted, kind = _layout(given, background)
    subject: Any = {"auto": "auto", "person": "people"}.get(given.get("type", "auto"), "all")
    result = await state.engine.cut(caller.name, data, subject=subject, output="png")
    opaque = wanted.channels == "rgba" and (
        isinstance(background, Image.Image) or (background and background[3] == 255)
    )
    form = kind if kind != "auto" else "jpg" if opaque else "png"
    picture, box, size = await asyncio.to_thread(_compose, result, wanted, form)
    headers = _headers(result, size, box, given) | CORS_HEADERS
    if "application/json" in request.headers.get("accept", ""):
        left, top, right, bottom = box
        found = {"foreground_top": top, "foreground_left": left}
        found |= {"foreground_width": right - left, "foreground_height": bottom - top}
        encoded = base64.b64encode(picture).decode()
        return JSONResponse({"data": {"result_b64": encoded} | found}, headers=headers)
    return Response(picture, media_type=MEDIA[form], headers=headers)


@router.get("/account", responses=FAILURES)
async def account(state: ServiceState, caller: Known) -> JSONResponse:
    """The caller's credits, which are the requests left in this minute."""
    quota = await state.limiter.quota(caller)
    credits_left = {"total": quota.remaining, "subscription": quota.remaining, "payg": 0, "enterprise": 0}
    attributes = {"credits": credits_left, "api": {"free_calls": quota.remaining, "sizes": "all"}}
    return JSONResponse({"data": {"attributes": attributes}}, headers=quota_headers(quota) | CORS_HEADERS)


async def _parameters(request: Request) -> dict[str, Any]:
    """The parameters of a form or of JSON; text, or an upload."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/json":
        try:
            given = await request.json()
        except (ValueError, RecursionError):
            raise ServiceProblem(400, "INVALID_OPTION", "The body is no JSON.", title="missing_source") from None
        if not isinstance(given, dict):
            raise ServiceProblem(400, "INVALID_OPTION", "The body is no JSON object.", title="missing_source")
        return {name: _text(value) for name, value in given.items() if value is not None}
    form = await request.form(max_files=2, max_fields=40, max_part_size=16 * 1024 * 1024)
    return {name: value if isinstance(value, UploadFile) else str(value) for name, value in form.items()}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


async def _source(state: State, given: dict[str, Any]) -> bytes:
    named = [name for name in SOURCES if given.get(name)]
    if len(named) != 1:
        title, message = ("multiple_sources", "Several sources.") if named else ("missing_source", "No image given.")
        raise ServiceProblem(400, "INVALID_OPTION", message, f"Send one of {', '.join(SOURCES)}.", title=title)
    return await _read(state, given[named[0]], named[0])


async def _read(state: State, value: Any, name: str) -> bytes:
    """A picture of a parameter: a file, base64, or a URL."""
    if isinstance(value, UploadFile):
        return await read_upload(value)  # type: ignore[arg-type]
    if name.endswith("_url"):
        return await state.fetcher.fetch(
            value, "failed_bg_download" if name.startswith("bg") else "failed_image_download"
        )
    if name.endswith("_b64"):
        return read_base64(value)[0]
    raise ServiceProblem(400, "INVALID_OPTION", f"{name} is no file.", title="failed_to_read_image")


async def _background(state: State, given: dict[str, Any]) -> tuple[int, int, int, int] | Image.Image | None:
    named = [name for name in BACKGROUNDS if given.get(name)]
    if len(named) > 1:
        message = f"Send at most one of {', '.join(BACKGROUNDS)}."
        raise ServiceProblem(400, "INVALID_OPTION", message, title="multiple_bg_sources")
    if not named:
        return None
    if named == ["bg_color"]:
        return parse_colour(given["bg_color"])
    data = await _read(state, given[named[0]], named[0])
    try:
        return await asyncio.to_thread(_opened, data)
    except InvalidFormat:
        raise invalid("bg_image_url", "The background is no picture.") from None


def _opened(data: bytes) -> Image.Image:
    image = open_checked(data, read_header(data))
    image.load()
    return ImageOps.exif_transpose(image)


def _layout(given: dict[str, Any], background: Any) -> tuple[Layout, str]:
    """The checked layout, and the format."""

    def choice(name: str, allowed: tuple[str, ...], default: str) -> str:
        value = str(given.get(name) or default)
        if value not in allowed:
            raise invalid(name, f"{name} {value[:30]!r} is none of {', '.join(allowed)}.")
        return value

    size, form = choice("size", tuple(SIZES_MP), "preview"), choice("format", FORMATS, "auto")
    choice("type", TYPES, "auto")
    choice("type_level", TYPE_LEVELS, "1")
    choice("semitransparency", BOOLEANS, "true")
    cropped = choice("crop", BOOLEANS, "false") in ("true", "1")
    scale = parse_scale(str(given.get("scale", "")))
    channels: Any = choice("channels", ("rgba", "alpha"), "rgba")
    megapixels = SIZES_MP[size]
    if form in ("png", "auto") and background is None and size != "50MP":
        megapixels = min(megapixels, PNG_MAX_MP)
    roi = str(given.get("roi", ""))
    layout = Layout(
        max_pixels=round(megapixels * 1_000_000),
        roi=None if roi in ("", "0% 0% 100% 100%") else parse_roi(roi),
        margins=parse_margins(str(given.get("crop_margin", ""))) if cropped else None,
        scale=scale,
        position=parse_position(str(given.get("position", "")), scale is not None),
        channels=channels,
        background=background,
    )
    return layout, form


def _compose(result: CutResult, layout: Layout, form: str) -> tuple[bytes, Box, tuple[int, int]]:
    """The encoded result, the subject's box in it, and its size."""
    cutout = result.cutouts[0].pil().convert("RGBA")
    picture, box = arrange(cutout, layout)
    if form == "zip":
        return _zipped(picture), box, picture.size
    buffer = io.BytesIO()
    match form:
        case "jpg":
            flat = Image.new("RGB", picture.size, (255, 255, 255))
            flat.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
            flat.save(buffer, "JPEG", quality=JPEG_QUALITY)
        case "webp":
            picture.save(buffer, "WEBP", quality=JPEG_QUALITY)
        case _:
            picture.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue(), box, picture.size


def _zipped(picture: Image.Image) -> bytes:
    """color.jpg and alpha.png: what clients compose themselves."""
    alpha = picture if picture.mode == "L" else picture.convert("RGBA").getchannel("A")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, part, kind in (("color.jpg", picture.convert("RGB"), "JPEG"), ("alpha.png", alpha, "PNG")):
            file = io.BytesIO()
            part.save(file, kind)
            archive.writestr(name, file.getvalue())
    return buffer.getvalue()


def _headers(result: CutResult, size: tuple[int, int], box: Box, given: dict[str, Any]) -> dict[str, str]:
    report, (left, top, right, bottom) = result.report, box
    kind = "person" if report.people else "other"
    names = {"X-Width": size[0], "X-Height": size[1], "X-Max-Width": report.width_px, "X-Max-Height": report.height_px}
    names |= {"X-Foreground-Top": top, "X-Foreground-Left": left}
    names |= {"X-Foreground-Width": right - left, "X-Foreground-Height": bottom - top, "X-Credits-Charged": 0}
    headers = {name: str(value) for name, value in names.items()}
    if given.get("type_level") != "none":
        headers["X-Type"] = kind
    ignored = [name for name in IGNORED if given.get(name) not in (None, "", "false")]
    warnings = [notice.code for notice in result.warnings] + [f"IGNORED_{name.upper()}" for name in ignored]
    return headers | ({"X-Warnings": ",".join(warnings)} if warnings else {})
