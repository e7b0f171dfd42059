"""Pictures by URL, enlarging, videos, and the GPU's memory: what reaches other services, here peers on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from tests.client.hosted.peers import Peer as HostedPeer
from tests.client.hosted.peers import ReplicateScript, Reply, encoded, picture
from tests.runtime.leftovers import wait_for
from tests.service.services import Running, data_uri, opened, service_before


class Peer(BaseHTTPRequestHandler):
    """Pictures to download, and D-ID's API: `/images`, `/talks`, `/talks/{id}`."""

    picture = b""
    seen: ClassVar[list[tuple[str, str, bytes]]] = []

    def do_GET(self) -> None:
        if self.path == "/photo.jpg":
            self.answer(200, self.picture, "image/jpeg")
        elif self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:1/secret")
            self.end_headers()
        elif self.path == "/endless":
            self.answer(200, bytes(12 * 1024 * 1024), "image/jpeg")
        elif self.path == "/talks/tlk_1":
            self.answer(200, json.dumps({"id": "tlk_1", "status": "done", "result_url": "https://d/v.mp4"}).encode())
        else:
            self.answer(404, json.dumps({"kind": "NotFoundError", "description": "not found"}).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers["Authorization"], body))
        if "wrong" in self.headers["Authorization"]:
            self.answer(401, b'{"kind": "AuthorizationError", "description": "user unauthenticated"}')
        elif self.path == "/images":
            self.answer(201, b'{"id": "img_1", "url": "s3://d-id-images-prod/portrait.jpg"}')
        else:
            self.answer(201, b'{"id": "tlk_1", "object": "talk", "status": "created"}')

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def peer(samples: list[Path]) -> Iterator[str]:
    Peer.picture = samples[0].read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Peer)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def open_service(triton: dict[str, str], peer: str) -> Iterator[Running]:
    """One in a closed network, with D-ID's API at the peer."""
    options = ("--image-private", "--did-url", peer, "--free-per-second", "100", "--free-per-minute", "1000")
    with service_before(triton, *options) as running:
        yield running


def test_a_picture_by_url(open_service: Running, peer: str) -> None:
    answer = open_service.post("/v1.0/removebg", data={"image_url": f"{peer}/photo.jpg"})
    assert opened(answer.content).mode == "RGBA"


@pytest.mark.parametrize(
    ("path", "code"),
    [("/none.jpg", "failed_image_download"), ("/endless", "file_too_large"), ("/away", "failed_image_download")],
)
def test_what_cannot_be_downloaded_says_so(open_service: Running, peer: str, path: str, code: str) -> None:
    answer = open_service.post("/v1.0/removebg", data={"image_url": peer + path})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, code)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "2130706433", "0"])
def test_private_addresses_are_never_asked(service: Running, peer: str, host: str) -> None:
    port = peer.rpartition(":")[2]
    before = len(Peer.seen)
    answer = service.post("/v1.0/removebg", data={"image_url": f"http://{host}:{port}/photo.jpg"})
    assert answer.json()["errors"][0]["code"] == "failed_image_download"
    assert len(Peer.seen) == before


def test_only_hosts_of_the_list_are_asked(triton: dict[str, str], peer: str) -> None:
    with service_before(triton, "--image-private", "--image-hosts", "pictures.example") as service:
        answer = service.post("/v1.0/removebg", data={"image_url": f"{peer}/photo.jpg"})
        assert answer.json()["errors"][0]["code"] == "failed_image_download"


def chosen(service: Running, samples: list[Path]) -> dict[str, Any]:
    files = {"image": samples[0].read_bytes()}
    found = service.post("/api/person-detection/detect", files=files).json()
    return {"image_id": found["image_id"], "persons": found["persons"], "selected_person_ids": [0], "text": "Hello"}


def test_a_persons_portrait_goes_to_d_id(open_service: Running, samples: list[Path]) -> None:
    Peer.seen.clear()
    given = chosen(open_service, samples)
    headers = {"X-DID-Key": "user:secret"}
    answer = open_service.post("/api/video/generate-from-persons", json=given, headers=headers).json()
    (task,) = answer["data"]["task_ids"]
    assert answer["success"] is True
    assert (task["person_id"], task["task_id"], task["status"]) == (0, "tlk_1", "queued")
    (first, second) = Peer.seen
    assert first[0] == "/images"
    assert first[1] == second[1] == "Basic dXNlcjpzZWNyZXQ="
    portrait = opened(first[2].partition(b"\r\n\r\n")[2])
    assert (portrait.format, portrait.size) == ("JPEG", (1024, 1024))
    talk = json.loads(second[2])
    assert talk["source_url"].startswith("s3://")
    assert talk["script"]["input"] == "Hello"
    state = open_service.get("/api/video/status/tlk_1", headers=headers).json()
    assert state == {"task_id": "tlk_1", "status": "completed", "video_url": "https://d/v.mp4"}


def test_a_wrong_key_and_none_say_so(open_service: Running, samples: list[Path]) -> None:
    given = chosen(open_service, samples)
    wrong = open_service.post("/api/video/generate-from-persons", json=given, headers={"X-DID-Key": "wrong"})
    assert wrong.status_code == 401
    assert "unauthenticated" in wrong.json()["error"]["message"]
    none = open_service.post("/api/video/generate-from-persons", json=given)
    assert (none.status_code, none.json()["error"]["code"]) == (404, "NOT_CONFIGURED")


def test_enlarging_says_how_to_configure_it(service: Running, samples: list[Path]) -> None:
    answer = service.post("/api/ai/hd-image", json={"image": data_uri(samples[0].read_bytes())})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_CONFIGURED")
    assert "--hosted" in answer.json()["error"]["user_action"]


def test_replicate_enlarges_and_never_gets_a_picture_to_cut_out(triton: dict[str, str]) -> None:
    larger = encoded(opened(picture()).resize((640, 384)))
    script = ReplicateScript(file=Reply(body=larger, headers={"Content-Type": "image/png"}))
    with HostedPeer(script) as peer:
        script.base = peer.base_url
        hosted = ("--hosted", f"replicate={peer.base_url}")
        away = triton | {"grpc": "127.0.0.1:1"}
        with service_before(away, *hosted, REPLICATE_API_TOKEN="r8_secret") as service:
            given = {"image": data_uri(picture(), "image/png"), "scale": 4}
            answer = service.post("/api/ai/hd-image", json=given).json()
            asked = len(peer.received)
            refused = service.remove(picture(), "photo.png", "image/png")
        assert answer["success"] is True
        assert answer["image"] == data_uri(larger, "image/png")
        facts = {name: answer[name] for name in ("width", "height", "provider", "tier", "tried")}
        assert facts == {"width": 640, "height": 384, "provider": "replicate", "tier": 3, "tried": []}
        assert peer.received[0].headers["authorization"] == "Bearer r8_secret"
        assert peer.received[0].json()["input"]["scale"] == 4
        assert (refused.status_code, refused.json()["error_code"]) == (503, "UNAVAILABLE")
        assert len(peer.received) == asked


def test_a_hosted_model_that_fails_is_an_error_without_its_token(triton: dict[str, str]) -> None:
    with HostedPeer(ReplicateScript(states=["failed"], error="CUDA out of memory")) as peer:
        hosted = ("--hosted", f"replicate={peer.base_url}")
        with service_before(triton, *hosted, REPLICATE_API_TOKEN="r8_secret") as service:
            answer = service.post("/api/ai/hd-image", json={"image": data_uri(picture(), "image/png"), "scale": 2})
    assert answer.status_code in (500, 503)
    assert answer.json()["success"] is False
    assert "r8_secret" not in answer.text


def test_a_full_gpu_refuses_pictures_until_memory_is_free(triton: dict[str, str], samples: list[Path]) -> None:
    """Triton's own lines, from a peer that says what a GPU's would; both endpoints, each in its form."""
    used = {"bytes": 15_900}

    def metrics(_: Any) -> Reply:
        line = 'nv_gpu_memory_{}_bytes{{gpu_uuid="GPU-1"}} {:e}\n'
        return Reply(body=(line.format("total", 16_000e6) + line.format("used", used["bytes"] * 1e6)).encode())

    with HostedPeer(metrics) as peer, service_before(triton | {"metrics": f"127.0.0.1:{peer.port}"}) as service:
        data = samples[0].read_bytes()
        full = service.remove(data)
        assert (full.status_code, full.headers["retry-after"]) == (503, "30")
        found = full.json()
        assert found["error_code"] == "GPU_MEMORY_EXHAUSTED"
        assert (found["gpu_memory_required_mb"], found["gpu_memory_available_mb"], found["retry_after"]) == (
            600,
            95,
            30,
        )
        assert found["suggested_action"]
        detect = service.post("/api/person-detection/detect", files={"image": data})
        assert (detect.status_code, detect.json()["error"]["code"]) == (503, "GPU_OOM")
        used["bytes"] = 8_000
        assert wait_for(lambda: service.remove(data).status_code == 200)
        health = service.get("/api/background-removal/health").json()
        assert health["gpu_memory_free_mb"] == pytest.approx(8_000e6 / 2**20, abs=1)


def test_health_without_triton_is_unhealthy(triton: dict[str, str]) -> None:
    away = dict.fromkeys(triton, "127.0.0.1:1")
    with service_before(away) as service:
        answer = service.get("/api/background-removal/health")
    found = answer.json()
    assert (answer.status_code, found["status"], found["error"]) == (503, "unhealthy", "UNAVAILABLE")
    assert found["detail"]
    assert "/" not in found["detail"]
