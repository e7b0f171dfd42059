"""Reading and checking the options of a request, by the one table in :mod:`cutaway.contract.limits`.

The SDK checks before it sends, and the pipeline checks each request; both call :func:`parse_options`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypedDict

from cutaway.contract.errors import InvalidOption
from cutaway.contract.limits import OPTIONS, STREAM_OPTIONS, Option

MAX_LIST_LENGTH = 100

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_BLUR = re.compile(r"blur:([0-9]{1,4})")


@dataclass(frozen=True)
class Background:
    """The background of a cut-out: exactly one of transparent, ``colour_rgb`` (0–255 each) or ``blur_px``."""

    colour_rgb: tuple[int, int, int] | None = None
    blur_px: int | None = None

    @property
    def transparent(self) -> bool:
        return self.colour_rgb is None and self.blur_px is None


@dataclass(frozen=True)
class CutOptions:
    """The options of one request, checked. Field names, meanings and bounds are those of the option table."""

    subject: str
    select: tuple[int, ...] | None
    boxes: tuple[tuple[float, float, float, float], ...] | None
    min_confidence: float
    padding_px: int
    feather_px: int
    background: Background
    decontaminate: bool
    output: str
    quality: int
    max_people: int
    crop: bool
    crop_margin_px: int
    crop_margin_percent: float
    max_side_px: int | None


@dataclass(frozen=True)
class StreamOptions:
    """The options of a stream, checked. Field names, meanings and bounds are those of the table of stream options.

    A `background` that is neither colour nor blur is the caller's own picture.
    """

    background: Background
    min_confidence: float
    smoothing: float
    channels: str
    quality: int

    @property
    def has_picture(self) -> bool:
        return self.background.transparent


class WhoKeywords(TypedDict, total=False):
    """The options that say who or what is cut out and how its edge is, as keyword arguments of the SDK."""

    subject: Literal["people", "each", "all", "auto"] | None
    select: Sequence[int] | None
    boxes: Sequence[Sequence[float]] | None
    min_confidence: float | None
    padding_px: int | None
    feather_px: int | None
    decontaminate: bool | None
    max_people: int | None


class OptionKeywords(WhoKeywords, total=False):
    """The options as keyword arguments of the SDK; what is left out or None keeps the server's default.

    Meanings, defaults and bounds are those of `contract.limits.OPTIONS` (``cutaway cut --help`` prints them).
    Lengths are in pixels of the upright picture.
    """

    background: str | None
    output: Literal["png", "webp", "mask", "jpeg", "layers"] | None
    quality: int | None
    crop: bool | None
    crop_margin_px: int | None
    crop_margin_percent: float | None
    max_side_px: int | None


def parse_options(given: Mapping[str, Any]) -> CutOptions:
    """Check option values and fill in the defaults.

    Args:
        given: option name → value. Values come typed (from Python or KServe parameters) or as text (from forms,
            command lines, and for what KServe parameters cannot carry: lists as JSON).

    Raises:
        InvalidOption: an unknown name, a value out of range, or two options that exclude one another. The details
            name it and say what is allowed.
    """
    options = CutOptions(**_values(OPTIONS, given))
    if options.subject == "all" and (options.select is not None or options.boxes is not None):
        which = "select" if options.select is not None else "boxes"
        raise InvalidOption(
            f"Option {which!r} chooses people and subject 'all' takes the whole picture: use one of them.",
            details={"name": which, "value": _printable(given[which]), "allowed": "subject people or each"},
        )
    if options.output == "jpeg" and options.background.transparent:
        raise InvalidOption(
            "Option 'output' cannot be 'jpeg' without a background: JPEG has no transparency.",
            details={"name": "output", "value": "jpeg", "allowed": "jpeg with a background #RRGGBB or blur:<px>"},
        )
    if options.output == "layers" and not options.background.transparent:
        raise InvalidOption(
            "Option 'background' has no place in layers, which are colours and alpha apart.",
            details={"name": "background", "value": _printable(given["background"]), "allowed": "transparent"},
        )
    return options


def parse_stream_options(given: Mapping[str, Any]) -> StreamOptions:
    """The same for the options of a stream.

    Raises:
        InvalidOption: an unknown name, or a value out of range.
    """
    return StreamOptions(**_values(STREAM_OPTIONS, given))


def to_parameters(given: Mapping[str, Any]) -> dict[str, str | int | bool]:
    """The options as KServe request parameters, which carry text, whole numbers and booleans.

    Only what is given is sent, so that the server's defaults hold. Options that are None are left out.
    """
    parameters: dict[str, str | int | bool] = {}
    for name, given_value in given.items():
        value = _plain(given_value)
        if value is None:
            continue
        if isinstance(value, (bool, int, str)):
            parameters[name] = value
        elif isinstance(value, float):
            parameters[name] = repr(value)
        else:
            parameters[name] = json.dumps(value)
    return parameters


def _values(table: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Each option's value, checked, or its default."""
    for name in given:
        if name not in table:
            raise InvalidOption(
                f"There is no option {name!r}.",
                details={"name": name, "value": _printable(given[name]), "allowed": ", ".join(table)},
            )
    return {
        name: _parse(option, _plain(given[name]) if given.get(name) is not None else option.default)
        for name, option in table.items()
    }


def _parse(option: Option, value: Any) -> Any:
    if option.kind == "choice":
        if not isinstance(value, str) or value not in option.choices:
            _refuse(option, value)
        return value
    if option.kind == "bool":
        return _parse_bool(option, value)
    if value is None:
        return None
    if option.kind in ("int", "float"):
        return _parse_number(option, value)
    if option.kind in ("background", "backdrop"):
        return _parse_background(option, value)
    items = _parse_list(option, value)
    return _parse_ids(option, value, items) if option.kind == "ids" else _parse_boxes(option, value, items)


def _parse_bool(option: Option, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    _refuse(option, value)


def _parse_number(option: Option, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        _refuse(option, value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        _refuse(option, value)
    assert option.minimum is not None and option.maximum is not None
    if not option.minimum <= number <= option.maximum:  # also refuses NaN
        _refuse(option, value)
    if option.kind == "float":
        return number
    if number != int(number):
        _refuse(option, value)
    return int(number)


def _parse_background(option: Option, value: Any) -> Background:
    if value == ("transparent" if option.kind == "background" else "picture"):
        return Background()
    if isinstance(value, str) and _COLOUR.fullmatch(value):
        return Background(colour_rgb=(int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)))
    blur = _BLUR.fullmatch(value) if isinstance(value, str) else None
    assert option.minimum is not None and option.maximum is not None
    if blur and option.minimum <= int(blur[1]) <= option.maximum:
        return Background(blur_px=int(blur[1]))
    _refuse(option, value)


def _parse_list(option: Option, value: Any) -> list[Any]:
    items = value
    if isinstance(value, str):
        if len(value) > 20_000:
            _refuse(option, value)
        try:
            items = json.loads(value)
        except (ValueError, RecursionError):
            _refuse(option, value)
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_LIST_LENGTH:
        _refuse(option, value)
    return items


def _parse_ids(option: Option, value: Any, items: list[Any]) -> tuple[int, ...]:
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items):
        _refuse(option, value)
    return tuple(dict.fromkeys(items))


def _parse_boxes(option: Option, value: Any, items: list[Any]) -> tuple[tuple[float, float, float, float], ...]:
    boxes = []
    for item in items:
        if not isinstance(item, list) or len(item) != 4:
            _refuse(option, value)
        if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in item):
            _refuse(option, value)
        x1, y1, x2, y2 = (float(number) if abs(number) < 1e9 else math.nan for number in item)
        if not (x1 < x2 and y1 < y2):
            _refuse(option, value)
        boxes.append((x1, y1, x2, y2))
    return tuple(boxes)


def _plain(value: Any) -> Any:
    """Tuples and arrays as lists, numpy's numbers as Python's: numpy values are accepted without importing numpy."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _printable(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "…"


def _refuse(option: Option, value: Any) -> NoReturn:
    raise InvalidOption(
        f"Option {option.name!r} cannot be {_printable(value)!r}: allowed is {option.allowed}.",
        details={"name": option.name, "value": _printable(value), "allowed": option.allowed},
    )
