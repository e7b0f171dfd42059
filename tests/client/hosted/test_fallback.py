"""The chain: who serves, what is told about those before, and that neither time nor requests run away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from cutaway.contract.errors import (
    CorruptImage,
    CutawayError,
    InferenceError,
    InputError,
    InvalidOption,
    NoPersonDetected,
    Overloaded,
    ProcessingTimeout,
    RequestCancelled,
    ResolutionTooLarge,
    ServerUnavailable,
)
from cutaway.contract.options import parse_options
from cutaway.fallback import Fallback, NobodyServed, Served
from cutaway.fallback.chain import Attempt, run_chain
from cutaway.providers import Provider, Replicate, Space
from cutaway.resilience import Deadline
from PIL import Image

from tests.client.hosted.asking import Server, hub
from tests.client.hosted.peers import (
    SIZE_WH,
    HubScript,
    Peer,
    Received,
    ReplicateScript,
    Reply,
    SpaceScript,
    as_json,
    mask,
    picture,
    png,
)

DOWN = ServerUnavailable("Nothing answers at triton:8001.")


# --------------------------------------------------------------------------------------------------- who serves


def test_the_own_server_serves_and_nobody_else_is_asked(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    peer = serve(HubScript())
    answer = {"images": [b"x"], "report": [b"{}"]}
    served = infer(Fallback([hub(peer)]), primary=Server(answer))
    assert (served.value, served.provider, served.tier, served.tried) == (answer, "triton", 1, ())
    assert peer.received == []


def test_the_first_that_can_serves_and_says_why_the_others_did_not(
    serve: Callable[..., Peer], infer: Callable[..., Any]
) -> None:
    first = serve(HubScript(as_json({"error": "Invalid credentials"}, 401)))
    second = serve(ReplicateScript(states=["failed"], error="CUDA error"))
    third = serve(SpaceScript())
    providers = [hub(first), Replicate(base_url=second.base_url), Space(base_url=third.base_url)]
    served = infer(Fallback(providers), primary=Server(DOWN), subject="all")
    assert (served.provider, served.tier) == ("space", 4)
    told = [(entry.provider, entry.tier, entry.code) for entry in served.tried]
    assert told == [
        ("triton", 1, "UNAVAILABLE"),
        ("huggingface", 2, "UNAVAILABLE"),
        ("replicate", 3, "INFERENCE_ERROR"),
    ]
    assert served.tried[0].message == DOWN.message
    assert "401" in served.tried[1].message
    assert "CUDA error" in served.tried[2].message
    report = json.loads(served.value["report"][0])
    assert report["fallback"]["provider"] == "space"
    assert [entry["provider"] for entry in report["fallback"]["tried"]] == ["triton", "huggingface", "replicate"]
    assert set(report["fallback"]["tried"][0]) == {"provider", "tier", "code", "message", "elapsed_ms"}


@pytest.mark.parametrize("error", [InferenceError("x"), Overloaded("x"), ProcessingTimeout("x")])
def test_the_server_s_own_failures_fall_through(
    error: CutawayError, serve: Callable[..., Peer], infer: Callable[..., Any]
) -> None:
    assert infer(Fallback([hub(serve(HubScript()))]), primary=Server(error)).provider == "huggingface"


@pytest.mark.parametrize(
    "error", [CorruptImage("x"), NoPersonDetected("x"), RequestCancelled("x"), ZeroDivisionError()]
)
def test_what_is_no_fault_of_the_server_does_not(
    error: Exception, serve: Callable[..., Peer], infer: Callable[..., Any]
) -> None:
    peer = serve(HubScript())
    with pytest.raises(type(error)):
        infer(Fallback([hub(peer)]), primary=Server(error))
    assert peer.received == []


@pytest.mark.parametrize("status", [413, 415])
def test_a_bad_picture_at_a_provider_ends_the_chain(
    status: int, serve: Callable[..., Peer], infer: Callable[..., Any]
) -> None:
    first, second = serve(HubScript(Reply(status))), serve(SpaceScript())
    with pytest.raises(InputError) as caught:
        infer(Fallback([hub(first), Space(base_url=second.base_url)]), primary=Server(DOWN))
    assert second.received == []
    assert [entry["provider"] for entry in caught.value.details["tried"]] == ["triton"]


def test_a_damaged_picture_costs_nothing(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    peer = serve(HubScript())
    with pytest.raises(CorruptImage):
        infer(Fallback([hub(peer)]), data=picture()[:-40] + b"IEND" + bytes(36))
    assert peer.received == []


def test_nobody_serves(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    busy = as_json({}, 503, headers={"Retry-After": "300"})
    peers = [serve(HubScript(busy)), serve(SpaceScript(upload=Reply(404)))]
    fallback = Fallback([hub(peers[0]), Space(base_url=peers[1].base_url)])
    with pytest.raises(NobodyServed) as caught:
        infer(fallback, primary=Server(DOWN))
    assert [entry["code"] for entry in caught.value.details["tried"]] == ["UNAVAILABLE", "OVERLOADED", "UNAVAILABLE"]
    assert isinstance(caught.value, ConnectionError)
    for words in (
        "triton (UNAVAILABLE): Nothing answers at triton:8001; huggingface (OVERLOADED): huggingface answered 503",
        "space (UNAVAILABLE): space answered 404.",
    ):
        assert words in caught.value.message
    assert [len(peer.received) for peer in peers] == [1, 1]


def test_the_only_tier_s_own_error_comes_out(infer: Callable[..., Any]) -> None:
    with pytest.raises(ServerUnavailable) as caught:
        infer(Fallback([]), primary=Server(ServerUnavailable("down")))
    assert caught.value.message == "down"
    assert len(caught.value.details["tried"]) == 1


def test_without_any_tier_nobody_serves(infer: Callable[..., Any]) -> None:
    with pytest.raises(NobodyServed, match="there is none"):
        infer(Fallback([]))


# ------------------------------------------------------------------------------------------------- time and number


def test_the_whole_chain_ends_with_the_deadline(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    """Every tier hangs; each later one still gets its share of the time."""
    peers = [
        serve(HubScript(Reply(hang="before"))),
        serve(ReplicateScript(states=["starting"])),
        serve(SpaceScript(upload=Reply(drip="head"))),
    ]
    providers: list[Provider] = [
        hub(peers[0]),
        Replicate(base_url=peers[1].base_url),
        Space(base_url=peers[2].base_url),
    ]
    fallback = Fallback(providers)
    with pytest.raises(ProcessingTimeout) as caught:  # by the tiers' own timeouts it would be NobodyServed
        infer(fallback, deadline_s=2.0)
    assert all(peer.received for peer in peers)
    assert len(caught.value.details["tried"]) == 3


def test_shares_of_the_time() -> None:
    """A tier may take its own timeout, or half of what is left where later ones would go short."""
    turns: list[float] = []

    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()

    async def fail(turn: Deadline) -> None:
        turns.append(turn.left_s)
        clock.now += turn.left_s
        raise ServerUnavailable("x")

    attempts = [Attempt("a", 1, 30, fail), Attempt("b", 2, 10, fail), Attempt("c", 3, 30, fail)]
    with pytest.raises(NobodyServed):
        asyncio.run(run_chain(attempts, Deadline(200, clock=clock)))
    assert turns == [30, 10, 30]
    turns.clear()
    with pytest.raises(ProcessingTimeout):
        asyncio.run(run_chain(attempts, Deadline(20, clock=clock)))
    assert turns == [10, 5, 5]


def test_for_an_open_circuit_breaker_no_time_is_kept(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    """An own server that needs most of the time gets it while nobody else would be asked."""
    peer, slow = serve(HubScript()), Server(DOWN)
    fallback = Fallback([hub(peer)], fail_max=1)
    with pytest.raises(NobodyServed):
        infer(Fallback([hub(serve(HubScript(Reply(404))))]), primary=slow)
    permit = fallback.breakers[0].permit()
    assert permit is not None
    permit.failed()
    with pytest.raises(NobodyServed, match="circuit breaker is open for"):
        infer(fallback, primary=slow)
    assert slow.turns[0] <= 5.0, "half, while somebody else may be asked"
    assert slow.turns[1] > 9.0
    assert peer.received == []


def test_no_time_left_is_told(infer: Callable[..., Any], serve: Callable[..., Peer]) -> None:
    peer = serve(HubScript())
    with pytest.raises(ProcessingTimeout) as caught:
        infer(Fallback([hub(peer)]), primary=Server(DOWN), deadline_s=0.0)
    assert [entry["message"] for entry in caught.value.details["tried"]] == ["No time was left to ask."] * 2
    assert peer.received == []


def test_requests_in_an_outage_are_bounded(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    """Thirty calls while everything is down: the breaker and the budget keep the providers quiet."""
    peer = serve(HubScript(Reply(500)))
    fallback = Fallback([hub(peer)])
    for _ in range(30):
        with pytest.raises(ServerUnavailable):
            infer(fallback, primary=Server(DOWN))
    assert len(peer.received) <= 5 + 5


def test_a_resting_provider_is_passed_over_and_tried_again_later(
    serve: Callable[..., Peer], infer: Callable[..., Any]
) -> None:
    now = 0.0
    peer = serve(HubScript(Reply(404), Reply(404), png(mask())))
    fallback = Fallback([hub(peer)], fail_max=2, reset_s=60, clock=lambda: now)
    for _ in range(3):
        with pytest.raises(NobodyServed) as caught:
            infer(fallback, primary=Server(DOWN))
    assert "circuit breaker is open for 60 s more" in caught.value.details["tried"][1]["message"]
    assert len(peer.received) == 2
    now = 61.0
    assert infer(fallback, primary=Server(DOWN)).provider == "huggingface"
    assert fallback.breakers[0].state == "closed"


def test_a_bad_picture_does_not_rest_a_provider(serve: Callable[..., Peer], infer: Callable[..., Any]) -> None:
    fallback = Fallback([hub(serve(HubScript(Reply(415))))], fail_max=1)
    for _ in range(3):
        with pytest.raises(InputError):
            infer(fallback)
    assert fallback.breakers[0].state == "closed"


def test_a_cancelled_call_says_nothing_about_a_provider(serve: Callable[..., Peer]) -> None:
    peer = serve(HubScript(Reply(hang="before")))
    fallback = Fallback([hub(peer)], fail_max=1)

    async def main() -> None:
        task = asyncio.create_task(fallback.infer(picture(), options=parse_options({}), deadline=Deadline(20)))
        while not peer.received:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert fallback.breakers[0].state == "closed"
    assert fallback.breakers[0].permit() is not None


def test_chains_of_callables() -> None:
    """The chain alone, without providers, as a client with several endpoints uses it."""

    async def main() -> Served[Any]:
        async def down(_: Deadline) -> None:
            raise DOWN

        async def up(_: Deadline) -> str:
            return "yes"

        return await run_chain([Attempt("a", 1, 5, down), Attempt("b", 1, 5, up)], Deadline(5))

    served = asyncio.run(main())
    assert (served.value, served.provider, [entry.provider for entry in served.tried]) == ("yes", "b", ["a"])


# --------------------------------------------------------------------------------------------------- upscaling


def test_upscale_goes_through_the_tiers_that_can(serve: Callable[..., Peer]) -> None:
    larger = png(Image.new("RGB", (SIZE_WH[0] * 2, SIZE_WH[1] * 2)))
    down, mattes_only = serve(HubScript(Reply(404))), serve(SpaceScript())
    good = serve(ReplicateScript(states=["succeeded"], file=larger))
    fallback = Fallback([Space(base_url=mattes_only.base_url), hub(down), Replicate(base_url=good.base_url)])
    served = asyncio.run(fallback.upscale(picture(), scale=2, deadline=Deadline(10)))
    assert served.provider == "replicate"
    assert served.value.width_px == SIZE_WH[0] * 2
    assert (served.tried[0].provider, served.tried[0].message) == ("space", "It does not upscale by 2.")
    assert mattes_only.received == []


def test_upscaling_that_fails_does_not_open_the_circuit_breaker_of_mattes(
    serve: Callable[..., Peer], infer: Callable[..., Any]
) -> None:
    """They are other models: what is remembered of one says nothing about the other, in either direction."""

    def answer(received: Received) -> Reply:
        return png(mask()) if "RMBG" in received.path else Reply(404)

    peer = serve(answer)
    fallback = Fallback([hub(peer), Space(base_url=serve(SpaceScript()).base_url)], fail_max=3)
    for _ in range(4):
        with pytest.raises(NobodyServed) as caught:
            asyncio.run(fallback.upscale(picture(), scale=2, deadline=Deadline(10)))
    assert "circuit breaker is open" in caught.value.details["tried"][0]["message"]
    assert len(peer.received) == 3
    assert infer(fallback, subject="all").provider == "huggingface"
    with pytest.raises(NobodyServed):
        asyncio.run(fallback.upscale(picture(), scale=4, deadline=Deadline(10)))
    assert len(peer.received) == 5, "the model for the other scale was asked"


def test_upscale_refuses_before_anything_is_sent(serve: Callable[..., Peer]) -> None:
    peer = serve(HubScript())
    fallback = Fallback([hub(peer)])
    with pytest.raises(InvalidOption, match="allowed is 2, 4"):
        asyncio.run(fallback.upscale(picture(), scale=8, deadline=Deadline(5)))
    with pytest.raises(ResolutionTooLarge):
        asyncio.run(fallback.upscale(picture(size_wh=(2561, 100)), scale=2, deadline=Deadline(5)))
    assert peer.received == []
