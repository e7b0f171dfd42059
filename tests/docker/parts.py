"""The files that make containers, parsed for the tests."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


@cache
def script(name: str) -> ModuleType:
    """A script of docker/ as a module. By its path, since a package named `docker` may be installed."""
    spec = importlib.util.spec_from_file_location(f"cutaway_docker_{name}", ROOT / "docker" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def services(settings: dict[str, str] | None = None) -> dict[str, Any]:
    """The services of docker-compose.yml, merged, with the variables filled in: the given values, else the defaults."""

    def value(match: re.Match[str]) -> str:
        return (settings or {}).get(match[1]) or match[2] or ""

    document = YAML(typ="safe").load(VARIABLE.sub(value, COMPOSE.read_text()))
    found: dict[str, Any] = document["services"]
    return found


def bytes_of(size: str) -> int:
    """Docker's "512m" in bytes."""
    return int(size[:-1]) * {"k": 1024, "m": 1024**2, "g": 1024**3}[size[-1]]


def seconds(duration: str) -> float:
    """Docker's "45s" in seconds."""
    assert duration.endswith("s"), duration
    return float(duration[:-1])


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words without options (`--from=…`); the items of the JSON form."""
        if self.text.startswith("["):
            return [str(item) for item in json.loads(self.text)]
        return [word for word in self.text.split() if not word.startswith("--")]

    @property
    def stage(self) -> str | None:
        """The stage that a COPY takes from."""
        found = re.search(r"--from=(\S+)", self.text)
        return found[1] if found else None


def instructions(dockerfile: Path) -> list[Instruction]:
    """The instructions of a Dockerfile, continuation lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]


def final_stage(dockerfile: Path) -> list[Instruction]:
    """The instructions after the last FROM."""
    found = instructions(dockerfile)
    start = max(index for index, instruction in enumerate(found) if instruction.name == "FROM")
    return found[start:]


def arguments(dockerfile: Path) -> dict[str, str]:
    """The ARGs of a Dockerfile with their defaults."""
    pairs = [one.text.split("=", 1) for one in instructions(dockerfile) if one.name == "ARG"]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def lay_out(dockerfile: Path, target: Path) -> Path:
    """Write what the final stage copies from the checkout below its WORKDIR into `target`."""
    for copy in final_stage(dockerfile):
        if copy.name == "COPY" and copy.stage is None:
            *sources, destination = copy.words
            for source in sources:
                into = target / destination / Path(source).name if destination.endswith("/") else target / destination
                into.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, into, ignore=shutil.ignore_patterns("__pycache__", "*.plan"))
                else:
                    shutil.copy(ROOT / source, into)
    return target


def reckoned(text: str) -> tuple[str, int, int]:
    """A sum in a comment, "In MiB: Triton 512, 4 pipelines of at most 1024: 4608": its parts, their sum, its result."""
    told = re.sub(r"\s+#\s+", " ", text.rpartition("In MiB: ")[2])
    parts, total = re.match(r"(.*?): (\d+)\D", told).groups()  # type: ignore[union-attr]
    found = 0
    for part in parts.split(", "):
        numbers = [int(number) for number in re.findall(r"\b\d+\b", part.partition(" (")[0])]
        found += numbers[0] * numbers[1] if "of at most" in part else numbers[-1]
    return parts, found, int(total)
