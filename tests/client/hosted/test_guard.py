"""Where connections may go, where the token may go, and that it shows itself nowhere else."""

from __future__ import annotations

import asyncio
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from cutaway.contract.errors import CutawayError, InvalidOption
from cutaway.fallback import Fallback
from cutaway.fallback.requests import check_target
from cutaway.providers import HuggingFace, InvalidAnswer, ProviderRefused, ProviderUnavailable, Replicate, Space
from cutaway.resilience import Deadline, RetryPolicy

from tests.client.hosted.peers import (
    TOKEN,
    HubScript,
    Peer,
    Received,
    ReplicateScript,
    Reply,
    SpaceScript,
    as_json,
    picture,
    png,
)

OWN = ("https", "api.example.com", 443)


@pytest.mark.parametrize(
    "url",
    [
        "http://replicate.delivery/out.png",
        "https://127.0.0.1/out.png",
        "https://[::1]/out.png",
        "https://169.254.169.254/latest/meta-data",
        "https://user:password@replicate.delivery/out.png",
        "https://user@replicate.delivery/out.png",
        "https://replicate.delivery:8443/out.png",
        "https://example.com/out.png",
        "https://notreplicate.delivery/out.png",
        "https://replicate.delivery.example.com/out.png",
        "http://api.example.com/out.png",
        "https://api.example.com:8443@10.0.0.1/",
        "file:///etc/passwd",
        "ftp://example.com/out.png",
        "data:text/plain,hi",
        "//example.com/out.png",
        "out.png",
        "https://",
        "https://example.com:99999/",
        "https://[/",
    ],
)
def test_targets_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidAnswer):
        check_target(url, OWN, Replicate.delivery_hosts, "replicate")


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("https://replicate.delivery/x/out.png?sig=1", False),
        ("https://PBXT.replicate.delivery/x/out.png", False),
        ("https://API.example.com:443/v1/x", True),
    ],
)
def test_targets_that_are_followed(url: str, own: bool) -> None:
    """With the token only to the provider's own origin."""
    assert check_target(url, OWN, Replicate.delivery_hosts, "replicate") == own


@pytest.mark.parametrize(
    "base_url",
    [
        "replicate.com",
        "ftp://replicate.com",
        "https://",
        "https://user:secret@replicate.com",
        "https://replicate.com?token=secret",
        "https://replicate.com/#secret",
        "https://[replicate.com",
    ],
)
def test_base_urls_that_are_refused(base_url: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        Replicate(base_url=base_url)
    assert "secret" not in str(caught.value) + repr(caught.value.details)


def test_a_token_does_not_leave_this_machine_in_plain_http() -> None:
    with pytest.raises(InvalidOption, match="base_url"):
        Replicate(base_url="http://replicate.example.com", token=TOKEN)
    Replicate(base_url="http://localhost:5000", token=TOKEN)
    Replicate(base_url="http://replicate.example.com")


@pytest.mark.parametrize("where", ["http://127.0.0.1:{other}/out.png", "https://localhost:{other}/out.png"])
def test_an_output_in_the_caller_s_network_is_not_fetched(
    where: str, serve: Callable[..., Peer], matte: Callable[..., Any]
) -> None:
    inside = serve(HubScript())
    peer = serve(ReplicateScript(states=["succeeded"], output=where.format(other=inside.port)))
    with pytest.raises(InvalidAnswer, match=r"none of its delivery hosts|not plain https"):
        matte(Replicate(base_url=peer.base_url))
    assert inside.received == []


@pytest.mark.parametrize("where", ["http://127.0.0.1:{other}/", "https://localhost:{other}/", "//127.0.0.1:{other}/"])
def test_redirects_into_the_caller_s_network_are_not_followed(
    where: str, serve: Callable[..., Peer], matte: Callable[..., Any]
) -> None:
    inside = serve(HubScript())
    away = Reply(302, headers={"Location": where.format(other=inside.port)})
    peer = serve(SpaceScript(file=away))
    with pytest.raises(InvalidAnswer):
        matte(Space(base_url=peer.base_url))
    assert inside.received == []


def test_redirects_within_the_provider_are_followed_three_times(
    serve: Callable[..., Peer], matte: Callable[..., Any]
) -> None:
    peer = serve(ReplicateScript(states=["succeeded"], file=Reply(302, headers={"Location": "/files/again.png"})))
    with pytest.raises(InvalidAnswer, match="more redirects"):
        matte(Replicate(base_url=peer.base_url))
    assert peer.paths[1:] == ["GET /files/out.png"] + ["GET /files/again.png"] * 3


# --------------------------------------------------------------------------------------------------- the token


def test_the_token_goes_to_the_provider_and_nowhere_else() -> None:
    """A file elsewhere is fetched without it, also after a redirect from the provider's own address."""
    seen: list[tuple[str, bool]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, "authorization" in request.headers))
        if request.method == "POST":
            form = {"id": "p1", "status": "succeeded", "output": "https://api.example.com/v1/files/f1"}
            return httpx.Response(201, json=form)
        if request.url.host == "api.example.com":
            return httpx.Response(302, headers={"Location": "https://files.replicate.delivery/out.png"})
        return httpx.Response(200, headers={"Content-Type": "image/png"}, content=picture())

    provider = Replicate(base_url="https://api.example.com", token=TOKEN, transport=httpx.MockTransport(answer))
    with pytest.raises(InvalidAnswer, match="neither a mask nor a cut-out"):
        asyncio.run(provider.matte(picture(), "image/png", Deadline(5)))
    assert seen == [("api.example.com", True), ("api.example.com", True), ("files.replicate.delivery", False)]


def shown(error: BaseException) -> str:
    """All that an error and what caused it say."""
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        parts += [str(cause), repr(cause), repr(getattr(cause, "details", "")), repr(vars(cause))]
        cause = cause.__cause__ or cause.__context__
    return "\n".join(parts)


@pytest.mark.parametrize("status", [200, 400, 401, 403, 429, 500])
@pytest.mark.parametrize("which", ["huggingface", "replicate", "space"])
def test_the_token_is_never_shown(
    which: str,
    status: int,
    serve: Callable[..., Peer],
    matte: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not even where a provider echoes it."""

    def echo(received: Received) -> Reply:
        return as_json({"error": f"header was {received.headers.get('authorization')}", "detail": TOKEN}, status)

    caplog.set_level(logging.DEBUG)
    peer = serve(echo)
    no_retry = RetryPolicy(retries=0)
    provider: Any = {
        "huggingface": lambda: HuggingFace(
            base_url=peer.base_url, token=TOKEN, accept_noncommercial=True, retry=no_retry
        ),
        "replicate": lambda: Replicate(base_url=peer.base_url, token=TOKEN, retry=no_retry),
        "space": lambda: Space(base_url=peer.base_url, token=TOKEN, retry=no_retry),
    }[which]()
    with pytest.raises(CutawayError) as caught:
        matte(provider, 5.0)
    assert TOKEN in peer.received[0].headers["authorization"]
    assert TOKEN not in shown(caught.value)
    assert TOKEN not in repr(provider)
    assert TOKEN not in repr(provider.token) + str(provider.token)
    assert TOKEN not in caplog.text
    assert "POST http://127.0.0.1" in caplog.text


@pytest.mark.parametrize("where", ["environment", "argument"])
def test_white_space_around_a_token_is_dropped(
    where: str, serve: Callable[..., Peer], matte: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that it is read from ends with a line break; a variable that holds nothing else is not set."""
    monkeypatch.setenv("HUGGINGFACE_TOKEN", " \n")
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\r\n" if where == "environment" else "another")
    peer = serve(HubScript())
    matte(
        HuggingFace(
            base_url=peer.base_url, accept_noncommercial=True, token=f"{TOKEN}\n" if where == "argument" else None
        )
    )
    assert peer.received[0].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("odd", ["\n", " ", "\x00", "\u20ac", "\u200b", "\x7f"])
@pytest.mark.parametrize("where", ["environment", "argument"])
def test_what_is_no_token_is_refused_without_being_shown(where: str, odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that cannot be sent would be quoted in httpx's own error."""
    broken = f"{TOKEN}{odd}{TOKEN}"
    if where == "environment" and odd != "\x00":
        monkeypatch.setenv("REPLICATE_API_TOKEN", broken)
    with pytest.raises(ValueError, match="The token of replicate has to be printable ASCII") as caught:
        Replicate(token=None if where == "environment" and odd != "\x00" else broken)
    assert TOKEN not in shown(caught.value) + "".join(traceback.format_exception(caught.value))


def test_an_error_that_quotes_headers_is_no_cause() -> None:
    """Whatever a transport says about a header, a traceback does not repeat it."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.LocalProtocolError(f"Illegal header value {request.headers['authorization']!r}")

    transport = httpx.MockTransport(answer)
    provider = Replicate(token=TOKEN, transport=transport, retry=RetryPolicy(retries=0))
    with pytest.raises(ProviderUnavailable) as caught:
        asyncio.run(provider.matte(picture(), "image/png", Deadline(5)))
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("way", ["file", "redirect"])
def test_a_signed_address_is_not_logged(
    way: str, serve: Callable[..., Peer], matte: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """httpx logs where each request goes, at INFO and with the query; the signature in it is as good as a token."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "cutaway.providers")
    signed = "/files/out.png?X-Signature=" + TOKEN
    if way == "file":
        peer = serve(ReplicateScript(states=["succeeded"], output="{base}" + signed))
    else:
        script = ReplicateScript(states=["succeeded"])

        def redirecting(received: Received) -> Reply:
            elsewhere = received.path == "/files/out.png"
            return Reply(302, headers={"Location": signed}) if elsewhere else script(received)

        peer = serve(redirecting)
        script.base = peer.base_url
    matte(Replicate(base_url=peer.base_url))
    assert peer.paths[-1] == f"GET {signed}"
    assert "/files/out.png" in caplog.text
    assert TOKEN not in caplog.text


def test_a_provider_with_a_token_is_not_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(Replicate(token=TOKEN))


def test_a_provider_is_made_anew_in_another_process() -> None:
    """With what it was set up with, and the token of that process's environment."""
    made = Replicate("851-labs/background-remover", timeout_s=7, inputs={"threshold": 0.1})
    again = pickle.loads(pickle.dumps(Fallback([made], fail_max=3))).providers[0]
    assert repr(again) == repr(made)
    assert again._inputs == made._inputs


def test_a_space_does_not_get_the_environment_s_token(
    serve: Callable[..., Peer], matte: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code is somebody else's."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    peer = serve(SpaceScript())
    matte(Space(base_url=peer.base_url))
    assert not any("authorization" in received.headers for received in peer.received)


def test_a_missing_token_is_named(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(ReplicateScript(create=as_json({"detail": "Unauthenticated"}, 401)))
    with pytest.raises(ProviderRefused) as caught:
        matte(Replicate(base_url=peer.base_url))
    assert "REPLICATE_API_TOKEN" in caught.value.user_action
    assert not caught.value.retry


def test_errors_of_providers_cross_processes() -> None:
    error = ProviderUnavailable("no", details={"provider": "space"}, retry_after=3.0)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.details, again.retry_after) == (type(error), error.details, 3.0)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_place_and_a_time_do_not_leave(
    orientation: int, serve: Callable[..., Peer], infer: Callable[..., Any]
) -> None:
    """What is sent is the picture: upright, and without its metadata."""
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(picture(size_wh=(96, 160))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "A camera at home"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, comment=b"at home")
    peer = serve(HubScript(png(Image.new("L", (64, 64), 255))))
    provider = HuggingFace(base_url=peer.base_url, accept_noncommercial=True)
    infer(Fallback([provider]), data=buffer.getvalue(), subject="all")
    (received,) = peer.received
    assert b"home" not in received.body
    assert Image.open(io.BytesIO(received.body)).size == ((96, 160) if orientation == 1 else (160, 96))
