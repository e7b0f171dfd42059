"""The catalogue: every profile, and the released weights it is made of, read from `catalog.toml` and checked.

    catalog = load_catalog()
    general = catalog.profile("general")
    general.matte.file, general.matte.sha256, general.detector.parameters

Nothing here needs the network, torch or a package beyond the standard library.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from export import ExportError

CATALOG = Path(__file__).with_name("catalog.toml")

HUB, RELEASE, BUNDLED = "hub", "release", "bundled"
SOURCES = (HUB, RELEASE, BUNDLED)
"""Where weights come from: the Hugging Face Hub, a release's assets on GitHub, this repository."""

LICENCES = {
    "MIT": "https://github.com/ZhengPeng7/BiRefNet/blob/main/LICENSE",
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "AGPL-3.0": "https://ultralytics.com/license",
}
"""Licences that weights may have, and where each stands."""

SPEEDS = ("fastest", "fast", "medium", "slow")
"""Classes of a profile's speed, by its matting network and the number of pixels; they are not measurements."""

DETECTORS = ("yolov8n-seg", "yolov8s-seg", "yolov8m-seg", "yolov8l-seg", "yolov8x-seg")
MATTES = ("modnet", "lite", "general")
"""Networks of matting weights: MODNet, and BiRefNet with Swin-T or Swin-L (`export.networks.birefnet_config`)."""

DETECTOR_SIDE_PX = 640
SIDE_MULTIPLE_PX = 32
"""A matting network halves the side five times."""

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SUFFIXES = {HUB: (".safetensors",), RELEASE: (".safetensors", ".pt"), BUNDLED: (".onnx",)}
"""What may be fetched. From the Hub tensors alone: no pickle, and no code."""


class CatalogError(ExportError, ValueError):
    """The catalogue is absent, or an entry does not fit.

    catalog.toml: weights.birefnet-lite: sha256 must be 64 hexadecimal digits, not 'abc'
    """


class UnknownProfile(CatalogError):
    """A name that the catalogue does not have.

    no profile 'genral'; there are: nano, lite, 512, general, …
    """


@dataclass(frozen=True)
class Weights:
    """One file of released weights.

    Attributes:
        name: the entry's name, and the file's on this machine (`saved_as`).
        source: one of `SOURCES`.
        network: which network takes them: one of `MATTES` or `DETECTORS`.
        file: its name at the source; for bundled weights its path in this repository.
        licence: a key of `LICENCES`.
        parameters: how many numbers training found; running means and indices do not count.
        repository: `owner/name` at the source; None for bundled weights.
        revision: a commit, branch or tag of the repository; for a release its tag.
        size_bytes: the file's size where known; for people, and for the room that is looked for on the disk.
        sha256: the file's digest where known.
    """

    name: str
    source: str
    network: str
    file: str
    licence: str
    parameters: int
    repository: str | None = None
    revision: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None

    @property
    def saved_as(self) -> str:
        """The file's name in the folder of fetched weights: `birefnet-lite.safetensors`."""
        return self.name + PurePosixPath(self.file).suffix

    @property
    def licence_url(self) -> str:
        return LICENCES[self.licence]

    @property
    def is_fixed(self) -> bool:
        """Whether the revision is a commit, which always means the same bytes; a branch or tag can move."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True)
class Profile:
    """A matting network and the detector that goes with it.

    Attributes:
        input_wh_px: width and height that the matting network is made for; multiples of 32.
        speed: one of `SPEEDS`.
        purpose: what it is for, one sentence.
        side_range_px: smallest and largest side of the training, where it was trained for many.
    """

    name: str
    matte: Weights
    detector: Weights
    input_wh_px: tuple[int, int]
    speed: str
    purpose: str
    side_range_px: tuple[int, int] | None = None

    @property
    def weights(self) -> tuple[Weights, Weights]:
        return self.matte, self.detector


@dataclass(frozen=True)
class Catalog:
    """Every profile and all weights, by name, in the order of the file."""

    profiles: Mapping[str, Profile]
    weights: Mapping[str, Weights]

    def profile(self, name: str) -> Profile:
        """The profile of this name.

        Raises:
            UnknownProfile: the catalogue has none.
        """
        if name not in self.profiles:
            raise UnknownProfile(f"no profile {name!r}; there are: {', '.join(self.profiles)}")
        return self.profiles[name]

    def detector(self, size: str) -> Weights:
        """The released YOLOv8-seg of a size letter: n, s, m, l or x.

        Raises:
            UnknownProfile: the catalogue has none of this size.
        """
        name = f"yolov8{size}-seg"
        if name not in self.weights:
            raise UnknownProfile(f"no detector of size {size!r} in the catalogue")
        return self.weights[name]


def load_catalog(path: Path = CATALOG) -> Catalog:
    """Read and check a catalogue.

    Raises:
        CatalogError: it cannot be read, is not TOML, or an entry does not fit; the message names file and entry.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CatalogError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise CatalogError(f"{path.name} is not TOML: {error}") from None
    top = _Entry(path.name, table)
    top.only("profiles", "weights")
    weights = {entry.name: _weights(entry) for entry in top.tables("weights")}
    profiles = {entry.name: _profile(entry, weights) for entry in top.tables("profiles")}
    used = {each.name for profile in profiles.values() for each in profile.weights}
    for unused in weights.keys() - used:
        if weights[unused].network not in DETECTORS:
            top.refuse(f"weights.{unused}: no profile names them")
    return Catalog(profiles, weights)


@dataclass(frozen=True)
class _Entry:
    """A table of the file, and where it stands, so that every complaint can say so."""

    where: str
    table: dict[str, Any]
    name: str = ""

    def refuse(self, why: str) -> NoReturn:
        raise CatalogError(f"{self.where}: {why}")

    def only(self, *known: str) -> None:
        if unknown := self.table.keys() - set(known):
            self.refuse(f"unknown: {', '.join(sorted(unknown))}; known are: {', '.join(known)}")

    def tables(self, key: str) -> "list[_Entry]":
        found = self.table.get(key)
        if not isinstance(found, dict) or not found:
            self.refuse(f"has no {key}")
        entries = []
        for name, table in found.items():
            if not isinstance(table, dict):
                self.refuse(f"{key}.{name} is not a table")
            if not _NAME.fullmatch(name):
                self.refuse(f"{key}.{name}: a name is lower-case letters and digits, with - between them")
            entries.append(_Entry(f"{self.where}: {key}.{name}", table, name))
        return entries

    def text(self, key: str, form: "re.Pattern[str] | None" = None, what: str = "a word") -> str:
        value = self.table.get(key)
        if not isinstance(value, str) or not value.strip():
            self.refuse(f"needs {key}, a text")
        if form and not form.fullmatch(value):
            self.refuse(f"{key} must be {what}, not {value!r}")
        return value

    def one_of(self, key: str, choices: "tuple[str, ...]") -> str:
        value = self.text(key)
        if value not in choices:
            self.refuse(f"{key} must be one of {', '.join(choices)}, not {value!r}")
        return value

    def count(self, key: str) -> int:
        value = self.table.get(key)
        if type(value) is not int or value < 1:
            self.refuse(f"{key} must be a whole number above 0, not {value!r}")
        return value

    def pair(self, key: str) -> tuple[int, int]:
        value = self.table.get(key)
        if not isinstance(value, list) or len(value) != 2 or any(type(each) is not int for each in value):
            self.refuse(f"{key} must be two whole numbers, not {value!r}")
        first, second = value
        if any(each < SIDE_MULTIPLE_PX or each % SIDE_MULTIPLE_PX for each in value):
            self.refuse(f"{key} must be multiples of {SIDE_MULTIPLE_PX}, not {value!r}")
        return first, second


def _weights(entry: _Entry) -> Weights:
    entry.only(*(field.name for field in fields(Weights) if field.name != "name"))
    source = entry.one_of("source", SOURCES)
    file = entry.text("file")
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file:
        entry.refuse(f"file must be a path inside its source, not {file!r}")
    if path.suffix not in _SUFFIXES[source]:
        entry.refuse(f"file must end in {' or '.join(_SUFFIXES[source])} where the source is {source}, not {file!r}")
    repository = revision = None
    if source != BUNDLED:
        repository = entry.text("repository", _REPOSITORY, "owner/name")
        revision = entry.text("revision", _REVISION, "a commit, branch or tag")
    elif "repository" in entry.table or "revision" in entry.table:
        entry.refuse("bundled weights have no repository and no revision")
    if source == RELEASE and "sha256" not in entry.table:
        entry.refuse("needs sha256: GitHub does not name the digest of a release's files")
    return Weights(
        name=entry.name,
        source=source,
        network=entry.one_of("network", MATTES + DETECTORS),
        file=file,
        licence=entry.one_of("licence", tuple(LICENCES)),
        parameters=entry.count("parameters"),
        repository=repository,
        revision=revision,
        size_bytes=entry.count("size_bytes") if "size_bytes" in entry.table else None,
        sha256=entry.text("sha256", SHA256, "64 hexadecimal digits") if "sha256" in entry.table else None,
    )


def _profile(entry: _Entry, weights: Mapping[str, Weights]) -> Profile:
    entry.only(*(field.name for field in fields(Profile) if field.name != "name"))
    side_range = entry.pair("side_range_px") if "side_range_px" in entry.table else None
    if side_range and not 0 < side_range[0] < side_range[1]:
        entry.refuse(f"side_range_px must rise, not {list(side_range)}")
    return Profile(
        name=entry.name,
        matte=_named(entry, "matte", weights, MATTES),
        detector=_named(entry, "detector", weights, DETECTORS),
        input_wh_px=entry.pair("input_wh_px"),
        speed=entry.one_of("speed", SPEEDS),
        purpose=entry.text("purpose"),
        side_range_px=side_range,
    )


def _named(entry: _Entry, key: str, weights: Mapping[str, Weights], networks: tuple[str, ...]) -> Weights:
    name = entry.text(key)
    if name not in weights:
        entry.refuse(f"{key} names the weights {name!r}, which are not in the catalogue")
    if weights[name].network not in networks:
        entry.refuse(f"{key} cannot be {name!r}, which are weights of {weights[name].network}")
    return weights[name]
