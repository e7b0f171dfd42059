"""Numbers on the command line, as argparse wants their readers: a value, or ArgumentTypeError in words."""

from __future__ import annotations

import argparse
import math
from typing import Any


def whole(text: str) -> int:
    """A whole number from 0 upwards."""
    return int(_number(text, int, 0))


def positive_whole(text: str) -> int:
    """A whole number from 1 upwards."""
    return int(_number(text, int, 1))


def positive_number(text: str) -> float:
    """A number above 0."""
    value = float(_number(text, float, 0.0))
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def percent(text: str) -> int:
    """A whole number from 1 to 100."""
    value = positive_whole(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100")
    return value


def pixels(text: str) -> tuple[int, int]:
    """Two whole numbers with a comma between them."""
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two whole numbers with a comma") from None
    return first, second


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(_number(text, float, 0.0))
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _number(text: str, kind: Any, least: float) -> Any:
    what = "a whole number" if kind is int else "a number"
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
    if not least <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {least:g} upwards")
    return value
