"""``--fallback``: what a specification names, what is sent where, and that a hosted answer is never taken for another.

1. specifications: each form, each refusal, licences and tokens;
2. cut: a dead server, a hosted answer, marked in the line and the JSON;
3. upscale: kept by a name that fits.

Providers' own addresses are those of peers on loopback.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cutaway.cli import codes
from cutaway.cli.options import parse_fallback
from cutaway.contract.errors import InvalidOption
from cutaway.providers import HuggingFace, LicenceNotAccepted, Provider, Replicate, Space
from PIL import Image

from tests.client import peers as tcp
from tests.client.commanding import read_jsonl, run
from tests.client.hosted import peers
from tests.client.hosted.peers import TOKEN, HubScript, Peer, ReplicateScript, Reply, as_json
from tests.client.own_server import own_server

SIZE = peers.SIZE_WH
HUB = ("--fallback", "huggingface:ZhengPeng7/BiRefNet")


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HUGGINGFACE_TOKEN", "HF_TOKEN", "REPLICATE_API_TOKEN", codes.TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(codes.URL_VARIABLE, f"http://127.0.0.1:{tcp.dead_port()}")
    for name in ("a.png", "b.png"):
        Path(name).write_bytes(peers.picture())


@pytest.fixture
def at(serve: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Peer]:
    """A peer at a provider's own address."""

    def start(script: Any, provider: type[Provider] = HuggingFace) -> Peer:
        peer = serve(script)
        monkeypatch.setattr(provider, "default_url", peer.base_url)
        return peer

    return start


# -------------------------------------------------------------------------------------------------- specifications


@pytest.mark.parametrize(
    ("spec", "kind", "model", "base_url"),
    [
        ("huggingface", HuggingFace, "briaai/RMBG-1.4", "https://router.huggingface.co"),
        ("huggingface:ZhengPeng7/BiRefNet", HuggingFace, "ZhengPeng7/BiRefNet", "https://router.huggingface.co"),
        ("replicate", Replicate, "men1scus/birefnet:", "https://api.replicate.com"),
        ("replicate:851-labs/background-remover", Replicate, "851-labs/background-remover:", ""),
        ("replicate:owner/name:0123456789abcdef", Replicate, "owner/name:0123456789abcdef", ""),
        ("space:owner/My.App", Space, "owner/My.App", "https://owner-my-app.hf.space"),
    ],
)
def test_specifications(spec: str, kind: type[Provider], model: str, base_url: str) -> None:
    provider = parse_fallback(spec, accept_noncommercial=True)
    assert isinstance(provider, kind)
    assert provider.model.name.startswith(model)
    assert base_url in ("", provider.base_url)
    assert provider.mattes


@pytest.mark.parametrize(
    ("spec", "scales"),
    [
        ("huggingface", (2, 4)),
        ("huggingface:owner/upscaler", (2, 4)),
        ("replicate", (2, 4)),
        ("replicate:owner/name", (2, 4)),
        ("space:owner/app", (2, 4)),
    ],
)
def test_specifications_for_enlarging_need_no_leave_for_what_mattes(spec: str, scales: tuple[int, ...]) -> None:
    assert parse_fallback(spec, upscales=True).scales == scales


def test_several_at_once(at: Callable[..., Peer]) -> None:
    first, second = at(ReplicateScript(create=as_json({"error": "no"}, 401)), Replicate), at(HubScript())
    assert run("cut", "a.png", "--retries", "0", "--fallback", f"replicate, {HUB[1]}") == codes.OK
    assert (len(first.received), len(second.received)) == (1, 1)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "google",
        "space",
        "space:",
        "space:nobody",
        "replicate:x",
        "huggingface:ftp://a",
        "Replicate",
        "space:http://",
        "space:owner/app#matte",
        "huggingface:https://a.b/c",
    ],
)
def test_specifications_of_nothing(spec: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        parse_fallback(spec, accept_noncommercial=True)
    assert caught.value.details["allowed"]


def test_licences_are_refused_in_the_commands_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LicenceNotAccepted, match=r"RMBG-1\.4"):
        parse_fallback("huggingface")
    assert run("cut", "a.png", "--fallback", "huggingface") == codes.USAGE
    said = capsys.readouterr().err
    assert "RMBG-1.4" in said
    assert "--accept-noncommercial" in said
    assert "accept_noncommercial=True" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cut", "a.png", "--fallback", "nobody"], "cannot be 'nobody': allowed is huggingface"),
        (["upscale", "a.png"], "Missing option '--fallback'"),
        (["upscale", "a.png", "--fallback", "replicate", "--scale", "3"], "'3' is not one of '2', '4'"),
    ],
)
def test_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == codes.USAGE
    assert words in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- cut


def test_a_hosted_answer_is_marked(at: Callable[..., Peer], capsys: pytest.CaptureFixture[str]) -> None:
    peer = at(HubScript())
    arguments = ["cut", "a.png", "b.png", "--retries", "0", *HUB]
    assert run(*arguments) == codes.OK
    shown = capsys.readouterr()
    for name in ("a", "b"):
        assert f"{name}.png → cutouts/{name}.png" in shown.out
    assert shown.out.count(", by huggingface (hosted))") == 2
    assert shown.out.count("(HOSTED_MODEL)") == 2
    assert "2 of 2 pictures done" in shown.err
    with Image.open("cutouts/a.png") as image:
        assert (image.mode, image.size) == ("RGBA", SIZE)
    assert run(*arguments) == codes.OK
    assert "2 skipped, there already" in capsys.readouterr().err
    assert len(peer.received) == 2, "what was paid for is not paid for twice"


def test_json_says_who_served_and_why_not_those_before(
    at: Callable[..., Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    at(HubScript())
    assert run("cut", "a.png", "--json", "--retries", "0", *HUB) == codes.OK
    (form,) = read_jsonl(capsys.readouterr().out)
    assert (form["status"], form["provider"], form["tier"]) == ("done", "huggingface", 2)
    assert [(tried["provider"], tried["code"]) for tried in form["tried"]] == [("triton", "UNAVAILABLE")]
    warnings = {warning["code"]: warning for warning in form["warnings"]}
    assert warnings["HOSTED_MODEL"]["tier"] in (3, 4)
    assert warnings["HOSTED_MODEL"]["request_id"] == form["request_id"]


def test_nobody_is_asked_while_the_own_server_serves(
    at: Callable[..., Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    peer = at(HubScript())
    with own_server("http") as own:
        assert run("cut", "a.png", "--url", own.url, *HUB) == codes.OK
    assert peer.received == []
    assert "hosted" not in capsys.readouterr().out


def test_tokens_come_from_the_environment_and_are_missed(
    at: Callable[..., Peer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = at(HubScript(as_json({"error": "no"}, 401)))
    arguments = ["cut", "a.png", "--retries", "0", *HUB]
    assert run(*arguments) == codes.UNAVAILABLE
    assert "huggingface: " in capsys.readouterr().err
    assert "authorization" not in peer.received[0].headers
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run(*arguments) == codes.UNAVAILABLE
    shown = capsys.readouterr()
    assert peer.received[1].headers["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in shown.err + shown.out


def test_nobody_served(at: Callable[..., Peer], capsys: pytest.CaptureFixture[str]) -> None:
    at(HubScript(Reply(500)))
    assert run("cut", "a.png", "--json", "--retries", "0", *HUB) == 3
    (form,) = read_jsonl(capsys.readouterr().out)
    assert form["error"]["code"] == "UNAVAILABLE"
    assert [tried["provider"] for tried in form["error"]["details"]["tried"]] == ["triton", "huggingface"]


def test_people_are_told_why_nobody_served(
    at: Callable[..., Peer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    at(HubScript(as_json({"error": "The model is gone. " * 50}, 404)))
    arguments = ["cut", "a.png", "--retries", "0", *HUB]
    assert run(*arguments) == codes.UNAVAILABLE
    first, own, hosted, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("a.png: UNAVAILABLE: ")
    assert own.startswith("  triton: ")
    assert "onnect" in own, "that nobody answers there"
    assert hosted.startswith("  huggingface: ")
    assert "The model is gone." in hosted
    assert len(hosted) < 250
    assert run(*arguments, "--json") == codes.UNAVAILABLE
    shown = capsys.readouterr()
    assert "  huggingface: " in shown.err
    read_jsonl(shown.out)


# --------------------------------------------------------------------------------------------------------- upscale


def enlarged(scale: int, media_type: str = "image/png") -> Reply:
    wide, high = SIZE
    data = peers.picture(media_type, (wide * scale, high * scale))
    return Reply(body=data, headers={"Content-Type": media_type})


def test_upscale(at: Callable[..., Peer], capsys: pytest.CaptureFixture[str]) -> None:
    peer = at(HubScript(enlarged(4)))
    assert run("upscale", "a.png", "--scale", "4", *HUB) == codes.OK
    with Image.open("upscaled/a.png") as image:
        assert image.size == (SIZE[0] * 4, SIZE[1] * 4)
    shown = capsys.readouterr().out
    assert shown.startswith("a.png → upscaled/a.png (640×384, ")
    assert "by huggingface (hosted)" in shown
    assert [received.path for received in peer.received] == ["/hf-inference/models/ZhengPeng7/BiRefNet"]
    assert run("upscale", "a.png", "--scale", "4", *HUB) == codes.OK
    assert "1 skipped, there already" in capsys.readouterr().err


def test_what_was_paid_for_is_kept_by_a_name_that_fits(
    at: Callable[..., Peer], capsys: pytest.CaptureFixture[str]
) -> None:
    at(HubScript(enlarged(2, "image/jpeg")))
    assert run("upscale", "a.png", "-o", "large.png", "--json", *HUB) == codes.OK
    (form,) = read_jsonl(capsys.readouterr().out)
    assert [output["path"] for output in form["outputs"]] == ["large.jpg"]
    with Image.open("large.jpg") as image:
        assert image.format == "JPEG"
    assert form["licence"]
    assert run("upscale", "b.png", *HUB) == codes.OK
    assert run("upscale", "b.png", *HUB) == codes.OK
    assert "1 skipped" in capsys.readouterr().err, "by the name that it got"


def test_what_could_be_in_the_way_is_seen_before_anything_is_paid_for(at: Callable[..., Peer]) -> None:
    peer = at(HubScript(enlarged(2, "image/jpeg")))
    Path("upscaled").mkdir()
    Path("upscaled/a.jpg").write_bytes(b"mine")
    assert run("upscale", "a.png", *HUB) == codes.OK
    assert Path("upscaled/a.jpg").read_bytes() == b"mine"
    assert peer.received == []


def test_too_large_to_enlarge_is_not_sent(at: Callable[..., Peer], capsys: pytest.CaptureFixture[str]) -> None:
    peer = at(HubScript())
    Path("large.png").write_bytes(peers.picture(size_wh=(2561, 100)))
    assert run("upscale", "large.png", *HUB) == codes.FAILED
    assert "RESOLUTION_TOO_LARGE" in capsys.readouterr().err
    assert peer.received == []


def test_json_of_errors_has_the_forms_fields(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.png").write_bytes(b"%PDF-1.7")
    assert run("cut", "bad.png", "--json") == codes.FAILED
    shown = capsys.readouterr()
    error: dict[str, Any] = json.loads(shown.out)["error"]
    assert error["code"] == "INVALID_FORMAT"
    assert set(error) == {"code", "message", "tier", "user_action", "retry_after", "details", "request_id"}
    assert error["request_id"]
    assert "bad.png: INVALID_FORMAT" in shown.err, "people are told, too"
