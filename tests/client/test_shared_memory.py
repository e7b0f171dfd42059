"""Shared memory as far as it needs no server: what is refused, what a region is, and whose regions are left behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cutaway
import pytest
from cutaway.shared_memory import regions
from cutaway.shared_memory.regions import SHM, SMALLEST_BYTES, is_left_behind, make_region
from cutaway.transports import grpc_wire, http_wire
from cutaway.transports.base import InferRequest, MemoryRegion, parse_address
from cutaway.transports.connection import Connection

URL = "grpc://127.0.0.1:1"
CLIENTS = (cutaway.Client, cutaway.AsyncClient)
MIB = 1024 * 1024


def in_memory() -> set[str]:
    return {entry.name for entry in SHM.glob(f"cutaway_picture-*-{os.getpid()}-*")}


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: "disk",
        lambda: cutaway.SharedMemory("disk"),  # type: ignore[arg-type]
        lambda: cutaway.SharedMemory(keep_bytes=-1),
        lambda: cutaway.SharedMemory("cuda", device_id=-1),
    ],
)
def test_what_makes_no_sense(client: Any, make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"shared_memory is|0 or more"):
        client(URL, shared_memory=make())


@pytest.mark.parametrize("client", CLIENTS)
def test_not_with_a_transport_of_ones_own(client: Any) -> None:
    with pytest.raises(ValueError, match="come with the client"):
        client(URL, shared_memory="system", transport=object())


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_other_systems(client: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(RuntimeError, match=r"needs Linux.* win32"):
        client(URL, shared_memory=kind)


@pytest.mark.parametrize("client", CLIENTS)
def test_no_place_for_it(client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(regions, "SHM", tmp_path / "nothing")
    with pytest.raises(RuntimeError, match="cannot write there"):
        client(URL, shared_memory="system")


@pytest.mark.parametrize("client", CLIENTS)
def test_cuda_says_what_is_missing(client: Any) -> None:
    """The package, or the GPU."""
    try:
        import cuda.bindings.runtime as cudart
    except ImportError:
        with pytest.raises(ImportError, match=r"pip install 'cutaway\[cuda\]'"):
            client(URL, shared_memory="cuda")
        return
    error, count = cudart.cudaGetDeviceCount()
    number = 0 if int(error) else count
    with pytest.raises(RuntimeError, match=r"needs a GPU and its driver|there is no GPU"):
        client(URL, shared_memory=cutaway.SharedMemory("cuda", device_id=number))


# --------------------------------------------------------------------------------------------------- the memory


def test_a_region_is_its_users_alone_and_loses_its_name() -> None:
    region = make_region("system", 1000, 0)
    file = SHM / region.name
    assert region.told.key == f"/{region.name}"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_size == region.told.n_bytes == SMALLEST_BYTES
    assert file.stat().st_blocks * 512 >= SMALLEST_BYTES, "memory was not taken when the region was made"
    region.write(b"picture\0")
    assert file.read_bytes().startswith(b"\x08\0\0\0picture\0")
    region.hide()
    region.hide()
    assert not file.exists()
    region.forget()


@pytest.mark.parametrize("n_bytes", [1, SMALLEST_BYTES - 4, SMALLEST_BYTES - 3, 3 * MIB, 10 * MIB])
def test_a_region_holds_the_picture_and_its_length(n_bytes: int) -> None:
    region = make_region("system", n_bytes, 0)
    try:
        assert n_bytes + 4 <= region.told.n_bytes <= max(SMALLEST_BYTES, 2 * (n_bytes + 4))
        region.write(bytes(n_bytes))
    finally:
        region.hide()
        region.forget()


def test_no_room_is_an_error_and_leaves_nothing() -> None:
    before = in_memory()
    with pytest.raises(OSError, match="no shared memory of") as failure:
        make_region("system", 1 << 50, 0)
    assert failure.value.errno in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM)
    assert in_memory() == before
    assert not regions._held


def test_regions_of_the_living_are_not_left_behind() -> None:
    region = make_region("system", 1, 0)
    region.hide()
    assert not is_left_behind(region.name)
    region.forget()
    assert is_left_behind(region.name), "this process has done with it"


def test_whose_regions_are_left_behind() -> None:
    """Another process's while it lives are not, whoever runs it; those of other containers never are."""
    code = "from cutaway.shared_memory.regions import _new_name; print(_new_name(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(cutaway.__file__).parents[1])},
        text=True,
    ) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert not is_left_behind(name)
        word, namespace, pid, started, rest = name.split("-")
        assert is_left_behind("-".join((word, namespace, pid, f"{int(started) - 1}", rest))), "a number used again"
        assert not is_left_behind("-".join((word, "1", pid, started, rest)))
        process.kill()
        process.wait()
        assert is_left_behind(name)
        assert not is_left_behind("-".join((word, "1", pid, started, rest)))
    namespace = regions._namespace()
    assert not is_left_behind(f"cutaway_picture-{namespace}-1-{regions._started(1) or 0}-0123456789abcdef")
    for other in ("", "input_data", "cutaway_picture-1-2", f"{name}0", f"x{name}"):
        assert not is_left_behind(other)


# ----------------------------------------------------------------------------------------------------- the wire

REQUEST = InferRequest("m", b"the picture", ("images",), region="cutaway-1")


def test_the_picture_is_not_sent() -> None:
    (image,) = grpc_wire.message_of(REQUEST, {})["inputs"]
    assert image._get_content() is None
    tensor = image._get_tensor()
    assert tensor.parameters["shared_memory_region"].string_param == "cutaway-1"
    assert tensor.parameters["shared_memory_byte_size"].int64_param == 4 + len(REQUEST.image)
    body, headers = http_wire.message_of(REQUEST, {})
    (head,) = body
    assert headers["Content-Length"] == headers[http_wire.JSON_LENGTH] == str(len(head))
    assert json.loads(head)["inputs"][0]["parameters"] == {
        "shared_memory_region": "cutaway-1",
        "shared_memory_byte_size": 4 + len(REQUEST.image),
    }


def test_how_a_gpus_memory_is_registered() -> None:
    """As tritonclient has it, whose clients take handles in base64."""
    region = MemoryRegion("cuda", "cutaway-1", 64, handle=b"aGFuZGxl", device_id=2)
    method, given = grpc_wire.registering_of(region)
    assert (method, given) == ("register_cuda_shared_memory", ("cutaway-1", b"aGFuZGxl", 2, 64))
    form = json.loads(http_wire.registering_of(region))
    assert form == {"raw_handle": {"b64": "aGFuZGxl"}, "device_id": 2, "byte_size": 64}
    path = http_wire.memory_path(Connection(parse_address("http://h/p")), "cuda", "register", "a/b")
    assert path == "/p/v2/cudasharedmemory/region/a%2Fb/register"
