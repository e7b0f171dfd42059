"""Faults on the way to a file: broken connections, refusals, odd servers. They end in the whole file or in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from export.fetching import FetchError, NoNetwork, NotAllowed, NotThere, WrongContent, fetch_weights
from tests.export.fetching import (
    DETECTOR,
    MATTE,
    MIB,
    REPOSITORY,
    TOKEN,
    archive,
    digest,
    files_in,
    safetensors,
    settings,
)
from tests.export.loopback_hub import LoopbackHub, Reply, breaks_after, loopback_hub


def ranges(hub: LoopbackHub) -> list[str | None]:
    """Of each request to the CDN, what part it asked for."""
    return [each.headers.get("range") for each in hub.cdn.received]


def test_a_broken_connection_goes_on_where_it_stopped(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults += [breaks_after(MIB), breaks_after(MIB), breaks_after(17)]
    path = fetch_weights(MATTE, settings(hub, tmp_path))
    assert path.read_bytes() == safetensors()
    first, *others = ranges(hub)
    assert first is None
    begins = [int(str(each).removeprefix("bytes=").removesuffix("-")) for each in others]
    assert begins == [MIB, 2 * MIB, 2 * MIB]


def test_connections_that_are_reset(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults += [breaks_after(2 * MIB, reset=True), breaks_after(9, reset=True)]
    assert fetch_weights(MATTE, settings(hub, tmp_path)).read_bytes() == safetensors()
    assert len(hub.cdn.received) == 3


@pytest.mark.parametrize("weights", [MATTE, DETECTOR], ids=["hub", "release"])
def test_a_later_run_goes_on_where_the_first_was_given_up(hub: LoopbackHub, tmp_path: Path, weights: object) -> None:
    hub.faults += [breaks_after(2 * MIB), *[breaks_after(0)] * 5]
    with pytest.raises(NoNetwork, match=r"cannot be reached .*; what was fetched is kept"):
        fetch_weights(weights, settings(hub, tmp_path))  # type: ignore[arg-type]
    (part,) = files_in(tmp_path / "weights")
    assert part.endswith(".part")
    size = (tmp_path / "weights" / part).stat().st_size
    assert size == 2 * MIB
    before = len(hub.cdn.received)
    path = fetch_weights(weights, settings(hub, tmp_path))  # type: ignore[arg-type]
    assert path.read_bytes() in (safetensors(), archive())
    assert ranges(hub)[before:] == [f"bytes={size}-"]
    assert files_in(tmp_path / "weights") == {path.name}


def test_a_server_without_ranges_sends_the_file_anew(hub: LoopbackHub, tmp_path: Path) -> None:
    def whole(_: Reply) -> Reply:
        return Reply(200, {}, safetensors())

    hub.faults += [breaks_after(2 * MIB), whole]
    assert fetch_weights(MATTE, settings(hub, tmp_path)).read_bytes() == safetensors()


def test_a_server_that_sends_another_part_is_not_believed(hub: LoopbackHub, tmp_path: Path) -> None:
    def shifted(reply: Reply) -> Reply:
        size = len(safetensors())
        return Reply(206, {"Content-Range": f"bytes 0-{size - 1}/{size}"}, safetensors())

    hub.faults += [breaks_after(2 * MIB), shifted]
    with pytest.raises(WrongContent, match="another number of bytes"):
        fetch_weights(MATTE, settings(hub, tmp_path))
    assert files_in(tmp_path / "weights") == set()
    assert fetch_weights(MATTE, settings(hub, tmp_path)).read_bytes() == safetensors()


def test_a_part_that_is_whole_is_not_fetched_again(hub: LoopbackHub, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / f"birefnet-x.safetensors.{digest(safetensors())[:12]}.part").write_bytes(safetensors())
    assert fetch_weights(MATTE, settings(hub, tmp_path)).read_bytes() == safetensors()
    assert hub.cdn.received == []


def test_a_part_with_wrong_bytes_is_found_out(hub: LoopbackHub, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    part = weights / f"birefnet-x.safetensors.{digest(safetensors())[:12]}.part"
    part.write_bytes(b"x" * MIB)
    with pytest.raises(WrongContent, match="bad checksum"):
        fetch_weights(MATTE, settings(hub, tmp_path))
    assert files_in(weights) == set()
    assert fetch_weights(MATTE, settings(hub, tmp_path)).read_bytes() == safetensors()


def test_more_bytes_than_announced(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults.append(lambda reply: Reply(200, {}, safetensors() + b"more"))
    with pytest.raises(WrongContent, match="sends another number of bytes than it announced"):
        fetch_weights(MATTE, settings(hub, tmp_path))


def test_a_busy_server_is_asked_again(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.hub_faults += [Reply(503), Reply(429)]
    hub.faults += [lambda _: Reply(503, {"Retry-After": "0"}), lambda _: Reply(500)]
    assert fetch_weights(MATTE, settings(hub, tmp_path)).read_bytes() == safetensors()


def test_a_server_that_stays_busy(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.hub_faults += [Reply(503)] * 4
    with pytest.raises(FetchError, match=r"127\.0\.0\.1 is overloaded or out of order \(status 503\); try again later"):
        fetch_weights(MATTE, settings(hub, tmp_path))
    hub.faults += [lambda _: Reply(502)] * 4
    with pytest.raises(FetchError, match=r"127\.0\.0\.1 is overloaded or out of order \(status 502\); try again"):
        fetch_weights(MATTE, settings(hub, tmp_path))


def test_a_page_in_place_of_the_file(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults.append(lambda _: Reply(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>Log in"))
    with pytest.raises(WrongContent, match=r"bad checksum: .* \(a login page, a proxy\)"):
        fetch_weights(DETECTOR, settings(hub, tmp_path))


@pytest.mark.parametrize(
    ("gated", "token", "kind", "line"),
    [
        (
            True,
            None,
            NotAllowed,
            "owner/BiRefNet_x is gated; accept its licence at {hub}/owner/BiRefNet_x, make a token",
        ),
        (
            True,
            TOKEN,
            NotAllowed,
            "the account of your token has no access; accept its licence at {hub}/owner/BiRefNet_x",
        ),
        (
            False,
            "hf_wrong",
            NotAllowed,
            "127.0.0.1 refused your token for owner/BiRefNet_x (status 401); make a new one",
        ),
    ],
)
def test_401_and_403(
    hub: LoopbackHub, tmp_path: Path, gated: bool, token: str | None, kind: type[Exception], line: str
) -> None:
    hub.repositories[REPOSITORY].gated = gated
    with pytest.raises(kind) as refused:
        fetch_weights(MATTE, settings(hub, tmp_path, token=token))
    assert line.format(hub=hub.url) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert token is None or token not in str(refused.value)
    assert len(hub.hub.received) == 1, "asking again would not help"


@pytest.mark.parametrize(
    ("change", "token", "line"),
    [
        (
            {"repository": "owner/none"},
            None,
            "127.0.0.1 has no repository owner/none, or it is private; for a private one",
        ),
        (
            {"repository": "owner/none"},
            TOKEN,
            "owner/none, or it is private; the account of your token does not see it",
        ),
        ({"revision": "v9"}, None, "127.0.0.1 has no revision v9 of owner/BiRefNet_x"),
        ({"file": "none.safetensors"}, None, "127.0.0.1 has no none.safetensors in owner/BiRefNet_x at main"),
    ],
)
def test_404_of_the_hub(hub: LoopbackHub, tmp_path: Path, change: dict[str, str], token: str | None, line: str) -> None:
    with pytest.raises(NotThere) as missing:
        fetch_weights(replace(MATTE, **change), settings(hub, tmp_path, token=token))  # type: ignore[arg-type]
    assert line in str(missing.value)
    assert "\n" not in str(missing.value)


def test_404_and_403_of_a_release(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(NotThere, match=r"127\.0\.0\.1 has no yolov8n-seg\.pt in release v2 of owner/assets"):
        fetch_weights(replace(DETECTOR, revision="v2"), settings(hub, tmp_path))
    hub.faults.append(lambda _: Reply(403))
    with pytest.raises(NotAllowed, match=r"refuses yolov8n-seg\.pt of release v1 of owner/assets \(status 403\)"):
        fetch_weights(DETECTOR, settings(hub, tmp_path))


def test_a_signature_that_ran_out_is_made_anew_by_the_next_run(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.faults.append(lambda _: Reply(403))
    with pytest.raises(NotAllowed, match="wants a token for owner/BiRefNet_x"):
        fetch_weights(MATTE, settings(hub, tmp_path))
    assert fetch_weights(MATTE, settings(hub, tmp_path)).read_bytes() == safetensors()


def test_a_server_that_is_no_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.hub_faults.append(Reply(200, {"Content-Type": "text/plain"}, b"hello"))
    with pytest.raises(FetchError, match="does not answer as a Hub does"):
        fetch_weights(MATTE, settings(hub, tmp_path))


@pytest.mark.parametrize("weights", [MATTE, DETECTOR], ids=["hub", "release"])
def test_no_network(tmp_path: Path, weights: object) -> None:
    with loopback_hub() as stopped:
        nobody = settings(stopped, tmp_path)
    with pytest.raises(
        NoNetwork, match=r"127\.0\.0\.1 cannot be reached \(.*\); check the network, or take the files"
    ) as gone:
        fetch_weights(weights, nobody)  # type: ignore[arg-type]
    assert "\n" not in str(gone.value)


def test_a_redirect_in_a_circle(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.hub_faults += [Reply(302, {"Location": "/circle"})] * 50
    with pytest.raises(FetchError, match=r"Exceeded maximum allowed redirects"):
        fetch_weights(DETECTOR, settings(hub, tmp_path))
