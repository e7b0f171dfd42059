"""The fault table: what a provider does wrong → the error, the number of requests, and never more than the deadline.

The first request of each provider is the one that fails: Hugging Face's
only one, Replicate's creation (which costs money, so it is not repeated blindly) and a Space's upload.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest
from cutaway.contract.errors import (
    CorruptImage,
    CutawayError,
    FileTooLarge,
    InputError,
    InvalidFormat,
    Overloaded,
    ProcessingTimeout,
    RateLimitExceeded,
)
from cutaway.providers import (
    HuggingFace,
    InvalidAnswer,
    Provider,
    ProviderRefused,
    ProviderUnavailable,
    Replicate,
    Space,
)
from cutaway.resilience import Deadline, RetryPolicy

from tests.client.hosted.peers import (
    TOKEN,
    HubScript,
    Peer,
    ReplicateScript,
    Reply,
    SpaceScript,
    Stopwatch,
    as_json,
    cutout,
    encoded,
    picture,
    text,
)

QUICK = RetryPolicy(first_delay_s=0.01, max_delay_s=0.02)

# What fails → the error, and the requests that Hugging Face, Replicate and a Space see.
ROWS: dict[str, tuple[Reply, type[CutawayError], tuple[int, int, int]]] = {
    "400": (as_json({"error": "bad parameter"}, 400), ProviderRefused, (1, 1, 1)),
    "400 about the picture": (
        as_json({"error": "cannot identify image file <_io.BytesIO object>"}, 400),
        CorruptImage,
        (1, 1, 1),
    ),
    "401": (as_json({"error": "Invalid credentials"}, 401), ProviderRefused, (1, 1, 1)),
    "402": (as_json({"error": "You have exceeded your monthly included credits"}, 402), ProviderRefused, (1, 1, 1)),
    "403": (as_json({"error": "forbidden"}, 403), ProviderRefused, (1, 1, 1)),
    "404": (text("Not Found", "text/plain", 404), ProviderRefused, (1, 1, 1)),
    "410": (as_json({"error": "api-inference.huggingface.co is no longer supported"}, 410), ProviderRefused, (1, 1, 1)),
    "408": (Reply(408), ProcessingTimeout, (3, 1, 3)),
    "409": (Reply(409), ProviderUnavailable, (3, 1, 3)),
    "413": (Reply(413), FileTooLarge, (1, 1, 1)),
    "415": (Reply(415), InvalidFormat, (1, 1, 1)),
    "422 about the version": (as_json({"detail": "Invalid version or not permitted"}, 422), ProviderRefused, (1, 1, 1)),
    "429": (Reply(429), RateLimitExceeded, (3, 3, 3)),
    "429, short Retry-After": (Reply(429, headers={"Retry-After": "0.02"}), RateLimitExceeded, (3, 3, 3)),
    "429, 120 s is beyond the deadline": (Reply(429, headers={"Retry-After": "120"}), RateLimitExceeded, (1, 1, 1)),
    "429, seconds in the body": (
        as_json({"detail": "Request was throttled.", "status": 429, "retry_after": 0.02}, 429),
        RateLimitExceeded,
        (3, 3, 3),
    ),
    "500": (as_json({"error": "CUDA out of memory"}, 500), ProviderUnavailable, (3, 1, 3)),
    "502": (text("<html>bad gateway</html>", status=502), ProviderUnavailable, (3, 1, 3)),
    "503": (text("<html>busy</html>", status=503), Overloaded, (3, 1, 3)),
    "503, Retry-After of 121 s": (Reply(503, headers={"Retry-After": "121"}), Overloaded, (1, 1, 1)),
    "504": (Reply(504), ProcessingTimeout, (3, 1, 3)),
    "redirect of a POST": (Reply(307, headers={"Location": "/elsewhere"}), InvalidAnswer, (1, 1, 1)),
    "a page": (text("<html>Hello</html>"), InvalidAnswer, (1, 1, 1)),
    "empty": (Reply(), InvalidAnswer, (1, 1, 1)),
    "damaged JSON": (Reply(body=b'{"id": ', headers={"Content-Type": "application/json"}), InvalidAnswer, (1, 1, 1)),
    "nested JSON": (Reply(body=b"[" * 100_000, headers={"Content-Type": "application/json"}), InvalidAnswer, (1, 1, 1)),
    "too long by its header": (as_json({}, length=10**15), InvalidAnswer, (1, 1, 1)),
    "compressed": (as_json({}, headers={"Content-Encoding": "gzip"}), InvalidAnswer, (1, 1, 1)),
    "reset": (Reply(reset="before"), ProviderUnavailable, (3, 1, 3)),
    "reset mid-body": (Reply(body=b"x" * 1000, reset="body"), ProviderUnavailable, (3, 1, 3)),
    "ends mid-body": (
        Reply(body=b"half", headers={"Connection": "close"}, length=1000),
        ProviderUnavailable,
        (3, 1, 3),
    ),
}


def make(which: int, fault: Reply, serve: Callable[..., Peer]) -> tuple[Peer, Provider]:
    if which == 0:
        peer = serve(HubScript(fault))
        return peer, HuggingFace(base_url=peer.base_url, accept_noncommercial=True, token=TOKEN, retry=QUICK)
    if which == 1:
        peer = serve(ReplicateScript(create=fault))
        return peer, Replicate(base_url=peer.base_url, token=TOKEN, retry=QUICK)
    peer = serve(SpaceScript(upload=fault))
    return peer, Space(base_url=peer.base_url, retry=QUICK)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["huggingface", "replicate", "space"])
@pytest.mark.parametrize("row", ROWS)
def test_fault(row: str, which: int, serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    fault, expected, requests = ROWS[row]
    peer, provider = make(which, fault, serve)
    with pytest.raises(expected) as caught:
        matte(provider, 5.0)
    assert len(peer.received) == requests[which]
    assert type(caught.value).__mro__.index(expected) <= 1, "the error is of a more special kind than the table says"
    assert isinstance(caught.value, InputError) == (expected in (CorruptImage, FileTooLarge, InvalidFormat))
    assert caught.value.details["provider"] == provider.name


# What never ends: (the provider's set-up, requests).
ENDLESS: dict[str, tuple[int, Any, int | None]] = {
    "hub hangs": (0, Reply(hang="before"), 1),
    "hub hangs mid-body": (0, Reply(body=b"x" * 1000, headers={"Content-Type": "image/png"}, hang="body"), 1),
    "hub drips its head": (0, Reply(drip="head"), 1),
    "hub drips its body": (0, Reply(body=b"x" * 1000, headers={"Content-Type": "image/png"}, drip="body"), 1),
    "hub asks for patience again and again": (0, Reply(503, headers={"Retry-After": "0.3"}), 3),
    "replicate hangs at the creation": (1, ReplicateScript(create=Reply(hang="before")), 1),
    "replicate hangs at a poll": (1, ReplicateScript(states=["starting"], poll=Reply(hang="before")), 3),
    "replicate never starts": (1, ReplicateScript(states=["starting"]), None),
    "replicate's file drips": (1, ReplicateScript(states=["succeeded"], file=Reply(drip="head")), 2),
    "space hangs at the upload": (2, SpaceScript(upload=Reply(hang="before")), 1),
    "space's events never come": (2, SpaceScript(stream=Reply(hang="before")), 3),
    "space only beats its heart": (
        2,
        SpaceScript(
            stream=Reply(
                body=b"event: heartbeat\ndata: null\n\n" * 99,
                headers={"Content-Type": "text/event-stream"},
                drip="body",
            )
        ),
        3,
    ),
}


DEADLINE_S = 5.0
"""Long enough that a tenth of it, which is kept back for cancelling, is plenty on a busy machine."""


def endless(serve: Callable[..., Peer]) -> dict[str, tuple[Peer, Provider]]:
    """Every row's server and the provider that asks it."""
    made: dict[str, tuple[Peer, Provider]] = {}
    for row, (which, fault, _) in ENDLESS.items():
        peer = serve(HubScript(fault) if which == 0 else copy.deepcopy(fault))
        if which == 0:
            made[row] = peer, HuggingFace(base_url=peer.base_url, accept_noncommercial=True)
        else:
            made[row] = peer, Replicate(base_url=peer.base_url) if which == 1 else Space(base_url=peer.base_url)
    return made


def test_what_never_ends_ends_with_the_deadline(serve: Callable[..., Peer]) -> None:
    """All rows wait side by side; each is measured by itself."""
    made = endless(serve)
    took: dict[str, float] = {}
    errors: dict[str, Exception] = {}
    data = picture()

    async def in_task(row: str) -> None:
        watch = Stopwatch()
        try:
            await made[row][1].matte(data, "image/png", Deadline(DEADLINE_S))
        except CutawayError as error:
            errors[row] = error
        took[row] = watch.s

    async def main() -> None:
        await asyncio.gather(*map(in_task, made))

    asyncio.run(main())

    assert {row: type(errors[row]).__name__ for row in ENDLESS} == {
        row: "Overloaded" if "patience" in row else "ProcessingTimeout" for row in ENDLESS
    }
    assert {row: s for row, s in took.items() if s > 15} == {}, "the peers would hang for 20 s"
    counted = {row: requests for row, (*_, requests) in ENDLESS.items() if requests is not None}
    assert {row: len(made[row][0].received) for row in counted} == counted
    # Created, polled after 0.5, 0.75, 1.1 and 1.7 s more, cancelled; every half second would make eleven.
    assert 5 <= len(made["replicate never starts"][0].received) <= 6, "polls come at growing intervals"
    for row in ("replicate hangs at a poll", "replicate never starts"):
        assert made[row][0].paths[-1] == "POST /v1/predictions/p1/cancel"


def test_chunks_without_end_are_cut_off(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    endless = Reply(headers={"Content-Type": "application/json"}, length=-1)
    peer = serve(SpaceScript(upload=endless))
    with pytest.raises(InvalidAnswer, match="more than 1,048,576 bytes"):
        matte(Space(base_url=peer.base_url))


def test_a_call_sends_a_hundred_requests_at_most(
    serve: Callable[..., Peer], matte: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polls included, whatever the deadline allows; what was created is still cancelled."""
    monkeypatch.setattr("cutaway.fallback.replicate.POLL_FIRST_S", 0.0)
    script = ReplicateScript(states=["processing"])
    peer = serve(script)
    with pytest.raises(ProcessingTimeout):
        matte(Replicate(base_url=peer.base_url, timeout_s=60), 60.0)
    assert len(peer.received) == 100 + 1
    assert script.cancelled == 1


def test_nobody_listens(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    with Peer(HubScript()) as peer:
        base_url = peer.base_url
    with pytest.raises(ProviderUnavailable, match="cannot be reached"):
        matte(Replicate(base_url=base_url, retry=QUICK))


def test_a_name_without_an_address(matte: Callable[..., Any]) -> None:
    with pytest.raises(ProviderUnavailable, match="cannot be reached"):
        matte(Space(base_url="http://no-such-host.invalid", retry=RetryPolicy(retries=0)), 5.0)


def test_a_failed_creation_that_was_not_accepted_is_repeated(
    serve: Callable[..., Peer], matte: Callable[..., Any]
) -> None:
    """429 was not accepted; after a 500 nobody knows, so money is not risked twice."""
    script = ReplicateScript(states=["succeeded"])
    script._create = [Reply(429), script.prediction(201)]
    peer = serve(script)
    script._create[1] = script.prediction(201)
    result = matte(Replicate(base_url=peer.base_url, retry=QUICK))
    assert result.requests == 3
    assert [path for path in peer.paths if path == "POST /v1/predictions"] == ["POST /v1/predictions"] * 2


def test_a_failing_poll_is_repeated_and_the_prediction_survives(
    serve: Callable[..., Peer], matte: Callable[..., Any]
) -> None:
    script = ReplicateScript(states=["starting", "succeeded"])
    peer = serve(script)
    done = ReplicateScript(states=["succeeded"])
    done.base = peer.base_url
    script._poll = [Reply(502), done.prediction(200)]
    matte(Replicate(base_url=peer.base_url, retry=QUICK))
    assert script.cancelled == 0


def test_a_good_answer_after_two_bad_ones(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    good = Reply(body=encoded(cutout()), headers={"Content-Type": "image/png"})
    peer = serve(HubScript(Reply(502), Reply(reset="before"), good))
    result = matte(HuggingFace(base_url=peer.base_url, accept_noncommercial=True, retry=QUICK))
    assert result.requests == len(peer.received) == 3
