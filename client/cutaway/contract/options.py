"""Reading and checking the options of a request, by the one table in :mod:`cutaway.contract.limits`.

The SDK checks before it sends, and the pipeline checks each request; both call :func:`parse_options`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from cutaway.contract.errors import invalid_option
from cutaway.contract.limits import OPTIONS, STREAM_OPTIONS, Option

MAX_LIST_LENGTH = 100
MAX_LIST_CHARS = 20_000

_COLOUR, _BLUR = re.compile(r"#[0-9a-fA-F]{6}"), re.compile(r"blur:([0-9]{1,4})")


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
    """The options of a stream, checked; a `background` that is neither colour nor blur is the caller's own picture."""

    background: Background
    min_confidence: float
    smoothing: float
    channels: str
    quality: int


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
    """The options as keyword arguments of the SDK, with the meanings, defaults and bounds of `contract.limits.OPTIONS`
    (``cutaway cut --help`` prints them). What is left out or None keeps the server's default; lengths are in pixels of
    the upright picture."""

    background: str | None
    output: Literal["png", "webp", "mask", "jpeg", "layers"] | None
    quality: int | None
    crop: bool | None
    crop_margin_px: int | None
    crop_margin_percent: float | None
    max_side_px: int | None


def parse_options(given: Mapping[str, Any]) -> CutOptions:
    """Check option values, typed or as text (lists as JSON), and fill in the defaults.

    Raises:
        InvalidOption: an unknown name, a value out of range, or two options that exclude one another.
    """
    options = CutOptions(**_values(OPTIONS, given))
    for name in ("select", "boxes"):
        if options.subject == "all" and getattr(options, name) is not None:
            message = f"Option {name!r} chooses people and subject 'all' takes the whole picture: use one of them."
            raise invalid_option(name, given[name], "subject people or each", message)
    if options.output == "jpeg" and options.background.transparent:
        message = "Option 'output' cannot be 'jpeg' without a background: JPEG has no transparency."
        raise invalid_option("output", "jpeg", "jpeg with a background #RRGGBB or blur:<px>", message)
    if options.output == "layers" and not options.background.transparent:
        message = "Option 'background' has no place in layers, which are colours and alpha apart."
        raise invalid_option("background", given["background"], "transparent", message)
    return options


def parse_stream_options(given: Mapping[str, Any]) -> StreamOptions:
    """The same for the options of a stream."""
    return StreamOptions(**_values(STREAM_OPTIONS, given))


def to_parameters(given: Mapping[str, Any]) -> dict[str, str | int | bool]:
    """The options as KServe request parameters, which carry text, whole numbers and booleans; None is left out, so that
    the server's default holds."""
    values = {name: _to_builtin(value) for name, value in given.items() if value is not None}
    return {name: value if isinstance(value, (bool, int, str)) else json.dumps(value) for name, value in values.items()}


def _values(table: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Each option's value, checked, or its default."""
    for name in given:
        if name not in table:
            raise invalid_option(name, given[name], ", ".join(table), f"There is no option {name!r}.")
    values: dict[str, Any] = {}
    for name, option in table.items():
        value = _to_builtin(given.get(name))
        value = option.default if value is None else value
        try:
            values[name] = None if value is None else _parse(option, value)
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise invalid_option(name, value, option.allowed) from None
    return values


def _parse(option: Option, value: Any) -> Any:
    """The option's value in its own type; ValueError, TypeError, OverflowError or RecursionError where it has none."""
    low, high = option.minimum or 0.0, option.maximum or 0.0
    match option.kind:
        case "choice" if value in option.choices:
            return value
        case "bool" if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        case "int" | "float" if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            number = float(value)
            if low <= number <= high and (option.kind == "float" or number.is_integer()):  # NaN is refused too
                return number if option.kind == "float" else int(number)
        case "background" | "backdrop":
            if value == ("transparent" if option.kind == "background" else "picture"):
                return Background()
            if _COLOUR.fullmatch(value):
                red, green, blue = bytes.fromhex(value[1:])
                return Background(colour_rgb=(red, green, blue))
            if (blur := _BLUR.fullmatch(value)) and low <= int(blur[1]) <= high:
                return Background(blur_px=int(blur[1]))
        case "ids" | "boxes":
            items = json.loads(value[: MAX_LIST_CHARS + 1]) if isinstance(value, str) else value
            if isinstance(items, list) and 1 <= len(items) <= MAX_LIST_LENGTH:
                return _ids(items) if option.kind == "ids" else tuple(map(_box, items))
    raise ValueError(value)


def _ids(items: list[Any]) -> tuple[int, ...]:
    if not all(type(item) is int and item >= 0 for item in items):
        raise ValueError(items)
    return tuple(dict.fromkeys(items))


def _box(item: Any) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = item
    if not all(type(number) in (int, float) and abs(number) < 1e9 for number in item) or x1 >= x2 or y1 >= y2:
        raise ValueError(item)
    return float(x1), float(y1), float(x2), float(y2)


def _to_builtin(value: Any) -> Any:
    """Tuples and arrays as lists, numpy's numbers as Python's: numpy values are accepted without importing numpy."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_to_builtin(item) for item in value] if isinstance(value, (list, tuple)) else value
