"""The whole way through the clients: own servers first, hosted models where those fail, and the books kept right.

Every test runs with Client and with AsyncClient; most over gRPC and over HTTP.

1. Nobody hosted is asked while the own server answers, or where the picture is at fault.
2. Where it does not, the first hosted model that can serves; the result, the log and the report tell.
3. Single people are cropped from the own detection, or refused: never something else.
4. The deadline covers it all, whoever hangs; and what is sent in an outage is bounded.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cutaway
import numpy as np
import pytest
from cutaway.cache import ResultCache
from cutaway.contract import limits
from cutaway.contract.errors import (
    CorruptImage,
    InferenceError,
    InvalidFormat,
    NoPersonDetected,
    Overloaded,
    ProcessingTimeout,
    RequestCancelled,
    ServerRefused,
    ServerUnavailable,
)
from cutaway.fallback import Fallback, NeedsDetection, NobodyServed
from cutaway.providers import Replicate, Space
from cutaway.resilience import RetryPolicy
from PIL import Image

from tests.client import peers
from tests.client.driving import DRIVERS, Driven, driven
from tests.client.hosted.asking import hub
from tests.client.hosted.peers import (
    SIZE_WH,
    HubScript,
    Peer,
    Received,
    ReplicateScript,
    Reply,
    SpaceScript,
    Stopwatch,
    as_json,
    mask,
    picture,
    png,
)
from tests.client.own_server import DOWN, PERSON, Asked, Failure, OwnServer, failing, over_grpc, own_server

SCHEMES = ("grpc", "http")
WAYS = [(driver, scheme) for driver in DRIVERS for scheme in SCHEMES]
QUICK = RetryPolicy(first_delay_s=0.001, max_delay_s=0.002)
PICTURE = picture()
MATTE_DEAD = failing(InferenceError("A model failed."))


@pytest.fixture(autouse=True)
def _no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HUGGINGFACE_TOKEN", "HF_TOKEN", "REPLICATE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def own(stack: ExitStack) -> Callable[..., OwnServer]:
    return lambda *arguments: stack.enter_context(own_server(*arguments))


@pytest.fixture
def serve(stack: ExitStack) -> Callable[..., Peer]:
    """A hosted peer; a script with a `base` learns its own address."""

    def start(script: Any) -> Peer:
        peer = stack.enter_context(Peer(script))
        if hasattr(script, "base"):
            script.base = peer.base_url
        return peer

    return start


@pytest.fixture
def client(stack: ExitStack, driver: str) -> Callable[..., Driven]:
    def open_(urls: Any, **arguments: Any) -> Driven:
        return stack.enter_context(driven(driver, urls, **{"retry": QUICK, **arguments}))

    return open_


# --------------------------------------------------------------------------------------------------- who serves


def test_nobody_hosted_is_asked_while_the_own_server_answers(
    scheme: str, own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    server, peer = own(scheme), serve(HubScript())
    result = client(server.url, fallback=[hub(peer)]).cut(PICTURE)
    assert (result.provider, result.tier, result.tried, result.requests) == ("triton", 1, (), 1)
    assert result.origin.url == server.url
    assert [asked.request_id for asked in server.asked] == [result.request_id]
    assert peer.received == []


def test_a_hosted_model_serves_where_nothing_listens(
    scheme: str,
    serve: Callable[..., Peer],
    client: Callable[..., Driven],
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer, url = serve(HubScript()), f"{scheme}://127.0.0.1:{peers.dead_port()}"
    with caplog.at_level(logging.WARNING, "cutaway"):
        result = client(url, fallback=[hub(peer)]).cut(PICTURE, request_id="order-66")
    assert (result.provider, result.tier) == ("huggingface", 2)
    assert [(entry.provider, entry.tier, entry.code) for entry in result.tried] == [("triton", 1, "UNAVAILABLE")]
    assert url in result.tried[0].message
    assert result.origin.url == ""
    assert result.request_id == "order-66"
    assert len(peer.received) == 1
    alpha = result.cutouts[0].numpy()[..., 3]
    assert np.abs(alpha.astype(int) - np.asarray(mask())).mean() < 3
    (line,) = [record.getMessage() for record in caplog.records if "was served" in record.getMessage()]
    assert line == "cut order-66 was served by huggingface (tier 2); triton: UNAVAILABLE"


def test_the_order_of_the_chain_and_the_books_of_both_sides(
    scheme: str, own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    """The own server is repeated twice, each provider as it sees fit; all of it is told."""
    server = own(scheme, DOWN)
    first, second = serve(HubScript(as_json({"error": "Invalid credentials"}, 401))), serve(SpaceScript())
    result = client(server.url, fallback=[hub(first), Space(base_url=second.base_url)]).cut(PICTURE)
    assert (result.provider, result.tier) == ("space", 4)
    assert [entry.provider for entry in result.tried] == ["triton", "huggingface"]
    assert result.requests == len(server.asked) == 1 + limits.RETRIES
    assert len(first.received) == 1
    assert second.paths[0] == "POST /gradio_api/upload"


def test_a_refusal_is_not_repeated_and_falls_through(
    scheme: str, own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    server, peer = own(scheme, Failure("UNAUTHENTICATED", "who are you")), serve(HubScript())
    result = client(server.url, fallback=[hub(peer)]).cut(PICTURE)
    assert (result.provider, len(server.asked), len(peer.received)) == ("huggingface", 1, 1)


def test_several_own_servers_come_before_any_hosted_model(
    scheme: str, own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    bad, good, peer = own(scheme, DOWN), own(scheme), serve(HubScript())
    asking = client([bad.url, good.url], fallback=[hub(peer)])
    results = [asking.cut(PICTURE) for _ in range(4)]
    assert {result.origin.url for result in results} == {good.url}
    assert [result.requests for result in results] == [2, 1, 2, 1]
    assert (len(bad.asked), len(good.asked), len(peer.received)) == (2, 4, 0)


def test_a_bad_picture_never_falls_through(
    scheme: str, own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    server, peer = own(scheme), serve(HubScript())
    asking = client(server.url, fallback=[hub(peer)])
    with pytest.raises(InvalidFormat):
        asking.cut(b"%PDF-1.7")
    assert server.asked == []
    for error in (CorruptImage("The data ends early."), NoPersonDetected("Nobody was found.")):
        server.script = lambda _, error=error: failing(error)  # type: ignore[misc]
        with pytest.raises(type(error)):
            asking.cut(PICTURE)
    assert len(server.asked) == 2
    assert peer.received == []


def test_a_damaged_picture_is_not_sent_to_hosted_models(
    own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    """Only the server decodes by default; where it is down, the picture is decoded before anybody is paid for it."""
    server, peer = own("grpc", DOWN), serve(HubScript())
    with pytest.raises(CorruptImage):
        client(server.url, fallback=[hub(peer)]).cut(PICTURE[:100] + bytes(200) + PICTURE[300:])
    assert len(server.asked) == 1 + limits.RETRIES
    assert peer.received == []


def test_an_answer_that_makes_no_sense_falls_through(
    scheme: str, stack: ExitStack, serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    """Something else than a Cutaway server answers at the address."""
    peer = serve(HubScript())
    if scheme == "http":
        port = stack.enter_context(peers.tcp_peer(peers.http_answer(200, b"<html>")))
    else:
        port = stack.enter_context(peers.grpc_peer(peers.grpc_answer(("images", "BYTES", [0], b""))))
    result = client(f"{scheme}://127.0.0.1:{port}", fallback=[hub(peer)]).cut(PICTURE)
    assert result.provider == "huggingface"
    assert len(peer.received) == 1


def test_nobody_serves(
    scheme: str, own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    server = own(scheme, failing(Overloaded("The queue is full.")))
    peer = serve(HubScript(as_json({}, 401)))
    with pytest.raises(NobodyServed) as caught:
        client(server.url, fallback=[hub(peer)]).cut(PICTURE, request_id="r1")
    assert [entry["code"] for entry in caught.value.details["tried"]] == ["OVERLOADED", "UNAVAILABLE"]
    assert caught.value.request_id == "r1"
    assert caught.value.details["requests"] == len(server.asked) == 1 + limits.RETRIES
    assert len(peer.received) == 1


def test_a_detection_has_no_fallback(
    own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    server, peer = own("grpc", DOWN), serve(HubScript())
    with pytest.raises(ServerUnavailable):
        client(server.url, fallback=[hub(peer)]).detect(PICTURE)
    assert peer.received == []


def test_compositing_with_a_hosted_cutout(serve: Callable[..., Peer], client: Callable[..., Driven]) -> None:
    peer = serve(HubScript())
    url = f"http://127.0.0.1:{peers.dead_port()}"
    result = client(url, fallback=[hub(peer)]).composite(PICTURE, "#0000FF")
    assert result.pil().convert("RGB").getpixel((0, 0)) == (0, 0, 255)
    assert len(peer.received) == 1


def test_many_pictures_with_a_bad_one(
    own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    """Every picture finds its own way."""
    server, peer = own("http", DOWN), serve(HubScript())
    outcomes = client(server.url, fallback=[hub(peer)]).cut_many([PICTURE, b"no", PICTURE], jobs=2, ordered=True)
    assert [outcome.ok for outcome in outcomes] == [True, False, True]
    assert {outcome.result.provider for outcome in outcomes if outcome.ok} == {"huggingface"}
    assert len(peer.received) == 2


# ----------------------------------------------------------------------------------------------- single people


def _no_matte(asked: Asked) -> Failure | None:
    return None if asked.detects else MATTE_DEAD


def test_single_people_are_cropped_from_the_own_detection(
    scheme: str, own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    server, peer = own(scheme, _no_matte), serve(HubScript())
    result = client(server.url, fallback=[hub(peer)]).cut(PICTURE, subject="each", padding_px=10)
    assert (result.provider, result.tier) == ("huggingface", 2)
    assert result.tried[0].code == "INFERENCE_ERROR"
    x1, y1, x2, y2 = PERSON
    assert result.cutouts[0].frame == (x1 - 10, y1 - 10, x2 + 10, y2 + 10)
    assert result.cutouts[0].pil().size == (x2 - x1 + 20, y2 - y1 + 20)
    np.testing.assert_allclose(result.boxes, [PERSON])
    assert [asked.detects for asked in server.asked] == [False] * (1 + limits.RETRIES) + [True]
    assert result.requests == len(server.asked)
    assert len(peer.received) == 1


def test_people_are_still_detected_when_the_server_rests_for_its_mattes(
    own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    """So many cuts have failed that the server is left alone; nobody else detects, so that it is asked for that."""
    server, peer = own("grpc", _no_matte), serve(HubScript())
    asking = client(server.url, fallback=[hub(peer)])
    for _ in range(limits.BREAKER_FAIL_MAX):
        asking.cut(PICTURE, subject="all")
    before = len(server.asked)
    result = asking.cut(PICTURE, subject="each")
    assert "circuit breaker is open" in result.tried[0].message
    assert [asked.detects for asked in server.asked[before:]] == [True]
    assert len(asking.detect(PICTURE)) == 1


def test_single_people_are_refused_where_nobody_detects(
    scheme: str, own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    server, peer = own(scheme, DOWN), serve(HubScript())
    asking = client(server.url, fallback=[hub(peer)])
    for options in ({"subject": "each"}, {"select": [0]}):
        with pytest.raises(NeedsDetection) as caught:
            asking.cut(PICTURE, **options)
        assert [entry["provider"] for entry in caught.value.details["tried"]] == ["triton"]
    assert any(asked.detects for asked in server.asked)
    assert peer.received == []
    assert asking.cut(PICTURE, subject="each", boxes=[PERSON]).provider == "huggingface"


# ------------------------------------------------------------------------------------------------ time and number


def test_the_deadline_holds_whoever_hangs(stack: ExitStack) -> None:
    """The server takes the connection and says nothing, and so does the provider; all four ways at once."""
    deadline_s = 3.0

    def hanging(driver: str, scheme: str) -> None:
        connections: list[Any] = []

        def black_hole(connection: Any, over: threading.Event) -> None:
            connections.append(connection)
            over.wait(20)

        with (
            peers.tcp_peer(black_hole) as port,
            Peer(HubScript(Reply(hang="before"))) as peer,
            driven(driver, f"{scheme}://127.0.0.1:{port}", fallback=[hub(peer)]) as client,
        ):
            with pytest.raises(ProcessingTimeout) as caught:
                client.cut(PICTURE, timeout_s=deadline_s)
            assert [entry["provider"] for entry in caught.value.details["tried"]] == ["triton", "huggingface"]
            assert [entry["code"] for entry in caught.value.details["tried"]] == ["PROCESSING_TIMEOUT"] * 2
            assert len(connections) == len(peer.received) == 1

    def served(driver: str, scheme: str) -> None:
        with (
            peers.tcp_peer(peers.silent) as port,
            Peer(HubScript()) as peer,
            driven(driver, f"{scheme}://127.0.0.1:{port}", fallback=[hub(peer)]) as client,
        ):
            result = client.cut(PICTURE, timeout_s=deadline_s)
            assert (result.provider, result.tried[0].code) == ("huggingface", "PROCESSING_TIMEOUT")
            assert len(peer.received) == 1

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(what, *way) for what in (hanging, served) for way in WAYS]
    for each in running:
        each.result()


def test_an_outage_is_not_amplified(scheme: str, own: Callable[..., OwnServer], client: Callable[..., Driven]) -> None:
    """Without a fallback the server is asked for each call; what the repeats add stays below a fifth."""
    server, calls = own(scheme, DOWN), 40
    asking = client(server.url)
    errors = asking.together([lambda each: each.cut(PICTURE)] * calls)
    assert {type(error) for error in errors} == {ServerUnavailable}
    assert calls < len(server.asked) <= 1.2 * calls
    assert len(server.asked) == calls + limits.RETRY_BUDGET_TOKENS
    assert sum(error.details["requests"] for error in errors) == len(server.asked)


def test_an_outage_of_everything_is_not_amplified(
    scheme: str, own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    """With a fallback, a server that failed five times in a row is left alone, and so is a provider."""
    server, peer = own(scheme, DOWN), serve(HubScript(Reply(500)))
    asking = client(server.url, fallback=[hub(peer)])
    for _ in range(40):
        with pytest.raises(NobodyServed):
            asking.cut(PICTURE)
    assert len(server.asked) == limits.BREAKER_FAIL_MAX
    assert len(peer.received) <= limits.BREAKER_FAIL_MAX + limits.RETRY_BUDGET_TOKENS


def test_a_server_that_rests_costs_no_time_and_no_request(
    own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    server, peer = own("http", DOWN), serve(HubScript())
    asking = client(server.url, fallback=[hub(peer)])
    results = [asking.cut(PICTURE) for _ in range(6)]
    assert {result.provider for result in results} == {"huggingface"}
    assert sum(result.requests for result in results) == len(server.asked) == limits.BREAKER_FAIL_MAX
    assert results[-1].requests == 0
    assert "circuit breaker is open" in results[-1].tried[0].message
    assert len(peer.received) == 6


def test_retries_can_be_turned_off(
    scheme: str, own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    server, peer = own(scheme, DOWN), serve(HubScript())
    result = client(server.url, fallback=[hub(peer)], retry=RetryPolicy(retries=0)).cut(PICTURE)
    assert (result.requests, len(server.asked), len(peer.received)) == (1, 1, 1)


# ---------------------------------------------------------------------------------------------------- giving up


@pytest.mark.parametrize("what", ["asking", "pausing"])
def test_a_cancel_ends_waiting_for_a_hosted_model(what: str, stack: ExitStack) -> None:
    """It does not answer, or wants to be asked again later; what was begun there is undone."""
    arrived, script = threading.Event(), ReplicateScript(states=["starting"])

    def noticing(received: Received) -> Reply:
        reply = script(received)
        if received.method == "GET" or what == "pausing":
            arrived.set()
        if received.method == "GET":
            return Reply(hang="before")
        return Reply(429, headers={"Retry-After": "20"}) if what == "pausing" else reply

    peer = stack.enter_context(Peer(noticing))
    script.base = peer.base_url
    url, cancel = f"http://127.0.0.1:{peers.dead_port()}", cutaway.Cancel()
    fallback = Fallback([Replicate(base_url=peer.base_url)])
    client = stack.enter_context(cutaway.Client(url, fallback=fallback, retry=QUICK))
    pool = stack.enter_context(ThreadPoolExecutor(1))
    call = pool.submit(client.cut, PICTURE, cancel=cancel, timeout_s=60)
    assert arrived.wait(20)
    watch = Stopwatch()
    cancel.cancel()
    assert isinstance(call.exception(20), RequestCancelled)
    assert watch.s < 5
    assert script.cancelled == (what == "asking")
    assert fallback.breakers[0].state == "closed"


def test_leaving_a_loop_over_many_pictures_waits_for_no_hosted_model(stack: ExitStack) -> None:
    peer = stack.enter_context(Peer(HubScript(png(mask()), Reply(hang="before"))))
    url = f"http://127.0.0.1:{peers.dead_port()}"
    client = stack.enter_context(cutaway.Client(url, fallback=[hub(peer, timeout_s=60)], retry=RetryPolicy(retries=0)))
    for outcome in client.cut_many([PICTURE] * 9, jobs=2):
        assert outcome.ok
        watch = Stopwatch()
        break
    del outcome
    gc.collect()
    assert watch.s < 5
    assert len(peer.received) <= 3


def test_a_cancelled_task_ends_waiting_for_a_hosted_model(stack: ExitStack) -> None:
    peer = stack.enter_context(Peer(HubScript(Reply(hang="before"))))
    url = f"http://127.0.0.1:{peers.dead_port()}"

    async def main() -> None:
        async with cutaway.AsyncClient(url, fallback=[hub(peer, timeout_s=60)]) as client:
            task = asyncio.create_task(client.cut(PICTURE))
            while not peer.received:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    watch = Stopwatch()
    asyncio.run(main())
    assert watch.s < 20


# --------------------------------------------------------------------------------------------------- upscaling


def test_upscaling_goes_through_the_hosted_models(
    own: Callable[..., OwnServer], serve: Callable[..., Peer], client: Callable[..., Driven]
) -> None:
    server, mattes_only = own("http"), serve(SpaceScript())
    larger = png(Image.new("RGB", (SIZE_WH[0] * 2, SIZE_WH[1] * 2)))
    peer = serve(ReplicateScript(states=["succeeded"], file=larger))
    asking = client(server.url, fallback=[Space(base_url=mattes_only.base_url), Replicate(base_url=peer.base_url)])
    result = asking.upscale(PICTURE, 2, request_id="r5")
    assert (result.provider, result.tier, result.request_id) == ("replicate", 3, "r5")
    assert (result.width_px, result.height_px) == (SIZE_WH[0] * 2, SIZE_WH[1] * 2)
    assert result.pil().size == (result.width_px, result.height_px)
    assert [entry.provider for entry in result.tried] == ["space"]
    assert server.asked == mattes_only.received == []


def test_upscaling_needs_a_provider(client: Callable[..., Driven]) -> None:
    with pytest.raises(ServerRefused, match="no hosted provider was named"):
        client("http://127.0.0.1:1").upscale(PICTURE)


# ------------------------------------------------------------------------------------------------------ the cache


def test_only_the_own_server_s_answers_are_kept(
    driver: str,
    own: Callable[..., OwnServer],
    serve: Callable[..., Peer],
    client: Callable[..., Driven],
    tmp_path: Path,
    stack: ExitStack,
) -> None:
    cache = ResultCache(tmp_path)
    server, peer = own("http", DOWN), serve(HubScript())
    asking = client(server.url, fallback=[hub(peer)], cache=cache, retry=RetryPolicy(retries=0))
    for _ in range(2):
        result = asking.cut(PICTURE)
        assert (result.provider, result.from_cache) == ("huggingface", False)
    assert len(peer.received) == 2
    server.script = lambda _: None
    assert not asking.cut(PICTURE).from_cache
    server.script = lambda _: DOWN
    result = asking.cut(PICTURE)
    assert (result.provider, result.from_cache, result.requests) == ("triton", True, 0)
    assert len(server.asked) == 3
    assert len(peer.received) == 2


def test_an_answer_that_makes_no_sense_is_not_kept(
    stack: ExitStack, client: Callable[..., Driven], tmp_path: Path
) -> None:
    cache = ResultCache(tmp_path)
    senseless = peers.grpc_answer(("images", "BYTES", [0], b""))
    good = [False]

    def answer(request: Any, context: Any) -> Any:
        return over_grpc(server, request, context) if good[0] else senseless(request, context)

    server = OwnServer(lambda _: None)
    port = stack.enter_context(peers.grpc_peer(answer))
    asking = client(f"grpc://127.0.0.1:{port}", cache=cache, retry=RetryPolicy(retries=0))
    with pytest.raises(InferenceError):
        asking.cut(PICTURE)
    good[0] = True
    assert not asking.cut(PICTURE).from_cache
    assert asking.cut(PICTURE).from_cache
