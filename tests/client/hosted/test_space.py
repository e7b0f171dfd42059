"""Gradio Spaces: upload, call, events, file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cutaway.contract.errors import CorruptImage, InferenceError
from cutaway.providers import InvalidAnswer, ProviderUnavailable, Space

from tests.client.hosted.asking import QUICK, assert_right
from tests.client.hosted.peers import (
    Peer,
    Reply,
    SpaceScript,
    picture,
)


def test_space(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(SpaceScript())
    result = matte(Space(base_url=peer.base_url, arguments=["hi"]))
    assert_right(result)
    assert peer.paths == [
        "POST /gradio_api/upload",
        "POST /gradio_api/call/png",
        "GET /gradio_api/call/png/e1",
        "GET /gradio_api/file=/tmp/gradio/cd34/out.png",
    ]
    upload = peer.received[0]
    assert b'name="files"; filename="picture.png"\r\nContent-Type: image/png\r\n\r\n' + picture() in upload.body
    file, argument = peer.received[1].json()["data"]
    assert file == {
        "path": "/tmp/gradio/ab12/picture.png",
        "orig_name": "picture.png",
        "mime_type": "image/png",
        "meta": {"_type": "gradio.FileData"},
    }
    assert argument == "hi"
    assert "authorization" not in upload.headers


SLIDER = [
    {"path": "/tmp/a.png", "url": "{base}/gradio_api/file=/tmp/a.png"},
    {"path": "/tmp/b.png", "url": "{base}/gradio_api/file=/tmp/b.png"},
]
EVENTS = {
    "a slider's pair": (f"event: complete\ndata: {json.dumps([SLIDER])}\n\n", "/tmp/a.png"),
    "path without url": ('event: complete\ndata: [{"path": "/tmp/x y.png", "url": null}]\n\n', "/tmp/x%20y.png"),
    "a component around it": ('event: complete\ndata: [{"value": {"path": "/tmp/x.png"}}, "12 s"]\n\n', "/tmp/x.png"),
    "carriage returns": ('event: complete\r\ndata: [{"path": "/tmp/x.png"}]\r\n\r\n', "/tmp/x.png"),
    "generating before": (
        'event: generating\ndata: [null]\n\nevent: complete\ndata: [{"path": "/tmp/x.png"}]\n\n',
        "/tmp/x.png",
    ),
}


@pytest.mark.parametrize("events", EVENTS)
def test_space_events(events: str, serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(SpaceScript(events=EVENTS[events][0]))
    assert_right(matte(Space(base_url=peer.base_url)))
    assert peer.paths[-1] == f"GET /gradio_api/file={EVENTS[events][1]}"


@pytest.mark.parametrize(
    ("events", "expected", "words"),
    [
        ("event: error\ndata: null\n\n", InferenceError, "failed"),
        ('event: error\ndata: {"error": "No GPU quota left"}\n\n', InferenceError, "No GPU quota left"),
        ('event: error\ndata: "cannot identify image file"\n\n', CorruptImage, "cannot identify"),
        ("event: heartbeat\ndata: null\n\n", InvalidAnswer, "without a result"),
        ("event: complete\ndata: {oops\n\n", InvalidAnswer, "without a result"),
        ('event: complete\ndata: ["no file"]\n\n', InvalidAnswer, "without a file"),
        ("", InvalidAnswer, "without a result"),
    ],
)
def test_space_ends_badly(
    events: str, expected: type[Exception], words: str, serve: Callable[..., Peer], matte: Callable[..., Any]
) -> None:
    peer = serve(SpaceScript(events=events))
    with pytest.raises(expected, match=words):
        matte(Space(base_url=peer.base_url))


def test_events_whose_server_keeps_the_connection_open(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    events = b'event: complete\ndata: [{"path": "/tmp/x.png"}]\n\n'
    open_end = Reply(body=events * 2, headers={"Content-Type": "text/event-stream"}, hang="body")
    peer = serve(SpaceScript(stream=open_end))
    assert_right(matte(Space(base_url=peer.base_url)))


def test_a_call_that_may_have_been_taken_is_not_repeated(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    """It would wait in the queue behind itself; the upload, which costs nothing, is repeated."""
    peer = serve(SpaceScript(call=Reply(500)))
    with pytest.raises(ProviderUnavailable):
        matte(Space(base_url=peer.base_url, retry=QUICK))
    assert peer.paths == ["POST /gradio_api/upload", "POST /gradio_api/call/png"]


def test_a_sleeping_space_says_so(serve: Callable[..., Peer], matte: Callable[..., Any]) -> None:
    peer = serve(SpaceScript(upload=Reply(body=b"<html>Sleeping", headers={"Content-Type": "text/html"})))
    with pytest.raises(InvalidAnswer, match="asleep"):
        matte(Space(base_url=peer.base_url))


def test_the_address_of_a_space() -> None:
    assert Space("Not_Lain/background.removal").base_url == "https://not-lain-background-removal.hf.space"
