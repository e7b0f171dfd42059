"""Errors cross the wire and processes whole, are the builtins that callers catch, and believe no server blindly."""

from __future__ import annotations

import json
import pickle

import pytest
from cutaway.contract import errors
from cutaway.contract.limits import ERROR_CODES
from cutaway.providers import InvalidAnswer, ProviderRefused
from cutaway.resilience import retry_after_of
from hypothesis import given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def test_every_code_has_one_class() -> None:
    assert set(errors.ERRORS_BY_CODE) == set(ERROR_CODES)


@pytest.mark.parametrize("code", ERROR_CODES)
def test_form_crosses_the_wire(code: str) -> None:
    sent = errors.ERRORS_BY_CODE[code]("Something – happened.", details={"n": 1}, retry_after=2.5)
    received = errors.from_json(f"[request id: x] {sent.to_json()} trailing words", request_id="x")
    assert type(received) is type(sent)
    assert received is not None
    assert received.to_dict() == sent.to_dict()
    assert received.request_id == "x"
    assert received.retry is ERROR_CODES[code].retry


@pytest.mark.parametrize("code", ERROR_CODES)
def test_pickles(code: str) -> None:
    error = errors.ERRORS_BY_CODE[code]("It happened.", details={"n": [1]}, request_id="r")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.to_dict() == error.to_dict()
    assert again.request_id == "r"
    assert again.asked_to_wait_s is None
    error.asks_to_wait(7.5)
    again = pickle.loads(pickle.dumps(error))
    assert again.to_dict() == error.to_dict()
    assert again.asked_to_wait_s == 7.5


REFUSALS = [errors.ServerRefused, ProviderRefused, InvalidAnswer]


@pytest.mark.parametrize("cls", [*errors.ERRORS_BY_CODE.values(), *REFUSALS])
def test_advises_no_wait_where_a_repeat_cannot_help(cls: type[errors.CutawayError]) -> None:
    error = cls("It happened.")
    assert error.retry is (cls not in REFUSALS and ERROR_CODES[cls.code].retry)
    assert (error.retry_after is not None) is error.retry
    assert pickle.loads(pickle.dumps(error)).retry_after == error.retry_after


def test_the_table_s_advice_in_a_form_is_no_request_of_the_server_s() -> None:
    """A server of ours sends it with every error; what it knows better differs from it or stands in the details."""
    for sent, asked_s in (
        (errors.GpuMemoryExhausted("short"), None),
        (errors.GpuMemoryExhausted("short", retry_after=5.0), 5.0),
        (errors.RateLimitExceeded("slow down", details={"retry_after_seconds": 60.0}), 60.0),
    ):
        received = errors.from_json(sent.to_json())
        assert received is not None
        assert received.retry_after == sent.retry_after
        assert retry_after_of(received) == asked_s


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.InputError, ValueError),
        (errors.ServerUnavailable, ConnectionError),
        (errors.Overloaded, ConnectionError),
        (errors.ProcessingTimeout, TimeoutError),
        (errors.InferenceError, RuntimeError),
    ],
)
def test_is_the_builtin_that_it_is(cls: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(cls, builtin)


def test_says_what_to_do() -> None:
    text = str(errors.CorruptImage("The PNG ends before its picture does."))
    assert text.startswith("CORRUPT_IMAGE: The PNG ends before its picture does.")
    assert ERROR_CODES["CORRUPT_IMAGE"].user_action in text


@given(st.dictionaries(st.sampled_from(["code", "message", "tier", "retry_after", "details", "user_action"]), JSON))
def test_any_form_makes_an_error(form: dict[str, object]) -> None:
    error = errors.from_json(json.dumps(form | {"code": form.get("code"), "message": form.get("message")}))
    assert isinstance(error, errors.CutawayError)
    assert error.retry_after is None or 0 <= error.retry_after < 1e9
    assert isinstance(error.details, dict)


@given(st.text() | st.builds(lambda text: "{" * len(text) + text, st.text()))
def test_any_text_is_survived(text: str) -> None:
    assert errors.from_json(text) is None or "message" in text


def test_deep_nesting_is_survived() -> None:
    assert errors.from_json('{"a":' * 100_000) is None
