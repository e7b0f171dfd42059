"""Is a file what its name says? Looked at without loading it: a header is read, nothing is unpickled."""

import json
import zipfile
from pathlib import Path

HEADER_LIMIT_BYTES = 100_000_000
"""The safetensors format allows no longer header."""


def flaw_of(path: Path, suffix: str) -> str | None:
    """What keeps a file from being whole weights of the kind that `suffix` names; None where nothing does.

    Args:
        suffix: `.safetensors`, or `.pt` for a zip archive of tensors.
    """
    return _flaw_of_safetensors(path) if suffix == ".safetensors" else _flaw_of_archive(path)


def _flaw_of_safetensors(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEADER_LIMIT_BYTES, size - 8):
            return "is no safetensors file"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "is no safetensors file"
    return None if size == expected else f"has {size} bytes, where its header says {expected}"


def _flaw_of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return "is no PyTorch archive"
    return None if any(name.endswith("/data.pkl") for name in names) else "is no PyTorch archive"
