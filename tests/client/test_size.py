"""The SDK stays small, and its modules import one another in one direction."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "client" / "cutaway"
MAX_LINES = 7_500  # it only goes down
MAX_LINES_OF_A_FILE = 400


def test_lines() -> None:
    lines = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text("utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert sum(lines.values()) <= MAX_LINES, sorted(lines.items(), key=lambda item: -item[1])[:20]
    assert {name for name, count in lines.items() if count > MAX_LINES_OF_A_FILE} == set()


def test_no_import_circle() -> None:
    modules = {_name(path): path for path in PACKAGE.rglob("*.py")}
    graph = {name: set(_imported(path, name, set(modules))) for name, path in modules.items()}
    TopologicalSorter(graph).prepare()  # a CycleError names the circle


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, importer: str, modules: set[str]) -> Iterator[str]:
    """Modules of the package that a file imports, in functions too, but not for annotations alone."""
    pending: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending += node.orelse
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found = full if full in modules else node.module if node.module in modules else None
                # A package's names load lazily or stand in its modules: its version comes before everything else.
                if found is not None and not (found == "cutaway" and alias.name == "__version__"):
                    yield found
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules and alias.name != importer)
        else:
            pending += ast.iter_child_nodes(node)
