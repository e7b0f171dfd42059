"""One file of released weights: from the Hub, a GitHub release or a folder, held to its SHA-256 and only then named.

    path = fetch_weights(catalog.profile("lite").matte, Settings(Path("weights")))

`huggingface_hub` asks for the file and moves its bytes, by `http_get`: its `hf_hub_download` begins anew in every run
since 1.x, so that a broken download of 900 MB would be lost. Nothing is unpickled and nothing from a source is run.

    FetchError            anything that keeps a file from being fetched
    ├── NoNetwork         no answer, or the connection keeps breaking; also a ConnectionError
    ├── NotAllowed        401, 403; also a PermissionError
    ├── NotThere          404; also a FileNotFoundError
    ├── DiskTrouble       the disk is full or may not be written to; also an OSError
    └── WrongContent      not the file that was meant; also a ValueError
"""

import contextlib
import errno
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from export import ExportError
from export.catalog import HUB, SHA256, Weights
from export.listing import size_text
from runtime.digest import sha256_of
from runtime.weights import CHECKSUMS, read_checksums

DEFAULT_HUB = "https://huggingface.co"
DEFAULT_RELEASES = "https://github.com"
TIMEOUT_S = 15.0
WAITS_S = (1.0, 2.0, 4.0)
"""Before each further try where a server is overloaded or resets the connection."""
TRANSIENT = (408, 429, 500, 502, 503, 504)
TOO_FAR = 416
"""The part is longer than the file."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FetchError(ExportError):
    """Weights could not be fetched."""


class NoNetwork(FetchError, ConnectionError):
    """huggingface.co cannot be reached (…)"""


class NotAllowed(FetchError, PermissionError):
    """owner/name is gated; accept its licence at https://huggingface.co/owner/name …"""


class NotThere(FetchError, FileNotFoundError):
    """huggingface.co has no model.safetensors in owner/name at main"""


class DiskTrouble(FetchError, OSError):
    """the disk of DIR is full …"""


class WrongContent(FetchError, ValueError):
    """bad checksum: …"""


@dataclass(frozen=True)
class Settings:
    """From where and to where.

    Attributes:
        output: the folder that files go to.
        folder: take files from here and use no network, where given.
        hub: address of the Hub or of a mirror that speaks its API.
        releases: address of GitHub or of a mirror with the same paths.
        token: for the Hub; goes to no other host and never shows.
    """

    output: Path
    folder: Path | None = None
    hub: str = DEFAULT_HUB
    releases: str = DEFAULT_RELEASES
    token: str | None = field(default=None, repr=False)

    def address_of(self, weights: Weights) -> str:
        """The site that these weights come from."""
        return self.hub if weights.source == HUB else self.releases


class Remote(NamedTuple):
    """A file at its source; `revision` is a commit at the Hub, so that the address keeps meaning the same bytes."""

    url: str
    sha256: str
    size_bytes: int | None
    revision: str


def fetch_weights(weights: Weights, settings: Settings) -> Path:
    """One file, whole and checked, in the output folder; its path. What is there already is checked again.

    Raises:
        FetchError: one of its kinds.
    """
    final = settings.output / weights.saved_as
    expected = expected_sha256(weights, settings.output)
    if expected and final.is_file():
        hold_to(final, expected, "delete it and run this again, or keep it under another name")
        print(f"{final}: already there, SHA-256 {expected[:12]}… as it should be")
        return final
    with one_line_errors(weights, settings):
        if settings.folder is not None:
            found = find_in(weights, settings.folder)
            remote, origin = None, str(found)
            sha256 = sha256_of(found)
        else:
            remote = locate(weights, settings, expected)
            sha256, origin = remote.sha256, host_of(remote.url)
        if expected and sha256 != expected:
            raise WrongContent(
                f"{origin} has another {weights.file} of {weights.repository} than was pinned (SHA-256 "
                f"{sha256[:12]}…, pinned {expected[:12]}…); nothing was fetched. To take the new one, change its line "
                f"in {'export/catalog.toml' if weights.sha256 else settings.output / CHECKSUMS}"
            )
        if final.is_file():
            hold_to(final, sha256, f"{origin} has another one; delete it, or keep it under another name")
        else:
            part = copy(found, final) if remote is None else download(weights, remote, final, settings)
            _check_part(part, weights, sha256, origin)
            part.replace(final)
        if not expected:
            _pin(weights, settings.output, sha256, remote)
    print(f"{final}: {size_text(final.stat().st_size)} from {origin}, SHA-256 {sha256[:12]}…, {weights.licence}")
    return final


def expected_sha256(weights: Weights, folder: Path) -> str | None:
    """The catalogue's digest; where it has none, the one that a first fetch left in the folder's SHA256SUMS."""
    return weights.sha256 or (read_checksums(folder) if (folder / CHECKSUMS).is_file() else {}).get(weights.saved_as)


def _pin(weights: Weights, folder: Path, sha256: str, remote: Remote | None) -> None:
    """Hold later fetches into this folder to the digest of the first."""
    with (folder / CHECKSUMS).open("a") as file:
        file.write(f"{sha256}  {weights.saved_as}\n")
    revision = f', revision = "{remote.revision}"' if remote else ""
    print(
        f"{weights.saved_as}: first seen, pinned in {folder / CHECKSUMS}; to pin it on every machine, put into the "
        f'catalogue: sha256 = "{sha256}"{revision}'
    )


def hold_to(path: Path, sha256: str, remedy: str) -> None:
    """Raises `WrongContent` where a file has another digest."""
    found = sha256_of(path)
    if found != sha256:
        raise WrongContent(
            f"{path} is damaged or another file: its SHA-256 is {found[:12]}…, {sha256[:12]}… was expected; {remedy}"
        )


def _check_part(part: Path, weights: Weights, sha256: str, origin: str) -> None:
    found = sha256_of(part)
    if found != sha256:
        part.unlink()
        raise WrongContent(
            f"bad checksum: {weights.saved_as} from {origin} has SHA-256 {found[:12]}…, {sha256[:12]}… was expected; "
            "it was deleted. Run it again; where it stays so, the source or what stands between (a login page, a "
            "proxy) has changed the file"
        )


def find_in(weights: Weights, folder: Path) -> Path:
    """The file in a folder: as fetched here, as `hf download` or `git clone` lay it down, or by its own name.

    Raises:
        NotThere: the folder or the file is not there; the message names where it was looked for.
    """
    if not folder.is_dir():
        raise NotThere(f"there is no folder {folder}")
    repository, file = PurePosixPath(str(weights.repository)), PurePosixPath(weights.file)
    names = [weights.saved_as, str(repository.name / file), str(repository / file)]
    if file.stem != "model":  # every repository of the Hub has a model.safetensors: on its own it says nothing
        names.insert(1, file.name)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise NotThere(f"{folder} has none of {', '.join(dict.fromkeys(names))}")


def copy(found: Path, final: Path) -> Path:
    part = final.with_name(f"{final.name}.copy.part")
    try:
        shutil.copyfile(found, part)
    except BaseException:
        part.unlink(missing_ok=True)  # a copy is quickly made anew
        raise
    return part


def locate(weights: Weights, settings: Settings, expected: str | None) -> Remote:
    """Where the file is, and what it must be. A release's digest is the catalogue's, since GitHub names none."""
    if weights.source != HUB:
        path = f"{weights.repository}/releases/download/{weights.revision}/{weights.file}"
        url = f"{settings.releases.rstrip('/')}/{path}"
        return Remote(url, str(weights.sha256), None, str(weights.revision))
    name, revision = str(weights.repository), str(weights.revision)
    url = hf_hub_url(name, weights.file, revision=revision, endpoint=settings.hub)
    for wait_s in (*WAITS_S, None):
        try:
            found = get_hf_file_metadata(url, token=settings.token or False, endpoint=settings.hub, timeout=TIMEOUT_S)
            break
        except HfHubHTTPError as error:
            if wait_s is None or error.response.status_code not in TRANSIENT:
                raise
            time.sleep(wait_s)
    sha256 = found.etag if found.etag and SHA256.fullmatch(found.etag) else expected
    if found.commit_hash is None or sha256 is None:
        raise FetchError(
            f"{host_of(settings.hub)} does not answer as a Hub does (it names no commit, or no SHA-256); check "
            "its address"
        )
    url = hf_hub_url(name, weights.file, revision=found.commit_hash, endpoint=settings.hub)
    return Remote(url, sha256, found.size, found.commit_hash)


def download(weights: Weights, remote: Remote, final: Path, settings: Settings) -> Path:
    """The file under a name that tells versions apart. What arrived stays after a failure, for the next run."""
    part = final.with_name(f"{final.name}.{remote.sha256[:12]}.part")
    headers = build_hf_headers(token=(settings.token if weights.source == HUB else None) or False)
    if part.is_file() and sha256_of(part) == remote.sha256:
        return part
    with part.open("ab") as file:
        _check_room(settings.output, (remote.size_bytes or weights.size_bytes or 0) - file.tell())
        # http_get goes on by itself where a connection ends, but not where it is reset or a server is overloaded.
        for wait_s in (*WAITS_S, None):
            try:
                http_get(
                    remote.url,
                    file,
                    resume_size=file.tell(),
                    headers=dict(headers),
                    expected_size=remote.size_bytes,
                    displayed_filename=weights.saved_as,
                )
                break
            except HfHubHTTPError as error:
                if wait_s is None or error.response.status_code not in (*TRANSIENT, TOO_FAR):
                    raise
                if error.response.status_code == TOO_FAR:
                    file.seek(0)
                    file.truncate()
            except httpx2.ReadError:
                if wait_s is None:
                    raise
            except OSError as error:
                if error.errno is not None or isinstance(error, OfflineModeIsEnabled):
                    raise
                part.unlink()
                raise WrongContent(
                    f"{host_of(remote.url)} sends another number of bytes than it announced; a network that wants a "
                    "login, or a proxy, may stand between"
                ) from None
            time.sleep(wait_s)
    return part


def _check_room(folder: Path, wanted_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted_bytes > free:
        raise DiskTrouble(
            f"the disk of {folder} has {size_text(free)} free, and {size_text(wanted_bytes)} are to come; free some "
            "room, or choose another folder: --output DIR"
        )


def host_of(url: str) -> str:
    """The host of an address, without the user name and password that it may hold."""
    return urlsplit(url).hostname or "the address"


def check_address(url: str, what: str) -> None:
    """Only `https` keeps a token from others; `http` is for this machine.

    Raises:
        FetchError: the address is neither.
    """
    parsed = urlsplit(url)
    local = parsed.scheme == "http" and parsed.hostname in ("127.0.0.1", "::1", "localhost")
    if not parsed.hostname or (parsed.scheme != "https" and not local):
        raise FetchError(f"{what} must be an https:// address (http:// only on this machine)")


@contextlib.contextmanager
def one_line_errors(weights: Weights, settings: Settings) -> Iterator[None]:
    """What the network, a server or the disk does wrong, as a `FetchError` that says what to do."""
    host = host_of(settings.address_of(weights))
    try:
        with writing(settings.output):
            yield
    except OfflineModeIsEnabled:
        raise FetchError(
            "HF_HUB_OFFLINE forbids the network; unset it, or take the files from a folder: --from DIR"
        ) from None
    except HfHubHTTPError as error:
        raise _refusal(error, weights, settings, host) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        text = str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in text:
            raise NoNetwork(
                f"the certificate of {host} is not trusted here; behind a proxy that signs anew, name its "
                "certificates: SSL_CERT_FILE=FILE"
            ) from None
        raise NoNetwork(
            f"{host} cannot be reached ({text}); check the network, or take the files from a folder (--from DIR) or "
            "another address (--mirror URL); what was fetched is kept"
        ) from None


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an `OSError` of writing below `folder` into one line.

    Raises:
        DiskTrouble: the disk is full, or writing is not allowed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (FetchError, HfHubHTTPError, OfflineModeIsEnabled):
        raise
    except OSError as error:
        if error.errno in FULL_DISK:
            raise DiskTrouble(
                f"the disk of {folder} is full; what was fetched is kept: free some room and run it again, or choose "
                "another folder: --output DIR"
            ) from None
        raise DiskTrouble(
            f"cannot write to {folder}: {error.strerror or error}; choose another folder: --output DIR"
        ) from None


def _refusal(error: HfHubHTTPError, weights: Weights, settings: Settings, host: str) -> FetchError:
    """One line for what the Hub or GitHub answered in place of the file."""
    status, token, hub = error.response.status_code, settings.token, settings.hub.rstrip("/")
    name, page = weights.repository, f"{hub}/{weights.repository}"
    release = f"release {weights.revision} of {name}"
    if isinstance(error, GatedRepoError) and token:
        return NotAllowed(
            f"{name} is gated, and the account of your token has no access; accept its licence at {page} and run it "
            "again"
        )
    if isinstance(error, GatedRepoError):
        return NotAllowed(
            f"{name} is gated; accept its licence at {page}, make a token at {hub}/settings/tokens and set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return NotThere(f"{host} has no revision {weights.revision} of {name}")
    if isinstance(error, RemoteEntryNotFoundError) or (status in (404, 410) and weights.source != HUB):
        where = f"{name} at {weights.revision}" if weights.source == HUB else release
        return NotThere(f"{host} has no {weights.file} in {where}")
    if isinstance(error, RepositoryNotFoundError):  # the Hub answers 401 for what is not there, too
        advice = "; the account of your token does not see it" if token else "; for a private one set HF_TOKEN"
        return NotThere(f"{host} has no repository {name}, or it is private{advice}")
    if status in (401, 403) and weights.source != HUB:
        return NotAllowed(f"{host} refuses {weights.file} of {release} (status {status}); is it a mirror with a login?")
    if status in (401, 403) and token:
        return NotAllowed(
            f"{host} refused your token for {name} (status {status}); make a new one that may read it at "
            f"{hub}/settings/tokens and set HF_TOKEN"
        )
    if status in (401, 403):
        return NotAllowed(f"{host} wants a token for {name} (status {status}); set HF_TOKEN")
    if status in TRANSIENT:
        return FetchError(
            f"{host} is overloaded or out of order (status {status}); try again later, what was fetched is kept"
        )
    return FetchError(f"{host} answered {name} with status {status}")
