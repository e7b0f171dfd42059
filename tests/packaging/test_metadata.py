"""What the wheel says of itself, and that it declares all that it imports."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import cutaway
import pytest

from tests.packaging.environments import ROOT, SUPPORTED

PACKAGE = ROOT / "client" / "cutaway"


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return BytesParser().parsebytes(archive.read(name))


def test_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packed = {name for name in names if not name.startswith("cutaway-")}
    assert packed == {
        str(file.relative_to(PACKAGE.parent)) for file in PACKAGE.rglob("*") if file.is_file() and file.suffix != ".pyc"
    }
    assert "cutaway/py.typed" in packed
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_metadata(metadata: Message) -> None:
    assert metadata["Version"] == cutaway.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == f">={SUPPORTED[0]}"
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = metadata.get_payload(decode=True)
    assert isinstance(description, bytes)
    assert description.decode() == (ROOT / "client" / "README.md").read_text()
    classifiers = metadata.get_all("Classifier", [])
    assert "Typing :: Typed" in classifiers
    assert [c.rpartition(" ")[2] for c in classifiers if re.search(r"3\.\d+$", c)] == list(SUPPORTED)


def test_imports_are_declared(metadata: Message) -> None:
    """Each third-party module that the package imports belongs to a requirement of its own or of an extra."""
    requirements = [re.match(r"[\w.-]+", line) for line in metadata.get_all("Requires-Dist", [])]
    declared = {_plain(found[0]) for found in requirements if found}
    # tritonclient[grpc] is the gRPC client: its extra is what brings grpcio and protobuf.
    declared |= {"grpcio", "protobuf"}
    owners = importlib.metadata.packages_distributions()
    for file in PACKAGE.rglob("*.py"):
        for name in _imported(ast.parse(file.read_text())):
            if name in sys.stdlib_module_names or name == "cutaway":
                continue
            if name == "typing_extensions":
                assert _only_for_types(file), f"{file.name} imports typing_extensions when it runs"
                continue
            assert declared & {_plain(owner) for owner in owners[name]}, f"{file.name} imports {name}"


def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 1_000_000


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _only_for_types(file: Path) -> bool:
    """Whether typing_extensions is imported under `if TYPE_CHECKING` alone."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    return "typing_extensions" not in _imported(tree)
