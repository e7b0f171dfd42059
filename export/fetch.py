"""`python -m export fetch PROFILE`: the released weights of a profile, each checked, into one folder.

A file goes from its source (the Hub, a release, or a folder: `--from DIR`) into a part file, is held against the digest
that the catalogue, the lock file or the Hub names, and only then gets its own name. A part stays after a failure, and
the next run goes on from there. Nothing is unpickled and nothing from a source is run.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from export.catalog import BUNDLED, HUB, Weights, load_catalog
from export.download import (
    CHUNK_BYTES,
    FetchError,
    NotAllowed,
    NotThere,
    Patience,
    Remote,
    WrongContent,
    check_address,
    check_room,
    download,
    host_of,
    writing,
)
from export.hub import DEFAULT_HUB, OFFLINE, ask_hub, read_token, status_refusal
from export.listing import add_catalog_argument, size_text
from export.locking import alone
from export.pins import Pin, add_pin, read_pins
from export.weights_form import flaw_of
from runtime.digest import sha256_of

CHECKOUT = Path(__file__).resolve().parents[1]
DEFAULT_OUTPUT = CHECKOUT / ".cache" / "weights"
DEFAULT_LOCK = CHECKOUT / "export" / "weights.lock.json"
DEFAULT_RELEASES = "https://github.com"
INTERRUPTED = 130
TRUE_WORDS = ("1", "on", "yes", "true")
"""What `huggingface_hub` takes for true in HF_HUB_OFFLINE."""


@dataclass(frozen=True)
class Settings:
    """From where and to where.

    Attributes:
        output: the folder that files go to.
        lock: the lock file of digests that the catalogue does not know.
        folder: take files from here and use no network, where given.
        hub: address of the Hub or of a mirror that speaks its API.
        releases: address of GitHub or of a mirror with the same paths.
        token: for the Hub; goes to no other host and never shows.
    """

    output: Path
    lock: Path
    folder: Path | None = None
    hub: str = DEFAULT_HUB
    releases: str = DEFAULT_RELEASES
    token: str | None = field(default=None, repr=False)
    patience: Patience = field(default_factory=Patience)


def fetch_weights(weights: Weights, settings: Settings) -> Path:
    """One file, whole and checked, in the output folder; its path. What is there already is checked again.

    Raises:
        FetchError: the kinds of it are in `export.download`.
        CatalogError: the entry's source cannot be fetched from.
    """
    final = settings.output / weights.saved_as
    pin = read_pins(settings.lock).get(weights.saved_as)
    known = weights.sha256 or (pin.sha256 if pin else None)
    if weights.sha256 and pin and pin.sha256 != weights.sha256:
        raise WrongContent(
            f"{settings.lock} pins {weights.saved_as} to {pin.sha256[:12]}…, the catalogue says "
            f"{weights.sha256[:12]}…; delete its entry in the lock file if the catalogue is right"
        )
    if known and final.is_file():
        hold_to(final, known, "delete it and run this again, or keep it under another name")
        print(f"{final}: already there, SHA-256 {known[:12]}… as it should be")
        return final
    if settings.folder is not None:
        found = find_in(weights, settings.folder)
        part = copy_part(found, final)
        source, revision, origin = "folder", None, str(found)
    else:
        remote = ask(weights, pin, settings)
        if known and remote.sha256 and remote.sha256 != known:
            raise WrongContent(
                f"{host_of(remote.url)} has another {weights.file} of {weights.repository} than was pinned "
                f"(SHA-256 {remote.sha256[:12]}…, pinned {known[:12]}…); nothing was fetched. To take the new one, "
                f"{_how_to_unpin(weights, settings)}"
            )
        known = known or remote.sha256
        part = download_part(weights, remote, known, final, settings)
        source, revision, origin = str(weights.repository), remote.revision, host_of(remote.url)
    sha256 = _check_part(weights, part, known, origin)
    if final.is_file() and sha256_of(final) != sha256:
        raise WrongContent(f"{final} is another file than {origin} has; delete it, or keep it under another name")
    if not weights.sha256 and not pin:
        add_pin(settings.lock, weights.saved_as, Pin(sha256, part.stat().st_size, source, revision))
        print(f"{weights.saved_as}: first seen, pinned to SHA-256 {sha256} in {settings.lock}")
    with writing(settings.output):
        part.replace(final)
        for left_over in final.parent.glob(f"{final.name}.*.part"):
            left_over.unlink()
    print(f"{final}: {size_text(final.stat().st_size)} from {origin}, SHA-256 {sha256[:12]}…, {weights.licence}")
    return final


def ask(weights: Weights, pin: Pin | None, settings: Settings) -> Remote:
    """Where the file is; at the Hub at the pinned commit, if there is one."""
    if weights.source == HUB:
        revision = (pin.revision if pin and pin.source == weights.repository else None) or str(weights.revision)
        return ask_hub(weights, revision, settings.hub, settings.token, settings.patience)
    url = f"{settings.releases.rstrip('/')}/{weights.repository}/releases/download/{weights.revision}/{weights.file}"
    known = bool(weights.sha256 or pin)
    return Remote(url, is_fixed=known, revision=weights.revision)


def download_part(weights: Weights, remote: Remote, known: str | None, final: Path, settings: Settings) -> Path:
    """Fetch into a part file whose name tells versions apart."""
    version = known or remote.revision or "unknown"
    part = final.with_name(f"{final.name}.{version[:12]}.part")

    def refuse(status: int) -> FetchError:
        if weights.source == HUB:
            return status_refusal(weights, settings.hub, settings.token, status)
        host, release = host_of(settings.releases), f"release {weights.revision} of {weights.repository}"
        if status in (401, 403):
            return NotAllowed(
                f"{host} refuses {weights.file} of {release} (status {status}); is it a mirror with a login?"
            )
        if status in (404, 410):
            return NotThere(f"{host} has no {weights.file} in {release} (status {status})")
        return FetchError(f"{host} answered {weights.file} with status {status}")

    with tqdm(
        desc=weights.saved_as, total=remote.size_bytes or weights.size_bytes, unit="B", unit_scale=True, disable=None
    ) as bar:
        download(remote, part, refuse, bar, settings.patience)
    return part


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
    names = list(dict.fromkeys(names))
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise NotThere(f"{folder} has none of {', '.join(names)}")


def copy_part(found: Path, final: Path) -> Path:
    """Copy a file beside its final place, under a name of its own.

    Raises:
        NotThere: it cannot be read.
        DiskTrouble: the copy cannot be written.
    """
    part = final.with_name(f"{final.name}.copy.part")
    try:
        source = found.open("rb")
    except OSError as error:
        raise NotThere(f"{found} cannot be read: {error.strerror or error}") from None
    try:
        with source, writing(final.parent):
            final.parent.mkdir(parents=True, exist_ok=True)
            check_room(final.parent, os.fstat(source.fileno()).st_size)
            with part.open("wb") as target:
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
                target.flush()
                os.fsync(target.fileno())
    except BaseException:
        part.unlink(missing_ok=True)  # a copy is quickly made anew
        raise
    return part


def hold_to(path: Path, sha256: str, remedy: str) -> None:
    """Raises `WrongContent` where a file has another digest."""
    found = sha256_of(path)
    if found != sha256:
        raise WrongContent(
            f"{path} is damaged or another file: its SHA-256 is {found[:12]}…, {sha256[:12]}… was expected; {remedy}"
        )


def _check_part(weights: Weights, part: Path, known: str | None, origin: str) -> str:
    """The digest of a part that is what it should be; one that is not is deleted.

    Raises:
        WrongContent: digest or form are wrong.
    """
    sha256 = sha256_of(part)
    if known and sha256 != known:
        part.unlink()
        raise WrongContent(
            f"bad checksum: {weights.saved_as} from {origin} has SHA-256 {sha256[:12]}…, {known[:12]}… was expected; "
            "it was deleted. Run it again; where it stays so, the source or what stands between has changed the file"
        )
    if flaw := flaw_of(part, PurePosixPath(weights.saved_as).suffix):
        part.unlink()
        raise WrongContent(f"{weights.saved_as} from {origin} {flaw}; it was deleted")
    return sha256


def _how_to_unpin(weights: Weights, settings: Settings) -> str:
    return "change export/catalog.toml" if weights.sha256 else f"delete its entry in {settings.lock}"


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second fetch out of the folder: two would write the same parts.

    Raises:
        FetchError: another one is at it.
        DiskTrouble: the folder cannot be made or written to.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".fetching").open("wb")
    busy = FetchError(f"another fetch is writing to {folder}; wait for it, or choose another folder: --output DIR")
    with alone(lock, busy):
        yield


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fetch the released weights of a profile: BiRefNet's from the Hugging Face Hub, YOLOv8's from Ultralytics' "
        "releases. Every file is held to a SHA-256; a broken download goes on where it stopped."
    )
    parser.epilog = (
        "Environment: HF_TOKEN or HUGGINGFACE_TOKEN for repositories that want one; HF_ENDPOINT, another address of "
        "the Hub; HTTPS_PROXY, SSL_CERT_FILE. A token goes to the Hub alone, never to --mirror. `python -m export "
        "list` shows the profiles and their licences."
    )
    parser.add_argument("profile", metavar="PROFILE", help=f"one of {', '.join(load_catalog().profiles)}")
    add_catalog_argument(parser)
    parser.add_argument("--detector", choices="nsmlx", metavar="SIZE", help="another YOLOv8 size: n, s, m, l or x")
    parser.add_argument("--from", dest="folder", metavar="DIR", type=Path, help="take the files from here; no network")
    parser.add_argument(
        "--mirror", metavar="URL", help="an https address with the paths of huggingface.co and github.com"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        default=DEFAULT_OUTPUT,
        help="folder for the files (default: .cache/weights)",
    )
    parser.add_argument(
        "--lock",
        metavar="FILE",
        type=Path,
        default=DEFAULT_LOCK,
        help="where digests are pinned that the catalogue does not know (default: export/weights.lock.json)",
    )


def settings_of(arguments: argparse.Namespace) -> Settings:
    """From the command line and the environment.

    Raises:
        FetchError: an address is not safe, or HF_HUB_OFFLINE forbids the network.
    """
    if arguments.folder is not None:
        return Settings(arguments.output, arguments.lock, arguments.folder)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in TRUE_WORDS:
        raise FetchError(OFFLINE)
    if arguments.mirror is not None:
        check_address(arguments.mirror, "--mirror")
        mirror = arguments.mirror.rstrip("/")
        return Settings(arguments.output, arguments.lock, hub=mirror, releases=mirror)
    hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT_HUB
    check_address(hub, "HF_ENDPOINT")
    return Settings(arguments.output, arguments.lock, hub=hub, token=read_token())


def run(arguments: argparse.Namespace) -> int:
    catalog = load_catalog(arguments.catalog)
    profile = catalog.profile(arguments.profile)
    detector = catalog.detector(arguments.detector) if arguments.detector else profile.detector
    wanted = [each for each in (profile.matte, detector) if each.source != BUNDLED]
    if not wanted:
        print(f"{profile.name} is bundled in export/weights/{profile.name}: nothing to fetch")
        return 0
    settings = settings_of(arguments)
    try:
        with alone_in(settings.output):
            for weights in wanted:
                fetch_weights(weights, settings)
    except KeyboardInterrupt:
        print("export: stopped; run it again to go on from here", file=sys.stderr)
        return INTERRUPTED
    return 0
