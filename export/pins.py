"""The lock file of fetched weights: what a first download was, so that later ones are held to it.

    {"birefnet-dis.safetensors": {"sha256": "…", "size_bytes": 884878856, "source": "owner/name", "revision": "…"}}

Only weights whose digest the catalogue does not know are in it. It may be committed, so that a team shares it.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from export import ExportError


class PinsError(ExportError, ValueError):
    """export/weights.lock.json is not a lock file: …"""


@dataclass(frozen=True)
class Pin:
    """What a file was when it was first fetched.

    Attributes:
        source: `owner/name` at the Hub or on GitHub, or `folder` where it was taken from one.
        revision: the commit at the Hub, or a release's tag; None where it came from a folder.
    """

    sha256: str
    size_bytes: int
    source: str
    revision: str | None = None


def read_pins(path: Path) -> dict[str, Pin]:
    """All pins by file name; none where there is no file yet.

    Raises:
        PinsError: the file cannot be read or is something else.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): _pin(entry) for name, entry in entries.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PinsError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise PinsError(
            f"{path} is not a lock file of weights ({error}); restore it, or delete it to pin anew"
        ) from None


def _pin(entry: dict[str, object]) -> Pin:
    pin = Pin(**entry)  # type: ignore[arg-type]
    if not isinstance(pin.sha256, str) or len(pin.sha256) != 64 or not isinstance(pin.size_bytes, int):
        raise ValueError("an entry without a digest or size")
    return pin


def add_pin(path: Path, name: str, pin: Pin) -> None:
    """Write the file anew with one more pin; a reader sees the old or the new one, never a half.

    Raises:
        PinsError: it cannot be written.
    """
    pins = {**read_pins(path), name: pin}
    text = json.dumps({each: dataclasses.asdict(pins[each]) for each in sorted(pins)}, indent=2) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise PinsError(
            f"the pin of {name} cannot be written to {path}: {error.strerror or error}; name another file: --lock FILE"
        ) from None
