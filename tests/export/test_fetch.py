"""Fetching one file from a hub, a release or a folder: what arrives is whole and the right one, or nothing does."""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from export.fetching import (
    DiskTrouble,
    FetchError,
    NotThere,
    WrongContent,
    check_address,
    fetch_weights,
    host_of,
    writing,
)
from export.locking import alone_in
from tests.export.fetching import (
    COMMIT,
    DETECTOR,
    LATER,
    MATTE,
    MIB,
    REPOSITORY,
    TOKEN,
    archive,
    digest,
    files_in,
    known,
    safetensors,
    settings,
)
from tests.export.loopback_hub import LoopbackHub, loopback_hub


def test_from_the_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    path = fetch_weights(MATTE, settings(hub, tmp_path))
    assert path == tmp_path / "weights" / "birefnet-x.safetensors"
    assert path.read_bytes() == safetensors()
    assert files_in(path.parent) == {path.name}
    asked = [(each.method, each.path) for each in hub.hub.received]
    assert asked == [
        ("HEAD", f"/{REPOSITORY}/resolve/main/model.safetensors"),
        ("GET", f"/{REPOSITORY}/resolve/{COMMIT}/model.safetensors"),
    ]


def test_from_a_release(hub: LoopbackHub, tmp_path: Path) -> None:
    path = fetch_weights(DETECTOR, settings(hub, tmp_path))
    assert path.name == "yolov8n-seg.pt"
    assert path.read_bytes() == archive()
    assert not (path.parent / "SHA256SUMS").exists(), "the catalogue knows the digest: nothing is to be pinned"


def test_a_first_download_is_pinned_and_later_ones_are_held_to_it(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fetch_weights(MATTE, settings(hub, tmp_path))
    sums = path.parent / "SHA256SUMS"
    assert sums.read_text() == f"{digest(safetensors())}  birefnet-x.safetensors\n"
    assert f'sha256 = "{digest(safetensors())}", revision = "{COMMIT}"' in capsys.readouterr().out
    # The branch moves on. What the first download was is what later ones have to be.
    hub.repositories[REPOSITORY].files[LATER] = {"model.safetensors": safetensors(seed=9)}
    hub.repositories[REPOSITORY].branches["main"] = LATER
    path.unlink()
    with pytest.raises(WrongContent, match=r"To take the new one, change its line in .*/SHA256SUMS"):
        fetch_weights(MATTE, settings(hub, tmp_path))
    # As the first run said: with commit and digest in the catalogue the old one is fetched all the same.
    pinned = replace(known(MATTE, safetensors()), revision=COMMIT)
    assert fetch_weights(pinned, settings(hub, tmp_path)).read_bytes() == safetensors()
    assert hub.hub.received[-1].path == f"/{REPOSITORY}/resolve/{COMMIT}/model.safetensors"


def test_a_file_that_was_changed_at_the_hub_is_refused_before_it_is_fetched(hub: LoopbackHub, tmp_path: Path) -> None:
    fetch_weights(MATTE, settings(hub, tmp_path)).unlink()
    hub.repositories[REPOSITORY].files[COMMIT] = {"model.safetensors": safetensors(seed=9)}
    fetched = len(hub.cdn.received)
    with pytest.raises(WrongContent, match=r"has another model\.safetensors of owner/BiRefNet_x than was pinned"):
        fetch_weights(MATTE, settings(hub, tmp_path))
    assert len(hub.cdn.received) == fetched
    assert files_in(tmp_path / "weights") == set()


def test_a_release_asset_that_was_changed_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    fetch_weights(DETECTOR, settings(hub, tmp_path)).unlink()
    (served,) = (path for path in hub.served if path.startswith("/release"))
    hub.served[served] = archive(seed=9)
    with pytest.raises(WrongContent, match=r"bad checksum: yolov8n-seg\.pt from 127\.0\.0\.1 has SHA-256"):
        fetch_weights(DETECTOR, settings(hub, tmp_path))
    assert files_in(tmp_path / "weights") == set()


def test_a_digest_of_the_catalogue_is_held_to(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(WrongContent, match=r"nothing was fetched\. To take the new one, .* export/catalog\.toml"):
        fetch_weights(known(MATTE, b"another"), settings(hub, tmp_path))
    assert hub.cdn.received == []


def test_what_the_hub_says_of_a_first_download_is_held_to(hub: LoopbackHub, tmp_path: Path) -> None:
    """The CDN, or what stands before it, gives other bytes of the same length."""
    fetch_weights(MATTE, settings(hub, tmp_path)).unlink()
    (tmp_path / "weights" / "SHA256SUMS").unlink()
    (served,) = hub.served
    hub.served[served] = safetensors(seed=9)
    with pytest.raises(WrongContent, match="bad checksum"):
        fetch_weights(MATTE, settings(hub, tmp_path))
    assert files_in(tmp_path / "weights") == set()
    assert not (tmp_path / "weights" / "SHA256SUMS").exists()


def test_what_is_there_is_checked_and_not_fetched_again(hub: LoopbackHub, tmp_path: Path) -> None:
    path = fetch_weights(MATTE, settings(hub, tmp_path))
    fetched = len(hub.hub.received)
    assert fetch_weights(MATTE, settings(hub, tmp_path)) == path
    assert len(hub.hub.received) == fetched
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(WrongContent, match=r"birefnet-x\.safetensors is damaged or another file: its SHA-256 is"):
        fetch_weights(MATTE, settings(hub, tmp_path))
    assert path.read_bytes() == damaged, "a file that someone may want is not deleted"


def test_a_file_of_unknown_origin_is_not_overwritten(hub: LoopbackHub, tmp_path: Path) -> None:
    path = tmp_path / "weights" / "birefnet-x.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"somebody's own")
    with pytest.raises(
        WrongContent, match=r"another file: .*; 127\.0\.0\.1 has another one; delete it, or keep it under another"
    ):
        fetch_weights(MATTE, settings(hub, tmp_path))
    assert path.read_bytes() == b"somebody's own"
    assert not (tmp_path / "weights" / "SHA256SUMS").exists()


def test_the_token_goes_to_the_hub_and_no_further(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.repositories[REPOSITORY].gated = True
    hub.repositories[REPOSITORY].allowed = (TOKEN,)
    fetch_weights(MATTE, settings(hub, tmp_path, token=TOKEN))
    fetch_weights(DETECTOR, settings(hub, tmp_path, token=TOKEN))
    with_token = [each.path for each in hub.hub.received if each.headers.get("authorization") == f"Bearer {TOKEN}"]
    assert len(with_token) == 2
    assert all("/resolve/" in each for each in with_token)
    assert all(TOKEN not in str(each.headers) for each in hub.cdn.received)
    assert TOKEN not in repr(settings(hub, tmp_path, token=TOKEN))


@pytest.mark.parametrize(
    "place", ["birefnet-x.safetensors", "BiRefNet_x/model.safetensors", f"{REPOSITORY}/model.safetensors"]
)
def test_from_a_folder_without_a_network(tmp_path: Path, place: str) -> None:
    with loopback_hub() as gone:
        nobody = settings(gone, tmp_path, folder=tmp_path / "stick")
    source = tmp_path / "stick" / place
    source.parent.mkdir(parents=True)
    source.write_bytes(safetensors())
    path = fetch_weights(MATTE, nobody)
    assert path.read_bytes() == safetensors()
    assert files_in(path.parent) == {path.name}
    assert (path.parent / "SHA256SUMS").read_text() == f"{digest(safetensors())}  {path.name}\n"
    path.unlink()
    source.write_bytes(safetensors(seed=9))
    with pytest.raises(WrongContent, match="than was pinned"):
        fetch_weights(MATTE, nobody)
    assert files_in(path.parent) == set()
    assert source.exists()


def test_a_folder_that_lacks_the_file(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(NotThere, match=r"there is no folder .*/none"):
        fetch_weights(MATTE, settings(hub, tmp_path, folder=tmp_path / "none"))
    (tmp_path / "model.safetensors").write_bytes(safetensors())  # of which repository, nobody can say
    with pytest.raises(NotThere, match=r"has none of birefnet-x\.safetensors, BiRefNet_x/model\.safetensors, owner/"):
        fetch_weights(MATTE, settings(hub, tmp_path, folder=tmp_path))
    assert hub.hub.received == []


def test_a_folder_that_cannot_be_written_to(hub: LoopbackHub, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a file")
    with pytest.raises(DiskTrouble, match=r"cannot write to .*/weights: .*; choose another folder: --output DIR"):
        fetch_weights(MATTE, settings(hub, tmp_path))


def test_a_disk_with_too_little_room_is_seen_before_anything_is_fetched(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * MIB))
    with pytest.raises(DiskTrouble, match=r"weights has 2 MiB free, and 3 MiB are to come; free some room"):
        fetch_weights(MATTE, settings(hub, tmp_path))
    assert hub.cdn.received == []
    with pytest.raises(DiskTrouble, match="has 2 MiB free"):
        fetch_weights(replace(DETECTOR, size_bytes=3 * MIB), settings(hub, tmp_path))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_each_kind_of_a_full_disk(tmp_path: Path, number: int) -> None:
    with pytest.raises(DiskTrouble, match="is full; what was fetched is kept"), writing(tmp_path):
        raise OSError(number, "no room")


def test_two_fetches_do_not_write_the_same_folder(tmp_path: Path) -> None:
    busy = FetchError("busy")
    with alone_in(tmp_path, busy), pytest.raises(FetchError, match="busy"), alone_in(tmp_path, busy):
        pass
    with alone_in(tmp_path, busy):
        pass


@pytest.mark.parametrize(
    "address", ["ftp://a.b", "http://example.org", "example.org", "https://", "http://127.0.0.1.evil.org"]
)
def test_addresses_that_are_not_safe(address: str) -> None:
    with pytest.raises(FetchError, match="--mirror must be an https:// address"):
        check_address(address, "--mirror")


@pytest.mark.parametrize(
    "address", ["https://hub.example.org/path", "http://127.0.0.1:80", "http://localhost:8080", "http://[::1]:1"]
)
def test_addresses_that_are(address: str) -> None:
    check_address(address, "--mirror")


def test_an_address_shows_without_its_password() -> None:
    assert host_of("https://me:secret@hub.example.org/x") == "hub.example.org"
