"""Bulk jobs on a real Ray: every picture once, whatever ends a job."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cutaway
import httpx
import obstore
import pyarrow as pa
import pyarrow.parquet
import pytest
from obstore.store import from_url
from PIL import Image

from bulk.sources import find, read
from runtime.checks import free_ports
from tests.bulk.commands import FULL_SHARE, ROOT, bulk, end, files, gone, processes, rows, start, wait_for

pytestmark = pytest.mark.timeout(1800)
"""A machine that is busy takes minutes to start a Ray."""

WORKER, OTHERS = "ray::MapWorker", "ray"


@pytest.fixture(scope="module")
def photograph(samples: list[Path]) -> bytes:
    """A person in 300×300 px."""
    with Image.open(next(path for path in samples if path.stem == "astronaut")) as image:
        buffer = io.BytesIO()
        image.resize((300, 300)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def photographs(folder: Path, data: bytes, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03}.jpg").write_bytes(data)
    return folder


def test_a_folder_gives_what_the_server_gives(
    server: Any, samples: list[Path], photograph: bytes, tmp_path: Path
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(ROOT / "samples", source, ignore=shutil.ignore_patterns("*.mp4", "*.md"))
    (source / "more" / "astronaut.png").write_bytes((source / "astronaut.jpg").read_bytes())
    (source / "ä #1%20?.jpg").write_bytes(photograph)
    (source / f"{'long' * 60}.jpg").write_bytes(photograph)
    bad = {
        "half.jpg": (photograph[: len(photograph) // 2], "CORRUPT_IMAGE"),
        "text.jpg": (b"no picture", "INVALID_FORMAT"),
        "large.jpg": (b"\xff\xd8" + bytes(11 * 2**20), "FILE_TOO_LARGE"),
        "tab\t.jpg": (photograph, "FILE_ERROR"),  # a name that the library of stores does not know
    }
    for name, (data, _) in bad.items():
        (source / name).write_bytes(data)
    (source / "._hidden.jpg").write_bytes(b"")
    (source / "notes.txt").write_text("no picture")

    code, said = bulk(source, "-o", output, workers=2)
    assert code == 1, said
    assert "9 of 13 pictures done; 4 failed (1 CORRUPT_IMAGE, 1 FILE_ERROR, 1 FILE_TOO_LARGE, 1 INVALID_FORMAT)" in said
    found = rows(output)
    assert {name: found[name]["code"] for name in bad} == {name: code for name, (_, code) in bad.items()}
    assert all(found[name]["message"] and not found[name]["outputs"] for name in bad)
    good = set(found) - set(bad)
    with cutaway.Client(server.grpc_url) as client:
        for name in good:
            (path,), (digest,) = found[name]["outputs"], found[name]["sha256"]
            data = (output / path).read_bytes()
            assert data == client.cut(source / name, subject="auto").images[0], f"{name} is another than the server's"
            assert hashlib.sha256(data).hexdigest() == digest
            assert json.loads(found[name]["report"])["models"]["detector"]["version"] in found[name]["models"]
    assert len(files(output)) == len(good), "two pictures have one name"
    assert {"more/astronaut.png.png", "astronaut.jpg.png"} <= set(files(output))

    before = files(output)
    (source / "tab\t.jpg").unlink()
    code, said = bulk(source, "-o", output)
    assert code == 1
    assert "9 there already" in said
    assert files(output) == before
    for changed, word in ((["--subject", "all"], "options was"), ([], "source was")):
        code, said = bulk(source if changed else source / "more", "-o", output, *changed)
        assert code == 2
        assert "belongs to another job" in said
        assert word in said
    code, said = bulk(source, "-o", source / "more")
    assert code == 2
    assert "holds files of something else" in said


def test_lists_on_a_cluster(photograph: bytes, tmp_path: Path) -> None:
    short = tempfile.mkdtemp(prefix="ray-")  # the names of its sockets must not become too long
    (port,) = free_ports("127.0.0.1", 1)
    log = tmp_path / "ray.log"
    ray = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    ray += ["--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--object-store-memory={100 * 2**20}"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    folder = photographs(tmp_path / "in", photograph, 3)
    listed = [
        "in/000.jpg",
        f"file://{folder}/001.jpg",
        str(folder / "002.jpg"),
        "in/none.jpg",
        "in/000.jpg",
        "in/../in/000.jpg",
    ]
    with (tmp_path / "list.csv").open("w") as file:
        csv.writer(file).writerows([["id", "uri"], *enumerate(listed)])
    pa.parquet.write_table(pa.table({"path": listed}), tmp_path / "list.parquet")
    with log.open("w") as said_by_ray:
        head = subprocess.Popen(
            [*map(str, ray), f"--temp-dir={short}"],
            env=os.environ | token | FULL_SHARE,
            stdout=said_by_ray,
            stderr=said_by_ray,
        )
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text(), head)
        os.environ.update(token)
        options = ["--subject", "each", "--output", "mask", "--address", f"127.0.0.1:{port}"]
        code, said = bulk(tmp_path / "list.csv", "-o", tmp_path / "out", "--column", "uri", *options, workers=2)
        assert code == 1, said
        assert "3 of 4 pictures done; 1 failed (1 FILE_ERROR)" in said
        found = rows(tmp_path / "out")
        assert found[f"{folder}/none.jpg"]["code"] == "FILE_ERROR"
        outputs = [path for row in found.values() for path in row["outputs"]]
        assert sorted(outputs) == sorted(files(tmp_path / "out"))
        for row in found.values():
            ids = [cutout["id"] for cutout in json.loads(row["report"] or '{"cutouts": []}')["cutouts"]]
            assert [path.split(".")[-2] for path in row["outputs"]] == [str(each) for each in ids]
            assert bool(ids) == (row["code"] == "OK")
        shutil.copy(folder / "000.jpg", folder / "none.jpg")
        code, said = bulk(tmp_path / "list.parquet", "-o", tmp_path / "out", *options, workers=2)
        assert code == 0, said
        assert "1 of 4 pictures done; 3 there already" in said
        assert rows(tmp_path / "out")[f"{folder}/none.jpg"]["code"] == "OK", "what was missing is tried again"
    finally:
        for name in token:
            os.environ.pop(name, None)
        started = processes(head)
        head.terminate()
        head.wait(60)
        wait_for(lambda: gone(started))
        shutil.rmtree(short, ignore_errors=True)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket's URL; the environment has what its library asks for."""
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("w") as said:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", "0"], stderr=said, stdout=said)
    given: dict[str, str] = {}
    try:
        port = wait_for(lambda: log.read_text().partition("http://127.0.0.1:")[2].split("\n")[0].strip())
        endpoint = f"http://127.0.0.1:{port}"
        httpx.put(f"{endpoint}/pictures", trust_env=False, timeout=120).raise_for_status()
        given = {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
        given |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        os.environ.update(given)
        yield "s3://pictures"
    finally:
        for name in given:
            del os.environ[name]
        process.terminate()
        process.wait(30)


def test_a_bucket_with_shared_networks(s3: str, photograph: bytes) -> None:
    bucket = from_url(s3)
    for name in ("in/a.jpg", "in/b/ü 1.jpg", "in/c.jpg"):
        obstore.put(bucket, name, photograph)
    options = ["--output", "layers", "--shared", "1"]
    code, said = bulk(f"{s3}/in", "-o", f"{s3}/in/out", *options, workers=3)
    assert code == 0, said
    names = {entry["path"] for batch in obstore.list(bucket, prefix="in/out") for entry in batch}
    made = {"in/out/a.jpg.zip", "in/out/b/ü 1.jpg.zip", "in/out/c.jpg.zip"}
    assert made <= names
    layers = {bytes(obstore.get(bucket, name).bytes()) for name in made}
    assert len(layers) == 1, "batches gave other bytes"
    assert zipfile.ZipFile(io.BytesIO(layers.pop())).namelist() == ["color.jpg", "alpha.png"]
    code, said = bulk(f"{s3}/in", "-o", f"{s3}/in/out", *options)
    assert code == 0
    assert "3 there already" in said
    obstore.put(bucket, "lists/few.csv", b"path\n../in/a.jpg\n")
    root, listed = find(f"{s3}/lists/few.csv", "/elsewhere", "path")
    assert (listed, read(root, listed[0])) == ([f"{s3}/in/a.jpg"], photograph)
    # As after a job that ended between a cut-out and its row: what is there is not written again.
    wrong = b"the first writer's"
    obstore.put(bucket, "in/out/a.jpg.zip", wrong)
    manifest = [entry["path"] for batch in obstore.list(bucket, prefix="in/out/_cutaway/manifest") for entry in batch]
    for part in manifest:
        obstore.delete(bucket, part)
    code, said = bulk(f"{s3}/in", "-o", f"{s3}/in/out", *options)
    assert code == 0, said
    assert bytes(obstore.get(bucket, "in/out/a.jpg.zip").bytes()) == wrong


def test_more_networks_than_gpus_are_refused(photograph: bytes, tmp_path: Path) -> None:
    source = photographs(tmp_path / "in", photograph, 1)
    code, said = bulk(source, "-o", tmp_path / "out", "--device", "cuda", "--shared", "1")
    assert code == 2
    assert "--shared 1 wants a GPU for each, and Ray sees 0" in said


def test_a_job_that_is_interrupted_and_killed_goes_on(photograph: bytes, tmp_path: Path) -> None:
    source, output = photographs(tmp_path / "in", photograph, 60), tmp_path / "out"
    before: dict[str, int] = {}
    for ending, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        known = len(before)
        with start(source, "-o", output) as job:
            wait_for(lambda known=known: len(files(output)) >= known + 5, job)
            started = processes(job, OTHERS)
            job.send_signal(ending)
            ended, said = end(job)
        assert ended == code, said
        assert ("; the same command" in said or "not tried" in said) == (ending is signal.SIGINT)
        wait_for(lambda started=started: gone(started))
        now = files(output)
        assert before.items() <= now.items(), "a cut-out was written twice"
        before = now
    assert len(before) < 60, "the job was too quick to be killed"
    code, said = bulk(source, "-o", output)
    assert code == 0, said
    assert before.items() <= files(output).items(), "a cut-out was written twice"
    assert len(files(output)) == len(rows(output)) == 60
    assert {row["code"] for row in rows(output).values()} == {"OK"}


def test_a_picture_that_ends_its_worker_is_given_up(photograph: bytes, tmp_path: Path) -> None:
    """The worker is killed whenever it waits for one picture, and once more after it."""
    asked = threading.Semaphore(0)
    over = threading.Event()

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.release()
            over.wait(0.0 if len(kills) >= 3 else 240.0)
            self.send_response(200)
            self.send_header("Content-Length", str(len(photograph)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the worker is dead
                self.wfile.write(photograph)

        def log_message(self, *_: Any) -> None: ...

    kills: list[int] = []
    slow = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=slow.serve_forever, daemon=True).start()
    folder, output = photographs(tmp_path / "in", photograph, 60), tmp_path / "out"
    poison = f"http://127.0.0.1:{slow.server_port}/poison.jpg"
    names = [poison, *(str(path) for path in sorted(folder.iterdir()))]
    pa.parquet.write_table(pa.table({"path": names}), tmp_path / "list.parquet")
    try:
        with start(tmp_path / "list.parquet", "-o", output) as job:
            while len(kills) < 4:
                if len(kills) < 3:
                    wait_for(lambda: asked.acquire(blocking=False), job)
                    time.sleep(1)  # the worker asks the ledger, and then waits for the file
                else:
                    wait_for(lambda: len(files(output)) >= 4, job)
                worker = wait_for(lambda: processes(job, WORKER), job)[0]
                os.kill(worker, signal.SIGKILL)
                kills.append(worker)
            code, said = end(job)
    finally:
        over.set()
        slow.shutdown()
        slow.server_close()
    assert code == 1, said
    found = rows(output)
    assert found[poison]["code"] == "INFERENCE_ERROR"
    assert "ended 2 times during this picture, and before that once in its block" in found[poison]["message"]
    assert [name for name in names[1:] if found[name]["code"] != "OK"] == []
    assert len(files(output)) == 60
