"""The networks' files of a profile: found, held against their checksums, and their inputs and outputs read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.checks import RuntimeProblem
from runtime.digest import sha256_of
from runtime.onnx_file import Signature, read_signature

CHECKSUMS = "SHA256SUMS"
NETWORKS = ("yolov8_seg", "birefnet_trt")
"""The models that are networks; a profile's folder holds one `<name>.onnx` for each."""
FREE_DETECTOR = "yolov8_seg_free"
"""The detector once more, for pictures of any size; a folder may hold it, and streams are quicker on a CPU then."""
WHOLE_MATTING = "u2netp"
"""A matting network for whole pictures; a folder may hold it where its `birefnet_trt` knows people only."""
INT8_SUFFIX = ".int8.onnx"
"""Of a network's 8-bit copy, which a folder may hold: less than half of the time on a CPU with VNNI."""
CHECKOUT = Path(__file__).resolve().parents[1]
MADE, BUNDLED = CHECKOUT / "models", CHECKOUT / "export" / "weights"
"""Where `python -m export onnx` puts profiles' folders, and where the bundled ones are."""


def profile_folder(profile: str, made: Path = MADE, bundled: Path = BUNDLED) -> Path:
    """The folder of a profile's files: the one that was made here where there is one, else the bundled one.

    A folder counts as made when it has its checksums, which are written last.
    """
    return made / profile if (made / profile / CHECKSUMS).is_file() else bundled / profile


@dataclass(frozen=True)
class Network:
    """One checked ONNX file."""

    name: str
    path: Path
    sha256: str
    signature: Signature


def load_networks(folder: Path, *, int8: bool = False) -> dict[str, Network]:
    """The checked networks of a folder by model name.

    Args:
        folder: the profile's folder.
        int8: take 8-bit copies where the folder has them, see `devices.has_vnni`.

    Raises:
        RuntimeProblem: when a file is missing, differs from its checksum or is not an ONNX model.
    """
    if not folder.is_dir() and folder.parent == BUNDLED:
        raise RuntimeProblem(
            f"the profile {folder.name} is not bundled; make its files first (make models PROFILE={folder.name}), or "
            "name a folder that has them: --weights DIR"
        )
    for name in NETWORKS:
        if not (folder / f"{name}.onnx").is_file():
            raise RuntimeProblem(
                f"the weight file {folder / f'{name}.onnx'} is missing; restore it (git checkout, or make models), "
                "or name the folder that has it: --weights DIR"
            )
    expected = read_checksums(folder)
    further = [name for name in (FREE_DETECTOR, WHOLE_MATTING) if (folder / f"{name}.onnx").is_file()]
    there = (*NETWORKS, *further)
    copies = {name for name in there if int8 and (folder / f"{name}{INT8_SUFFIX}").is_file()}
    return {name: _network(folder, name, expected, INT8_SUFFIX if name in copies else ".onnx") for name in there}


def precision_of(networks: dict[str, Network]) -> str:
    """For the operator: which of the files they are."""
    copies = [networks[name].path.name.endswith(INT8_SUFFIX) for name in NETWORKS]
    return "8-bit networks" if all(copies) else "float32 networks"


def read_checksums(folder: Path) -> dict[str, str]:
    """Checksums by file name, from the folder's SHA256SUMS as `sha256sum` writes it."""
    try:
        text = (folder / CHECKSUMS).read_text()
    except OSError as error:
        raise RuntimeProblem(
            f"the checksums {folder / CHECKSUMS} cannot be read ({error.strerror}); restore the file, or where the "
            f"weights are your own: cd {folder} && sha256sum *.onnx > {CHECKSUMS}"
        ) from None
    rows = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return {row[1].lstrip("*").strip(): row[0].lower() for row in rows if len(row) == 2}


def _network(folder: Path, name: str, expected: dict[str, str], suffix: str) -> Network:
    path = folder / f"{name}{suffix}"
    if path.name not in expected:
        raise RuntimeProblem(f"{folder / CHECKSUMS} has no line for {path.name}; restore both from the repository")
    try:
        found = sha256_of(path)
    except OSError as error:
        raise RuntimeProblem(f"the weight file {path} cannot be read: {error.strerror or error}") from None
    if found != expected[path.name]:
        raise RuntimeProblem(
            f"the weight file {path} is damaged or another one: its SHA-256 is {found[:12]}…, "
            f"{CHECKSUMS} says {expected[path.name][:12]}…; restore it (git checkout)"
        )
    try:
        signature = read_signature(path)
    except ValueError as error:
        raise RuntimeProblem(f"the weight file {path} cannot be used: {error}") from None
    return Network(name, path.resolve(), found, signature)
