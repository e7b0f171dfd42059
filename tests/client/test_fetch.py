"""Fetching pictures from the web: what is allowed, that no hop leads into the caller's network, and that neither size
nor time of an answer is the other side's choice. Every test runs under threads and under asyncio."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from cutaway.contract.errors import (
    CutawayError,
    FileTooLarge,
    InputError,
    InvalidFormat,
    InvalidOption,
    ProcessingTimeout,
    ServerUnavailable,
)
from cutaway.contract.limits import FETCH_MAX_REDIRECTS, INPUT_LIMITS
from cutaway.fetch import Fetched, Fetcher, FetchRefused
from cutaway.inputs import encode

from tests.client.hosted.peers import Peer, Received, Reply, picture
from tests.client.peers import dead_port, http_answer, tcp_peer

PICTURE = picture("image/jpeg")
JPEG = Reply(body=PICTURE, headers={"Content-Type": "image/jpeg"})
SECRET = "s3cr3t_never_shown"

Fetch = Callable[..., Fetched]


@pytest.fixture(params=["threads", "asyncio"])
def fetch(request: pytest.FixtureRequest) -> Fetch:
    def get(fetcher: Fetcher, url: str, **more: Any) -> Fetched:
        if request.param == "threads":
            return fetcher.fetch(url, **more)
        return asyncio.run(_awaited(fetcher, url, more))

    return get


async def _awaited(fetcher: Fetcher, url: str, more: dict[str, Any]) -> Fetched:
    return await fetcher.fetch_async(url, **more)


@pytest.fixture
def serve() -> Iterator[Callable[..., Peer]]:
    """Start a server of one reply for everything, or of replies by path."""
    with ExitStack() as stack:

        def start(reply: Reply | dict[str, Reply]) -> Peer:
            def answer(received: Received) -> Reply:
                return reply if isinstance(reply, Reply) else reply.get(received.path, Reply(404))

            return stack.enter_context(Peer(answer))

        yield start


def local(*ports: int, **more: Any) -> Fetcher:
    """A fetcher that may reach this machine."""
    allow = [f"{host}:{port}" for port in ports for host in ("127.0.0.1", "localhost")]
    return Fetcher(allow, **{"schemes": ["http"], "allow_private": True, **more})


class Resolver:
    """Stands in for the name servers: names have the given addresses, at first and at any later look-up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **names: list[list[str]]) -> None:
        self.names = {name.replace("_", "."): answers for name, answers in names.items()}
        self.asked: list[str] = []
        self._real = socket.getaddrinfo
        monkeypatch.setattr("cutaway.addresses.socket.getaddrinfo", self)

    def __call__(self, host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        if host not in self.names:
            return self._real(host, port, *rest, **more)
        self.asked.append(host)
        answers = self.names[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


# ------------------------------------------------------------------------------------------------------ what comes


@pytest.mark.parametrize(
    ("content_type", "media_type"),
    [
        ("image/jpeg", "image/jpeg"),
        ("IMAGE/Jpeg; charset=binary", "image/jpeg"),
        ("application/octet-stream", "application/octet-stream"),
    ],
)
def test_a_picture_is_fetched(content_type: str, media_type: str, serve: Callable[..., Peer], fetch: Fetch) -> None:
    peer = serve(Reply(body=PICTURE, headers={"Content-Type": content_type}))
    fetched = fetch(local(peer.port), f"{peer.base_url}/photo.jpg?x=1#part")
    assert (fetched.data, fetched.media_type) == (PICTURE, media_type)
    assert fetched.url == f"{peer.base_url}/photo.jpg?x=1"
    assert encode(fetched.data, media_type=fetched.media_type).data == PICTURE
    (received,) = peer.received
    assert (received.method, received.path) == ("GET", "/photo.jpg?x=1")
    assert received.headers["accept-encoding"] == "identity"
    assert received.headers["host"] == f"127.0.0.1:{peer.port}"
    assert "cookie" not in received.headers


def test_nothing_secret_shows(serve: Callable[..., Peer], fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    caplog.set_level("DEBUG", "cutaway")
    peer = serve({f"/ok?signature={SECRET}": JPEG})
    fetcher = local(peer.port, headers={"Authorization": f"Bearer {SECRET}"})
    fetched = fetch(fetcher, f"{peer.base_url}/ok?signature={SECRET}")
    assert fetched.data == PICTURE
    with pytest.raises(FetchRefused) as refusal:
        fetch(fetcher, f"{peer.base_url}/{SECRET}?signature={SECRET}")
    assert peer.received[-1].headers["authorization"] == f"Bearer {SECRET}"
    assert "GET http://127.0.0.1: fetched" in caplog.text
    for text in (repr(fetcher), repr(fetched), str(refusal.value), repr(refusal.value.details), caplog.text):
        assert SECRET not in text
        assert "signature" not in text


def test_connections_are_not_kept(serve: Callable[..., Peer], fetch: Fetch) -> None:
    peer = serve(JPEG)
    fetcher = local(peer.port)
    for _ in range(3):
        assert fetch(fetcher, peer.base_url).data == PICTURE
    assert len(peer.received) == 3


def test_threads_share_a_fetcher(serve: Callable[..., Peer]) -> None:
    peer = serve(
        {f"/{number}": Reply(body=b"%d" % number, headers={"Content-Type": "image/png"}) for number in range(16)}
    )
    fetcher, got = local(peer.port), {}

    def work(number: int) -> None:
        got[number] = fetcher.fetch(f"{peer.base_url}/{number}").data

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: b"%d" % number for number in range(16)}


# --------------------------------------------------------------------------------------------------- what is allowed


@pytest.mark.parametrize(
    ("allow", "url"),
    [
        ("images.example.com", "https://images.example.com/a.png"),
        ("images.example.com", "https://IMAGES.Example.COM./a.png"),
        ("images.example.com", "https://images.example.com:443/a.png"),
        ("Images.Example.com.", "https://images.example.com/a.png"),
        ("*.example.com", "https://a.example.com/"),
        ("*.example.com", "https://a.b.example.com/"),
        ("images.example.com:8443", "https://images.example.com:8443/"),
        ("*.example.com:8443", "https://a.example.com:8443/"),
        ("bücher.example", "https://xn--bcher-kva.example/"),
        ("1.1.1.1", "https://1.1.1.1/"),
        ("[2606:4700::1111]:8443", "https://[2606:4700::1111]:8443/"),
    ],
)
def test_urls_that_are_allowed(allow: str, url: str) -> None:
    Fetcher([allow])._checked(url)


@pytest.mark.parametrize(
    ("allow", "url"),
    [
        ("images.example.com", "https://example.com/"),
        ("images.example.com", "https://images.example.com.evil.net/"),
        ("images.example.com", "https://evil-images.example.com/"),
        ("images.example.com", "https://evil.net/images.example.com"),
        ("images.example.com", "https://evil.net#images.example.com"),
        ("images.example.com", "https://evil.net?@images.example.com"),
        ("images.example.com", "https://images.example.com@evil.net/"),
        ("images.example.com", "https://evil.net\\@images.example.com/"),
        ("images.example.com", "https://images.example.com:s3cr3t@images.example.com/"),
        ("images.example.com", "https://user@images.example.com/"),
        ("images.example.com", "http://images.example.com/"),
        ("images.example.com", "ftp://images.example.com/"),
        ("images.example.com", "file:///etc/passwd"),
        ("images.example.com", "//images.example.com/"),
        ("images.example.com", "images.example.com"),
        ("images.example.com", "https:///a.png"),
        ("images.example.com", "https://images.example.com:8443/"),
        ("images.example.com", "https://images.example.com:80/"),
        ("images.example.com", "https://images.example.com:0/"),
        ("images.example.com", "https://images.example.com:99999/"),
        ("images.example.com", "https://images.example.com /"),
        ("images.example.com", "https://[images.example.com/"),
        ("images.example.com", "https://\ud800/"),
        ("images.example.com", "https://images.example.com/\n"),
        ("images.example.com", ""),
        ("images.example.com:8443", "https://images.example.com/"),
        ("*.example.com", "https://example.com/"),
        ("*.example.com", "https://.example.com/"),
        ("*.example.com", "https://badexample.com/"),
        ("127.0.0.1", "https://127.0.0.1/"),
        ("[::1]", "https://[::1]/"),
        ("[::ffff:7f00:1]", "https://[::ffff:127.0.0.1]/"),
        ("169.254.169.254", "https://169.254.169.254/latest/meta-data"),
    ],
)
def test_urls_that_are_refused(allow: str, url: str, fetch: Fetch) -> None:
    with pytest.raises(FetchRefused) as refusal:
        fetch(Fetcher([allow]), url)
    error = refusal.value
    assert isinstance(error, InputError) and not error.retry and error.code == "INVALID_OPTION"
    assert error.details["name"] == "url"
    assert "s3cr3t" not in str(error) + repr(error.details)


@pytest.mark.parametrize("url", [None, 3, b"https://images.example.com/", ["https://images.example.com/"]])
def test_urls_that_are_no_text(url: Any) -> None:
    with pytest.raises(FetchRefused):
        Fetcher(["images.example.com"]).fetch(url)


@pytest.mark.parametrize(
    "wrong",
    [
        {"allow": []},
        {"allow": "images.example.com"},
        {"allow": [""]},
        {"allow": ["*"]},
        {"allow": ["*."]},
        {"allow": ["*.com"]},
        {"allow": ["*.1.1.1.1"]},
        {"allow": ["images.*.com"]},
        {"allow": ["https://images.example.com"]},
        {"allow": ["images.example.com/path"]},
        {"allow": ["user@images.example.com"]},
        {"allow": ["images.example.com:0"]},
        {"allow": ["images.example.com:70000"]},
        {"allow": ["::1"]},
        {"allow": ["a b"]},
        {"allow": [None]},
        {"schemes": []},
        {"schemes": ["ftp"]},
        {"schemes": "https"},
        {"max_bytes": 0},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
        {"headers": {"X-Key": "a\r\nHost: evil"}},
        {"headers": {"X Key": "a"}},
        {"headers": {"Host": "evil"}},
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption) as refusal:
        Fetcher(**{"allow": ["images.example.com"], **wrong})
    assert refusal.value.details["name"] in wrong


# ------------------------------------------------------------------------------------------- the caller's network


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433"])
def test_this_machine_is_not_fetched_from(host: str, serve: Callable[..., Peer], fetch: Fetch) -> None:
    """Also where the allow list names it: whoever means it says `allow_private`."""
    peer = serve(JPEG)
    with pytest.raises(FetchRefused, match="not public"):
        fetch(Fetcher([f"{host}:{peer.port}"], schemes=["http"]), f"http://{host}:{peer.port}/")
    assert peer.received == []


def test_one_private_address_among_several_is_enough(monkeypatch: pytest.MonkeyPatch, fetch: Fetch) -> None:
    Resolver(monkeypatch, images_example_com=[["1.1.1.1", "10.0.0.1"]])
    with pytest.raises(FetchRefused, match="not public"):
        fetch(Fetcher(["images.example.com"]), "https://images.example.com/")


@pytest.mark.parametrize("address", ["169.254.169.254", "100.100.100.200", "0.0.0.0"])
def test_metadata_stays_refused_in_an_intranet(address: str, monkeypatch: pytest.MonkeyPatch, fetch: Fetch) -> None:
    Resolver(monkeypatch, images_example_com=[[address]])
    with pytest.raises(FetchRefused, match="not public"):
        fetch(Fetcher(["images.example.com"], allow_private=True), "https://images.example.com/")


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Peer], fetch: Fetch) -> None:
    """A name server that gives a good address to the check and another one to the connection gains nothing."""
    peer = serve(JPEG)
    names = Resolver(monkeypatch, images_example_com=[["127.0.0.1"], ["10.255.255.1"]])
    fetcher = Fetcher([f"images.example.com:{peer.port}"], schemes=["http"], allow_private=True)
    assert fetch(fetcher, f"http://images.example.com:{peer.port}/").data == PICTURE
    assert names.asked == ["images.example.com"]
    assert peer.received[0].headers["host"] == f"images.example.com:{peer.port}"


def test_an_address_that_is_down_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Peer], fetch: Fetch
) -> None:
    peer = serve(JPEG)
    Resolver(monkeypatch, images_example_com=[["127.0.0.2", "127.0.0.1"]])  # the peer listens on the latter alone
    fetcher = Fetcher([f"images.example.com:{peer.port}"], schemes=["http"], allow_private=True)
    assert fetch(fetcher, f"http://images.example.com:{peer.port}/").data == PICTURE


# ------------------------------------------------------------------------------------------------------ redirects


def redirect(where: str, status: int = 302) -> Reply:
    return Reply(status, headers={"Location": where})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status: int, serve: Callable[..., Peer], fetch: Fetch) -> None:
    other = serve(JPEG)
    peer = serve({"/a": redirect("b?x=1", status), "/b?x=1": redirect(f"{other.base_url}/c", status)})
    fetched = fetch(local(peer.port, other.port), f"{peer.base_url}/a")
    assert (fetched.data, fetched.url) == (PICTURE, f"{other.base_url}/c")


def test_redirects_end(serve: Callable[..., Peer], fetch: Fetch) -> None:
    steps = {f"/{number}": redirect(f"/{number + 1}") for number in range(9)}
    most = FETCH_MAX_REDIRECTS
    peer = serve({**steps, f"/{most}": JPEG})
    assert fetch(local(peer.port), f"{peer.base_url}/0").data == PICTURE
    peer = serve(steps)
    with pytest.raises(FetchRefused, match="more than 3 redirects"):
        fetch(local(peer.port), f"{peer.base_url}/0")
    assert len(peer.received) == most + 1


@pytest.mark.parametrize(
    "where",
    [
        "http://{host}:{port}/",
        "//{host}:{port}/",
        "http://user:pass@127.0.0.1:{own}/",
        "ftp://127.0.0.1:{own}/",
        "http://[",
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_redirects_to_what_is_not_allowed(where: str, host: str, serve: Callable[..., Peer], fetch: Fetch) -> None:
    inside, peer = serve(JPEG), serve(Reply())
    peer.answer = lambda _: redirect(where.format(host=host, port=inside.port, own=peer.port))
    with pytest.raises(FetchRefused):
        fetch(local(peer.port), peer.base_url)
    assert inside.received == []
    assert len(peer.received) == 1


@pytest.mark.parametrize("inside", ["127.0.0.2", "10.0.0.1", "inside.example.com", "[::ffff:127.0.0.2]", "[::1]"])
def test_redirects_into_the_caller_s_network(
    inside: str, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Peer], fetch: Fetch
) -> None:
    """The first host passes for a public one; what it points to does not, however it is written."""
    from cutaway import addresses

    monkeypatch.setattr("cutaway.fetch.is_public", lambda a: a == "127.0.0.1" or addresses.is_public(a))
    names = Resolver(monkeypatch, outside_example_com=[["127.0.0.1"]], inside_example_com=[["192.168.0.1"]])
    peer = serve(Reply())
    peer.answer = lambda _: redirect(f"http://{inside}:{peer.port}/")
    allow = [f"outside.example.com:{peer.port}", f"{inside}:{peer.port}"]
    with pytest.raises(FetchRefused, match="not public"):
        fetch(Fetcher(allow, schemes=["http"]), f"http://outside.example.com:{peer.port}/")
    assert len(peer.received) == 1
    assert names.asked[0] == "outside.example.com"


def test_headers_stay_with_the_first_host(serve: Callable[..., Peer], fetch: Fetch) -> None:
    other = serve(JPEG)
    peer = serve({"/a": redirect("/b"), "/b": redirect(other.base_url)})
    fetch(local(peer.port, other.port, headers={"X-Api-Key": SECRET}), f"{peer.base_url}/a")
    assert [received.headers.get("x-api-key") for received in peer.received] == [SECRET, SECRET]
    assert "x-api-key" not in other.received[0].headers


def test_cookies_are_not_kept(serve: Callable[..., Peer], fetch: Fetch) -> None:
    peer = serve({"/a": Reply(302, headers={"Location": "/b", "Set-Cookie": "a=b"}), "/b": JPEG})
    fetch(local(peer.port), f"{peer.base_url}/a")
    assert all("cookie" not in received.headers for received in peer.received)


# ---------------------------------------------------------------------------------------- answers of the wrong kind


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 204, 206, 304, 300])
def test_refusing_statuses(status: int, serve: Callable[..., Peer], fetch: Fetch) -> None:
    peer = serve(Reply(status, b"" if status in (204, 304) else b"no", {"Content-Type": "image/png"}))
    with pytest.raises(FetchRefused, match=str(status)) as refusal:
        fetch(local(peer.port), peer.base_url)
    assert refusal.value.details["status"] == status
    assert len(peer.received) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_statuses_that_may_change(status: int, serve: Callable[..., Peer], fetch: Fetch) -> None:
    peer = serve(Reply(status, b"later", {"Retry-After": "7", "Content-Type": "image/png"}))
    with pytest.raises(ServerUnavailable, match=str(status)) as refusal:
        fetch(local(peer.port), peer.base_url)
    assert refusal.value.retry and refusal.value.retry_after == 7
    assert len(peer.received) == 1, "whether to try again is the caller's choice"


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/json", "imagejpeg", ""])
def test_other_types(content_type: str, serve: Callable[..., Peer], fetch: Fetch) -> None:
    peer = serve(Reply(body=PICTURE, headers={"Content-Type": content_type} if content_type else {}))
    with pytest.raises(InvalidFormat, match="no picture"):
        fetch(local(peer.port), peer.base_url)


# --------------------------------------------------------------------------------------------------- size and time

MOST = 200_000


def test_the_size_is_capped_to_the_byte(serve: Callable[..., Peer], fetch: Fetch) -> None:
    fits = Reply(body=bytes(MOST), headers={"Content-Type": "image/png"})
    peer = serve({"/fits": fits, "/over": Reply(body=bytes(MOST + 1), headers=fits.headers)})
    fetcher = local(peer.port, max_bytes=MOST)
    assert len(fetch(fetcher, f"{peer.base_url}/fits").data) == MOST
    with pytest.raises(FileTooLarge) as refusal:
        fetch(fetcher, f"{peer.base_url}/over")
    assert refusal.value.details == {"size_bytes": MOST + 1, "max_bytes": MOST}


def test_a_body_without_end_is_given_up(serve: Callable[..., Peer], fetch: Fetch) -> None:
    peer = serve(Reply(headers={"Content-Type": "image/png"}, length=-1))
    fetcher = local(peer.port)
    tracemalloc.start()
    try:
        with pytest.raises(FileTooLarge):
            fetch(fetcher, peer.base_url)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * INPUT_LIMITS.max_file_bytes


@pytest.mark.parametrize("length", [MOST + 1, 10**15])
def test_an_announced_length_is_believed(length: int, fetch: Fetch) -> None:
    """Nothing of the body is waited for: none ever comes."""
    with tcp_peer(http_answer(200, b"", length, Content_Type="image/png")) as port, pytest.raises(FileTooLarge):
        fetch(local(port, max_bytes=MOST), f"http://127.0.0.1:{port}/")


def test_a_body_shorter_than_announced(fetch: Fetch) -> None:
    answer = http_answer(200, PICTURE, len(PICTURE) + 1, Content_Type="image/jpeg")
    with tcp_peer(answer) as port, pytest.raises(ServerUnavailable, match="broke the connection off") as refusal:
        fetch(local(port), f"http://127.0.0.1:{port}/")
    assert refusal.value.retry


def test_a_body_longer_than_announced_is_cut_there(fetch: Fetch) -> None:
    with tcp_peer(http_answer(200, PICTURE, 100, Content_Type="image/jpeg")) as port:
        fetched = fetch(local(port), f"http://127.0.0.1:{port}/")
    assert fetched.data == PICTURE[:100]
    with pytest.raises(InputError):
        encode(fetched.data)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "identity, gzip"])
def test_compressed_bodies_are_not_unpacked(encoding: str, serve: Callable[..., Peer], fetch: Fetch) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    peer = serve(Reply(body=bomb, headers={"Content-Type": "image/png", "Content-Encoding": encoding}))
    with pytest.raises(InvalidFormat, match="not asked for"):
        fetch(local(peer.port), peer.base_url)


def test_a_compressed_body_in_disguise(serve: Callable[..., Peer], fetch: Fetch) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    peer = serve(Reply(body=bomb, headers={"Content-Type": "image/png"}))
    fetched = fetch(local(peer.port), peer.base_url)
    assert fetched.data == bomb
    with pytest.raises(InvalidFormat, match="gzip"):
        encode(fetched.data)


@pytest.mark.parametrize("fault", [{"hang": "before"}, {"hang": "body"}, {"drip": "head"}, {"drip": "body"}])
def test_slow_answers_are_given_up_in_time(fault: dict[str, str], serve: Callable[..., Peer], fetch: Fetch) -> None:
    peer = serve(Reply(body=PICTURE, headers={"Content-Type": "image/png"}, **fault))
    fetcher = local(peer.port)
    started = time.monotonic()
    with pytest.raises(ProcessingTimeout):
        fetch(fetcher, peer.base_url, timeout_s=0.4)
    assert 0.4 <= time.monotonic() - started < 3


def test_the_deadline_is_one_for_all_redirects(serve: Callable[..., Peer], fetch: Fetch) -> None:
    """Each of them would be in time by itself, and then there would be too many."""
    peer = serve(Reply(302, headers={"Location": "/again"}, delay_s=0.3))
    with pytest.raises(ProcessingTimeout):
        fetch(local(peer.port, timeout_s=0.7), peer.base_url)
    assert len(peer.received) <= 3


def test_a_name_server_that_hangs(monkeypatch: pytest.MonkeyPatch, fetch: Fetch) -> None:
    over = threading.Event()
    monkeypatch.setattr("cutaway.addresses.socket.getaddrinfo", lambda *_, **__: over.wait(20) and [])
    started = time.monotonic()
    with pytest.raises(ProcessingTimeout):
        fetch(Fetcher(["images.example.com"], timeout_s=0.3), "https://images.example.com/")
    over.set()
    assert time.monotonic() - started < 3


# ------------------------------------------------------------------------------------------------- unreachable hosts


def test_nothing_listens(fetch: Fetch) -> None:
    port = dead_port()
    with pytest.raises(ServerUnavailable, match="cannot be reached") as refusal:
        fetch(local(port), f"http://127.0.0.1:{port}/")
    assert isinstance(refusal.value, ConnectionError) and refusal.value.retry


def test_names_without_an_address(monkeypatch: pytest.MonkeyPatch, fetch: Fetch) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr("cutaway.addresses.socket.getaddrinfo", none)
    with pytest.raises(ServerUnavailable, match="cannot be reached"):
        fetch(Fetcher(["images.example.com"]), "https://images.example.com/")


@pytest.mark.parametrize("reset", ["before", "body"])
def test_connections_that_break_off(reset: str, serve: Callable[..., Peer], fetch: Fetch) -> None:
    peer = serve(Reply(body=PICTURE, headers={"Content-Type": "image/jpeg"}, reset=reset))
    with pytest.raises(ServerUnavailable, match="broke the connection off"):
        fetch(local(peer.port), peer.base_url)


@pytest.mark.parametrize(
    "said",
    [
        b"220 mail.example ESMTP ready\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 1_000_000,
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_what_is_no_http(said: bytes, fetch: Fetch) -> None:
    def babble(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        with suppress(OSError):
            connection.sendall(said)

    with tcp_peer(babble) as port, pytest.raises(ServerUnavailable, match="broke the connection off"):
        fetch(local(port), f"http://127.0.0.1:{port}/")


def test_a_cancelled_task_ends_the_connection() -> None:
    heard, ended = threading.Event(), threading.Event()

    def hang(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        heard.set()
        connection.settimeout(10)
        if connection.recv(1) == b"":
            ended.set()

    async def main(port: int) -> None:
        task = asyncio.create_task(local(port).fetch_async(f"http://127.0.0.1:{port}/"))
        await asyncio.to_thread(heard.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with tcp_peer(hang) as port:
        asyncio.run(main(port))
        assert ended.wait(10)


# ------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of images.example.com that vouches for itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=images.example.com", "-addext", "subjectAltName=DNS:images.example.com"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@pytest.mark.parametrize(
    ("name", "trusted", "words"),
    [
        ("images.example.com", True, None),
        ("images.example.com", False, "certificate"),
        ("other.example.com", True, "certificate"),
    ],
)
def test_certificates_are_those_of_the_name(
    name: str,
    trusted: bool,
    words: str | None,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    fetch: Fetch,
) -> None:
    """The connection goes to an address, and TLS still asks for the name."""
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    Resolver(monkeypatch, images_example_com=[["127.0.0.1"]], other_example_com=[["127.0.0.1"]])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    asked: list[str | None] = []
    context.sni_callback = lambda _, server_name, __: asked.append(server_name)
    plain = http_answer(200, PICTURE, len(PICTURE), Content_Type="image/jpeg")

    def serve(connection: socket.socket, over: threading.Event) -> None:
        with suppress(ssl.SSLError), closing(context.wrap_socket(connection, server_side=True)) as secure:
            plain(secure, over)

    with tcp_peer(serve) as port:
        fetcher, url = Fetcher([f"{name}:{port}"], allow_private=True), f"https://{name}:{port}/"
        if words is None:
            assert fetch(fetcher, url).data == PICTURE
        else:
            with pytest.raises(ServerUnavailable, match=words):
                fetch(fetcher, url)
    assert asked == [name]


def test_every_refusal_is_typed(fetch: Fetch, serve: Callable[..., Peer]) -> None:
    """The property behind all of the above: nothing of httpx comes through."""
    for reply in (Reply(body=b"x", length=5), Reply(599), Reply(302), Reply(302, headers={"Location": "\x00"})):
        peer = serve(reply)
        with pytest.raises(CutawayError):
            fetch(local(peer.port, timeout_s=2), peer.base_url)
