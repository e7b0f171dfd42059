"""One file over HTTPS into a part file: redirects, progress, and going on where a broken connection stopped.

The errors of fetching are here, too; each is one readable line.

    FetchError            anything that keeps a file from being fetched
    ├── NoNetwork         nobody answers, or the connection keeps breaking; also a ConnectionError
    ├── NotAllowed        401, 403; also a PermissionError
    ├── NotThere          404; also a FileNotFoundError
    ├── DiskTrouble       the disk is full or may not be written to; also an OSError
    └── WrongContent      not the file that was meant: checksum, form or size; also a ValueError
"""

import contextlib
import errno
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Protocol

import httpx

from export import ExportError
from export.listing import size_text

CHUNK_BYTES = 1 << 20
TIMEOUT_S = httpx.Timeout(30.0, connect=10.0)
"""For each read, not for the whole file: a connection that gives nothing for this long counts as broken."""

LONGEST_WAIT_S = 30.0
"""A server's Retry-After is obeyed up to here."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FetchError(ExportError):
    """Weights could not be fetched."""


class NoNetwork(FetchError, ConnectionError):
    """huggingface.co does not answer (…); … without a network: --from DIR"""


class NotAllowed(FetchError, PermissionError):
    """owner/name is gated; accept its licence at https://huggingface.co/owner/name …"""


class NotThere(FetchError, FileNotFoundError):
    """huggingface.co has no model.safetensors in owner/name at main"""


class DiskTrouble(FetchError, OSError):
    """the disk of DIR is full …"""


class WrongContent(FetchError, ValueError):
    """birefnet-lite.safetensors is not the file that was pinned: …"""


@dataclass(frozen=True)
class Patience:
    """How often a broken connection is tried again.

    Attributes:
        tries: in a row without a single new byte; each new byte starts the count anew.
        first_wait_s: before the second try; each further wait is twice as long.
    """

    tries: int = 4
    first_wait_s: float = 1.0

    def wait_s(self, failures: int) -> float:
        return min(self.first_wait_s * 2.0 ** (failures - 1), LONGEST_WAIT_S)


@dataclass(frozen=True)
class Remote:
    """A file that can be asked for.

    Attributes:
        url: its address; `https`, or `http` on this machine.
        is_fixed: whether the address always gives the same bytes, so that a part of an earlier run may be used.
        size_bytes: its size, where the source says so.
        sha256: its digest, where the source says so.
        revision: the commit or tag that the address names.
        headers: may hold a token, so they never show.
    """

    url: str
    is_fixed: bool
    size_bytes: int | None = None
    sha256: str | None = None
    revision: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Progress(Protocol):
    """Told of bytes as they arrive; `tqdm` is one."""

    def reset(self, total: float | None = None) -> None: ...

    def update(self, n: float = 1) -> object: ...


def host_of(url: str) -> str:
    """The host of an address, without the user name and password that it may hold."""
    try:
        return httpx.URL(url).host or url
    except httpx.InvalidURL:
        return "the address"


def check_address(url: str, what: str) -> None:
    """Only `https` keeps what is fetched, and a token, from others; `http` is for this machine.

    Raises:
        FetchError: the address is neither.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    local = parsed.scheme == "http" and parsed.host in ("127.0.0.1", "::1", "localhost")
    if not parsed.host or (parsed.scheme != "https" and not local):
        raise FetchError(f"{what} must be an https:// address (http:// only on this machine)")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an `OSError` of writing below `folder` into one line.

    Raises:
        DiskTrouble: the disk is full, or writing is not allowed.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FetchError):
            raise
        if error.errno in _FULL:
            raise DiskTrouble(
                f"the disk of {folder} is full; what was fetched is kept: free some room and run it again, "
                "or choose another folder: --output DIR"
            ) from None
        raise DiskTrouble(
            f"cannot write to {folder}: {error.strerror or error}; choose another folder: --output DIR"
        ) from None


def check_room(folder: Path, wanted_bytes: int) -> None:
    """Raise where the disk has less room than is still to come.

    Raises:
        DiskTrouble: it has not.
    """
    free = shutil.disk_usage(folder).free
    if wanted_bytes > free:
        raise DiskTrouble(
            f"the disk of {folder} has {size_text(free)} free, and {size_text(wanted_bytes)} are to come; free some "
            "room, or choose another folder: --output DIR"
        )


def download(
    remote: Remote,
    part: Path,
    refuse: Callable[[int], FetchError],
    progress: Progress,
    patience: Patience,
) -> None:
    """Fill `part` with the whole file. On failure what arrived stays, so that the next call goes on from there.

    Args:
        refuse: the error for a status of 400 to 499, which asking again would not change.

    Raises:
        NoNetwork: no answer, or a connection that keeps breaking.
        DiskTrouble: the disk is full or may not be written to.
        WrongContent: more bytes than the source said, or a web page.
        FetchError: whatever `refuse` makes of a status.
    """
    with writing(part.parent):
        part.parent.mkdir(parents=True, exist_ok=True)
        if not remote.is_fixed:
            part.unlink(missing_ok=True)
        file = part.open("ab", buffering=0)
    version, failures = _Version(), 0
    with file, _client() as client:
        if remote.size_bytes is not None:
            check_room(part.parent, remote.size_bytes - file.tell())
        while True:
            before = file.tell()
            try:
                _once(client, remote, part, file, version, refuse, progress)
            except (httpx.TransportError, _AgainError) as error:
                failures = 1 if file.tell() > before else failures + 1
                if failures >= patience.tries:
                    raise _given_up(remote.url, error) from None
                asked_s = error.wait_s if isinstance(error, _AgainError) else 0.0
                time.sleep(max(patience.wait_s(failures), min(asked_s, LONGEST_WAIT_S)))
            except httpx.InvalidURL:
                raise FetchError(f"{host_of(remote.url)} sends on to an address that is none") from None
            except httpx.TooManyRedirects:
                raise FetchError(f"{host_of(remote.url)} sends on in a circle") from None
            else:
                break
        with writing(part.parent):
            os.fsync(file.fileno())


class _AgainError(Exception):
    """An answer that another try may better."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class _Version:
    """The ETag of what the part holds, so that the rest is taken from the same version of the file."""

    etag: str | None = None


def _once(
    client: httpx.Client,
    remote: Remote,
    part: Path,
    file: FileIO,
    version: _Version,
    refuse: Callable[[int], FetchError],
    progress: Progress,
) -> None:
    """One request for what the part lacks, appended to it.

    Raises:
        httpx.TransportError: the connection did not come about or broke.
        _AgainError: an answer that may be another one next time.
    """
    have = file.tell()
    if remote.size_bytes is not None and have >= remote.size_bytes:
        if have == remote.size_bytes:
            return
        have = _empty(part, file)
    if have and not remote.is_fixed and not version.etag:
        have = _empty(part, file)  # nothing would say whether the rest is of the same version
    headers = {**remote.headers, "Accept-Encoding": "identity", "User-Agent": "cutaway-export"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if not remote.is_fixed and version.etag:
            headers["If-Range"] = version.etag
    with client.stream("GET", remote.url, headers=headers) as answer:
        _judge_status(answer, part, file, refuse)
        if answer.status_code == 206:
            begin, total = _content_range(answer)
            if begin != have:
                _empty(part, file)
                raise _AgainError("it sent another part than asked for")
        else:
            if have:
                have = _empty(part, file)
            length = answer.headers.get("content-length", "")
            total = int(length) if length.isdigit() else None
        version.etag = answer.headers.get("etag")
        if remote.size_bytes is not None and total not in (None, remote.size_bytes):
            _empty(part, file)
            raise WrongContent(
                f"{host_of(remote.url)} sends {total} bytes, where {remote.size_bytes} were announced; try again later"
            )
        total = remote.size_bytes if total is None else total
        if total is not None:
            check_room(part.parent, total - have)
        progress.reset(total)
        progress.update(have)
        for chunk in answer.iter_raw():  # as it arrives: what is gathered first is lost when the connection breaks
            if total is not None and file.tell() + len(chunk) > total:
                _empty(part, file)
                raise WrongContent(f"{host_of(remote.url)} sends more than the {total} bytes it announced")
            with writing(part.parent):
                left = memoryview(chunk)
                while left:
                    left = left[file.write(left) :]
            progress.update(len(chunk))
    if total is not None and file.tell() < total:
        raise _AgainError("it ended the file early")


def _judge_status(answer: httpx.Response, part: Path, file: FileIO, refuse: Callable[[int], FetchError]) -> None:
    status = answer.status_code
    if status == 416:
        _empty(part, file)
        raise _AgainError("it has no such part of the file")
    if status in (408, 429) or status >= 500:
        asked = answer.headers.get("retry-after", "")
        raise _AgainError(f"it answered {status}", float(asked) if asked.isdigit() else 0.0)
    if status >= 400:
        raise refuse(status)
    if status not in (200, 206):
        raise FetchError(f"{host_of(str(answer.url))} answered with status {status}")
    if answer.headers.get("content-type", "").startswith("text/html"):
        raise WrongContent(
            f"{host_of(str(answer.url))} answered with a web page in place of the file; a network that wants a login, "
            "or a proxy, may stand between"
        )


def _content_range(answer: httpx.Response) -> tuple[int, int | None]:
    """Where the part of the answer begins, and the whole file's size."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if not found:
        return -1, None
    return int(found[1]), None if found[3] == "*" else int(found[3])


def _empty(part: Path, file: FileIO) -> int:
    with writing(part.parent):
        file.seek(0)
        file.truncate()
    return 0


def _client() -> httpx.Client:
    """Follows redirects to safe addresses alone. httpx itself keeps a token from other hosts than the first."""

    def check(request: httpx.Request) -> None:
        check_address(str(request.url), f"{request.url.host}, to which the download was sent on,")

    return httpx.Client(follow_redirects=True, timeout=TIMEOUT_S, verify=_trust(), event_hooks={"request": [check]})


@cache
def _trust() -> ssl.SSLContext:
    """Whom to trust, by SSL_CERT_FILE where it is set. Read once: it takes longer than a small file."""
    return httpx.create_ssl_context()


def _given_up(url: str, why: Exception) -> FetchError:
    if isinstance(why, _AgainError):
        return FetchError(f"{host_of(url)} keeps failing ({why}); run it again later, what was fetched is kept")
    return no_network(url, why)


def no_network(url: str, why: object) -> NoNetwork:
    """The error of an unreachable host; certificates get a line of their own."""
    text = str(why) or type(why).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return NoNetwork(
            f"the certificate of {host_of(url)} is not trusted here; behind a proxy that signs anew, name its "
            "certificates: SSL_CERT_FILE=FILE"
        )
    return NoNetwork(
        f"{host_of(url)} cannot be reached ({text}); check the network, or take the files from a folder (--from DIR) "
        "or another address (--mirror URL); what was fetched is kept"
    )
