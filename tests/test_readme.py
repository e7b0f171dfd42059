"""What the documents tell people to type exists: make targets, files, links, commands and options; Python runs.

Warnings and the server's metrics are those of the code.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(
        part.startswith(".") or part.endswith(("-output", "node_modules")) for part in page.relative_to(ROOT).parts
    )
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#]*)(?:#([^)]*))?\)")
SERVER = ROOT / "model_repository"
NAMED = re.compile(r"`((?:client|docs|docker|runtime|export|benchmarks|loadtest|tests|samples|requirements)/[\w./-]+)`")


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(BLOCK, "", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text()):
        if "://" in target or target.startswith("mailto:"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} points to {target}, which is not there"
        if anchor:
            assert anchor in anchors(file), f"{page.name} points to {target}#{anchor}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    for name in NAMED.findall(page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}, which is not there"


def test_every_warning_is_described() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    described = set(re.findall(r"`([A-Z_]+)`", text[text.index("## Warnings") : text.index("## Input rules")]))
    sources = [*SERVER.rglob("*.py"), *(ROOT / "client" / "cutaway").rglob("*.py")]
    issued = {
        code
        for file in sources
        for code in re.findall(r"""(?:Notice\(|warned\[|warned = \{)\s*"([A-Z_]+)\"""", file.read_text())
    }
    assert len(issued) > 10
    assert issued | {"UNTOUCHED"} == described


def test_every_module_of_the_sdk_is_described() -> None:
    text = (ROOT / "client" / "README.md").read_text()
    described = set(re.findall(r"`([a-z_]+)/?`", text[text.index("## Modules") : text.index("## Licences")]))
    package = ROOT / "client" / "cutaway"
    modules = {each.stem for each in package.iterdir() if each.suffix == ".py" or (each / "__init__.py").exists()}
    assert {name for name in modules if not name.startswith("_")} <= described


def test_every_metric_is_described() -> None:
    families = re.findall(
        r'^    "(cutaway_\w+)":', (SERVER / "ensemble_pipeline/1/metrics.py").read_text(), re.MULTILINE
    )
    for folder in ("gateway", "runtime"):
        families += re.findall(r'(?<!b)"(cutaway_\w+)"', (ROOT / folder / "metrics.py").read_text())
    rows = re.findall(r"^\| (`cutaway_.*?) \|", (ROOT / "docs" / "deploy.md").read_text(), re.MULTILINE)
    described = [name.replace("…", "cutaway_gateway") for row in rows for name in re.findall(r"`(.*?)`", row)]
    assert {name.removesuffix("_total") for name in described} == set(families)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^make ([a-z-]+)", "\n".join(blocks(page, "sh", "bash", "console")), re.MULTILINE)
    assert set(named) <= targets


def test_cutaway_commands_parse() -> None:
    """Every `cutaway …` line of the README names a subcommand and options that its --help knows."""
    lines = re.findall(r"^cutaway (.+)$", "\n".join(blocks(ROOT / "README.md", "sh")), re.MULTILINE)
    assert lines, "the README shows no cutaway command"
    for line in lines:
        subcommand = line.split()[0]
        shown = subprocess.run(
            [sys.executable, "-m", "cutaway", subcommand, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for option in re.findall(r"(--[a-z-]+)", line.split("#")[0]):
            assert option in shown, f"`cutaway {subcommand}` has no {option}"


@pytest.mark.triton
def test_python_of_the_readme_runs(server, tmp_path, monkeypatch) -> None:
    """The README's Python, as it stands but for the address, against a running server."""
    code = "\n".join(blocks(ROOT / "README.md", "python"))
    assert "grpc://localhost:8001" in code
    code = code.replace("grpc://localhost:8001", server.grpc_url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes((ROOT / "samples" / "astronaut.jpg").read_bytes())
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "cutout.png").read_bytes().startswith(b"\x89PNG")
