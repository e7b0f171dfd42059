"""Options: one table decides what is taken, in every form in which callers give it."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import numpy as np
import pytest
from cutaway.contract.errors import InvalidOption
from cutaway.contract.limits import OPTIONS
from cutaway.contract.options import Background, CutOptions, OptionKeywords, parse_options, to_parameters
from hypothesis import given
from hypothesis import strategies as st

BOXES = ((1.0, 2.0, 30.0, 40.5), (0.0, 0.0, 5.0, 5.0))


def test_keywords_are_the_table() -> None:
    assert OptionKeywords.__optional_keys__ == set(OPTIONS)
    assert list(get_type_hints(CutOptions)) == list(OPTIONS)


def test_defaults_are_the_tables() -> None:
    options = parse_options({})
    for name, option in OPTIONS.items():
        value = getattr(options, name)
        assert value == (Background() if option.kind == "background" else option.default)
    assert parse_options(dict.fromkeys(OPTIONS)) == options


@pytest.mark.parametrize(
    ("name", "given_value", "parsed"),
    [
        ("subject", "each", "each"),
        ("select", [2, 0, 2], (2, 0)),
        ("select", "[0]", (0,)),
        ("select", np.array([1, 3]), (1, 3)),
        ("boxes", [list(box) for box in BOXES], BOXES),
        ("boxes", json.dumps(BOXES), BOXES),
        ("boxes", np.array(BOXES), BOXES),
        ("min_confidence", 0.05, 0.05),
        ("min_confidence", "0.95", 0.95),
        ("min_confidence", np.float32(0.5), 0.5),
        ("padding_px", 500, 500),
        ("padding_px", "7", 7),
        ("padding_px", 7.0, 7),
        ("feather_px", np.int64(50), 50),
        ("background", "transparent", Background()),
        ("background", "#00fF10", Background(colour_rgb=(0, 255, 16))),
        ("background", "blur:100", Background(blur_px=100)),
        ("decontaminate", "False", False),
        ("decontaminate", np.bool_(True), True),
        ("output", "mask", "mask"),
        ("max_people", 1, 1),
    ],
)
def test_taken(name: str, given_value: Any, parsed: Any) -> None:
    assert getattr(parse_options({name: given_value}), name) == parsed
    # What is sent means the same at the other end.
    assert getattr(parse_options(to_parameters({name: given_value})), name) == parsed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("subject", "person"),
        ("subject", ["people"]),
        ("select", []),
        ("select", [1.5]),
        ("select", [True]),
        ("select", 3),
        ("select", list(range(101))),
        ("boxes", [[1, 2, 3]]),
        ("boxes", [[5, 5, 5, 9]]),
        ("boxes", [[0, 0, float("inf"), 1]]),
        ("boxes", [[0, 0, float("nan"), 1]]),
        ("boxes", [1, 2, 3, 4]),
        ("boxes", "[" * 15_000),
        ("min_confidence", float("nan")),
        ("min_confidence", 0.04),
        ("min_confidence", True),
        ("min_confidence", "much"),
        ("padding_px", 1.5),
        ("padding_px", 10**400),
        ("feather_px", 51),
        ("background", "#12345"),
        ("background", "blur:0"),
        ("background", "blur:101"),
        ("background", (0, 255, 0)),
        ("decontaminate", 1),
        ("decontaminate", "yes"),
        ("output", "PNG"),
        ("max_people", 101),
    ],
)
def test_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidOption) as refusal:
        parse_options({name: value})
    assert refusal.value.details["name"] == name
    assert refusal.value.details["allowed"] == OPTIONS[name].allowed
    assert len(refusal.value.details["value"]) <= 201


def test_unknown_name() -> None:
    with pytest.raises(InvalidOption, match="There is no option 'feather'") as refusal:
        parse_options({"feather": 3})
    assert "feather_px" in refusal.value.details["allowed"]


@pytest.mark.parametrize("options", [{"select": [0]}, {"boxes": BOXES}])
def test_people_cannot_be_chosen_from_the_whole_picture(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="use one of them"):
        parse_options({"subject": "all", **options})


def test_only_what_is_given_is_sent() -> None:
    assert to_parameters({"feather_px": 0, "select": None, "decontaminate": False, "min_confidence": 0.5}) == {
        "feather_px": 0,
        "decontaminate": False,
        "min_confidence": "0.5",
    }


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from([*OPTIONS, "other"]), ANYTHING, max_size=4))
def test_no_value_crashes_it(options: dict[str, Any]) -> None:
    try:
        parsed = parse_options(options)
    except InvalidOption:
        return
    assert parse_options(to_parameters(options)) == parsed
